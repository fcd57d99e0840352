from __future__ import annotations

import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from peerlm.daemon.transfer import ANSWERS_MAX, Offer, Transfer, Want, Window, offer_of
from peerlm.errors import ChunkCorrupt, Unreachable, WireError
from peerlm.types import Instant
from peerlm.wire.frame import CHUNK_BYTES, Kind, parse

ID, UP, DOWN = bytes(16), bytes(32), b"d" * 32


def end_of_a_wire(
    initiator: bool, offer: Offer | None, want: Want, width: int = 4, key_up: bytes = UP
) -> Transfer:
    return Transfer(
        id=ID,
        initiator=initiator,
        key_up=key_up,
        key_down=DOWN,
        security="aead",
        offer=offer,
        want=want,
        width=width,
        began_at=Instant(0.0),
        progress_timeout_s=10.0,
        timeout_s=60.0,
    )


def frames_of(end: Transfer) -> list[tuple[bytes, bytes]]:
    frames = []
    while end.next_job() is not None:
        packed, sealed = end.next_frame()
        frames.append((packed, bytes(sealed)))
    return frames


def carry(frames, to: Transfer, now: float = 0.0) -> list[str]:
    return [to.on_frame(parse(p), p, s, Instant(now)) for p, s in frames]


def random_bytes(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def converse(a: Transfer, b: Transfer, now: float, spoil) -> None:
    """Carry frames there and back until both are silent; `spoil(frames)` may drop and damage some."""
    while True:
        there = frames_of(a)
        carry(spoil(there), b, now)
        back = frames_of(b)
        carry(spoil(back), a, now)
        if not there and not back:
            return


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    size_up=st.integers(0, 9 * CHUNK_BYTES),
    size_down=st.integers(0, 9 * CHUNK_BYTES),
    width=st.integers(1, 6),
    seed=st.integers(0, 1 << 32),
)
def test_an_exchange_survives_any_loss_and_damage(size_up, size_down, width, seed) -> None:
    rng = random.Random(seed)
    request, reply = random_bytes(size_up), random_bytes(size_down)
    ann = end_of_a_wire(True, offer_of(request), Want(size_down, exact=False), width)
    bob = end_of_a_wire(False, None, Want(size_up, exact=True), width)

    def spoil(frames):
        kept = [f for f in frames if rng.random() > 0.2]
        return [(p, s[:-1] + bytes([s[-1] ^ (rng.random() < 0.1)])) for p, s in kept]

    ann.progress_timeout_s = bob.progress_timeout_s = 60.0
    now = 0.0
    while not ann.has_all:
        now += 0.3
        converse(ann, bob, now, spoil)
        if bob.has_all and bob.offer is None:
            bob.give(reply)
        ann.tick(Instant(now))
        bob.tick(Instant(now))
        assert ann.failure is None
    assert bob.want.memory == request
    assert ann.want.memory == reply


def keep(frames):
    return frames


def test_without_loss_nothing_is_sent_twice() -> None:
    request = random_bytes(20 * CHUNK_BYTES + 5)
    ann = end_of_a_wire(True, offer_of(request), Want(0, exact=False))
    bob = end_of_a_wire(False, None, Want(len(request), exact=True))
    converse(ann, bob, 0.0, keep)
    assert bob.want.memory == request
    assert ann.bytes_sent == bob.bytes_received == len(request)


def test_a_slow_chunk_is_not_asked_for_again_however_long_it_takes() -> None:
    ann = end_of_a_wire(True, offer_of(random_bytes(CHUNK_BYTES)), Want(0, exact=False))
    bob = end_of_a_wire(False, None, Want(CHUNK_BYTES, exact=True))
    carry(frames_of(ann), bob)
    asked = frames_of(bob)
    for now in (0.3, 1.0, 3.0, 6.0, 9.0):
        bob.tick(Instant(now))
        kinds = [parse(p).kind for p, _ in frames_of(bob)]
        assert set(kinds) <= {Kind.HAIL}
    carry(asked, ann)
    carry(frames_of(ann), bob, 9.5)
    assert bob.has_all
    assert ann.bytes_sent == CHUNK_BYTES


def test_replays_forgeries_and_the_unasked_are_dropped_and_change_nothing() -> None:
    request = random_bytes(3 * CHUNK_BYTES)
    ann = end_of_a_wire(True, offer_of(request), Want(0, exact=False))
    bob = end_of_a_wire(False, None, Want(len(request), exact=True))
    hail = frames_of(ann)
    assert carry(hail, bob) == [""]
    assert carry(hail, bob) == ["replayed"]
    carry(frames_of(bob), ann)
    data = frames_of(ann)
    header = parse(data[0][0])
    eve = end_of_a_wire(True, offer_of(request), Want(0, exact=False), key_up=b"e" * 32)
    frames_of(eve)
    eve._serial = 10
    eve._on_get(0)
    forged = frames_of(eve)
    assert carry(forged, bob) == ["corrupt"]
    assert carry(data, bob) == [""] * 3
    assert carry(data, bob) == ["replayed"] * 3
    ann._on_get(header.ref)
    assert carry(frames_of(ann), bob) == ["unasked"]
    assert bob.want.memory == request


def test_memory_is_not_taken_before_the_peer_has_proved_itself() -> None:
    bob = end_of_a_wire(False, None, Want(1 << 28, exact=True))
    assert len(bob.want.memory) == 0


@pytest.mark.parametrize("size", [0, 99, 101])
def test_a_request_of_another_size_than_agreed_ends_it(size: int) -> None:
    ann = end_of_a_wire(True, offer_of(bytes(size)), Want(0, exact=False))
    bob = end_of_a_wire(False, None, Want(100, exact=True))
    carry(frames_of(ann), bob)
    assert isinstance(bob.failure, WireError)
    assert f"offers {size} bytes, must be 100" in str(bob.failure)


def test_too_large_a_reply_ends_it() -> None:
    ann = end_of_a_wire(True, offer_of(b""), Want(99, exact=False))
    bob = end_of_a_wire(False, None, Want(0, exact=True))
    bob.give(bytes(100))
    converse(ann, bob, 0.0, keep)
    assert isinstance(ann.failure, WireError)


def test_silence_ends_it_after_the_progress_timeout() -> None:
    ann = end_of_a_wire(True, offer_of(b"x"), Want(0, exact=False))
    ann.tick(Instant(9.9))
    assert ann.failure is None
    ann.tick(Instant(10.0))
    assert isinstance(ann.failure, Unreachable)
    assert ann.failure.step == "connect"


def test_only_bad_chunks_end_it_as_corrupt() -> None:
    ann = end_of_a_wire(True, offer_of(b"x" * 100), Want(0, exact=False))
    bob = end_of_a_wire(False, None, Want(100, exact=True))
    carry(frames_of(ann), bob)
    carry(frames_of(bob), ann)
    for packed, sealed in frames_of(ann):
        carry([(packed, b"\0" + sealed[1:])], bob)
    bob.tick(Instant(10.0))
    assert isinstance(bob.failure, ChunkCorrupt)


def test_a_responder_that_thinks_is_not_silent() -> None:
    ann = end_of_a_wire(True, offer_of(b"x"), Want(10, exact=False))
    bob = end_of_a_wire(False, None, Want(1, exact=True))
    for now in range(50):
        converse(ann, bob, float(now), keep)
        ann.tick(Instant(float(now)))
        bob.tick(Instant(float(now)))
    assert ann.failure is None
    assert bob.failure is None
    ann.tick(Instant(60.0))
    assert "not done in 60 s" in str(ann.failure)


def test_giving_up_is_told_to_the_peer() -> None:
    ann = end_of_a_wire(True, offer_of(b"x"), Want(10, exact=False))
    bob = end_of_a_wire(False, None, Want(1, exact=True))
    converse(ann, bob, 0.0, keep)
    bob.end("no room " + "é" * 300)
    carry(frames_of(bob), ann)
    assert isinstance(ann.failure, Unreachable)
    assert "gave up: no room" in str(ann.failure)


def test_having_all_is_told_to_the_peer() -> None:
    ann = end_of_a_wire(True, offer_of(b"x"), Want(10, exact=False))
    bob = end_of_a_wire(False, None, Want(1, exact=True))
    converse(ann, bob, 0.0, keep)
    bob.give(b"reply")
    converse(ann, bob, 0.0, keep)
    assert ann.has_all
    ann.end()
    carry(frames_of(ann), bob)
    assert bob.peer_is_done


def test_a_greedy_peer_gets_no_more_queued_than_four_windows() -> None:
    ann = end_of_a_wire(True, offer_of(bytes(100 * CHUNK_BYTES)), Want(0, exact=False), width=2)
    for chunk in [*range(100), *range(100), 1000]:
        ann._on_get(chunk)
    assert sum(kind is Kind.DATA for kind, _ in ann._outbox) == 8


def test_a_peer_that_hails_without_end_fills_no_memory() -> None:
    ann = end_of_a_wire(True, offer_of(b""), Want(0, exact=True))
    bob = end_of_a_wire(False, None, Want(0, exact=True))
    for _ in range(1000):
        ann._outbox.append((Kind.HAIL, 0))
        carry(frames_of(ann), bob)
    assert len(frames_of(bob)) == ANSWERS_MAX
    ann._outbox.append((Kind.HAIL, 0))
    carry(frames_of(ann), bob)
    assert len(frames_of(bob)) == 1, "it is answered again"


def test_a_window_asks_each_chunk_once_and_the_lost_ones_again() -> None:
    window = Window(chunks=5, width=3)
    for serial in (1, 2, 3):
        window.ask(window.next(), serial)
    assert window.next() is None
    window.arrive(2)
    window.land()
    assert [window.next(), window.is_awaited(0)] == [0, False]
    for serial in (4, 5, 6):
        window.ask(window.next(), serial)
    assert [window.is_awaited(c) for c in range(5)] == [True, True, False, True, False]
    window.give_up(5)
    assert [window.is_awaited(c) for c in range(5)] == [False, False, False, True, False]


def test_what_has_arrived_but_not_landed_counts_against_the_window() -> None:
    window = Window(chunks=3, width=1)
    window.ask(window.next(), 1)
    window.arrive(0)
    assert window.next() is None
    window.land()
    assert window.next() == 1
