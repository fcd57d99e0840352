"""Waiting until what was put into the store is on other nodes too, and how many these are, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli import room
from peerlm.cli.desk_here import Tell, progress
from peerlm.errors import PeerlmError
from peerlm.types import ObjectHash

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client

LOOK_S = 0.25

EASE = 3.0
"""A survey is made again after so many times as long as the last one took, since each asks every node."""

STANDSTILL_S = 600.0
"""Nothing has come to enough nodes for so long, which is many chunks at once on a slow line: waiting does not help."""

NOWHERE_S = 60.0
"""The same where no node that answers has some of it: those that made it have died with it."""

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
    full: str = ""
    """Then, nodes that have no room left."""
    nowhere: int = 0
    """Then, those of the chunks that no node has which answers."""

    @property
    def is_durable(self) -> bool:
        return self.least >= DURABLE


wait_option = click.option(
    "--wait",
    type=click.IntRange(0, 32),
    default=DURABLE,
    show_default=True,
    help="Wait until so many nodes have all of it on their disks; 0: do not wait.",
)


def wait_named(
    desk: Client,
    record: dict[str, Any],
    hashes: Sequence[ObjectHash],
    wait: int,
    is_over: Callable[[], bool] = lambda: False,
) -> Copies | None:
    """Of the name's manifest too. None: nothing was waited for."""
    if not wait:
        return None
    all_of_it = [ObjectHash(bytes.fromhex(record["manifest"])), *hashes]
    with progress(f"{record['name']}: chunks") as tell:
        return wait_copies(desk, all_of_it, wait, tell, is_over=is_over)


def facts(copies: Copies | None) -> dict[str, Any]:
    """For `--json`."""
    least, is_durable = (copies.least, copies.is_durable) if copies else (None, None)
    return {"replicas_least": least, "is_durable": is_durable}


def line(record: dict[str, Any], copies: Copies | None) -> str:
    """How many nodes have what the name stands for; empty where `require_enough` has something to say."""
    wanted = record["replicas"]
    if copies is None:
        return f"not waited for copies; {wanted} replicas are wanted: see `peerlm data show {record['name']}`"
    if copies.possible == 1 and not copies.waiting:
        return "there is one copy, here: no other node that offers room is there; others get theirs when they join"
    if copies.is_durable:
        more = f"; {wanted} are wanted, the rest follows" if copies.least < wanted else ""
        return f"durable: {copies.least} nodes have all of it on their disks{more}"
    return "" if copies.waiting else f"{copies.least} of {wanted} replicas are there"


def require_enough(record: dict[str, Any], copies: Copies | None, wait: int) -> None:
    """Raises `PeerlmError`: waiting was given up."""
    if copies is None or not copies.waiting:
        return
    if copies.nowhere:
        raise PeerlmError(
            f"{record['name']} is in the store, but {copies.nowhere} of its chunks are at no node that answers: nodes that made "
            "them have died before others had them; start these again, or say the same command again"
        )
    why = "see `peerlm store status`"
    if copies.full:
        why = f"no room is left at {copies.full}; raise store.bytes in node.toml there, or bring another node"
    raise PeerlmError(
        f"{record['name']} is in the store, but {copies.waiting} chunks have not come to "
        f"{min(wait, copies.possible)} nodes and nothing is copied any more: {why}"
    )


def wait_copies(
    desk: Client,
    hashes: Sequence[ObjectHash],
    wanted: int,
    tell: Tell,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    is_over: Callable[[], bool] = lambda: False,
) -> Copies:
    """Until each of the chunks is on `wanted` nodes, or on all that offer room where these are fewer. `is_over`: they are of no
    interest any more."""
    pending = list(hashes)
    since, before = clock(), len(pending)
    while True:
        possible = holders(desk)
        least = min(wanted, possible)
        began = clock()
        found = desk.survey(pending)
        counts, nowhere = found.counts, 0 if found.silent else found.counts.count(0)
        pending = [wanted for wanted, count in zip(pending, counts, strict=True) if count < least]
        tell(len(hashes) - len(pending), len(hashes), f"on {least} nodes")
        if len(pending) < before:
            since, before = clock(), len(pending)
        given_up = clock() - since > (NOWHERE_S if nowhere else STANDSTILL_S)
        if not pending or given_up or is_over():
            counts = desk.survey(hashes).counts
            full = room.full_nodes(desk.status()) if pending else ""
            return Copies(min(counts, default=0), possible, len(pending), full, nowhere)
        sleep(max(LOOK_S, EASE * (clock() - began)))


def holders(desk: Client) -> int:
    """Live nodes that could have a copy: those that offer room, and this one, which has what was put."""
    said = desk.status()
    return len({said["node"], *(node["id"] for node in said["nodes"] if node["is_live"])})
