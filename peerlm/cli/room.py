"""Whether something fits into the swarm's store, in as many replicas as asked for, by what its nodes say is free.

No two replicas of a chunk are on one node, so of `size` bytes a node takes `size` at most, however much it has free. That
is a bound: where hashing puts chunks unevenly, one node is full a little sooner. What is known to be too much is refused before
anybody waits for it; the rest is seen when copies do not come.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from peerlm.cli import words
from peerlm.errors import StateError
from peerlm.store.manifest import CHUNK_BYTES

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client
    from peerlm.store.manifest import Manifest
    from peerlm.types import ObjectHash

SHOWN = 4
"""Nodes that are named."""

ADDED = "take fewer --replicas, or add it all the same with --wait 0"

Said = dict[str, Any]


def free_of(said: Said) -> dict[str, int]:
    """Bytes that are free at each live node, by the desk's `status`. At this one all is free that no name needs here: what an
    interrupted command has put will be used again, and what is others' to keep goes."""
    free = {}
    for node in said["nodes"]:
        used = said["chunks"]["due_bytes"] if node["id"] == said["node"] else node["used_bytes"]
        if node["is_live"]:
            free[node["id"]] = max(0, node["capacity_bytes"] - used)
    return free


def taken(free: Collection[int], size: int) -> int:
    """Bytes that nodes with so much free take of many replicas of `size` bytes."""
    return sum(min(one, size) for one in free)


def require_free(said: Said, size: int, replicas: int) -> None:
    """Before anything is put. Raises `StateError`: so many replicas, or as many as there are nodes, do not fit."""
    free = free_of(said)
    copies = min(replicas, len(free))
    if copies * size > taken(free.values(), size):
        raise _full(free, copies * size, size, f"{words.some(copies, 'replica')} of")


def require_copies_fit(
    desk: Client, manifest: Manifest, replicas: int, *, is_here: bool = True, or_else: str = ADDED
) -> None:
    """Once all is put, by where it is already. Raises `StateError`. `is_here`: all of it is on this node, and others fetch it from
    there; else each chunk is where it was made."""
    said = desk.status()
    free = free_of(said)
    if is_here and free.pop(said["node"], None) is not None:
        replicas -= 1
    copies = min(replicas, len(free))
    sizes = {chunk.hash: chunk.size for chunk in manifest.chunks}
    if copies * sum(sizes.values()) <= taken(free.values(), sum(sizes.values())):
        return
    lacking = _lacking(desk, sizes, copies, is_here=is_here)
    needed = sum(sizes[one] * count for one, count in lacking.items())
    size = sum(sizes[one] for one in lacking)
    if needed > taken(free.values(), size):
        others = "on other nodes " if is_here else ""
        what = f"{words.some(copies, 'replica')} {others}of"
        raise _full(free, needed, size, what, or_else)


def _lacking(
    desk: Client, sizes: Mapping[ObjectHash, int], copies: int, *, is_here: bool
) -> dict[ObjectHash, int]:
    """How many copies of each are still to be made; `is_here`: on others."""
    counts = desk.survey(list(sizes)).counts
    lacking = zip(sizes, (copies - (count - is_here) for count in counts), strict=True)
    return {wanted: min(count, copies) for wanted, count in lacking if count > 0}


def _full(
    free: Mapping[str, int], needed: int, size: int, what: str, or_else: str = ADDED
) -> StateError:
    tight = sorted((left, node) for node, left in free.items() if left < size)
    told = ", ".join(f"{words.size(left)} at {node[:8]}" for left, node in tight[:SHOWN])
    more = f", {len(tight) - SHOWN} more" if len(tight) > SHOWN else ""
    return StateError(
        f"it does not fit: {what} {words.size(size)} need {words.size(needed)}, and {words.size(taken(free.values(), size))} "
        f"are free for it ({told}{more}); raise store.bytes in node.toml there, remove something (`peerlm data ls`; what was "
        f"removed a moment ago takes room for a minute), {or_else}"
    )


def full_nodes(said: Said) -> str:
    """Which live nodes lack something and have no room left for a chunk; empty: none."""
    full = [
        node["id"][:8]
        for node in said["nodes"]
        if node["is_live"]
        and node["lacking"]
        and node["capacity_bytes"] - node["used_bytes"] < CHUNK_BYTES
    ]
    more = f" and {len(full) - SHOWN} more" if len(full) > SHOWN else ""
    return ", ".join(full[:SHOWN]) + more
