"""One connection of one transfer: bytes of a socket on one side, chunks on the other.

A `Talk` is what one end has to say and wants to hear; a `Stream` carries it over a connection, frame by frame,
sealed and opened in place in two buffers that are all the memory it holds. It never waits: `read`
and `write` move what the socket takes and say whether anything moved. When a talk has nothing to say,
or does not want to hear more for now, its stream stands still, and TCP holds back the other side.
So memory is bounded on both sides, and nobody's speed needs to be guessed.

Whoever has heard all and found it good says END when it has said all itself; the dialler says it last,
so each side knows what has become of its words. An end that gives up says ABORT and why. When both have said
END, the listener says KEEP: it leaves the connection open for another transfer (`daemon.kept`).
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Protocol

from peerlm.daemon.stopwatch import Stopwatch
from peerlm.errors import PeerlmError, Unreachable, WireError
from peerlm.wire.frame import (
    BODY_BYTES_MAX,
    HEADER_BYTES,
    REASON_BYTES_MAX,
    TAG_BYTES,
    Buffer,
    Cipher,
    Kind,
    parse_header,
)

THROWN_AWAY = 16
"""Buffers of what an end that has been given up still says, at a time."""

_NOTHING: Buffer = b""


class Talk(Protocol):
    """One end's part of a transfer. Called in the bulk thread only."""

    def to_say(self) -> int | None:
        """Bytes of the next chunk that is ready to be said; 0: not yet; None: all is said."""

    def say(self, out: memoryview) -> Buffer:
        """That chunk: in `out`, or wherever it stays until it is sent. Raises `PeerlmError`."""

    def to_hear(self) -> int | None:
        """Bytes of the next chunk that is wanted; 0: not yet; None: all is heard."""

    def place(self) -> memoryview | None:
        """Where that chunk may be put before it is heard; None: anywhere."""

    def hear(self, chunk: Buffer) -> None:
        """Take that chunk. It is overwritten when the next one is wanted. Raises `PeerlmError`."""

    @property
    def is_done(self) -> bool:
        """All that was to be heard is where it belongs."""

    def judge(self) -> PeerlmError | None:
        """Once done: why what was heard is not good."""

    def rewind(self) -> None:
        """Say all again, for nobody has heard it. Only of who dials, and while nothing was heard."""


class Rest(Enum):
    """What becomes of a connection when its transfer is over."""

    OPEN = "not known yet"
    OVER = "it is to be closed"
    KEPT = "it is good for another transfer"


class Stream:
    """One end of a connection. `dials`: this end has dialled; it must `begin`. `was_kept`: another transfer has
    been on it. `buffers` have `FRAME_BYTES_MAX` each and are the stream's alone.

    failure: why it cannot go on. heard_bytes, said_bytes: of chunks.
    """

    def __init__(
        self,
        connection: socket.socket,
        talk: Talk,
        seal: Cipher,
        opens: Cipher,
        buffers: tuple[memoryview, memoryview],
        *,
        dials: bool,
        spent: Stopwatch,
        was_kept: bool = False,
    ) -> None:
        self.connection = connection
        self.host = _host_of(connection)
        self.paced_bytes_s = 0.0
        """Sent at most, as the system was told; 0: nothing yet."""
        self.acked_bytes = 0
        self.dials = dials
        self._was_kept = was_kept
        self.failure: PeerlmError | None = None
        self.is_good = False
        """All was heard and judged good."""
        self.heard_end = self.said_end = False
        self._heard_keep = self._said_keep = False
        self.was_aborted = False
        """The other side has given up."""
        self.heard_bytes = self.said_bytes = 0
        self.wire_bytes = [0, 0]
        """Received, sent."""
        self._talk = talk
        self._spent = spent
        self._seal, self._opens = seal, opens
        self.buffers = buffers
        self._in, self._out = buffers
        self._have = 0
        self._out_at = self._out_end = 0
        self._reason: str | None = None
        self.is_readable = self.is_writable = True
        """Until the socket says otherwise; whoever polls sets them again."""

    # ------------------------------------------------------------------------------ where it is

    @property
    def wants_to_read(self) -> bool:
        return self.failure is None and not self.heard_end and self._talk.to_hear() != 0

    @property
    def wants_to_write(self) -> bool:
        return self._out_at < self._out_end or self._next_kind() is not None

    @property
    def has_ended(self) -> bool:
        """Nothing more will be read or written."""
        if self._out_at < self._out_end:
            return False
        return self.failure is not None or (self.said_end and self.heard_end)

    @property
    def is_stale(self) -> bool:
        """It failed as a kept connection does that the other end has closed: before anything came."""
        return (
            self._was_kept
            and self.dials
            and not self.wire_bytes[0]
            and isinstance(self.failure, Unreachable)
        )

    def note_ready(self, mask: int) -> None:
        """A selector says what the socket takes and gives."""
        self.is_readable |= bool(mask & selectors.EVENT_READ)
        self.is_writable |= bool(mask & selectors.EVENT_WRITE)

    def begin(self, preface: bytes, first: int) -> None:
        """The dialler's first words: the preface in the clear, and BEGIN."""
        at = len(preface)
        self._out[:at] = preface
        frame = self._out[at:]
        self._out_end = at + self._seal.seal(Kind.BEGIN, frame, first.to_bytes(8, "big"))

    def abort(self, reason: str) -> None:
        """Give up; the other side is told as soon as what is under way is out."""
        self._reason = reason
        self.heard_end, self.is_good = True, False

    # ------------------------------------------------------------------------------------- reading

    def read(self, bytes_max: int | None = None) -> bool:
        """Take what has come, up to the end of one frame, `bytes_max` at most. False when nothing
        moved."""
        if not self.is_readable or self.failure is not None or self.heard_end:
            return False
        if (expected := self._talk.to_hear()) == 0:
            return False
        try:
            if not self._take_frame(expected):
                return self._receive(expected, bytes_max)
        except PeerlmError as error:
            self.failure = error
        return True

    def _receive(self, expected: int | None, bytes_max: int | None) -> bool:
        """Take from the socket what the expected frame lacks, or an ABORT in its place."""
        most = HEADER_BYTES + max(expected or 0, REASON_BYTES_MAX) + TAG_BYTES
        most = most if bytes_max is None else min(most, self._have + bytes_max)
        try:
            with self._spent("receive"):
                count = self.connection.recv_into(self._in[self._have : most])
        except BlockingIOError:
            self.is_readable = False
            return False
        except OSError as error:
            raise Unreachable("transfer", error.strerror or str(error)) from None
        if not count:
            raise Unreachable("transfer", "the other side hung up")
        self.wire_bytes[0] += count
        self._have += count
        return True

    def _take_frame(self, expected: int | None) -> bool:
        """Act on a whole frame, if one is here."""
        if self._have < HEADER_BYTES:
            return False
        kind, length = parse_header(self._in)
        if kind is Kind.DATA and length != expected:
            wanted = "none" if expected is None else f"one of {expected}"
            raise WireError(f"a chunk of {length} bytes where {wanted} belongs")
        end = HEADER_BYTES + length + TAG_BYTES
        if self._have < end:
            return False
        place = self._talk.place() if kind is Kind.DATA else None
        with self._spent("open"):
            body = self._opens.open(self._in[:end], place)
        rest = bytes(self._in[end : self._have])  # of short frames only: see `most`
        self._act_on(kind, expected, bytes(body) if rest and place is None else body)
        self._in[: len(rest)] = rest
        self._have = len(rest)
        return True

    def _act_on(self, kind: Kind, expected: int | None, body: Buffer) -> None:
        match kind:
            case Kind.DATA:
                self.heard_bytes += len(body)
                with self._spent("hear"):
                    self._talk.hear(body)
            case Kind.END:
                if expected is not None:
                    raise WireError("it ended before all was said")
                self.heard_end = True
            case Kind.ABORT:
                why = bytes(body).decode(errors="replace")
                self.was_aborted = True
                line = "".join(c if c.isprintable() else "?" for c in why)
                raise Unreachable("transfer", f"gave up: {line}")
            case Kind.BEGIN:
                raise WireError("it began a second time")
            case Kind.KEEP:
                if not (self.dials and self.said_end and self.heard_end):
                    raise WireError("it kept a connection that is in use")
                self._heard_keep = True

    def look(self) -> None:
        """Judge what was heard, as soon as it is all there."""
        if self.is_good or self.failure is not None or not self._talk.is_done:
            return
        refused = self._talk.judge()
        if refused is not None:
            self.failure = refused
        else:
            self.is_good = True

    # ------------------------------------------------------------------------------------- writing

    def write(self, bytes_max: int | None = None) -> bool:
        """Send what can be sent of one frame, `bytes_max` at most. False when nothing moved."""
        if not self.is_writable:
            return False
        if self._out_at == self._out_end and not self._make_frame():
            return False
        try:
            with self._spent("send"):
                end = self._out_end if bytes_max is None else self._out_at + bytes_max
                count = self.connection.send(self._out[self._out_at : min(end, self._out_end)])
        except BlockingIOError:
            self.is_writable = False
            return False
        except OSError as error:
            self._out_at = self._out_end
            if self.failure is None:
                self.failure = Unreachable("transfer", error.strerror or str(error))
            return True
        self._out_at += count
        self.wire_bytes[1] += count
        return True

    def _next_kind(self) -> Kind | None:
        """What to send next; None if nothing can be sent now."""
        if self._reason is not None:
            return Kind.ABORT
        if self.failure is not None:
            return None
        if self.said_end:
            may_keep = self.is_good and self.heard_end and not self.dials and not self._said_keep
            return Kind.KEEP if may_keep else None
        to_say = self._talk.to_say()
        if to_say:
            return Kind.DATA
        if to_say is None and self.is_good and (self.heard_end or not self.dials):
            return Kind.END
        return None

    def _make_frame(self) -> bool:
        kind = self._next_kind()
        if kind is None:
            return False
        room, body = self._out[HEADER_BYTES : HEADER_BYTES + BODY_BYTES_MAX], _NOTHING
        match kind:
            case Kind.DATA:
                try:
                    with self._spent("say"):
                        body = self._talk.say(room)
                except PeerlmError as error:
                    self.failure = error
                    return True
                self.said_bytes += len(body)
            case Kind.ABORT:
                assert self._reason is not None
                body = self._reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode()
                self._reason = None
                self.said_end = True
            case Kind.END:
                self.said_end = True
            case Kind.KEEP:
                self._said_keep = True
        with self._spent("seal"):
            self._out_at, self._out_end = 0, self._seal.seal(kind, self._out, body)
        return True

    # ------------------------------------------------------------------------------------ afterwards

    def rest(self) -> Rest:
        """Once the transfer is over and all is said."""
        if not self.is_good:
            return Rest.OVER if self._has_run_out() else Rest.OPEN
        if self.failure is not None or not (self.said_end and self.heard_end):
            return Rest.OVER
        if self.dials:
            return self._hear_keep()
        return Rest.KEPT if self._said_keep and not self._have else Rest.OVER

    def _hear_keep(self) -> Rest:
        try:
            while not self._take_frame(None):
                if not self._receive(None, None):
                    return Rest.OPEN
        except PeerlmError:
            return Rest.OVER
        return Rest.KEPT if self._heard_keep and not self._have else Rest.OVER

    def _has_run_out(self) -> bool:
        """Whether the other side has nothing more to say either. What it says meanwhile is thrown away."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        try:
            for _ in range(THROWN_AWAY):
                if not self.connection.recv_into(self._in):
                    return True
        except BlockingIOError:
            self.is_readable = False
            return False
        except OSError:
            return True
        self.is_readable = False  # in a moment more
        return False


def watch(
    selector: selectors.BaseSelector,
    stream: Stream,
    ready: Callable[[int], None],
    *,
    listens: bool = False,
) -> None:
    """Have `ready` called when the socket takes or gives more of what is wanted; of what comes in any case, if it
    `listens`."""
    mask = 0
    if (stream.wants_to_read or listens) and not stream.is_readable:
        mask |= selectors.EVENT_READ
    if stream.wants_to_write and not stream.is_writable:
        mask |= selectors.EVENT_WRITE
    known = stream.connection in selector.get_map()
    if not mask:
        if known:
            selector.unregister(stream.connection)
    elif known:
        selector.modify(stream.connection, mask, ready)
    else:
        selector.register(stream.connection, mask, ready)


def _host_of(connection: socket.socket) -> str:
    """Empty when the other end is gone already, or is no host."""
    with suppress(OSError):
        name = connection.getpeername()
        return str(name[0]) if name else ""
    return ""
