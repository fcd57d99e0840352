"""One connection of a bulk transfer: two honest ends however the network cuts their bytes, and one end
against a peer that holds the keys and sends whatever it likes.

Chunks are small here, so that a transfer of a kilobyte has several.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
from effort import some
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peerlm.daemon import talks
from peerlm.daemon.stopwatch import Stopwatch
from peerlm.daemon.stream import Stream, Talk
from peerlm.daemon.talks import Answer, Ask, Fetch, Give, RefusedHere
from peerlm.errors import PeerlmError, Unreachable
from peerlm.mix import chunks
from peerlm.mix.codec import CODECS, WEIGHT_CODECS, encode
from peerlm.mix.flow import Answering, Asking
from peerlm.mix.fragment import SlowFragment
from peerlm.types import TransferId
from peerlm.wire.frame import (
    BODY_BYTES_MAX,
    DOWN,
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    PREFACE_BYTES,
    REASON_BYTES_MAX,
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


# ---------------------------------------------------------------------------------- what it stands on


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


# ----------------------------------------------------------------------------------- two honest ends

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


@some(120)
@given(
    request=st.sampled_from(WEIGHT_CODECS),
    reply=st.sampled_from(CODECS),
    size=st.sampled_from([1, 88, ELEMENTS, FRAGMENT]),
    security=securities,
    pace=paces,
)
def test_an_exchange_ends_well_however_its_bytes_are_cut(
    request: str, reply: str, size: int, security: str, pace: list[int]
) -> None:
    a, b = weights(1, size), weights(2, size)
    whole = a.phi.astype(np.float64) + b.phi
    asking, answering = sides(request, reply, a, b)
    ends = connected(Ask(asking), Answer(answering), pace, security)
    assert ends is not None
    play(ends, Disk(), pace)
    for end in ends:
        assert end.failure is None
        assert end.is_good
        assert end.heard_end
        assert end.said_end
    assert ends[0].said_bytes == ends[1].heard_bytes == chunks.stream_bytes(request, size)
    assert ends[0].heard_bytes == ends[1].said_bytes == chunks.stream_bytes(reply, size)
    assert ends[0].wire_bytes[1] == ends[1].wire_bytes[0] + FIRST_BYTES
    assert asking.apply().raw_norm == answering.apply().raw_norm
    np.testing.assert_allclose(a.phi.astype(np.float64) + b.phi, whole, atol=2e-6)
    if request == reply == "fp32":
        np.testing.assert_allclose(a.phi, b.phi, atol=1e-6)


@some(60)
@given(
    scale=st.sampled_from([1e6, 1e30]),
    reply=st.sampled_from(CODECS),
    security=securities,
    pace=paces,
)
def test_who_refuses_says_why(scale: float, reply: str, security: str, pace: list[int]) -> None:
    """The responder's weights are absurd, or do not fit: whoever notices tells the other."""
    asking, answering = sides("fp32", reply, weights(1, FRAGMENT), weights(2, FRAGMENT, scale))
    ends = connected(Ask(asking), Answer(answering), pace, security)
    assert ends is not None
    play(ends, Disk(), pace)
    assert not any(end.is_good for end in ends)
    refusals = [end.failure for end in ends if isinstance(end.failure, RefusedHere)]
    assert {str(why).split(":")[0] for why in refusals} <= {"norm", "impossible", "not finite"}
    for end in ends:
        if end.failure not in refusals:
            assert isinstance(end.failure, Unreachable)
            assert str(refusals[0])[:100] in str(end.failure)


def test_an_exchange_of_true_chunks_crosses_a_narrow_socket() -> None:
    """Frames as long as they get, over sockets that take a little at a time."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(chunks, "CHUNK", TRUE_ELEMENTS)
        size = TRUE_ELEMENTS + 300
        a, b = weights(1, size), weights(2, size)
        asking, answering = sides("fp32", "fp32", a, b)
        sockets = socket.socketpair()
        for narrow in sockets:
            stack.enter_context(narrow)
            narrow.setblocking(False)
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ends = (
            stream(sockets[0], Ask(asking), dials=True, security="aead"),
            stream(sockets[1], Answer(answering), dials=False, security="aead"),
        )
        play(ends, Disk(), [1])
        for end in ends:
            assert end.failure is None
            assert end.is_good
        assert asking.apply().raw_norm == answering.apply().raw_norm
        np.testing.assert_allclose(a.phi, b.phi, atol=1e-6)


@some(120)
@given(
    size=st.sampled_from([0, 1, 100, CHUNK_BYTES, CHUNK_BYTES + 1, len(OBJECT)]),
    cuts=st.lists(st.integers(0, 1600), max_size=4),
    security=securities,
    pace=paces,
    lag=st.sampled_from([1, 5, 100]),
)
def test_a_pull_goes_on_however_often_its_connection_breaks(
    size: int, cuts: list[int], security: str, pace: list[int], lag: int
) -> None:
    disk, got, told = Disk(), bytearray(), list[BaseException | None]()

    def sink(offset: int, data: memoryview) -> None:
        assert offset == len(got), "a chunk was written twice, or left out"
        got.extend(data)

    fetch = Fetch(size, WINDOW, sink, disk, told.append)
    give = Give(size, WINDOW, lambda at, length: OBJECT[:size][at:][:length], disk, told.append)
    for attempt, left in enumerate([*cuts, float("inf")], start=1):
        ends = connected(fetch, give, pace, security, attempt, left)
        if ends is None:
            continue
        play(ends, disk, pace, lag)
        if ends[0].failure is None:
            break
        assert isinstance(ends[0].failure, Unreachable)
        assert left < float("inf"), ends[0].failure
    assert bytes(got) == OBJECT[:size]
    assert set(told) <= {None}


# -------------------------------------------------------------------------------------- a hostile peer


@dataclass(frozen=True)
class Part:
    """What the end under siege says and hears: `chunks` are what an honest peer would say."""

    talk: Talk
    dials: bool
    chunks: list[bytes]


def part(name: str, disk: Disk, written: bytearray) -> Part:
    def told(error: BaseException | None) -> None:
        assert error is None

    if name == "fetch":
        talk = Fetch(len(OBJECT), WINDOW, lambda at, data: written.extend(data), disk, told)
        starts = range(0, len(OBJECT), CHUNK_BYTES)
        return Part(talk, True, [OBJECT[at : at + CHUNK_BYTES] for at in starts])
    if name == "give":
        give = Give(len(OBJECT), WINDOW, lambda at, n: OBJECT[at : at + n], disk, told)
        assert give.seek(0)
        return Part(give, False, [])
    ours, theirs = weights(1, FRAGMENT), weights(2, FRAGMENT)
    asking, answering = sides("int8", "int4", ours, ours)
    codec = "int4" if name == "ask" else "int8"
    said = theirs.phi - ours.phi if name == "ask" else theirs.phi
    places = [chunks.chunk_at(i, FRAGMENT) for i in range(chunks.chunk_count(FRAGMENT))]
    rng = np.random.default_rng(5)
    coded = [bytes(encode(said[place], codec, rng)) for place in places]
    return Part(Ask(asking) if name == "ask" else Answer(answering), name == "ask", coded)


class Besieged(RuleBasedStateMachine):
    """`good_bytes`: of chunks that came as they should, before anything that should not."""

    name = "none"

    @initialize(pace=paces, frames=st.integers(0, 4))
    def begin(self, pace: list[int], frames: int) -> None:
        """The peer behaves for so many frames."""
        self.disk, self.written = Disk(), bytearray()
        self.part = part(self.name, self.disk, self.written)
        self.all_bytes = sum(len(chunk) for chunk in self.part.chunks)
        self.wire = Wire(bytearray(), bytearray(), pace)
        self.wire.room = 600
        self.end = stream(self.wire, self.part.talk, dials=self.part.dials, security="plain")
        ours, theirs = (UP, DOWN) if self.part.dials else (DOWN, UP)
        self.theirs = Cipher(KEYS[theirs], theirs, 1, "plain")
        self.listens = Cipher(KEYS[ours], ours, 1, "plain")
        self.heard, self.kinds = bytearray(), ""
        self.sent = self.good_bytes = 0
        self.is_sound, self.is_whole, self.has_given_up = True, False, False
        for _ in range(min(frames, len(self.part.chunks) + (frames > 3))):
            self.go_on(200)
            self.listen(600, 200)
            while self.disk.jobs:
                self.disk.work()

    # what it may do

    @rule(turns=turns)
    def go_on(self, turns: int) -> None:
        """What an honest peer would say next."""
        chunk = self.next_chunk
        self.say(Kind.DATA if chunk else Kind.END, chunk)
        self.turn(turns)

    @rule(change=st.sampled_from(["none", "less", "more", "most"]), turns=turns)
    def chunk_of_another_length(self, change: str, turns: int) -> None:
        right = len(self.next_chunk)
        length = {"none": 0, "less": max(0, right - 1), "more": right + 1, "most": BODY_BYTES_MAX}
        self.say(Kind.DATA, self.next_chunk[: length[change]].ljust(length[change], b"\0"))
        self.turn(turns)

    @rule(kind=st.sampled_from([*Kind, 0, 9, 255]), length=st.sampled_from([2**20 + 1, 2**32 - 1]))
    def absurd_length(self, kind: int, length: int) -> None:
        self.put(bytes([kind]) + length.to_bytes(4, "big") + bytes(64))
        self.turn(5)

    @rule(byte=st.sampled_from([b"\0", b"\xff"]), turns=turns)
    def chunk_of_nonsense(self, byte: bytes, turns: int) -> None:
        self.say(Kind.DATA, byte * len(self.next_chunk))
        self.turn(turns)

    @rule(body=st.sampled_from([b"", b"", b"x"]), turns=turns)
    def end_now(self, body: bytes, turns: int) -> None:
        self.say(Kind.END, body)
        self.turn(turns)

    @rule(body=st.sampled_from([bytes(8), bytes(8), b"", bytes(9)]), turns=turns)
    def begin_again(self, body: bytes, turns: int) -> None:
        self.say(Kind.BEGIN, body)
        self.turn(turns)

    @rule(body=st.sampled_from([b"", b"x"]), turns=turns)
    def keep_now(self, body: bytes, turns: int) -> None:
        self.say(Kind.KEEP, body)
        self.turn(turns)

    @rule(kind=st.sampled_from([0, 6, 255]), turns=turns)
    def unknown_kind(self, kind: int, turns: int) -> None:
        self.say(kind, self.next_chunk)
        self.turn(turns)

    @rule(reason=st.sampled_from([b"", b"no room", b"\xff" * 200, b"a\r\n\x1b[2J", b"y" * 201]))
    def abort(self, reason: bytes) -> None:
        self.say(Kind.ABORT, reason)
        self.turn(20)

    @rule(harm=st.sampled_from(["flip", "cut", "skip", "again"]), turns=turns)
    def damage(self, harm: str, turns: int) -> None:
        chunk = self.next_chunk
        kind = Kind.DATA if chunk else Kind.END
        if harm == "skip":
            self.sealed(Kind.END, b"")
        frame = bytearray(self.sealed(kind, chunk))
        match harm:
            case "flip":
                frame[len(frame) // 2] ^= 4
            case "cut":
                del frame[-3:]
            case "again":
                self.taken(kind, chunk)
                self.wire.gives += frame
        self.put(bytes(frame))
        self.turn(turns)

    @rule(noise=st.binary(min_size=1, max_size=40), turns=turns)
    def garbage(self, noise: bytes, turns: int) -> None:
        self.put(noise)
        self.turn(turns)

    @rule(room=st.sampled_from([0, 1, 600, 5000]), turns=turns)
    def listen(self, room: int, turns: int) -> None:
        """The peer takes what came, and makes room for so much more."""
        self.wire.room = room
        self.heard += self.wire.takes
        self.wire.takes.clear()
        while (whole := whole_frame(self.heard)) is not None:
            kind, length = parse_header(whole)
            body = bytes(self.listens.open(memoryview(bytearray(whole))))
            assert length == len(body)
            self.kinds += kind.name[0]
            del self.heard[: len(whole)]
            if kind is Kind.ABORT:
                body.decode()
            elif kind is Kind.END:
                assert self.is_whole or not self.part.dials
                assert self.good_bytes == self.all_bytes, "it says END of what it has not heard"
            elif kind is Kind.KEEP:
                assert self.is_whole, "it keeps what is not over"
                assert not self.part.dials
        assert re.fullmatch("D*(EK?)?A?", self.kinds), self.kinds
        self.turn(turns)

    # what the end does

    @precondition(lambda self: self.disk.jobs)
    @rule()
    def disk_works(self) -> None:
        self.disk.work()

    @rule(reason=st.sampled_from(["cancelled", "", "x" + "é" * 150, "x" * 5000]))
    def give_up(self, reason: str) -> None:
        """Cancelled from here, or after a failure: the last word is got out, and no more is read."""
        if not self.has_given_up:
            self.has_given_up = True
            self.end.abort(reason)

    def turn(self, turns: int) -> None:
        for _ in range(turns):
            moved = checked(self.end, self.end.write) if self.has_given_up else move(self.end)
            if not moved:
                self.end.is_readable = self.end.is_writable = True
            if self.end.failure is not None:
                self.give_up(str(self.end.failure))

    # what the peer has said

    @property
    def next_chunk(self) -> bytes:
        return b"".join(self.part.chunks[self.sent : self.sent + 1])

    def say(self, kind: int, body: bytes) -> None:
        frame = self.sealed(kind, body)
        if self.taken(kind, body):
            self.wire.gives += frame
        else:
            self.put(frame)

    def put(self, data: bytes) -> None:
        """Nothing that comes from here on may be believed."""
        self.is_sound = False
        self.wire.gives += data

    def sealed(self, kind: int, body: bytes) -> bytes:
        frame = memoryview(bytearray(HEADER_BYTES + len(body) + TAG_BYTES))
        return bytes(frame[: self.theirs.seal(cast("Kind", kind), frame, body)])

    def taken(self, kind: int, body: bytes) -> bool:
        """Whether this frame is the next one of those that an honest peer could have sent."""
        is_chunk = kind == Kind.DATA and 0 < len(body) == len(self.next_chunk)
        is_end = kind == Kind.END and not body and self.sent == len(self.part.chunks)
        if not self.is_sound or self.is_whole or not (is_chunk or is_end):
            return False
        self.good_bytes += len(body)
        self.sent += is_chunk
        self.is_whole = is_end
        return True

    # what is always so

    @invariant()
    def it_is_bounded_and_believes_nothing(self) -> None:
        end, failure = self.end, self.end.failure
        assert failure is None or isinstance(failure, PeerlmError)
        assert len(str(failure)) < 1000
        assert str(failure).isprintable(), "a peer's words move the cursor"
        assert len(self.written) <= end.heard_bytes <= self.good_bytes
        assert end._have <= HEADER_BYTES + max(CHUNK_BYTES, REASON_BYTES_MAX) + TAG_BYTES
        assert len(self.disk.jobs) <= WINDOW
        talk = self.part.talk
        if isinstance(talk, Give):
            assert len(talk._ready) <= WINDOW
        elif isinstance(talk, Ask):
            assert talk.side.heard <= talk._said, "an answer to what was not asked"
        if not self.is_sound and not self.wire.gives and not end._have:
            assert failure is not None or end.heard_end, "all was taken, the bad too"
        if end.is_good:
            assert end.heard_bytes == self.all_bytes
        if end.heard_end and not self.has_given_up:
            assert self.is_whole
        if end.said_end and end.dials and not self.has_given_up:
            assert end.heard_end

    def teardown(self) -> None:
        """Once the peer has hung up, it is over soon, whatever was said."""
        if not hasattr(self, "end"):
            return
        self.wire.is_hung_up = True
        for _ in range(5000):
            self.listen(5000, 1)
            while self.disk.jobs:
                self.disk.work()
            if self.end.has_ended and not self.end.wants_to_write:
                self.it_is_bounded_and_believes_nothing()
                return
        raise AssertionError(f"it goes on: {state(self.end)}")


def whole_frame(heard: bytearray) -> bytes | None:
    if len(heard) < HEADER_BYTES:
        return None
    end = HEADER_BYTES + parse_header(heard)[1] + TAG_BYTES
    return bytes(heard[:end]) if len(heard) >= end else None


class WhoAsks(Besieged):
    name = "ask"


class WhoAnswers(Besieged):
    name = "answer"


class WhoFetches(Besieged):
    name = "fetch"


class WhoGives(Besieged):
    name = "give"


FOULS: dict[str, Callable[[Besieged], None]] = {
    "end": lambda peer: peer.end_now(b"", 400),
    "long end": lambda peer: peer.end_now(b"x", 400),
    "begin": lambda peer: peer.begin_again(bytes(8), 400),
    "keep": lambda peer: peer.keep_now(b"", 400),
    "unknown": lambda peer: peer.unknown_kind(9, 400),
    "abort": lambda peer: peer.abort(b"y" * 200),
    "rude abort": lambda peer: peer.abort(b"a\r\n\x1b[2J\xff"),
    "absurd": lambda peer: peer.absurd_length(Kind.DATA, 2**32 - 1),
    **{
        f"{change} chunk": lambda peer, change=change: peer.chunk_of_another_length(change, 400)  # type: ignore[misc]
        for change in ("none", "less", "more", "most")
    },
    **{
        harm: lambda peer, harm=harm: peer.damage(harm, 400)  # type: ignore[misc]
        for harm in ("flip", "cut", "skip", "again")
    },
}


@pytest.mark.parametrize("foul", FOULS)
@pytest.mark.parametrize("who", [WhoAsks, WhoAnswers, WhoFetches, WhoGives])
def test_one_foul_ends_it_wherever_it_comes(who: type[Besieged], foul: str) -> None:
    for frames in range(4):
        peer = who()
        peer.begin([700, 5000], frames)
        FOULS[foul](peer)
        peer.it_is_bounded_and_believes_nothing()
        peer.teardown()
        if not peer.is_whole:
            assert peer.end.failure is not None
            assert not peer.end.is_good or who is WhoGives


TestWhoAsks = WhoAsks.TestCase
TestWhoAnswers = WhoAnswers.TestCase
TestWhoFetches = WhoFetches.TestCase
TestWhoGives = WhoGives.TestCase
TestWhoAsks.settings = some(100, 20)
TestWhoAnswers.settings = some(100, 20)
TestWhoFetches.settings = some(100, 20)
TestWhoGives.settings = some(100, 20)
