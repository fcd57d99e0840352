"""Ports that were picked free are kept, so that a node that comes back is where others look for it.

Peers remember each other's addresses. If every node of a run went down at once, and came back on
ports newly picked, all of those would be wrong and the swarm would be in pieces for ever. So ports
that nobody asked for by number are written down, and taken again while they are free. Ports that a
person asked for are not remembered: they are asked for each time.

Where the default ones are taken, as by another node of this machine, the next three in a row are tried: they are easier
to let through a firewall than any three.
"""

from __future__ import annotations

from collections.abc import Callable

from peerlm.daemon.sockets import ports_from
from peerlm.errors import StateError
from peerlm.store import disk
from peerlm.store.layout import Layout

Three = tuple[int, int, int]
"""Introduction, control and bulk port."""

PORTS = "ports"
PORTS_BYTES_MAX = 64


STEP, ROWS = 10, 10
"""7700, 7710, 7720 and so on: so many are tried."""


def preferred(
    layout: Layout, base: int, *, or_free: bool, is_free: Callable[[int], bool] = lambda _: True
) -> Three:
    """The ports to try first; 0 for any free one. `or_free`: `base` is only a wish, or 0."""
    if not or_free:
        return ports_from(base)
    if (kept := _read(layout)) is not None:
        return kept
    rows = [ports_from(base + STEP * n) for n in range(ROWS)] if base else []
    return next((row for row in rows if all(map(is_free, row))), ports_from(base))


def remember(layout: Layout, base: int, ports: Three) -> None:
    """These were taken in the end. Raises `StateError`."""
    path = layout.root / PORTS
    if ports == ports_from(base):
        if path.exists():
            disk.remove(path)
    elif _read(layout) != ports:
        disk.write_atomic(path, " ".join(map(str, ports)).encode())


def _read(layout: Layout) -> Three | None:
    """What was written down; None if nothing fit to be read."""
    try:
        words = disk.read_file(layout.root / PORTS, PORTS_BYTES_MAX).split()
    except StateError:
        return None
    if len(words) != 3 or not all(word.isdigit() and 0 < int(word) < 65_536 for word in words):
        return None
    return int(words[0]), int(words[1]), int(words[2])
