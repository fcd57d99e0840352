"""Flushes that fall together are one, and none is taken for one that began too early."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from peerlm.store.flushes import Flushes

LONG_S = 10.0


class Disk:
    """Names that were given, and those that a flush has made durable. A flush takes until `let_go`."""

    def __init__(self) -> None:
        self.names: set[int] = set()
        self.durable: set[int] = set()
        self.flushes = 0
        self.fails: list[Exception] = []
        self.has_begun, self.let_go = threading.Semaphore(0), threading.Semaphore(0)

    def flush(self) -> None:
        seen = set(self.names)
        self.flushes += 1
        self.has_begun.release()
        assert self.let_go.acquire(timeout=LONG_S)
        if self.fails:
            raise self.fails.pop()
        self.durable |= seen

    def given(self, flushes: Flushes, name: int) -> Callable[[], bool]:
        def give() -> bool:
            self.names.add(name)
            flushes.flush()
            return name in self.durable

        return give


class Queue(threading.Condition):
    """Counts who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting.release()
        return super().wait(timeout)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as threads:
        yield threads


def test_those_that_come_during_a_flush_share_the_next(pool) -> None:
    disk = Disk()
    flushes, queue = Flushes(disk.flush), Queue()
    flushes._turn = queue
    first = pool.submit(disk.given(flushes, 0))
    assert disk.has_begun.acquire(timeout=LONG_S)
    others = [pool.submit(disk.given(flushes, name)) for name in range(1, 8)]
    for _ in others:
        assert queue.waiting.acquire(timeout=LONG_S)
    disk.let_go.release(2)
    assert first.result(LONG_S)
    assert all(other.result(LONG_S) for other in others)
    assert disk.flushes == 2


def test_a_flush_that_fails_is_told_to_who_made_it_and_others_make_their_own(pool) -> None:
    disk = Disk()
    disk.fails = [OSError(5, "Input/output error")]
    flushes = Flushes(disk.flush)
    made: list[Future[bool]] = [pool.submit(disk.given(flushes, name)) for name in range(5)]
    disk.let_go.release(5)
    wait(made, LONG_S)
    faults = [each.exception(LONG_S) for each in made]
    assert sum(fault is not None for fault in faults) == 1
    assert all(each.result() for each in made if each.exception() is None)


def test_each_is_durable_when_it_returns(pool) -> None:
    disk = Disk()
    flushes = Flushes(disk.flush)
    disk.let_go.release(1000)
    made = list(pool.map(lambda name: disk.given(flushes, name)(), range(200)))
    assert all(made)
    assert 1 <= disk.flushes <= 200
