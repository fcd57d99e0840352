"""One transfer on the bulk plane, as a machine without sockets: frames in, frames out.

Whoever wants bytes asks for them chunk by chunk and keeps a window of chunks in flight; the other
side sends what it was asked for and nothing else. So memory is bounded by the window on both sides,
and nobody's speed needs to be guessed. The initiator hails first. An exchange is then two such
movements, up (the responder asks) and down (the initiator asks); a pull is one down.

Loss: a connection keeps the order of frames, and answers are sent in the order of questions. So when
an answer arrives, whatever was asked before it and is not here is lost, and asked for again; when
all is silent, a hail is such a question too. A frame that fails its check counts as lost. A chunk
that is merely slow is never asked for twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from peerlm.errors import ChunkCorrupt, PeerlmError, Unreachable, WireError
from peerlm.types import Instant, TransferId
from peerlm.wire.frame import (
    CHUNK_BYTES,
    REASON_BYTES_MAX,
    Buffer,
    Cipher,
    Header,
    Kind,
    chunk_bytes,
    chunk_count,
)

UP, DOWN = 1, 2
"""Streams: from the initiator, from the responder."""

NUDGE_S_MIN, NUDGE_S_MAX = 0.25, 2.0
"""A silent peer is hailed after the first, then ever less often up to the second."""

ANSWERS_MAX = 16
"""Answers to hails that wait to be sent. One more hail counts as lost; an honest peer hails again."""


class Window:
    """Which chunks are here, in flight, and to be asked for next; at most `width` in flight."""

    def __init__(self, chunks: int, width: int) -> None:
        self._chunks = chunks
        self._width = width
        self._fresh = 0
        self._lost: deque[int] = deque()
        self._in_flight: dict[int, int] = {}
        """Chunk → serial of the frame that asked for it, oldest question first."""
        self._landing = 0
        """Arrived, but not yet where they belong."""
        self._landed = 0

    @property
    def is_complete(self) -> bool:
        return self._landed == self._chunks

    def next(self) -> int | None:
        """The chunk to ask for next; None when the window is full or nothing is left to ask."""
        if len(self._in_flight) + self._landing >= self._width:
            return None
        if self._lost:
            return self._lost[0]
        return self._fresh if self._fresh < self._chunks else None

    def ask(self, chunk: int, serial: int) -> None:
        """`next()` has been asked for in the frame numbered `serial`."""
        if self._lost:
            self._lost.popleft()
        else:
            self._fresh += 1
        self._in_flight[chunk] = serial

    def is_awaited(self, chunk: int) -> bool:
        return chunk in self._in_flight

    def arrive(self, chunk: int) -> None:
        """An awaited chunk is here; those asked for before it are lost."""
        self.give_up(self._in_flight.pop(chunk))
        self._landing += 1

    def land(self) -> None:
        """A chunk that arrived is where it belongs."""
        self._landing -= 1
        self._landed += 1

    def give_up(self, serial: int) -> None:
        """Whatever was asked for in frames before this one is lost."""
        lost = []
        for chunk, asked in self._in_flight.items():
            if asked > serial:
                break
            lost.append(chunk)
        for chunk in lost:
            del self._in_flight[chunk]
        self._lost.extend(lost)


@dataclass(slots=True)
class Offer:
    """Bytes we have to give. `read(offset, length)` of a slow one runs in the disk thread."""

    size: int
    read: Callable[[int, int], Buffer]
    slow: bool


def offer_of(data: Buffer) -> Offer:
    """What is in memory; it must not change while it is offered."""
    view = memoryview(data).cast("B")
    return Offer(len(view), lambda offset, length: view[offset : offset + length], slow=False)


Sink = Callable[[int, memoryview], None]


@dataclass(slots=True)
class Want:
    """Bytes we want: up to `size_max`, or exactly that many. They go to `sink(offset, bytes)` in
    the disk thread, or, without a sink, to memory that is allocated when the size is known."""

    size_max: int
    exact: bool
    sink: Sink | None = None
    memory: memoryview = field(default_factory=lambda: memoryview(bytearray()))


@dataclass(slots=True)
class Transfer:
    """State of one end. Feed it with `on_frame` and `tick`, send what `next_frame` gives, and look
    at `failure`, `has_all` and `peer_is_done` afterwards."""

    id: TransferId
    initiator: bool
    key_up: bytes
    key_down: bytes
    security: str
    offer: Offer | None
    want: Want
    width: int
    began_at: Instant
    progress_timeout_s: float
    timeout_s: float
    peer_name: str = "the peer"

    failure: PeerlmError | None = None
    peer_is_done: bool = False
    reads: list[int] = field(default_factory=list)
    """Chunks of a slow offer to be read; bring them with `loaded`."""
    writes: list[tuple[int, memoryview]] = field(default_factory=list)
    """Chunks for a slow sink, by offset; report each with `written`."""
    bytes_sent: int = 0
    bytes_received: int = 0
    corrupt: int = 0
    heard: bool = False
    """An authentic frame has come."""

    _seal: Cipher = field(init=False)
    _open: Cipher = field(init=False)
    _window: Window | None = field(init=False, default=None)
    _size: int = field(init=False, default=0)
    _serial: int = 0
    _serial_heard: int = 0
    _outbox: deque[tuple[Kind, int]] = field(default_factory=deque)
    _queued: set[int] = field(default_factory=set)
    _loaded: dict[int, Buffer] = field(default_factory=dict)
    _heard_at: Instant = field(init=False)
    _nudge_at: float = field(init=False)
    _nudge_s: float = NUDGE_S_MIN
    _reason: bytes = b""

    def __post_init__(self) -> None:
        up = Cipher(self.key_up, UP, self.security)
        down = Cipher(self.key_down, DOWN, self.security)
        self._seal, self._open = (up, down) if self.initiator else (down, up)
        self._heard_at = self.began_at
        self._nudge_at = self.began_at + NUDGE_S_MIN
        if self.initiator:
            self._outbox.append((Kind.HAIL, 0))

    # ---------------------------------------------------------------------------------- where it is

    @property
    def has_all(self) -> bool:
        """All that was wanted is where it belongs."""
        return self._window is not None and self._window.is_complete

    @property
    def waits_for_peer(self) -> bool:
        """False while it is our own move: the request is here and the reply is not made yet."""
        return self.initiator or self.offer is not None or not self.has_all

    @property
    def wakes_at(self) -> float:
        """When to `tick` next."""
        end = self.began_at + self.timeout_s
        if not self.waits_for_peer:
            return end
        return min(end, self._heard_at + self.progress_timeout_s, self._nudge_at)

    def tick(self, now: Instant) -> None:
        """Give up in time, hail who is silent."""
        if self.failure is not None:
            return
        if now >= self.began_at + self.timeout_s:
            self.failure = Unreachable(
                "transfer", f"{self.peer_name}: not done in {self.timeout_s:g} s"
            )
        elif self.waits_for_peer and now >= self._heard_at + self.progress_timeout_s:
            self.failure = self._why_stalled()
        elif self.waits_for_peer and now >= self._nudge_at:
            self._nudge_s = min(2 * self._nudge_s, NUDGE_S_MAX)
            self._nudge_at = now + self._nudge_s
            if (self.heard or self.initiator) and (Kind.HAIL, 0) not in self._outbox:
                self._outbox.append((Kind.HAIL, 0))

    def _why_stalled(self) -> PeerlmError:
        if self.corrupt:
            return ChunkCorrupt(
                f"{self.peer_name}: {self.corrupt} chunks failed their check, "
                f"and no good one came for {self.progress_timeout_s:g} s"
            )
        if not self.heard:
            return Unreachable(
                "connect", f"{self.peer_name}: no answer in {self.progress_timeout_s:g} s"
            )
        return Unreachable(
            "transfer",
            f"{self.peer_name}: nothing came for {self.progress_timeout_s:g} s, "
            f"{self.bytes_received} of {self._size} bytes are here",
        )

    # -------------------------------------------------------------------------------------- coming

    def on_frame(self, header: Header, packed: Buffer, sealed: Buffer, now: Instant) -> str:
        """Take a frame of this transfer; returns what it is counted as if dropped, else ''."""
        if header.serial <= self._serial_heard:
            return "replayed"
        into = self._place_for(header)
        if into is None:
            return "unasked"
        try:
            self._open.open(header, packed, sealed, into)
        except ChunkCorrupt:
            self.corrupt += header.kind is Kind.DATA
            return "corrupt"
        self._serial_heard = header.serial
        self.heard = True
        self._heard_at = now
        self._nudge_s = NUDGE_S_MIN
        self._nudge_at = now + NUDGE_S_MIN
        self._act_on(header, into)
        return ""

    def _place_for(self, header: Header) -> memoryview | None:
        if header.kind is not Kind.DATA:
            return memoryview(bytearray(header.length))
        if (
            self._window is None
            or header.total != self._size
            or not self._window.is_awaited(header.ref)
        ):
            return None
        if self.want.sink is not None:
            return np.empty(header.length, np.uint8).data
        offset = header.ref * CHUNK_BYTES
        return self.want.memory[offset : offset + header.length]

    def _act_on(self, header: Header, body: memoryview) -> None:
        match header.kind:
            case Kind.HAIL:
                if not self.initiator:
                    self._know_size(header.total)
                if len(self._outbox) - len(self._queued) < ANSWERS_MAX:
                    self._outbox.append((Kind.READY, header.serial))
            case Kind.READY | Kind.WAIT:
                if self.initiator and header.kind is Kind.READY:
                    self._know_size(header.total)
                if self._window is not None and header.ref:
                    self._window.give_up(header.ref)
            case Kind.GET:
                self._on_get(header.ref)
            case Kind.DATA:
                self._on_data(header, body)
            case Kind.DONE:
                self.peer_is_done = True
            case Kind.ABORT:
                reason = bytes(body).decode(errors="replace")
                self.failure = Unreachable("transfer", f"{self.peer_name} gave up: {reason}")

    def _know_size(self, size: int) -> None:
        if self._window is not None:
            return
        want = self.want
        if size > want.size_max or (want.exact and size != want.size_max):
            most = "" if want.exact else "at most "
            self.failure = WireError(
                f"{self.peer_name} offers {size} bytes, must be {most}{want.size_max}"
            )
            return
        self._size = size
        self._window = Window(chunk_count(size), self.width)
        if want.sink is None:
            want.memory = np.empty(size, np.uint8).data

    def _on_get(self, chunk: int) -> None:
        if self.offer is None or chunk_bytes(chunk, self.offer.size) <= 0:
            return
        if chunk in self._queued or len(self._queued) >= 4 * self.width:
            return
        self._queued.add(chunk)
        self._outbox.append((Kind.DATA, chunk))
        if self.offer.slow:
            self.reads.append(chunk)

    def _on_data(self, header: Header, body: memoryview) -> None:
        assert self._window is not None
        self._window.arrive(header.ref)
        self.bytes_received += header.length
        if self.want.sink is None:
            self._window.land()
        else:
            self.writes.append((header.ref * CHUNK_BYTES, body))

    def written(self) -> None:
        """The sink has one more chunk."""
        assert self._window is not None
        self._window.land()

    def loaded(self, chunk: int, data: Buffer) -> None:
        """A chunk of a slow offer has been read."""
        self._loaded[chunk] = data

    # -------------------------------------------------------------------------------------- going

    def give(self, data: Buffer) -> None:
        """The reply is made."""
        assert self.offer is None, "a second reply"
        self.offer = offer_of(data)
        self._outbox.append((Kind.READY, 0))

    def end(self, reason: str = "") -> None:
        """Tell the peer that it is over: done, or given up for a reason. Nothing else is sent."""
        self._outbox.clear()
        self._outbox.append((Kind.ABORT, 0) if reason else (Kind.DONE, 0))
        self._window = None
        self._reason = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode()

    def next_job(self) -> tuple[Kind, int, int] | None:
        """What `next_frame` would send (kind, chunk, bytes that count for a throttle), or None."""
        if self._outbox:
            kind, ref = self._outbox[0]
            if kind is not Kind.DATA:
                return kind, ref, 0
            assert self.offer is not None
            if self.offer.slow and ref not in self._loaded:
                return None
            return kind, ref, chunk_bytes(ref, self.offer.size)
        chunk = self._window.next() if self._window is not None else None
        return None if chunk is None else (Kind.GET, chunk, chunk_bytes(chunk, self._size))

    def next_frame(self) -> tuple[bytes, Buffer]:
        """Seal the next frame; `next_job` must have given one."""
        job = self.next_job()
        assert job is not None
        kind, ref, length = job
        self._serial += 1
        body: Buffer = b""
        total = self.offer.size if self.offer is not None else 0
        if kind is Kind.GET:
            assert self._window is not None
            self._window.ask(ref, self._serial)
        else:
            self._outbox.popleft()
        if kind is Kind.DATA:
            body = self._take_chunk(ref, length)
        elif kind is Kind.READY and self.offer is None:
            kind = Kind.WAIT
        elif kind is Kind.ABORT:
            body = self._reason
        return self._seal.seal(Header(kind, self.id, self._serial, ref, total, len(body)), body)

    def _take_chunk(self, chunk: int, length: int) -> Buffer:
        assert self.offer is not None
        self._queued.discard(chunk)
        self.bytes_sent += length
        if self.offer.slow:
            return self._loaded.pop(chunk)
        return self.offer.read(chunk * CHUNK_BYTES, length)
