"""Memory that is free on this machine, for work whose need for it shows only as it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from peerlm.cli import words
from peerlm.errors import ConfigError

LEAST_BYTES = 256 << 20
"""That must be left for others."""

GROUPS = Path("/sys/fs/cgroup")


def require_for_duplicates(kept: int, where: str) -> None:
    """Call while duplicates are looked for, `kept` documents being remembered. Raises: ConfigError, there is hardly any left."""
    free = free_bytes()
    if free < LEAST_BYTES:
        raise ConfigError(
            f"{where}: after {kept:,} documents {words.size(free)} of memory are free here, too little to go on: whoever looks "
            "for duplicates remembers some 3 kB of each with --near, 100 bytes with --dedup alone; take --dedup alone, a node "
            "with more memory, or parts of the text"
        )


def free_bytes() -> int:
    """Of the machine, or of the control groups that this process is in, whichever is less."""
    return min([psutil.virtual_memory().available, *_of_groups()])


def _of_groups() -> Iterator[int]:
    with suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        group = GROUPS / own
        for place in (group, *group.parents):
            if place == GROUPS.parent:
                return
            with suppress(OSError, ValueError):  # "max": it has none
                most = int((place / "memory.max").read_text())
                stat = dict(
                    line.split() for line in (place / "memory.stat").read_text().splitlines()
                )
                used = int((place / "memory.current").read_text()) - int(stat["inactive_file"])
                yield max(0, most - used)
