"""Scrubbing carried out, on a clock that moves only while it waits."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from peerlm.daemon.scrubbing import LOOK_S, Checked, Found, Scrubbing
from peerlm.errors import StateError
from peerlm.store.layout import Layout, StateDirectory
from peerlm.store.objects import Objects
from peerlm.store.scrub import DAY_S
from peerlm.types import ObjectHash, WallTime

START = 1.8e9


class Ended(Exception):
    """The time of the test is over."""


class Scene:
    def __init__(self, root: Path, pool: ThreadPoolExecutor) -> None:
        StateDirectory(root).close()
        self.objects = Objects(Layout(root))
        self.pool, self.now, self.end = pool, START, START
        self.lost: list[tuple[ObjectHash, str]] = []
        self.read: list[tuple[float, int]] = []
        self.threads: set[int] = set()
        self.states: list[bytes] = []
        verified = self.objects.read_verified

        def read_verified(name: ObjectHash, *, from_device: bool = False) -> bytes:
            assert from_device
            self.threads.add(threading.get_ident())
            self.read.append((self.now, self.objects.size_bytes(name)))
            return verified(name, from_device=from_device)

        self.objects.read_verified = read_verified  # type: ignore[method-assign]

    def scrubbing(self, **given: Any) -> Scrubbing:
        return Scrubbing(
            self.objects,
            self.pool,
            lambda name, reason: self.lost.append((name, reason)),
            wall=lambda: WallTime(self.now),
            rng=random.Random(1),
            sleep=self.sleep,
            **{"days": 7.0, "save": self.states.append} | given,
        )

    async def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds
        if self.now > self.end:
            raise Ended

    async def run(self, days: float, **given: Any) -> None:
        self.end = self.now + days * DAY_S
        with pytest.raises(Ended):
            await self.scrubbing(**given).run()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ThreadPoolExecutor(1) as pool:
        yield Scene(tmp_path, pool)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


async def test_what_rotted_or_vanished_is_told_within_a_round(scene: Scene) -> None:
    names = [scene.objects.put_chunk(random.Random(i).randbytes(500)) for i in range(12)]
    spoil(scene.objects.path(names[3]))
    scene.objects.path(names[7]).unlink()
    await scene.run(days=7 * 1.2)
    told = dict(scene.lost)
    assert set(told) == {names[3], names[7]}
    assert "has changed" in told[names[3]]
    assert "is not kept here" in told[names[7]]
    assert not scene.objects.has_chunk(names[3])
    assert threading.get_ident() not in scene.threads, "files are read on the loop"
    assert len(scene.read) >= 12


async def test_a_restart_reads_nothing_twice(scene: Scene) -> None:
    for i in range(20):
        scene.objects.put_chunk(random.Random(i).randbytes(500))
    await scene.run(days=3)
    before = len(scene.read)
    assert before
    await scene.run(days=0.5 * LOOK_S / DAY_S, state=scene.states[-1])
    assert len(scene.read) <= before + 1


async def test_the_budget_holds_when_everything_is_late(scene: Scene) -> None:
    for i in range(40):
        scene.objects.put_chunk(random.Random(i).randbytes(10_000))
    await scene.run(days=0.01)
    state = scene.states[-1]
    scene.now += 7 * 1.3 * DAY_S
    scene.read.clear()
    await scene.run(days=0.1, state=state, bytes_s=1000.0)
    assert len(scene.read) > 30
    times = [at for at, _ in scene.read]
    assert all(b - a >= 10 - 1e-6 for a, b in pairwise(times))


async def test_never_is_never(scene: Scene) -> None:
    scene.objects.put_chunk(b"kept")
    await scene.scrubbing(days=0.0).run()
    assert scene.read == []


async def test_a_disk_that_takes_no_position_stops_nothing(scene: Scene) -> None:
    def refuse(state: bytes) -> None:
        raise StateError("the disk is full")

    scene.objects.put_chunk(b"kept")
    await scene.run(days=9, save=refuse)
    assert scene.read


async def test_a_full_pass_on_demand_says_how_far_it_is(scene: Scene) -> None:
    names = [scene.objects.put_chunk(random.Random(i).randbytes(500)) for i in range(6)]
    spoil(scene.objects.path(names[0]))
    told: list[tuple[int, int]] = []

    def progress(done: int, of: int) -> None:
        told.append((done, of))
        if done == 3:
            scene.objects.drop_chunk([n for n, _ in scene.objects.chunks][-1])

    found = await scene.scrubbing().scrub_now(progress)
    assert told == [(i, 6) for i in range(1, 7)]
    assert found == Found(checked=5, damaged=1, seconds=found.seconds)
    assert [name for name, _ in scene.lost] == [names[0]]
    again = await scene.scrubbing().scrub_now()
    assert (again.checked, again.damaged) == (4, 0)


async def test_a_pass_can_be_given_up(scene: Scene) -> None:
    for i in range(5):
        scene.objects.put_chunk(random.Random(i).randbytes(500))
    task: asyncio.Task[Found]

    def give_up(done: int, of: int) -> None:
        task.cancel()

    task = asyncio.create_task(scene.scrubbing().scrub_now(give_up))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(scene.read) < 5


async def test_it_is_told_when_what_is_here_was_last_read(scene: Scene) -> None:
    names = [scene.objects.put_chunk(random.Random(i).randbytes(500)) for i in range(12)]
    asked = [*names, ObjectHash(bytes(32))]
    scrubbing = scene.scrubbing()
    assert await scrubbing.checked(asked) == Checked(12, 12, None)
    scene.end = scene.now + 2 * 7 * DAY_S
    with pytest.raises(Ended):
        await scrubbing.run()
    found = await scrubbing.checked(asked)
    assert (found.here, found.unknown) == (12, 0)
    assert found.oldest is not None
    assert scene.now - 1.2 * 7 * DAY_S <= found.oldest < scene.now
    await scrubbing.scrub_now()
    assert await scrubbing.checked(asked) == Checked(12, 0, scene.now)
