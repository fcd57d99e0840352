"""Waiting until what was put into the store is on other nodes too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peerlm.cli.desk_here import Tell
from peerlm.types import ObjectHash

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client

LOOK_S = 0.25

EASE = 3.0
"""A survey is made again after so many times as long as the last one took, since each asks every node."""

STANDSTILL_S = 600.0
"""Nothing has come to enough nodes for so long, which is many chunks at once on a slow line: waiting does not help."""

DURABLE = 2
"""Nodes that have something on their disks before it counts as kept."""


@dataclass(frozen=True, slots=True)
class Copies:
    least: int
    """Nodes that have the chunk that the fewest have."""
    possible: int
    """Live nodes that could."""
    waiting: int
    """Chunks that fewer nodes have than was waited for, when waiting was given up."""

    @property
    def is_durable(self) -> bool:
        return self.least >= DURABLE


def wait_copies(
    desk: Client,
    hashes: Sequence[ObjectHash],
    wanted: int,
    tell: Tell,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Copies:
    """Until each of the chunks is on `wanted` nodes, or on all that offer room where these are fewer."""
    pending = list(hashes)
    since, before = clock(), len(pending)
    while True:
        possible = holders(desk)
        least = min(wanted, possible)
        began = clock()
        counts = desk.survey(pending).counts
        pending = [wanted for wanted, count in zip(pending, counts, strict=True) if count < least]
        tell(len(hashes) - len(pending), len(hashes), f"on {least} nodes")
        if len(pending) < before:
            since, before = clock(), len(pending)
        if not pending or clock() - since > STANDSTILL_S:
            counts = desk.survey(hashes).counts
            return Copies(min(counts, default=0), possible, len(pending))
        sleep(max(LOOK_S, EASE * (clock() - began)))


def holders(desk: Client) -> int:
    """Live nodes that could have a copy: those that offer room, and this one, which has what was put."""
    said = desk.status()
    return len({said["node"], *(node["id"] for node in said["nodes"] if node["is_live"])})
