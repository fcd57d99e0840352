"""One end of a bulk transfer against a peer that holds the keys and sends whatever it likes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
from bulk_scene import (
    CHUNK_BYTES,
    FRAGMENT,
    KEYS,
    OBJECT,
    WINDOW,
    Disk,
    Wire,
    checked,
    move,
    paces,
    sides,
    small_chunks,
    state,
    stream,
    turns,
    weights,
)
from effort import some
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peerlm.daemon.stream import Talk
from peerlm.daemon.talks import Answer, Ask, Fetch, Give
from peerlm.errors import PeerlmError
from peerlm.mix import chunks
from peerlm.mix.codec import encode
from peerlm.wire.frame import (
    BODY_BYTES_MAX,
    DOWN,
    HEADER_BYTES,
    REASON_BYTES_MAX,
    TAG_BYTES,
    UP,
    Cipher,
    Kind,
    parse_header,
)

__all__ = ["small_chunks"]


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
