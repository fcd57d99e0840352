"""One connection of a bulk transfer between two ends, without a network: how its bytes are cut, and when it breaks, is given.

Chunks are small here, so that a transfer of a kilobyte has several.
"""

from __future__ import annotations

import itertools
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import strategies as st

from peerlm.daemon import talks
from peerlm.daemon.stopwatch import Stopwatch
from peerlm.daemon.stream import Stream, Talk
from peerlm.daemon.talks import Fetch, Give
from peerlm.mix import chunks
from peerlm.mix.flow import Answering, Asking
from peerlm.mix.fragment import SlowFragment
from peerlm.types import TransferId
from peerlm.wire.frame import (
    DOWN,
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    PREFACE_BYTES,
    TAG_BYTES,
    UP,
    Cipher,
    Kind,
    Preface,
    parse_header,
)

ID, KEYS = TransferId(bytes(16)), {UP: bytes(32), DOWN: b"d" * 32}
ELEMENTS = 128
"""Of a chunk of an exchange: few enough that several frames of int8 may come at once."""

TRUE_ELEMENTS = chunks.CHUNK
FRAGMENT = 2 * ELEMENTS + 88
CHUNK_BYTES = 512
OBJECT = np.random.default_rng(1).bytes(2 * CHUNK_BYTES + 100)
WINDOW = 2
FIRST_BYTES = PREFACE_BYTES + HEADER_BYTES + 8 + TAG_BYTES
BUFFERS = [np.zeros(FRAME_BYTES_MAX, np.uint8).data for _ in range(4)]
"""Of the two streams that there are at a time. What older ones left in them must not matter."""


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", ELEMENTS)
        patch.setattr(talks, "CHUNK_BYTES", CHUNK_BYTES)
        yield


class Wire:
    """One end of a connection, in the place of a socket that does not block. `pace`: how many bytes
    it takes or gives in turn. `left`: after so many it breaks."""

    def __init__(
        self, gives: bytearray, takes: bytearray, pace: list[int], left: float = float("inf")
    ) -> None:
        self.gives, self.takes = gives, takes
        self.room = 1 << 20
        self.left = left
        self.is_hung_up = False
        self._paces = itertools.cycle(pace), itertools.cycle(pace)

    def getpeername(self) -> tuple[str, int]:
        return ("nobody", 1)

    def recv_into(self, into: memoryview) -> int:
        assert len(into), "a stream that reads nothing takes that for a hang-up"
        self._live()
        if not self.gives and self.is_hung_up:
            return 0
        count = self._count(min(len(into), len(self.gives)), 0)
        into[:count] = self.gives[:count]
        del self.gives[:count]
        return count

    def send(self, data: memoryview) -> int:
        self._live()
        if not len(data):
            return 0
        count = self._count(min(len(data), self.room - len(self.takes)), 1)
        self.takes += data[:count]
        return count

    def _live(self) -> None:
        if self.left <= 0:
            raise ConnectionResetError(104, "Connection reset by peer")

    def _count(self, most: int, way: int) -> int:
        count = min(most, next(self._paces[way])) if most > 0 else 0
        if not count:
            raise BlockingIOError
        self.left -= count
        return count


class Disk(Executor):
    """Does what it was asked for when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs.append(partial(fn, *args, **kwargs))
        return Future()

    def work(self) -> None:
        self.jobs.pop(0)()


def wires(pace: list[int], left: float = float("inf")) -> tuple[Wire, Wire]:
    up, down = bytearray(), bytearray()
    return Wire(down, up, pace, left), Wire(up, down, pace[::-1], left)


def stream(
    wire: Wire | socket.socket, talk: Talk, *, dials: bool, attempt: int = 1, security: str
) -> Stream:
    ours, theirs = (UP, DOWN) if dials else (DOWN, UP)
    return Stream(
        cast("Any", wire),
        talk,
        Cipher(KEYS[ours], ours, attempt, security),
        Cipher(KEYS[theirs], theirs, attempt, security),
        (BUFFERS[2 * dials], BUFFERS[2 * dials + 1]),
        dials=dials,
        spent=Stopwatch(Counter()),
    )


def connected(
    a: Talk, b: Talk, pace: list[int], security: str, attempt: int = 1, left: float = float("inf")
) -> tuple[Stream, Stream] | None:
    """Both ends of a new connection that has begun; None if it broke before that."""
    wire_a, wire_b = wires(pace, left)
    dialler = stream(wire_a, a, dials=True, attempt=attempt, security=security)
    listener = stream(wire_b, b, dials=False, attempt=attempt, security=security)
    dialler.begin(Preface(ID, attempt).pack(), a.first if isinstance(a, Fetch) else 0)
    came = bytearray()
    while len(came) < FIRST_BYTES:
        if not dialler.write():
            dialler.is_writable = True
        if dialler.failure is not None:
            return None
        missing = FIRST_BYTES - len(came)
        came += wire_b.gives[:missing]
        del wire_b.gives[:missing]
    assert Preface.parse(came[:PREFACE_BYTES]) == Preface(ID, attempt)
    begin = memoryview(came)[PREFACE_BYTES:]
    assert parse_header(begin) == (Kind.BEGIN, 8)
    first = int.from_bytes(listener._opens.open(begin), "big")
    if isinstance(b, Give):
        assert b.seek(first), f"chunk {first} of {b._size} bytes cannot be asked for"
    return dialler, listener


def move(end: Stream) -> bool:
    """What the bulk thread does in one turn; a stream that says it moved has moved."""
    moved = checked(end, end.read)
    end.look()
    return checked(end, end.write) or moved


def checked(end: Stream, step: Callable[[], bool]) -> bool:
    before = state(end)
    moved = step()
    assert not moved or state(end) != before, "it says that it moved: a busy loop"
    return moved


def state(end: Stream) -> tuple[object, ...]:
    where = (*end.wire_bytes, end._have, end.heard_bytes, end.said_bytes)
    return (*where, end.heard_end, end.said_end, end.failure, end._reason)


def play(ends: tuple[Stream, Stream], disk: Disk, pace: list[int], lag: int = 1) -> None:
    """Until both have ended, or one has failed and told the other why. The disk does something every
    `lag` turns, or when nothing else can be done."""
    stalls, count = 0, 0
    while not all(end.has_ended and not end.wants_to_write for end in ends):
        moved = False
        for end in ends:
            if end.failure is None or end.wants_to_write:
                moved |= move(end)
                if end.failure is not None and not end.heard_end:
                    end.abort(str(end.failure))
        count += 1
        if disk.jobs and (count % lag == 0 or not moved):
            disk.work()
            moved = True
        if moved:
            stalls = 0
            continue
        stalls += 1
        if any(end.failure is not None for end in ends) and stalls > len(pace):
            return
        assert stalls <= 2 * len(pace) + 2, "both ends wait for each other"
        for end in ends:
            end.is_readable = end.is_writable = True


paces = st.lists(
    st.sampled_from([0, 1, 3, 20, 21, 22, 100, 700, 5000]), min_size=1, max_size=8
).filter(any)
securities = st.sampled_from(["aead", "plain"])
turns = st.sampled_from([0, 1, 20, 400])


def weights(seed: int, size: int, scale: float = 1.0) -> SlowFragment:
    values = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    return SlowFragment(values * np.float32(scale))


def sides(
    request: str, reply: str, asks: SlowFragment, answers: SlowFragment
) -> tuple[Asking, Answering]:
    rules: dict[str, Any] = {
        "codec_request": request,
        "codec_reply": reply,
        "weight": 0.5,
        "clip_norm": 1e9,
        "rng": np.random.default_rng(3),
    }
    asking, answering = (
        kind(fragment, **rules, difference=np.empty(fragment.size, np.float32))
        for kind, fragment in ((Asking, asks), (Answering, answers))
    )
    assert isinstance(asking, Asking)
    assert isinstance(answering, Answering)
    return asking, answering
