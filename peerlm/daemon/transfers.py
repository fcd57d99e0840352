"""Exchanges and pulls as the driver carries them out: arithmetic on one side, bytes on the other.

Each effect becomes one task that fetches, awaits, and reports exactly one event. The arithmetic is
`mix.flow`'s, under the fragment's turn; the bytes are the bulk plane's. A cancelled transfer applies
nothing from the moment the node asked: whether it is still wanted is looked at within the very call
that adds the flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import numpy as np

from peerlm import events
from peerlm.daemon.bulk import Bulk, Cost
from peerlm.daemon.slow_weights import SlowWeights
from peerlm.daemon.spare import Spare
from peerlm.daemon.stopwatch import Stopwatch
from peerlm.daemon.talks import RefusedHere
from peerlm.effects import (
    RunChannel,
    RunExchange,
    RunPull,
    ServeChannel,
    ServeExchange,
    ServePull,
)
from peerlm.errors import (
    ChunkCorrupt,
    PeerlmError,
    StateError,
    Unreachable,
    Vanished,
    WireError,
)
from peerlm.events import Event
from peerlm.mix import flow
from peerlm.mix.chunks import stream_bytes
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.vector import Vector
from peerlm.store.manifest import CHUNK_BYTES
from peerlm.store.objects import Arriving, Objects, Partial
from peerlm.types import FragmentId, PeerId, TransferId

R = TypeVar("R")
Coming = Arriving | Partial

BEAT_S, SILENT_S = 1.0, 8.0
"""Ends of a channel say so often that they are there, and believe it of the other for so long."""


class Transfers:
    """All transfers of one node.

    Args:
        moved: told after a flow was added to a fragment, so that θ gets it too.
        noise: random generator of stochastic rounding.
        hear: takes hops of workers that come over channels.
        hear_lap: takes laps that come over channels.
        is_open: told when laps can be sent to a peer, and when no more.
    """

    def __init__(
        self,
        post: Callable[[Event], None],
        bulk: Bulk,
        slow: SlowWeights,
        objects: Objects,
        moved: Callable[[FragmentId], None],
        noise: np.random.Generator,
        hear: Callable[[PeerId, bytes], None] = lambda peer, data: None,
        hear_lap: Callable[[PeerId, bytes], None] = lambda peer, data: None,
        is_open: Callable[[PeerId, bool], None] = lambda peer, is_open: None,
    ) -> None:
        self._hear, self._hear_lap, self._is_open = hear, hear_lap, is_open
        self._says: dict[tuple[PeerId, bool], Callable[[bytes], None]] = {}
        self._post = post
        self._bulk = bulk
        self._slow = slow
        self._objects = objects
        self._moved = moved
        self._noise = noise
        self._spare = Spare(max((slow.size(fragment) for fragment in slow), default=0))
        self._running: dict[TransferId, asyncio.Task[None]] = {}

    # -------------------------------------------------------------------------------- effects

    def run_exchange(self, effect: RunExchange) -> None:
        """→ `ExchangeEnded`."""
        self._spawn(effect.transfer, self._run_exchange(effect))

    def serve_exchange(self, effect: ServeExchange) -> None:
        """→ `ExchangeServed`."""
        self._spawn(effect.transfer, self._serve_exchange(effect))

    def run_pull(self, effect: RunPull) -> None:
        """→ `PullProgressed`…, `PullEnded`."""
        self._spawn(effect.transfer, self._run_pull(effect))

    def serve_pull(self, effect: ServePull) -> None:
        """→ `PullServed`."""
        self._spawn(effect.transfer, self._serve_pull(effect))

    def run_channel(self, effect: RunChannel) -> None:
        """→ `ChannelOpened`, `ChannelEnded`."""
        target = (effect.host, effect.bulk_port)
        self._spawn(effect.transfer, self._channel(effect, target))

    def serve_channel(self, effect: ServeChannel) -> None:
        """→ `ChannelOpened`, `ChannelEnded`."""
        self._spawn(effect.transfer, self._channel(effect, None))

    def hop(self, peer: PeerId, data: bytes) -> None:
        """Over the channel with `peer`; lost if there is none."""
        if (say := self._says.get((peer, False))) is not None:
            say(data)

    def lap(self, peer: PeerId, data: bytes) -> bool:
        """Over the channel for texts with `peer`. False: there is none."""
        if (say := self._says.get((peer, True))) is None:
            return False
        say(data)
        return True

    def cancel(self, transfer: TransferId) -> None:
        """Nothing of this transfer is applied or reported any more."""
        if task := self._running.pop(transfer, None):
            task.cancel()
        self._bulk.cancel(transfer, "cancelled")

    async def close(self) -> None:
        tasks = list(self._running.values())
        for transfer in list(self._running):
            self.cancel(transfer)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, transfer: TransferId, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running[transfer] = task
        task.add_done_callback(lambda ended: self._ended(transfer, ended))

    def _ended(self, transfer: TransferId, ended: asyncio.Task[None]) -> None:
        """One that has reported its end may have a successor of the same id by now."""
        if self._running.get(transfer) is ended:
            del self._running[transfer]
        if not ended.cancelled() and (error := ended.exception()) is not None:
            ended.get_loop().call_exception_handler(
                {"message": "a transfer failed", "exception": error, "fatal": True}
            )

    # ------------------------------------------------------------------------------- exchanges

    async def _run_exchange(self, e: RunExchange) -> None:
        size = self._slow.size(e.fragment)
        with self._spare.lent(size) as difference:
            side = flow.Asking(self._slow.fragment(e.fragment), **self._rules(e, difference))
            try:
                cost = await self._bulk.exchange(
                    e.transfer,
                    e.host,
                    e.bulk_port,
                    side,
                    (e.key_up, e.key_down),
                    e.progress_timeout_s,
                    e.timeout_s,
                )
            except RefusedHere as error:
                self._post(events.ExchangeEnded(e.transfer, "refused", str(error)))
                return
            except PeerlmError as error:
                self._post(events.ExchangeEnded(e.transfer, "lost", _reason(error)))
                return
            moved = await self._apply(e.transfer, e.fragment, lambda _: side.apply())
        sent, received = stream_bytes(e.codec_request, size), stream_bytes(e.codec_reply, size)
        self._post(_went_well(events.ExchangeEnded, e.transfer, moved, sent, received, cost))

    async def _serve_exchange(self, e: ServeExchange) -> None:
        size = self._slow.size(e.fragment)
        with self._spare.lent(size) as difference:
            side = flow.Answering(self._slow.fragment(e.fragment), **self._rules(e, difference))
            try:
                cost = await self._bulk.answer(
                    e.transfer, side, (e.key_up, e.key_down), e.progress_timeout_s, e.timeout_s
                )
            except RefusedHere as error:
                self._post(events.ExchangeServed(e.transfer, "refused", str(error)))
                return
            except PeerlmError as error:
                self._post(events.ExchangeServed(e.transfer, "lost", _reason(error)))
                return
            moved = await self._apply(e.transfer, e.fragment, lambda _: side.apply())
        sent, received = stream_bytes(e.codec_reply, size), stream_bytes(e.codec_request, size)
        self._post(_went_well(events.ExchangeServed, e.transfer, moved, sent, received, cost))

    async def _apply(
        self, transfer: TransferId, fragment: FragmentId, call: Callable[[SlowFragment], R]
    ) -> R:
        """`call` under the fragment's turn, unless the transfer has been cancelled by then."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def call_if_wanted(slow: SlowFragment) -> R:
            if self._running.get(transfer) is not task:
                raise asyncio.CancelledError
            with Stopwatch(self._bulk.counters)("apply"):
                result = call(slow)
            # From here, for a flow that was added is θ's too, whatever becomes of the task.
            loop.call_soon_threadsafe(self._moved, fragment)
            return result

        return await self._slow.on(fragment, call_if_wanted)

    def _rules(self, e: RunExchange | ServeExchange, difference: Vector) -> dict[str, Any]:
        return {
            "codec_request": e.codec_request,
            "codec_reply": e.codec_reply,
            "weight": e.weight,
            "clip_norm": e.clip_norm,
            "rng": self._noise,
            "difference": difference,
            "through_momentum": e.through_momentum,
        }

    # -------------------------------------------------------------------------------- channels

    async def _channel(self, e: RunChannel | ServeChannel, target: tuple[str, int] | None) -> None:
        """Until it breaks, or nothing comes for too long. A word each second says that we are there."""
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        is_open, way = False, (e.peer, e.for_texts)
        hear = self._hear_lap if e.for_texts else self._hear
        said: list[Callable[[bytes], None]] = []

        def heard(message: bytes) -> None:
            nonlocal heard_at, is_open
            heard_at = loop.time()
            if not is_open:
                is_open = True
                self._says[way] = said[0]
                self._post(events.ChannelOpened(e.transfer))
                if e.for_texts:
                    self._is_open(e.peer, True)
            if message:
                hear(e.peer, message)

        keys = (e.key_up, e.key_down)
        run = asyncio.create_task(self._bulk.channel(e.transfer, target, keys, heard, said.append))
        try:
            while not (await asyncio.wait({run}, timeout=BEAT_S))[0]:
                if loop.time() - heard_at > SILENT_S:
                    reason = f"nothing came for {SILENT_S:g} s"
                    break
                if said:
                    said[0](b"")
            else:
                reason = await _ending(run)
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            if said and self._says.get(way) is said[0]:
                del self._says[way]
                if e.for_texts:
                    self._is_open(e.peer, False)
        self._post(events.ChannelEnded(e.transfer, reason))

    # ----------------------------------------------------------------------------------- pulls

    async def _run_pull(self, e: RunPull) -> None:
        """A chunk comes into memory; what is larger, or no chunk, onto the disk frame by frame."""
        progressed = partial(self._progressed, e.transfer)
        line = (e.transfer, e.host, e.bulk_port)
        keys = (e.key_up, e.key_down)
        try:
            coming = await self._begin(e)
        except PeerlmError as error:
            self._post(events.PullEnded(e.transfer, "failed", str(error)))
            return
        try:
            if isinstance(coming, Arriving):
                values = coming.values
                await self._bulk.pull_whole(*line, values, keys, progressed, e.progress_timeout_s)
            else:
                sink = coming.write_at
                await self._bulk.pull(*line, e.size, keys, sink, progressed, e.progress_timeout_s)
        except PeerlmError as error:
            coming.discard()
            # Of a chunk whoever is on the way may have spoilt a frame: only the whole of it tells what its donor keeps.
            fault = "lost" if e.is_chunk and _fault(error) == "corrupt" else _fault(error)
            self._post(events.PullEnded(e.transfer, fault, _reason(error)))
            return
        except asyncio.CancelledError:
            coming.discard()
            raise
        try:  # once begun it ends by itself: nobody else may close its file meanwhile
            finish = asyncio.get_running_loop().run_in_executor(None, coming.finish)
            finish.add_done_callback(_looked_at)
            await asyncio.shield(finish)
        except PeerlmError as error:
            self._post(events.PullEnded(e.transfer, _fault(error), _reason(error)))
            return
        self._post(events.PullEnded(e.transfer, "ok"))

    def _progressed(self, transfer: TransferId, received_bytes: int) -> None:
        self._post(events.PullProgressed(transfer, received_bytes))

    async def _begin(self, e: RunPull) -> Coming:
        """Room for the object: measuring the directory may take a while. Raises `StateError`."""
        loop, objects = asyncio.get_running_loop(), self._objects

        def begin() -> Coming:
            if e.is_chunk and e.size <= CHUNK_BYTES:
                return objects.await_chunk(e.object_hash, e.size)
            return objects.begin(e.object_hash, e.size, e.is_chunk)

        begun = loop.run_in_executor(None, begin)
        try:
            return await asyncio.shield(begun)
        except asyncio.CancelledError:
            begun.add_done_callback(_discard)
            raise

    async def _serve_pull(self, e: ServePull) -> None:
        """What is kept for the store is read whole before any of it is sent: no damaged byte of it ever is."""
        objects, name = self._objects, e.object_hash
        keys, is_chunk = (e.key_up, e.key_down), objects.has_chunk(name)
        try:
            size = objects.size_bytes(name)
            if is_chunk:
                load = partial(objects.read_verified, name)
                serving = self._bulk.serve_whole(e.transfer, load, size, keys, e.progress_timeout_s)
            else:
                read = partial(objects.read, name)
                serving = self._bulk.serve(e.transfer, read, size, keys, e.progress_timeout_s)
            sent = await serving
        except PeerlmError as error:
            if is_chunk and isinstance(error, ChunkCorrupt | Vanished):
                self._post(events.ObjectLost(name, str(error)))
            self._post(events.PullServed(e.transfer, "lost", 0))
            return
        self._post(events.PullServed(e.transfer, "ok", sent))


Ended = TypeVar("Ended", events.ExchangeEnded, events.ExchangeServed)


def _went_well(
    kind: type[Ended], transfer: TransferId, moved: flow.Flow, sent: int, received: int, cost: Cost
) -> Ended:
    return kind(
        transfer,
        "ok",
        raw_norm=moved.raw_norm,
        applied_norm=moved.applied_norm,
        phi_norm=moved.phi_norm,
        clipped=moved.clipped,
        booked=moved.withheld_norm,
        bytes_sent=sent,
        bytes_received=received,
        work_s=cost.work_s,
        line_bytes_s=cost.line_bytes_s,
    )


async def _ending(run: asyncio.Task[None]) -> str:
    """Why it is over."""
    try:
        await run
    except PeerlmError as error:
        return _reason(error)
    return "it ended"


def _discard(begun: asyncio.Future[Coming]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().discard()


def _looked_at(finish: asyncio.Future[None]) -> None:
    """Of a cancelled pull nobody wants to know how it ended."""
    if not finish.cancelled():
        finish.exception()


def _fault(error: PeerlmError) -> str:
    """In the words of `PullEnded`: whose fault it was."""
    match error:
        case ChunkCorrupt() | WireError():
            return "corrupt"
        case StateError():
            return "failed"
    return "lost"


def _reason(error: Exception) -> str:
    """One line; where it was unreachable, the step first, so that people can count them."""
    if isinstance(error, Unreachable):
        return f"{error.step}: {error}"[:200]
    return str(error)[:200]
