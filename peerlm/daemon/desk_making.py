"""The desk of the process that makes shards (`cli.data_work`): which job to work on, which task is next, what was made.

`daemon.desk` lists the words. The process counts as there from its first `work` on, as long as it is connected: only then
does this node say to others that it takes part. What it made is told to others once its chunks are kept here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from peerlm import events
from peerlm.daemon.desk_frames import as_hash
from peerlm.effects import Effect
from peerlm.errors import StateError
from peerlm.store.manifest import CHUNK_BYTES, Kind, Manifest, manifest_hash
from peerlm.types import Instant, ObjectHash, WallTime
from peerlm.wire.message import JobShard

if TYPE_CHECKING:
    from peerlm.node.node import Node

SHARDS_MAX = 16_384
"""Of one task of a job."""


class MakingDesk:
    """`take`, `saved`: as of the desk. `keep`: put a manifest where chunks are, checked."""

    def __init__(
        self,
        node: Callable[[], Node],
        take: Callable[[Callable[[], list[Effect]]], None],
        saved: Callable[[str], Awaitable[None]],
        keep: Callable[[bytes], Awaitable[Manifest]],
        now: Callable[[], Instant],
        wall: Callable[[], WallTime],
    ) -> None:
        self._node, self._take, self._saved, self._keep = node, take, saved, keep
        self._now, self._wall = now, wall
        self._makers = 0
        """Processes that are there."""

    def is_there(self, more: int) -> None:
        """One process more, or one less."""
        self._makers += more
        jobs, is_there = self._node().library.jobs, self._makers > 0
        if is_there != jobs.is_connected:
            self._take(lambda: jobs.connected(self._now(), is_there=is_there))

    def preparing(self) -> int:
        """Live nodes whose process that makes shards is there, whatever it is at."""
        node = self._node()
        known = [node.company.vitals_of(peer) for peer in node.company.stores()]
        others = sum(vitals is not None and vitals.is_preprocessing for vitals in known)
        return others + node.library.jobs.is_connected

    async def answer(self, word: str, arguments: list[Any]) -> Any:
        """Raises `StateError`."""
        jobs, now = self._node().library.jobs, self._now()
        match word, arguments:
            case "work", []:
                job = jobs.choose(now)
                return None if job is None else [jobs.name_of(job), job]
            case "next", [bytes() as job]:
                return jobs.next(as_hash(job), now)
            case "made", [bytes() as job, int() as task, int() as documents, list() as shards]:
                made = _shards(shards)
                if any(shard.hash not in self._node().storing.here for shard in made):
                    raise StateError(f"chunks of task {task} are not here any more")
                return jobs.made(as_hash(job), task, documents, made, now)
            case "failed", [bytes() as job, str() as why]:
                self._take(lambda: jobs.failed(as_hash(job), why, now))
                return None
            case "again", [bytes() as job]:
                jobs.look_again(as_hash(job), now)
                return None
            case "false", [bytes() as job, int() as task, str() as why]:
                self._take(lambda: jobs.false(as_hash(job), task, why, now))
                return None
            case "rows", [bytes() as job]:
                return [
                    [r.task, r.documents, [[s.hash, s.size, s.tokens] for s in r.shards]]
                    for r in jobs.rows(as_hash(job))
                ]
            case "name", [bytes() as job, bytes() as manifest]:
                await self._name(as_hash(job), manifest)
                return None
        raise StateError(f"the store's desk does not know {word!r} with these arguments")

    async def _name(self, job: ObjectHash, encoded: bytes) -> None:
        """Raises `StateError`: the name is taken."""
        kind = (await self._keep(encoded)).kind
        now, storing, jobs = self._now(), self._node().storing, self._node().library.jobs
        kept = events.ObjectKept(manifest_hash(encoded), len(encoded))
        came = storing.came(kept, now)
        if kind is Kind.JOB:
            named = jobs.go_on(job, kept.object_hash, kept.size, now)
        else:
            named = jobs.publish(job, kept.object_hash, kept.size, self._wall(), now)
        self._take(lambda: [*came, *named])
        await self._saved("catalog")


def _shards(listed: list[Any]) -> tuple[JobShard, ...]:
    """Raises `StateError`: they cannot be told to other nodes."""
    if len(listed) > SHARDS_MAX:
        raise StateError(
            f"{len(listed)} shards of one file, and {SHARDS_MAX} can be told to other nodes: make it with --here"
        )
    for item in listed:
        match item:
            case [bytes(), int(size), int(tokens)] if 0 < size <= CHUNK_BYTES and tokens >= 0:
                pass
            case _:
                raise StateError("no shard: a hash, bytes and tokens are wanted")
    return tuple(JobShard(as_hash(h), size, tokens) for h, size, tokens in listed)
