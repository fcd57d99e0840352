"""The bulk plane: tensors and objects between nodes, away from the loop.

A thread of its own with sockets of its own (`daemon.mover`) moves the bytes; the loop hands it work
and awaits the outcome, so that a hundred megabytes under way do not delay an answer to a probe.
`daemon.stream` is what two nodes say to each other, `daemon.talks` what they have to say,
`wire.frame` how it is sealed.

In an exchange the initiator's `exchange` meets the responder's `answer`; an object goes from `serve`
to `pull`. Both sides know the transfer's id, its two fresh keys and the sizes beforehand, from the
control plane. Ids and keys are used once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from peerlm.daemon.mover import Entry, Mover
from peerlm.daemon.resolve import resolve
from peerlm.daemon.stream import Talk
from peerlm.daemon.talks import (
    Answer,
    Ask,
    Converse,
    Fetch,
    FetchWhole,
    Give,
    GiveWhole,
    Load,
    Read,
    Sink,
)
from peerlm.mix.flow import Answering, Asking
from peerlm.types import TransferId
from peerlm.wire.frame import CHUNK_BYTES

Keys = tuple[bytes, bytes]
"""Up (from the initiator), down."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What an exchange has cost: processor time of the bulk thread, which does all but apply it, and what the
    line could send."""

    work_s: float
    line_bytes_s: float
    """0 if it is not known."""


class Bulk:
    """Binds the bulk port. `port` is where it listens; `counters` bytes moved and callers turned away.

    upload_bytes_s, download_bytes_s: ceilings, 0 for none. window: chunks of an object that may wait
    for the disk, or be read ahead from it. Raises `ConfigError` when the port is taken (with
    `or_free`, takes a free one).

    What awaits a transfer raises `Unreachable` (step connect: never an answer; transfer: it broke
    off, or was cancelled on either side; admission: too much under way here), `ChunkCorrupt` (a frame
    that does not hold), `WireError` (sizes other than agreed) or, of an exchange, `RefusedHere`
    (a gate of ours held).
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        security: str = "aead",
        upload_bytes_s: float = 0,
        download_bytes_s: float = 0,
        window: int = 32,
        or_free: bool = False,
    ) -> None:
        self._window = window
        self._loop = asyncio.get_running_loop()
        self._mover = Mover(
            host,
            port,
            or_free=or_free,
            security=security,
            upload_bytes_s=upload_bytes_s,
            download_bytes_s=download_bytes_s,
            on_crash=partial(self._on_loop, self._report_crash),
        )
        self._disk = ThreadPoolExecutor(1, "bulk-disk")
        self.port = self._mover.port
        self.counters = self._mover.counters

    @property
    def waiting(self) -> int:
        """Connections that are kept for the next transfer between the same two ends (`daemon.kept`)."""
        return self._mover.waiting

    async def exchange(
        self,
        transfer: TransferId,
        host: str,
        port: int,
        side: Asking,
        keys: Keys,
        progress_timeout_s: float,
        timeout_s: float,
    ) -> Cost:
        """Ask a peer with `side`; when this returns, the whole difference is there and passes our
        gates, and the peer knows it. The bulk thread may use `side` until then, and a moment longer
        if this is cancelled."""
        timeouts_s = (progress_timeout_s, timeout_s)
        return await self._outcome(self._entry(transfer, Ask(side), keys, timeouts_s, (host, port)))

    async def answer(
        self,
        transfer: TransferId,
        side: Answering,
        keys: Keys,
        progress_timeout_s: float,
        timeout_s: float,
    ) -> Cost:
        """Wait for a peer to ask, and answer it with `side`; when this returns, the whole request was
        there and passes our gates. The last of the answer may still be on its way."""
        timeouts_s = (progress_timeout_s, timeout_s)
        return await self._outcome(self._entry(transfer, Answer(side), keys, timeouts_s))

    async def pull(
        self,
        transfer: TransferId,
        host: str,
        port: int,
        size: int,
        keys: Keys,
        sink: Sink,
        on_progress: Callable[[int], None],
        progress_timeout_s: float,
    ) -> None:
        """Fetch an object of `size` bytes, over as many connections as it takes. `sink(offset, bytes)`
        is called in the disk thread; `on_progress(bytes so far)` on the loop now and then. What
        `sink` raises ends the pull and is raised here."""
        entry: Entry
        told = partial(self._disk_moved, lambda: entry)
        talk = Fetch(size, self._window, sink, self._disk, told)
        entry = self._entry(transfer, talk, keys, (progress_timeout_s, float("inf")), (host, port))
        entry.holds_bytes = min(size, self._window * CHUNK_BYTES)
        await self._pulled(entry, on_progress)

    async def pull_whole(
        self,
        transfer: TransferId,
        host: str,
        port: int,
        values: memoryview,
        keys: Keys,
        on_progress: Callable[[int], None],
        progress_timeout_s: float,
    ) -> None:
        """Fetch an object into memory, all of `values`. The bulk thread may write there until this returns, and a moment
        longer if it is cancelled."""
        timeouts_s = (progress_timeout_s, float("inf"))
        entry = self._entry(transfer, FetchWhole(values), keys, timeouts_s, (host, port))
        entry.holds_bytes = len(values)
        await self._pulled(entry, on_progress)

    async def _pulled(self, entry: Entry, on_progress: Callable[[int], None]) -> None:
        entry.progressed = lambda count: self._on_loop(on_progress, count)
        await self._outcome(entry)

    async def serve(
        self,
        transfer: TransferId,
        read: Read,
        size: int,
        keys: Keys,
        progress_timeout_s: float,
    ) -> int:
        """Give an object to whoever pulls it; returns the bytes sent once the peer has all.
        `read(offset, length)` is called in the disk thread; what it raises ends this and is raised
        here."""
        entry: Entry
        told = partial(self._disk_moved, lambda: entry)
        talk = Give(size, self._window, read, self._disk, told)
        entry = self._entry(transfer, talk, keys, (progress_timeout_s, float("inf")))
        entry.holds_bytes = min(size, self._window * CHUNK_BYTES)
        return await self._served(entry)

    async def serve_whole(
        self, transfer: TransferId, load: Load, size: int, keys: Keys, progress_timeout_s: float
    ) -> int:
        """Give an object that is kept in memory meanwhile. `load()`, all of it, is called in the disk thread once somebody
        has come for it; what it raises ends this and is raised here."""
        entry: Entry
        told = partial(self._disk_moved, lambda: entry)
        talk = GiveWhole(size, load, self._disk, told)
        entry = self._entry(transfer, talk, keys, (progress_timeout_s, float("inf")))
        entry.holds_bytes = size
        return await self._served(entry)

    async def _served(self, entry: Entry) -> int:
        served: asyncio.Future[int] = self._loop.create_future()
        entry.given = self._settler(served)
        await self._outcome(entry)
        sent: int = await self._or_cancel(entry, served)
        return sent

    async def channel(
        self,
        transfer: TransferId,
        target: tuple[str, int] | None,
        keys: Keys,
        heard: Callable[[bytes], None],
        opened: Callable[[Callable[[bytes], None]], None],
    ) -> None:
        """Keep a channel until it breaks, which this raises; with `target`, dial it. `opened` is called at once with what
        says a message over it; `heard`, on the loop, with each that comes."""
        talk = Converse(lambda message: self._on_loop(heard, message))
        entry = self._entry(transfer, talk, keys, (float("inf"), float("inf")), target)

        def say(message: bytes) -> None:
            self._mover.call(partial(talk.add, message))
            self._mover.call(partial(self._mover.nudge, entry))

        opened(say)
        await self._outcome(entry)

    def cancel(self, transfer: TransferId, reason: str) -> None:
        """End a transfer, if it is under way; whoever awaits it gets `Unreachable` at step transfer,
        here and at the peer."""
        self._mover.call(partial(self._mover.cancel, transfer, reason))

    async def close(self) -> None:
        """End all transfers and the threads."""
        self._mover.call(self._mover.stop)
        await asyncio.to_thread(self._mover.wait_ended)
        self._disk.shutdown(wait=False, cancel_futures=True)

    # ---------------------------------------------------------------------------------- inside

    def _entry(
        self,
        transfer: TransferId,
        talk: Talk,
        keys: Keys,
        timeouts_s: tuple[float, float],
        target: tuple[str, int] | None = None,
    ) -> Entry:
        holds_bytes = talk.side.held_bytes if isinstance(talk, Ask | Answer) else 0
        return Entry(transfer, talk, keys, target, *timeouts_s, _nobody, holds_bytes)

    async def _outcome(self, entry: Entry) -> Cost:
        if entry.target is not None:
            host, port = entry.target
            entry.target = ((await resolve(host))[0], port)
        taken: asyncio.Future[None] = self._loop.create_future()
        entry.taken = self._settler(taken)
        self._mover.call(partial(self._mover.add, entry))
        await self._or_cancel(entry, taken)
        return Cost(entry.work_s, entry.line_bytes_s)

    async def _or_cancel(self, entry: Entry, outcome: asyncio.Future[Any]) -> Any:
        try:
            return await outcome
        except asyncio.CancelledError:
            self.cancel(entry.id, "cancelled")
            raise

    def _disk_moved(self, entry: Callable[[], Entry], error: BaseException | None) -> None:
        self._mover.call(lambda: self._mover.moved(entry(), error))

    def _settler(self, future: asyncio.Future[Any]) -> Callable[[Any], None]:
        """A function for the bulk thread that gives a future of the loop its result or error."""

        def settle(outcome: Any) -> None:
            if future.done():
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        return partial(self._on_loop, settle)

    def _on_loop(self, call: Callable[[Any], None], value: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, value)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _report_crash(self, error: BaseException) -> None:
        self._loop.call_exception_handler(
            {"message": "the bulk thread ended", "exception": error, "fatal": True}
        )


def _nobody(_: object) -> None:
    """Who awaits a transfer before it has begun."""
