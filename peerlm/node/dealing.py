"""One job as a node knows it: which tasks are made, by whom, who is at what, and which is next here.

Results form a map that only grows: (task, maker) → shards. Shards of a task are the same whoever makes them (`data.units`),
so maps of two nodes are merged by putting them together, in any order. A result counts as long as its maker is there, or
its chunks are here; else the task is open again.

Tasks are dealt by rendezvous hashing over those who take part, so without a word everybody knows its own. Who has
none left takes others' that nobody is at, each from where its own turn would be next; what somebody is at is begun a
second time only when that takes very long (the backup tasks of MapReduce, Dean and Ghemawat 2004).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from peerlm.types import Instant, ObjectHash, PeerId
from peerlm.wire.message import JobResult

MAKERS_MAX = 4
"""Results of one task that are remembered."""

SHARDS_MAX = 2_000_000
"""Of all results of a job that others tell, twice as many as a manifest has room for. Beyond that each may still tell its share of as many,
or one could have the rest of a job unheard by telling enough."""

STRAGGLER_S = 180.0
"""A task that its makers have been at for so long may be begun by another."""

LOOKED_AT = 512
"""Open tasks of others that are compared before one is taken."""

PAGE_TASKS = 8 * 4096
"""In one bitmap."""

Counts = Callable[[JobResult], bool]
"""Whether a result counts now."""


class Deal:
    """Of one job and one node."""

    def __init__(self, job: ObjectHash, tasks: int, me: PeerId) -> None:
        self.job, self.tasks, self._me = job, tasks, me
        self.done: dict[int, JobResult] = {}
        """Tasks that are made, by the result that counts."""
        self.open = set(range(tasks))
        """All others."""
        self.tokens = self.documents = 0
        """Of what is done."""
        self.made_by: Counter[PeerId] = Counter()
        self._results: dict[int, dict[PeerId, JobResult]] = {}
        self._told: Counter[PeerId] = Counter()
        """Shards that each of the others has told."""
        self._shards = 0
        """All of these."""
        self._false: set[tuple[int, PeerId]] = set()
        self._distrusted: set[PeerId] = set()
        self._claims: dict[int, dict[PeerId, Instant]] = {}
        self._makers: tuple[PeerId, ...] = ()
        self._cursor = 0

    @property
    def is_complete(self) -> bool:
        return not self.open

    # --------------------------------------------------------------------------------- results

    def add(self, result: JobResult, counts: Counts, by: PeerId | None = None) -> bool:
        """Take a result in. True: it was news. `by`: who says so; None: its maker."""
        task, maker = result.task, PeerId(result.maker)
        if task >= self.tasks or (task, maker) in self._false or maker in self._distrusted:
            return False
        by, shards = by or maker, len(result.shards)
        if by == self._me:
            return self._take(result, counts)
        if not self._may_tell(by, shards) or not self._take(result, counts):
            return False
        self._told[by] += shards
        self._shards += shards
        return True

    def _may_tell(self, by: PeerId, shards: int) -> bool:
        if self._shards + shards <= SHARDS_MAX:
            return True
        return self._told[by] + shards <= SHARDS_MAX // len({*self._told, by})

    def _take(self, result: JobResult, counts: Counts) -> bool:
        task, maker = result.task, PeerId(result.maker)
        known = self._results.setdefault(task, {})
        if maker in known:
            return False
        if len(known) >= MAKERS_MAX:
            idle = next((m for m, r in known.items() if r is not self.done.get(task)), None)
            if idle is None or not counts(result):
                return False
            del known[idle]
        known[maker] = result
        self._claims.get(task, {}).pop(maker, None)
        if task in self.open and counts(result):
            self._settle(task, result)
        return True

    def made(self, result: JobResult) -> None:
        """This node has made a task: whatever others say of it, that is so."""
        self.disown(result.task, self._me)
        self._false.discard((result.task, self._me))
        if result.task in self.done and self.done[result.task].shards != result.shards:
            self.disown(result.task, PeerId(self.done[result.task].maker))
        self._take(result, lambda _: True)

    def distrust(self, maker: PeerId) -> bool:
        """A result of it was damaged: nothing that is said to be its work is believed any more. False: it was not, so this node itself
        makes what is damaged."""
        if maker in self._distrusted:
            return False
        self._distrusted.add(maker)
        for task in self._results:
            self._drop(task, maker)
        return True

    def disown(self, task: int, maker: PeerId) -> None:
        """The result is not true: it is believed no more, and the task made again if there is no other."""
        if self._drop(task, maker):
            self._false.add((task, maker))

    def _drop(self, task: int, maker: PeerId) -> bool:
        """Whether there was such a result."""
        known = self._results.get(task, {}).pop(maker, None)
        if known is None:
            return False
        if self.done.get(task) is known:
            self._reopen(task)
        return True

    def recount(self, counts: Counts) -> None:
        """Other nodes are there than before."""
        for task, result in list(self.done.items()):
            if not counts(result):
                self._reopen(task)
        for task in sorted(self.open & self._results.keys()):
            good = next((r for r in self._results[task].values() if counts(r)), None)
            if good is not None:
                self._settle(task, good)

    def _settle(self, task: int, result: JobResult) -> None:
        self.open.discard(task)
        self.done[task] = result
        self._count(result, 1)

    def _reopen(self, task: int) -> None:
        self._count(self.done.pop(task), -1)
        self.open.add(task)
        self._cursor = 0

    def _count(self, result: JobResult, sign: int) -> None:
        self.tokens += sign * sum(shard.tokens for shard in result.shards)
        self.documents += sign * result.documents
        self.made_by[PeerId(result.maker)] += sign

    # -------------------------------------------------------------------------------- who is at what

    def claim(self, peer: PeerId, tasks: Iterable[int], now: Instant) -> None:
        """All that a node is at now."""
        wanted = {task for task in tasks if task < self.tasks}
        for task in [t for t, claims in self._claims.items() if peer in claims and t not in wanted]:
            del self._claims[task][peer]
            if not self._claims[task]:
                del self._claims[task]
        for task in sorted(wanted):
            self._claims.setdefault(task, {}).setdefault(peer, now)

    def claimed(self) -> list[int]:
        """What this node is at."""
        return sorted(task for task, claims in self._claims.items() if self._me in claims)

    # ------------------------------------------------------------------------------------ dealing

    def next(self, makers: Sequence[PeerId], now: Instant) -> int | None:
        """The task that this node should begin; None: there is none for it now. `makers`: who takes part, it too."""
        if tuple(makers) != self._makers:
            self._makers, self._cursor = tuple(makers), 0
        task = self._own()
        if task is None:
            task = self._others(now)
        if task is not None:
            self._claims.setdefault(task, {})[self._me] = now
        return task

    def _own(self) -> int | None:
        while self._cursor < self.tasks:
            task = self._cursor
            if task in self.open and not self._claims.get(task) and self._rank(task) == 0:
                return task
            self._cursor += 1
        return None

    def _others(self, now: Instant) -> int | None:
        free = islice((t for t in self.open if not self._claims.get(t)), LOOKED_AT)
        if (task := min(free, key=lambda t: (self._rank(t), -t), default=None)) is not None:
            return task
        slow = [
            task
            for task in self.open
            if self._me not in self._claims[task]
            and now - max(self._claims[task].values()) >= STRAGGLER_S
        ]
        return min(slow, key=lambda t: (self._rank(t), t), default=None)

    def _rank(self, task: int) -> int:
        """How many of those who take part come before this node for a task."""
        return turn(self.job + task.to_bytes(4, "big"), self._me, self._makers)

    # ----------------------------------------------------------------------------------- comparing

    def bitmap(self, low: int) -> bytes:
        """A bit for each task of the page that begins at `low`."""
        length = min(PAGE_TASKS, self.tasks - low)
        bits = bytearray(-(-length // 8))
        for at in range(length):
            if low + at in self.done:
                bits[at // 8] |= 0x80 >> at % 8
        return bytes(bits)

    def compared(self, low: int, bits: bytes) -> tuple[list[JobResult], bool]:
        """(Results that another lacks who has these bits, whether it has some that this node lacks)."""
        lacking, is_behind = [], False
        for at in range(min(8 * len(bits), self.tasks - low)):
            has = bool(bits[at // 8] & 0x80 >> at % 8)
            mine = self.done.get(low + at)
            if mine is not None and not has:
                lacking.append(mine)
            is_behind = is_behind or (has and mine is None)
        return lacking, is_behind

    def check(self) -> None:
        """Raises: AssertionError when an invariant is broken."""
        assert len(self.open) + len(self.done) == self.tasks, "tasks went missing"
        assert self.open.isdisjoint(self.done), "a task is open and done"
        assert sum(self.made_by.values()) == len(self.done), "makers were miscounted"


def turn(slot: bytes, me: PeerId, peers: Iterable[PeerId]) -> int:
    """How many of `peers` come before `me` in the order that everybody draws from `slot`."""
    mine = _score(slot, me)
    return sum(_score(slot, peer) < mine for peer in peers if peer != me)


def _score(slot: bytes, peer: PeerId) -> bytes:
    return hashlib.blake2b(slot + peer, digest_size=8).digest()
