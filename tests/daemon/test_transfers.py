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
from peerlm.effects import RunPull, ServePull
from peerlm.errors import ChunkCorrupt, StateError
from peerlm.events import ObjectLost, PullEnded, PullServed
from peerlm.mix.fragment import SlowFragment
from peerlm.store.layout import Layout, StateDirectory
from peerlm.store.objects import PIECE_BYTES, Arriving, Objects
from peerlm.types import FragmentId, ObjectHash, PeerId, TransferId

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
    posted: list[Any] = []
    objects = FullDisk()
    fields = dict.fromkeys(RunPull.__slots__, 0) | {"transfer": ONE}
    with ThreadPoolExecutor(1) as pool:
        one = transfers(pool, print, post=posted.append, objects=objects)
        one.run_pull(RunPull(**fields))
        await asyncio.gather(*one._running.values())
    assert posted == [PullEnded(ONE, "failed", "no room")]
    assert objects.asked_on != threading.get_ident()


# ----------------------------------------------------------------- what is kept for the store


class Wire(NoBulk):
    """A bulk plane that pulls and serves within the process. `sent` is what a peer gets to see."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.gives = b""
        self.was_whole = False
        self.breaks: Exception | None = None

    async def serve(self, transfer: Any, read: Any, size: int, *_: Any) -> int:
        for at in range(0, size, PIECE_BYTES):
            length = min(PIECE_BYTES, size - at)
            self.sent += await asyncio.get_running_loop().run_in_executor(None, read, at, length)
        return size

    async def serve_whole(self, transfer: Any, load: Any, size: int, *_: Any) -> int:
        self.sent += await asyncio.get_running_loop().run_in_executor(None, load)
        self.was_whole = True
        return size

    async def pull(self, *arguments: Any) -> None:
        write_at = arguments[5]
        for at in range(0, len(self.gives), PIECE_BYTES):
            write_at(at, self.gives[at : at + PIECE_BYTES])
        if self.breaks is not None:
            raise self.breaks

    async def pull_whole(self, *arguments: Any) -> None:
        arguments[3][:] = self.gives
        self.was_whole = True
        if self.breaks is not None:
            raise self.breaks


class Scene:
    def __init__(self, root: Path, pool: ThreadPoolExecutor) -> None:
        StateDirectory(root).close()
        self.objects, self.wire = Objects(Layout(root)), Wire()
        self.posted: list[Any] = []
        parts = {"post": self.posted.append, "bulk": self.wire, "objects": self.objects}
        self.transfers = transfers(pool, print, **parts)

    async def serve(self, name: ObjectHash) -> None:
        self.transfers.serve_pull(ServePull(ONE, PeerId(b"p" * 16), name, b"", b"", 5.0))
        await asyncio.gather(*self.transfers._running.values())

    async def pull(self, data: bytes, name: ObjectHash, is_chunk: bool) -> None:
        self.wire.gives = data
        peer = PeerId(b"p" * 16)
        pull = RunPull(ONE, peer, "here", 1, name, len(data), b"", b"", 5.0, is_chunk)
        self.transfers.run_pull(pull)
        await asyncio.gather(*self.transfers._running.values())


WHOLE = bytes(range(256)) * 4000


async def test_a_chunk_is_served_as_it_was_put(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        scene = Scene(tmp_path, pool)
        name = scene.objects.put_chunk(WHOLE)
        await scene.serve(name)
        assert scene.wire.sent == WHOLE
        assert scene.wire.was_whole
        scene.wire.was_whole = False
        assert scene.posted == [PullServed(ONE, "ok", len(WHOLE))]
        other = scene.objects.put(WHOLE[:-1])
        await scene.serve(other)
        assert not scene.wire.was_whole


@pytest.mark.parametrize("at", [0, len(WHOLE) // 2, len(WHOLE) - 1])
async def test_not_one_byte_of_a_damaged_chunk_is_served(tmp_path: Path, at: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        scene = Scene(tmp_path, pool)
        name = scene.objects.put_chunk(WHOLE)
        data = bytearray(WHOLE)
        data[at] ^= 128
        scene.objects.path(name).write_bytes(data)
        await scene.serve(name)
    assert scene.wire.sent == b""
    lost, served = scene.posted
    assert isinstance(lost, ObjectLost)
    assert lost.object_hash == name
    assert "has changed" in lost.reason
    assert served == PullServed(ONE, "lost", 0)
    assert not scene.objects.has_chunk(name)


async def test_a_vanished_chunk_is_lost_and_a_dropped_one_is_not(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        scene = Scene(tmp_path, pool)
        name = scene.objects.put_chunk(WHOLE)
        scene.objects.path(name).unlink()
        await scene.serve(name)
        assert [type(event) for event in scene.posted] == [ObjectLost, PullServed]
        await scene.serve(name)
        assert scene.posted[2:] == [PullServed(ONE, "lost", 0)]


@pytest.mark.parametrize("is_chunk", [True, False])
async def test_what_is_pulled_for_the_store_lies_there(tmp_path: Path, is_chunk: bool) -> None:
    with ThreadPoolExecutor(1) as pool:
        scene = Scene(tmp_path, pool)
        name = Objects.put_chunk(Scene(tmp_path / "there", pool).objects, WHOLE)
        await scene.pull(WHOLE, name, is_chunk)
    assert scene.posted == [PullEnded(ONE, "ok")]
    assert scene.objects.has_chunk(name) == is_chunk
    assert scene.objects.read_verified(name) == WHOLE


async def test_a_pull_cancelled_while_it_is_made_durable_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, let_go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    finish = Arriving.finish

    def late(coming: Arriving) -> None:
        loop.call_soon_threadsafe(begun.set)
        let_go.wait(5)
        finish(coming)
        loop.call_soon_threadsafe(ended.set)

    ended = asyncio.Event()
    monkeypatch.setattr(Arriving, "finish", late)
    with ThreadPoolExecutor(1) as pool:
        scene = Scene(tmp_path, pool)
        name = Objects.put_chunk(Scene(tmp_path / "there", pool).objects, WHOLE)
        pulling = asyncio.create_task(scene.pull(WHOLE, name, True))
        async with asyncio.timeout(5):
            await begun.wait()
            scene.transfers.cancel(ONE)
            let_go.set()
            await ended.wait()
        await asyncio.gather(pulling, return_exceptions=True)
    assert scene.posted == []
    assert scene.objects.read_verified(name) == WHOLE


async def test_a_frame_that_was_spoilt_on_the_way_is_not_the_donors_fault(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        scene = Scene(tmp_path, pool)
        name = Objects.put_chunk(Scene(tmp_path / "there", pool).objects, WHOLE)
        scene.wire.breaks = ChunkCorrupt("a frame with a wrong tag")
        await scene.pull(WHOLE, name, True)
        scene.wire.breaks = None
        await scene.pull(bytes(len(WHOLE)), name, True)
    assert [event.outcome for event in scene.posted] == ["lost", "corrupt"]
