"""Scrubbing carried out: what is kept for the store is read on a thread, slowly, and what was lost is told.

`store.scrub` says whose turn it is; here is waited and read. Each reading comes from the device, not from what the kernel
remembers. A chunk that is dropped while its turn comes is no loss, and one that cannot be read just now, for want of a
descriptor say, has its next turn as if nothing had been.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

from peerlm.errors import ChunkCorrupt, StateError, Vanished
from peerlm.store.objects import Objects
from peerlm.store.scrub import DAY_S, Scrub, Turn
from peerlm.types import ObjectHash, WallTime

LOOK_S = 600.0
"""What came and went since is looked at again after so long, and the plan's position is kept."""

TURNS_AT_ONCE = 256
"""Looked up together, since that takes a look at every chunk."""

BYTES_S = 8_000_000
"""A tenth of what a slow disk reads in a row."""


R = TypeVar("R")


class Verdict(Enum):
    SOUND = auto()
    LOST = auto()
    AWAY = auto()
    """Not kept any more, or not to be read just now."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a full pass found."""

    checked: int
    """Chunks and manifests that were read, damaged ones too."""
    damaged: int
    """Of them, those that were damaged or gone."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Checked:
    """When chunks that are here were last read by scrubbing."""

    here: int
    """Of those that were asked for."""
    unknown: int
    """Of these, not read since they came, as far as is known."""
    oldest: float | None
    """Wall time of the reading that is longest ago, of the others."""


class Scrubbing:
    """Args:
    pool: where files are read; one thread of it is in use at a time, one more during `scrub_now`.
    lost: told, on the loop, of what was damaged or has vanished, with the reason in one line.
    days: between two readings of a chunk, give or take a fifth; 0: never.
    wall, rng: the wall clock; draws what this node's order depends on.
    state: what `save` was last given.
    save: keeps a few bytes; called on the pool, may raise `StateError`.
    """

    def __init__(
        self,
        objects: Objects,
        pool: Executor,
        lost: Callable[[ObjectHash, str], None],
        *,
        days: float,
        wall: Callable[[], WallTime],
        rng: random.Random,
        bytes_s: float = BYTES_S,
        state: bytes = b"",
        save: Callable[[bytes], None] = lambda state: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._objects, self._pool, self._lost = objects, pool, lost
        self._wall, self._save, self._sleep = wall, save, sleep
        self._plan = Scrub(days * DAY_S, bytes_s, rng, wall(), state) if days > 0 else None
        self._whole_at: float | None = None
        """When the last full pass began."""

    async def run(self) -> None:
        """Until it is cancelled; returns at once where nothing is to be scrubbed."""
        plan = self._plan
        while plan is not None:
            await self._look(plan)
            await self._on_pool(self._keep_state, plan)

    async def scrub_now(
        self, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> Found:
        """Read everything now, as fast as one thread does. `progress`: called on the loop with how many of how many
        have been read."""
        began, began_at = time.monotonic(), self._wall()
        chunks = self._objects.chunks
        found: Counter[Verdict] = Counter()
        for done, (object_hash, _) in enumerate(chunks, 1):
            found[await self._check(object_hash)] += 1
            progress(done, len(chunks))
        self._whole_at = began_at
        checked = found[Verdict.SOUND] + found[Verdict.LOST]
        return Found(checked, found[Verdict.LOST], time.monotonic() - began)

    async def checked(self, hashes: Sequence[ObjectHash]) -> Checked:
        """When those of them that are here were last read; each was when it came, too."""
        found: Checked = await self._on_pool(self._checked, hashes)
        return found

    def _checked(self, hashes: Sequence[ObjectHash]) -> Checked:
        here = [one for one in hashes if self._objects.has_chunk(one)]
        read = [at for one in here if (at := self._read_at(one)) is not None]
        return Checked(len(here), len(here) - len(read), min(read, default=None))

    def _read_at(self, object_hash: ObjectHash) -> float | None:
        turn = self._plan.last(object_hash) if self._plan is not None else None
        known = [at for at in (turn, self._whole_at) if at is not None]
        return max(known, default=None)

    async def _look(self, plan: Scrub) -> None:
        """The turns of the next while."""
        until = self._wall() + LOOK_S
        turns = await self._on_pool(self._turns, plan)
        for turn in turns:
            if (wait_s := min(turn.at, until) - self._wall()) > 0:
                await self._sleep(wait_s)
            if turn.at > until or self._wall() > until:
                return
            await self._take(plan, turn)
        if not turns:
            await self._sleep(LOOK_S)

    async def _take(self, plan: Scrub, turn: Turn) -> None:
        began = self._wall()
        if await self._check(turn.object_hash) is not Verdict.AWAY:
            took_s = max(0.0, self._wall() - began)
            await self._sleep(max(0.0, plan.pause_s(turn.size) - took_s))
        plan.taken(turn)

    async def _check(self, object_hash: ObjectHash) -> Verdict:
        reason = await self._on_pool(self._read, object_hash)
        if reason:
            self._lost(object_hash, reason)
            return Verdict.LOST
        return Verdict.AWAY if reason is None else Verdict.SOUND

    # ------------------------------------------------------------------------------- on the pool

    def _turns(self, plan: Scrub) -> list[Turn]:
        return plan.turns(self._objects.chunks, self._wall(), TURNS_AT_ONCE)

    def _read(self, object_hash: ObjectHash) -> str | None:
        """Why it is lost; empty: it is sound; None: it is not kept any more, or cannot be read just now."""
        if not self._objects.has_chunk(object_hash):
            return None
        try:
            self._objects.read_verified(object_hash, from_device=True)
        except (ChunkCorrupt, Vanished) as error:
            return str(error)
        except StateError:
            return None
        return ""

    def _keep_state(self, plan: Scrub) -> None:
        with suppress(StateError):  # then what was read since is read again
            self._save(plan.state)

    async def _on_pool(self, call: Callable[..., R], *arguments: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)
