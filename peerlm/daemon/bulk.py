"""The bulk plane: tensors and objects between nodes, away from the loop.

A thread of its own with sockets of its own (`daemon.mover`) moves the bytes; the loop hands it work
and awaits the outcome, so that a hundred megabytes under way do not delay an answer to a probe.
`daemon.transfer` is what two nodes say to each other, `wire.frame` how.

An exchange goes up and down: the initiator's `exchange` meets the responder's `expect`, then its
`reply`. An object goes down: `pull` meets `serve`. Both sides know the transfer's id, its two fresh
keys and the sizes beforehand, from the control plane. Ids and keys are used once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from peerlm.daemon.mover import Entry, Mover
from peerlm.daemon.resolve import resolve
from peerlm.daemon.transfer import Offer, Sink, Transfer, Want, offer_of
from peerlm.errors import Unreachable
from peerlm.types import Instant, TransferId
from peerlm.wire.frame import CHUNK_BYTES, Buffer


class Bulk:
    """Binds the bulk port. `port` is where it listens; `counters` bytes moved and frames dropped.

    upload_bytes_s, download_bytes_s: ceilings, 0 for none. window: chunks of 256 KiB in flight of one
    transfer. Raises `ConfigError` when the port is taken (with `or_free`, takes a free one).

    What awaits a transfer raises `Unreachable` (step connect: never an answer; transfer: it broke
    off, or was cancelled on either side; admission: too much under way here), `ChunkCorrupt` (chunks
    came, but none that hold) or `WireError` (sizes other than agreed).
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
        self._security = security
        self._window = window
        self._loop = asyncio.get_running_loop()
        self._mover = Mover(
            host,
            port,
            or_free=or_free,
            window=window,
            upload_bytes_s=upload_bytes_s,
            download_bytes_s=download_bytes_s,
            on_crash=partial(self._on_loop, self._report_crash),
        )
        self.port = self._mover.port
        self.counters = self._mover.counters

    async def exchange(
        self,
        transfer: TransferId,
        host: str,
        port: int,
        request: Buffer,
        reply_bytes_max: int,
        key_up: bytes,
        key_down: bytes,
        progress_timeout_s: float,
        timeout_s: float,
    ) -> memoryview:
        """Send a request, return the reply. `request` must not change until then."""
        entry = self._entry(
            transfer,
            (key_up, key_down),
            offer_of(request),
            Want(reply_bytes_max, exact=False),
            (progress_timeout_s, timeout_s),
            target=(host, port),
        )
        entry.holds_bytes = len(request) + reply_bytes_max
        return await self._outcome(entry)

    async def expect(
        self,
        transfer: TransferId,
        request_bytes: int,
        key_up: bytes,
        key_down: bytes,
        progress_timeout_s: float,
        timeout_s: float,
    ) -> memoryview:
        """Wait for a peer's request of exactly so many bytes. Then `reply`, within `timeout_s` of
        this call."""
        entry = self._entry(
            transfer,
            (key_up, key_down),
            None,
            Want(request_bytes, exact=True),
            (progress_timeout_s, timeout_s),
        )
        entry.holds_bytes = request_bytes
        return await self._outcome(entry)

    async def reply(self, transfer: TransferId, data: Buffer) -> None:
        """Answer an expected request. Returns at once; `data` is kept, and must not change, until
        the peer has it, has been silent for its progress timeout or the exchange's time is up.
        Raises `Unreachable` when the exchange is over already."""
        given: asyncio.Future[bool] = self._loop.create_future()
        settle = self._settler(given)
        self._mover.call(lambda: settle(self._mover.give(transfer, data)))
        if not await given:
            raise Unreachable("transfer", "the exchange is over, its reply comes too late")

    async def pull(
        self,
        transfer: TransferId,
        host: str,
        port: int,
        size: int,
        key_up: bytes,
        key_down: bytes,
        sink: Sink,
        on_progress: Callable[[int], None],
        progress_timeout_s: float,
    ) -> None:
        """Fetch an object of `size` bytes. `sink(offset, bytes)` is called in the disk thread, in
        any order of offsets; `on_progress(bytes so far)` on the loop now and then. What `sink`
        raises ends the pull and is raised here."""
        entry = self._entry(
            transfer,
            (key_up, key_down),
            None,
            Want(size, exact=True, sink=sink),
            (progress_timeout_s, float("inf")),
            target=(host, port),
        )
        entry.holds_bytes = min(size, self._window * CHUNK_BYTES)
        entry.progressed = lambda count: self._on_loop(on_progress, count)
        await self._outcome(entry)

    async def serve(
        self,
        transfer: TransferId,
        read: Callable[[int, int], Buffer],
        size: int,
        key_up: bytes,
        key_down: bytes,
        progress_timeout_s: float,
    ) -> int:
        """Give an object to whoever pulls it; returns the bytes sent once the peer has all.
        `read(offset, length)` is called in the disk thread; what it raises ends this and is raised
        here."""
        entry = self._entry(
            transfer,
            (key_up, key_down),
            Offer(size, read, slow=True),
            Want(0, exact=True),
            (progress_timeout_s, float("inf")),
        )
        entry.holds_bytes = min(size, self._window * CHUNK_BYTES)
        served: asyncio.Future[int] = self._loop.create_future()
        entry.given = self._settler(served)
        await self._outcome(entry)
        sent: int = await self._or_cancel(entry, served)
        return sent

    def cancel(self, transfer: TransferId, reason: str) -> None:
        """End a transfer, if it is under way; whoever awaits it gets `Unreachable` at step transfer,
        here and at the peer."""
        self._mover.call(partial(self._mover.cancel, transfer, reason))

    async def close(self) -> None:
        """End all transfers and the threads."""
        self._mover.call(self._mover.stop)
        await asyncio.to_thread(self._mover.wait_ended)

    # ---------------------------------------------------------------------------------- inside

    def _entry(
        self,
        transfer: TransferId,
        keys: tuple[bytes, bytes],
        offer: Offer | None,
        want: Want,
        timeouts_s: tuple[float, float],
        target: tuple[str, int] | None = None,
    ) -> Entry:
        machine = Transfer(
            id=transfer,
            initiator=target is not None,
            key_up=keys[0],
            key_down=keys[1],
            security=self._security,
            offer=offer,
            want=want,
            width=self._window,
            began_at=Instant(time.monotonic()),
            progress_timeout_s=timeouts_s[0],
            timeout_s=timeouts_s[1],
            peer_name=f"{target[0]} bulk port {target[1]}" if target else "the peer",
        )
        return Entry(machine, taken=_nobody, target=target)

    async def _outcome(self, entry: Entry) -> memoryview:
        if entry.target is not None:
            host, port = entry.target
            entry.target = ((await resolve(host))[0], port)
        taken: asyncio.Future[memoryview] = self._loop.create_future()
        entry.taken = self._settler(taken)
        self._mover.call(partial(self._mover.add, entry))
        here: memoryview = await self._or_cancel(entry, taken)
        return here

    async def _or_cancel(self, entry: Entry, outcome: asyncio.Future[Any]) -> Any:
        try:
            return await outcome
        except asyncio.CancelledError:
            self.cancel(entry.transfer.id, "cancelled")
            raise

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
