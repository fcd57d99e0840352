"""What the ends of a transfer say and hear: the two sides of an exchange, and of a pull.

The sides of an exchange compute as they go (mix/flow.py). Those of a pull read and write files, which
may take long: a disk thread does it, a few chunks ahead of the connection or behind it. What is small is in
memory as a whole, read before any of it is said, and written after all of it is heard.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from peerlm.errors import ChunkCorrupt, PeerlmError, WireError
from peerlm.mix.flow import Answering, Asking, Refused
from peerlm.train.hop import BYTES_MAX as MESSAGE_BYTES_MAX
from peerlm.wire.frame import CHUNK_BYTES, Buffer

_LENGTH = struct.Struct("!Q")
SAID_BYTES_MAX = 64 << 20
"""What may wait for one channel's connection."""

Sink = Callable[[int, memoryview], None]
Read = Callable[[int, int], bytes]
Load = Callable[[], bytes]
Told = Callable[[BaseException | None], None]
"""The disk has done its part, or could not."""


class RefusedHere(PeerlmError):
    """A gate held; `refused` says which."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason)
        self.refused = refused


class Ask:
    """The initiator's end of an exchange."""

    def __init__(self, side: Asking) -> None:
        self.side = side
        self._said = 0

    def to_say(self) -> int | None:
        return self.side.request_bytes(self._said) if self._said < self.side.chunks else None

    def say(self, out: memoryview) -> Buffer:
        self._said += 1
        try:
            return self.side.request(self._said - 1, out)
        except ValueError as error:
            raise WireError(str(error)) from None

    def to_hear(self) -> int | None:
        if self.side.has_all:
            return None
        return self.side.reply_bytes(self.side.heard) if self.side.heard < self._said else 0

    def place(self) -> memoryview | None:
        return self.side.place()

    def hear(self, chunk: Buffer) -> None:
        try:
            self.side.hear(chunk)
        except WireError as error:
            raise RefusedHere(Refused(f"malformed: {error}")) from None

    @property
    def is_done(self) -> bool:
        return self.side.has_all and self._said == self.side.chunks

    def judge(self) -> PeerlmError | None:
        refused = self.side.judge()
        return None if refused is None else RefusedHere(refused)

    def rewind(self) -> None:
        assert not self.side.heard, "it was answered"
        self._said = 0


class Answer:
    """The responder's end of an exchange: the next chunk is wanted when the last one is answered."""

    def __init__(self, side: Answering) -> None:
        self.side = side
        self._heard: Buffer | None = None

    def to_say(self) -> int | None:
        if self._heard is None:
            return None if self.side.has_all else 0
        return self.side.reply_bytes(self.side.heard)

    def say(self, out: memoryview) -> Buffer:
        assert self._heard is not None
        encoded, self._heard = self._heard, None
        try:
            return self.side.answer(encoded, out)
        except WireError as error:
            raise RefusedHere(Refused(f"malformed: {error}")) from None
        except ValueError as error:
            codec = self.side.codec_reply
            why = f"not finite: the difference does not fit {codec}: {error}"
            raise RefusedHere(Refused(why)) from None

    def to_hear(self) -> int | None:
        if self._heard is not None:
            return 0
        return None if self.side.has_all else self.side.request_bytes(self.side.heard)

    def place(self) -> memoryview | None:
        return None

    def hear(self, chunk: Buffer) -> None:
        self._heard = chunk

    @property
    def is_done(self) -> bool:
        return self.side.has_all

    def judge(self) -> PeerlmError | None:
        refused = self.side.judge()
        return None if refused is None else RefusedHere(refused)

    def rewind(self) -> None:
        raise AssertionError("who is dialled is told where to begin")


class Converse:
    """Either end of a channel: messages of any length, both ways, without an end. Each is said as its length in eight
    bytes and then in chunks; one of no bytes is a sign of life, and the first thing that both ends say.

    heard: called with each message; the first, and signs of life, are empty.
    """

    def __init__(self, heard: Callable[[bytes], None]) -> None:
        self._heard = heard
        self._to_say: deque[Buffer] = deque([_LENGTH.pack(0)])
        self._waiting_bytes = 0
        self._hearing: bytearray | None = None
        self._have = 0

    def add(self, message: bytes) -> None:
        """Say it as soon as the connection takes it. One too many is dropped: whoever misses it sends it again."""
        if self._waiting_bytes + len(message) > SAID_BYTES_MAX:
            return
        self._waiting_bytes += len(message)
        self._to_say.append(_LENGTH.pack(len(message)))
        view = memoryview(message)
        self._to_say.extend(view[i : i + CHUNK_BYTES] for i in range(0, len(message), CHUNK_BYTES))

    def to_say(self) -> int | None:
        return len(self._to_say[0]) if self._to_say else 0

    def say(self, out: memoryview) -> Buffer:
        piece = self._to_say.popleft()
        if isinstance(piece, memoryview):
            self._waiting_bytes -= len(piece)
        return piece

    def to_hear(self) -> int | None:
        if self._hearing is None:
            return _LENGTH.size
        return min(CHUNK_BYTES, len(self._hearing) - self._have)

    def place(self) -> memoryview | None:
        return None

    def hear(self, chunk: Buffer) -> None:
        if self._hearing is None:
            (length,) = _LENGTH.unpack(chunk)
            if length > MESSAGE_BYTES_MAX:
                raise WireError(f"a message of {length} bytes, at most {MESSAGE_BYTES_MAX}")
            self._hearing, self._have = bytearray(length), 0
        else:
            self._hearing[self._have : self._have + len(chunk)] = chunk
            self._have += len(chunk)
        if self._have == len(self._hearing):
            message, self._hearing = self._hearing, None
            self._heard(bytes(message))

    @property
    def is_done(self) -> bool:
        return False

    def judge(self) -> PeerlmError | None:
        return None

    def rewind(self) -> None:
        """A kept connection was of no use. What was said, and what waits behind it, is lost, as it may be at any time: a
        new one begins with a message's length and not in the middle of one."""
        self._to_say = deque([_LENGTH.pack(0)])
        self._waiting_bytes = 0


class Fetch:
    """The end that pulls an object. `sink(offset, bytes)` is called in the disk thread; `moved` is
    called from there when a chunk is where it belongs, or with the error that keeps it from it.

    first: the chunk that a new connection has to begin with.
    """

    def __init__(
        self,
        size: int,
        window: int,
        sink: Sink,
        disk: Executor,
        moved: Told,
    ) -> None:
        self.first = 0
        self._size, self._window = size, window
        self._sink, self._disk, self._moved = sink, disk, moved
        self._heard = self._landed = 0
        """Bytes."""

    def to_say(self) -> int | None:
        return None

    def say(self, out: memoryview) -> Buffer:
        raise AssertionError("who pulls says nothing")

    def to_hear(self) -> int | None:
        if self._heard == self._size:
            return None
        if self._heard - self._landed >= self._window * CHUNK_BYTES:
            return 0
        return min(CHUNK_BYTES, self._size - self._heard)

    def place(self) -> memoryview | None:
        return None

    def hear(self, chunk: Buffer) -> None:
        offset, data = self._heard, bytes(chunk)
        self._heard += len(data)
        self.first += 1
        self._disk.submit(self._write, offset, data)

    def _write(self, offset: int, data: bytes) -> None:
        try:
            self._sink(offset, memoryview(data))
        except Exception as error:
            self._moved(error)
        else:
            self._landed += len(data)
            self._moved(None)

    @property
    def heard_bytes(self) -> int:
        return self._landed

    @property
    def is_done(self) -> bool:
        return self._landed == self._size

    def judge(self) -> PeerlmError | None:
        return None

    def rewind(self) -> None:
        """It says nothing."""


class Give:
    """The end that serves an object. `read(offset, length)` is called in the disk thread."""

    def __init__(
        self,
        size: int,
        window: int,
        read: Read,
        disk: Executor,
        moved: Told,
    ) -> None:
        self._size, self._window = size, window
        self._read, self._disk, self._moved = read, disk, moved
        self._ready: deque[bytes] = deque()
        """Read ahead, for the newest connection."""
        self._asked = self._said = 0
        """Bytes: up to where it was read, or is being read; up to where it was said."""

    def seek(self, chunk: int) -> bool:
        """A connection begins with this chunk, or after the last. False if there is none such."""
        if chunk > -(-self._size // CHUNK_BYTES):
            return False
        self._ready = deque()
        self._asked = self._said = min(chunk * CHUNK_BYTES, self._size)
        self._read_ahead()
        return True

    def _read_ahead(self) -> None:
        while self._asked < self._size and self._asked - self._said < self._window * CHUNK_BYTES:
            length = min(CHUNK_BYTES, self._size - self._asked)
            self._disk.submit(self._fill, self._asked, length, self._ready)
            self._asked += length

    def _fill(self, offset: int, length: int, ready: deque[bytes]) -> None:
        if ready is not self._ready:
            return  # read for a connection that is no more
        try:
            data = self._read(offset, length)
        except Exception as error:
            self._moved(error)
        else:
            ready.append(data)
            self._moved(None)

    def to_say(self) -> int | None:
        if self._said >= self._size:
            return None
        return len(self._ready[0]) if self._ready else 0

    def say(self, out: memoryview) -> Buffer:
        data = self._ready.popleft()
        self._said += len(data)
        self._read_ahead()
        return data

    def to_hear(self) -> int | None:
        return None

    def place(self) -> memoryview | None:
        return None

    def hear(self, chunk: Buffer) -> None:
        raise AssertionError("who serves hears nothing")

    @property
    def is_done(self) -> bool:
        return True

    def judge(self) -> PeerlmError | None:
        return None

    def rewind(self) -> None:
        raise AssertionError("who is dialled is told where to begin")


class FetchWhole(Fetch):
    """The end that pulls an object into memory: what comes is opened right where it belongs."""

    def __init__(self, values: memoryview) -> None:
        self.first = 0
        self._values = values
        self._heard = 0

    def to_hear(self) -> int | None:
        left = len(self._values) - self._heard
        return min(CHUNK_BYTES, left) if left else None

    def place(self) -> memoryview | None:
        return self._values[self._heard : self._heard + CHUNK_BYTES]

    def hear(self, chunk: Buffer) -> None:
        self._heard += len(chunk)
        self.first += 1

    @property
    def heard_bytes(self) -> int:
        return self._heard

    @property
    def is_done(self) -> bool:
        return self._heard == len(self._values)


class GiveWhole(Give):
    """The end that serves an object from memory. `load()`, its `size` bytes, is called once, in the disk thread."""

    def __init__(self, size: int, load: Load, disk: Executor, moved: Told) -> None:
        self._size, self._load, self._disk, self._moved = size, load, disk, moved
        self._data: memoryview | None = None
        self._is_asked = False
        self._said = 0

    def seek(self, chunk: int) -> bool:
        if chunk > -(-self._size // CHUNK_BYTES):
            return False
        self._said = min(chunk * CHUNK_BYTES, self._size)
        if not self._is_asked:
            self._is_asked = True
            self._disk.submit(self._read_all)
        return True

    def _read_all(self) -> None:
        try:
            data = self._load()
            if len(data) != self._size:
                raise ChunkCorrupt(f"an object of {len(data)} bytes had {self._size}")
        except Exception as error:
            self._moved(error)
        else:
            self._data = memoryview(data)
            self._moved(None)

    def to_say(self) -> int | None:
        if self._said >= self._size:
            return None
        return min(CHUNK_BYTES, self._size - self._said) if self._data is not None else 0

    def say(self, out: memoryview) -> Buffer:
        assert self._data is not None, "nothing is there yet"
        data = self._data[self._said : self._said + CHUNK_BYTES]
        self._said += len(data)
        return data
