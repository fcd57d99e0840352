"""What is wrong with a node's part of the swarm's store, in lines for people: what lacks, for how long, what is awaited.

What is soon over by itself is not told of: chunks that have just been named lack everywhere but at one node. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peerlm.node.status import StoreSummary
from peerlm.types import Instant

PATIENCE_S = 60.0
"""What has lacked for less is on its way."""

COPIES_MIN = 2
"""With fewer, the end of one disk is the end of something."""

HOUR_S = 3600.0


class Shortage:
    """Since when something lacks without a break."""

    def __init__(self) -> None:
        self._since: Instant | None = None

    def see(self, lacking: int, now: Instant) -> None:
        """How many lack. Call again and again."""
        if not lacking:
            self._since = None
        elif self._since is None:
            self._since = now

    def lasts_s(self, now: Instant) -> float:
        """Seconds; 0: nothing lacks."""
        return 0.0 if self._since is None else now - self._since


def jobs_stuck(jobs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A line for each corpus that nodes have looked at, and none can make. `jobs`: of `Jobs.standing`."""
    return tuple(
        f"no node can make {job['name']}: {next(iter(job['troubles'].values()))}"
        for job in jobs
        if job["troubles"] and not job["makers"] and (job["sweep"] or job["done"] < job["tasks"])
    )


def wrong(store: StoreSummary, others: int) -> Iterator[str]:
    """A line for each thing, the worst first, and what to do about it. `others`: live members; a node alone knows that it is."""
    if store.trouble:
        yield f"this node's disk takes nothing for the store: {store.trouble}"
    if store.unfound and store.lacking_s >= PATIENCE_S:
        yield (
            f"{_chunks(store.unfound)} looked for in vain: no live node has them; start those that are away "
            "(`peerlm data verify NAME` says of which files they are)"
        )
    if store.is_full:
        yield (
            f"this node is full: {_chunks(store.lacking)} not here that should be, {_lasts(store)}; raise store.bytes "
            f"({store.capacity:,}) in node.toml, or bring another node"
        )
    elif store.lacking > store.unfound and store.lacking_s >= PATIENCE_S:
        yield _lacks(store)
    if store.names and others and store.nodes < COPIES_MIN:
        who = "no live node offers" if not store.nodes else "only one live node offers"
        yield (
            f"{who} room to the store, so nothing has a second copy: bring another (store.enabled, store.bytes, and an "
            "invite with the role store)"
        )
    yield from store.jobs_stuck
    if store.refused:
        yield store.refused


def _lacks(store: StoreSummary) -> str:
    urgent = ""
    if store.urgent:
        urgent = f", {store.urgent} of which may be on one live node alone"
    awaited = f"{store.pulling} are being fetched or looked for"
    if not store.pulling:
        awaited = "they wait their turn under store.repair_bytes_s"
    return (
        f"{_chunks(store.lacking)} not here, {_lasts(store)}, that this node should keep for the store{urgent}; {awaited} "
        "(`peerlm store repair` makes it hurry)"
    )


def _chunks(count: int) -> str:
    return "one chunk is" if count == 1 else f"{count} chunks are"


def _lasts(store: StoreSummary) -> str:
    seconds = store.lacking_s
    if seconds < PATIENCE_S:
        return "for a moment"
    return f"for {seconds / HOUR_S:.1f} h" if seconds >= HOUR_S else f"for {seconds / 60:.0f} min"
