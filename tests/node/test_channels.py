"""Channels between neighbours: one each, whoever asks, whatever gets lost, and anew when it breaks."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.effects import CancelTransfer, Effect, Log, RunChannel, Send, ServeChannel
from peerlm.events import ChannelEnded, ChannelOpened
from peerlm.node.channels import AGAIN_S_MAX, ASK_S, LATER_S, Channels
from peerlm.types import Instant, PeerId, TransferId
from peerlm.wire.message import ChannelAnswer, ChannelRequest, Message

ANN, BOB = PeerId(b"a" * 16), PeerId(b"b" * 16)
HERE = ("host", 7703)


class End:
    """The channels of one node, and what became of its effects."""

    def __init__(self, me: PeerId, seed: int = 1) -> None:
        self.me, self.peer = me, ANN if me == BOB else BOB
        self.can_dial = True
        self.channels = Channels(me, lambda _: HERE if self.can_dial else None, random.Random(seed))
        self.running: dict[TransferId, RunChannel | ServeChannel] = {}
        self.open: set[TransferId] = set()

    def do(self, effects: list[Effect]) -> list[Message]:
        """Carry out effects; returns what is to be sent."""
        said: list[Message] = []
        for effect in effects:
            match effect:
                case Send(peer, message):
                    assert peer == self.peer
                    said.append(message)
                case RunChannel() | ServeChannel():
                    assert effect.transfer not in self.running
                    self.running[effect.transfer] = effect
                case CancelTransfer(transfer):
                    del self.running[transfer]
                    self.open.discard(transfer)
                case Log():
                    pass
                case _:
                    raise AssertionError(effect)
        assert len(self.running) <= 1
        return said

    def see(self, now: float, *, them: bool = True) -> list[Message]:
        return self.do(self.channels.see((self.peer,) if them else (), Instant(now)))

    def wake(self, now: float) -> list[Message]:
        return self.do(self.channels.wake(Instant(now)))

    def hear(self, message: Message, now: float) -> list[Message]:
        if isinstance(message, ChannelRequest):
            return self.do(self.channels.on_request(self.peer, message, Instant(now)))
        assert isinstance(message, ChannelAnswer)
        return self.do(self.channels.on_answer(self.peer, message, Instant(now)))

    def opened(self) -> None:
        (transfer,) = self.running
        self.open.add(transfer)
        self.do(self.channels.opened(ChannelOpened(transfer)))

    def ended(self, transfer: TransferId, now: float) -> None:
        del self.running[transfer]
        self.open.discard(transfer)
        self.do(self.channels.ended(ChannelEnded(transfer, "it broke"), Instant(now)))

    @property
    def transfer(self) -> TransferId | None:
        return next(iter(self.running), None)


def one(messages: list[Message]) -> Message:
    (message,) = messages
    return message


def joined(now: float = 0.0) -> tuple[End, End]:
    """Both ends of a channel that is open."""
    ann, bob = End(ANN), End(BOB)
    ann_asks = one(ann.see(now))
    assert bob.see(now) == []
    assert ann.hear(one(bob.hear(ann_asks, now)), now) == []
    for end in (ann, bob):
        end.opened()
    return ann, bob


def request(letter: bytes) -> ChannelRequest:
    return ChannelRequest(letter * 16, b"u" * 32, b"d" * 32)


# ------------------------------------------------------------------------------------ who asks


def test_the_smaller_id_asks_and_both_have_one_channel() -> None:
    ann, bob = joined()
    assert ann.transfer == bob.transfer
    assert ann.transfer is not None
    run, serve = ann.running[ann.transfer], bob.running[ann.transfer]
    assert isinstance(run, RunChannel)
    assert isinstance(serve, ServeChannel)
    assert (run.host, run.bulk_port) == HERE
    assert (run.key_up, run.key_down) == (serve.key_up, serve.key_down)
    assert run.key_up != run.key_down
    assert (ann.channels.open(), bob.channels.open()) == ((BOB,), (ANN,))
    assert ann.channels.is_taken(ann.transfer)
    assert ann.channels.deadline() is None
    assert ann.wake(1e6) == bob.wake(1e6) == []


def test_the_larger_id_asks_when_nothing_has_come() -> None:
    ann, bob = End(ANN), End(BOB)
    ann.can_dial = False
    assert ann.see(0.0) == []
    assert bob.see(0.0) == []
    assert bob.wake(LATER_S - 0.1) == []
    assert bob.channels.deadline() == LATER_S
    bob.hear(one(ann.hear(one(bob.wake(LATER_S)), LATER_S)), LATER_S)
    assert ann.transfer == bob.transfer
    assert isinstance(bob.running[bob.transfer], RunChannel)


def test_who_is_no_neighbour_is_refused() -> None:
    ann = End(ANN)
    answer = one(ann.hear(request(b"t"), 0.0))
    assert answer == ChannelAnswer(b"t" * 16, "refuse", "no neighbour")
    assert ann.hear(ChannelAnswer(b"t" * 16, "accept", ""), 0.0) == []
    assert ann.transfer is None


def test_an_endpoint_that_appears_later_is_asked_then() -> None:
    ann = End(ANN)
    ann.can_dial = False
    assert ann.see(0.0) == []
    assert ann.channels.deadline() is None
    ann.can_dial = True
    assert isinstance(one(ann.see(50.0)), ChannelRequest)


def test_an_endpoint_that_is_gone_when_the_answer_comes_is_tried_later() -> None:
    ann, bob = End(ANN), End(BOB)
    bob.see(0.0)
    answer = one(bob.hear(one(ann.see(0.0)), 0.0))
    ann.can_dial = False
    assert ann.hear(answer, 0.1) == []
    assert ann.transfer is None
    ann.can_dial = True
    assert ann.wake(0.1) == []
    assert isinstance(one(ann.wake(1.0)), ChannelRequest)


# ------------------------------------------------------------------------------------ crossings


@pytest.mark.parametrize("order", list(itertools.permutations("abAB")))
def test_requests_that_cross_end_with_one_channel(order: tuple[str, ...]) -> None:
    """a, b: ann's and bob's request arrives. A, B: ann and bob hear the answer to theirs, or as soon as there is one."""
    ann, bob = End(ANN), End(BOB)
    ann.see(0.0)
    bob.see(0.0)
    now = LATER_S
    asked = {ANN: one(ann.wake(now)), BOB: one(bob.wake(now))}
    answers: dict[PeerId, Message] = {}
    for step in [*order, "A", "B"]:
        asker, other = (ann, bob) if step in "aA" else (bob, ann)
        if step in "ab":
            answers[asker.me] = one(other.hear(asked[asker.me], now))
        elif asker.me in answers:
            asker.hear(answers.pop(asker.me), now)
    assert ann.transfer == bob.transfer
    assert ann.transfer is not None
    assert isinstance(ann.running[ann.transfer], RunChannel)


def test_a_request_that_is_answered_by_nobody_is_asked_anew_under_another_id() -> None:
    ann, bob = End(ANN), End(BOB)
    bob.see(0.0)
    first = one(ann.see(0.0))
    lost = one(bob.hear(first, 0.0))
    assert ann.wake(ASK_S - 0.1) == []
    second = one(ann.wake(ASK_S))
    assert isinstance(second, ChannelRequest)
    assert isinstance(first, ChannelRequest)
    assert second.transfer != first.transfer
    ann.hear(one(bob.hear(second, ASK_S)), ASK_S)
    assert ann.transfer == bob.transfer == TransferId(second.transfer)
    assert ann.hear(lost, ASK_S) == []
    assert ann.transfer == TransferId(second.transfer)


def test_an_answer_from_another_or_to_another_is_none() -> None:
    ann = End(ANN)
    asked = one(ann.see(0.0))
    assert isinstance(asked, ChannelRequest)
    eve = PeerId(b"e" * 16)
    answer = ChannelAnswer(asked.transfer, "accept", "")
    assert ann.channels.on_answer(eve, answer, Instant(0.0)) == []
    assert ann.hear(ChannelAnswer(b"x" * 16, "accept", ""), 0.0) == []
    assert ann.transfer is None
    ann.hear(answer, 0.0)
    assert ann.hear(answer, 0.0) == []


# ------------------------------------------------------------------------------------- its end


def test_a_channel_that_breaks_is_asked_for_with_pauses_that_grow() -> None:
    ann, bob = joined()
    now, pauses = 0.0, []
    for _ in range(10):
        assert ann.transfer is not None
        ann.ended(ann.transfer, now)
        assert ann.channels.open() == ()
        due = ann.channels.deadline()
        assert due is not None
        pauses.append(due - now)
        assert ann.wake(due - 0.01) == []
        now = due
        ann.hear(one(bob.hear(one(ann.wake(now)), now)), now)  # accepted, but it never opens
    assert pauses[0] < 1
    assert pauses[-1] > AGAIN_S_MAX / 2
    assert max(pauses) <= 1.5 * AGAIN_S_MAX
    ann.opened()
    assert ann.transfer is not None
    ann.ended(ann.transfer, now)
    due = ann.channels.deadline()
    assert due is not None
    assert due - now < 1  # one that was open was not in vain


def test_a_refusal_is_asked_again_later() -> None:
    ann = End(ANN)
    asked = one(ann.see(0.0))
    assert isinstance(asked, ChannelRequest)
    ann.hear(ChannelAnswer(asked.transfer, "refuse", "no neighbour"), 0.1)
    assert ann.wake(0.1) == []
    assert isinstance(one(ann.wake(2.0)), ChannelRequest)


def test_a_peer_that_restarts_is_given_a_new_channel_for_the_old() -> None:
    ann, bob = joined()
    old = ann.transfer
    bob = End(BOB, seed=2)
    bob.see(10.0)
    bob.hear(one(ann.hear(one(bob.wake(10.0 + LATER_S)), 14.0)), 14.0)
    assert ann.transfer == bob.transfer != old
    assert ann.channels.open() == ()
    assert ann.do(ann.channels.opened(ChannelOpened(old))) == []  # a late word of the old one
    assert ann.do(ann.channels.ended(ChannelEnded(old, "broke"), Instant(14.0))) == []
    assert ann.transfer == bob.transfer


def test_a_neighbour_that_goes_takes_its_channel_with_it() -> None:
    ann, _ = joined()
    assert ann.see(1.0, them=False) == []
    assert ann.transfer is None
    assert ann.channels.open() == ()
    assert ann.channels.deadline() is None
    asked = ann.see(2.0)
    assert isinstance(one(asked), ChannelRequest)
    ann.see(2.1, them=False)
    assert ann.hear(ChannelAnswer(one(asked).transfer, "accept", ""), 2.2) == []  # type: ignore[attr-defined]
    assert ann.transfer is None


# ---------------------------------------------------------------------------------- a bad wire

SOUND_AT, END_AT = 60.0, 120.0
SILENT_S = 8.0


class Wire:
    """Two ends, messages that are lost, doubled and late until `SOUND_AT`, and channels that open when both run the same,
    break at any time until then, and are found dead after a while by whoever runs one alone."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.ends = {ANN: End(ANN, rng.randrange(99)), BOB: End(BOB, rng.randrange(99))}
        self.on_the_way: list[tuple[float, int, PeerId, Message]] = []
        self.count = itertools.count()
        self.alone: dict[PeerId, tuple[TransferId, float]] = {}

    def send(self, to: PeerId, messages: list[Message], now: float) -> None:
        for message in messages:
            copies = self.rng.choice((0, 1, 1, 2)) if now < SOUND_AT else 1
            for _ in range(copies):
                late_s = self.rng.choice((0.01, 0.1, 5.0)) if now < SOUND_AT else 0.05
                heapq.heappush(self.on_the_way, (now + late_s, next(self.count), to, message))

    def step(self, now: float) -> None:
        while self.on_the_way and self.on_the_way[0][0] <= now:
            _, _, to, message = heapq.heappop(self.on_the_way)
            end = self.ends[to]
            taken = isinstance(message, ChannelRequest) and end.channels.is_taken(
                TransferId(message.transfer)
            )
            if not taken:
                self.send(end.peer, end.hear(message, now), now)
        ann, bob = self.ends.values()
        for end in (ann, bob):
            if now < SOUND_AT and self.rng.random() < 0.01:
                end.see(now, them=False)
                self.send(end.peer, end.see(now), now)
            self.send(end.peer, end.wake(now), now)
        is_joined = ann.transfer is not None and ann.transfer == bob.transfer
        breaks = is_joined and now < SOUND_AT and self.rng.random() < 0.02
        for end in (ann, bob):
            transfer = end.transfer
            if transfer is None:
                continue
            if is_joined and not breaks:
                self.alone.pop(end.me, None)
                if transfer not in end.open:
                    end.opened()
            elif breaks:
                end.ended(transfer, now)
            elif self.alone.get(end.me, (None, now))[0] != transfer:
                self.alone[end.me] = (transfer, now)
            elif now - self.alone[end.me][1] > SILENT_S:
                end.ended(transfer, now)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_whatever_the_wire_did_both_end_on_one_channel_once_it_is_sound(seed: int) -> None:
    wire, now = Wire(random.Random(seed)), 0.0
    for end in wire.ends.values():
        wire.send(end.peer, end.see(now), now)
    while now < END_AT:
        now += 0.1
        wire.step(now)
    ann, bob = wire.ends.values()
    assert ann.transfer is not None
    assert ann.transfer == bob.transfer
    assert (ann.channels.open(), bob.channels.open()) == ((BOB,), (ANN,))
