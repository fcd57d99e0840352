"""Transfers as tasks: nothing is applied once cancelled, and a crash is told."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peerlm.daemon.slow_weights import SlowWeights
from peerlm.daemon.transfers import Transfers
from peerlm.errors import StateError
from peerlm.events import PullEnded
from peerlm.mix.fragment import SlowFragment
from peerlm.types import FragmentId, TransferId

ONE = TransferId(b"1" * 16)
FRAGMENT = FragmentId(0)


class NoBulk:
    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()

    def cancel(self, transfer: TransferId, reason: str) -> None:
        pass


class FullDisk:
    """Objects with no room; remembers the thread that was made to find out."""

    def begin(self, *_: object) -> None:
        self.asked_on = threading.get_ident()
        raise StateError("no room")


def transfers(
    pool: ThreadPoolExecutor, moved: Callable[[FragmentId], None], **parts: Any
) -> Transfers:
    slow = SlowWeights({0: SlowFragment(np.zeros(4, np.float32))}, pool)
    given = {"post": print, "bulk": NoBulk(), "objects": None} | parts
    return Transfers(
        given["post"], given["bulk"], slow, given["objects"], moved, np.random.default_rng(1)
    )


async def test_a_cancelled_transfer_that_waits_for_its_turn_applies_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    applied: list[SlowFragment] = []
    moved: list[FragmentId] = []
    on_thread, let_go = asyncio.Event(), threading.Event()
    loop, alone = asyncio.get_running_loop(), SlowWeights._alone

    def late(*args: Any) -> Any:
        loop.call_soon_threadsafe(on_thread.set)
        let_go.wait(5)
        return alone(*args)

    monkeypatch.setattr(SlowWeights, "_alone", late)
    with ThreadPoolExecutor(1) as pool:
        one = transfers(pool, moved.append)
        one._spawn(ONE, one._apply(ONE, FRAGMENT, applied.append))
        async with asyncio.timeout(5):
            await on_thread.wait()
        one.cancel(ONE)
        let_go.set()
    await asyncio.sleep(0)
    assert applied == []
    assert moved == []


async def test_an_applied_flow_reaches_theta() -> None:
    moved: list[FragmentId] = []
    with ThreadPoolExecutor(1) as pool:
        one = transfers(pool, moved.append)
        one._spawn(ONE, one._apply(ONE, FRAGMENT, lambda slow: None))
        await asyncio.gather(*one._running.values())
        await asyncio.sleep(0)
    assert moved == [FRAGMENT]


async def test_a_crash_of_a_transfer_is_told_to_the_loop_as_fatal() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def bug() -> None:
        raise OSError("a bug that looks like the world's fault")

    with ThreadPoolExecutor(1) as pool:
        one = transfers(pool, print)
        one._spawn(ONE, bug())
        await asyncio.gather(*one._running.values(), return_exceptions=True)
        await asyncio.sleep(0)
    assert [context["fatal"] for context in told] == [True]


async def test_room_for_an_object_is_made_off_the_loop(tmp_path: Path) -> None:
    from peerlm.effects import RunPull

    posted: list[Any] = []
    objects = FullDisk()
    fields = dict.fromkeys(RunPull.__slots__, 0) | {"transfer": ONE}
    with ThreadPoolExecutor(1) as pool:
        one = transfers(pool, print, post=posted.append, objects=objects)
        one.run_pull(RunPull(**fields))
        await asyncio.gather(*one._running.values())
    assert posted == [PullEnded(ONE, "failed", "no room")]
    assert objects.asked_on != threading.get_ident()
