from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from membership_harness import peer_id, record_of, sign

from peerlm.membership.rumors import RumorQueue, rumor_bytes, sends_limit
from peerlm.wire.codec import encode
from peerlm.wire.message import Dead, Gossip, PlanNews, Pulse, Revoked, Suspect

A, B, C = (peer_id(i) for i in range(3))


def news(number: int) -> PlanNews:
    return PlanNews(number, bytes(32))


@pytest.mark.parametrize(("n", "limit"), [(1, 12), (64, 12), (999, 12), (1000, 16), (20_000, 20)])
def test_tellings_grow_with_log_n_from_a_floor(n: int, limit: int) -> None:
    assert sends_limit(4, n, 12) == limit


def test_the_least_told_goes_first_then_the_newest() -> None:
    queue = RumorQueue()
    queue.put(b"1", news(1))
    queue.put(b"2", news(2))
    assert queue.take(A, 64, 9) == (news(2),)
    queue.put(b"3", news(3))
    assert queue.take(B, 1000, 9) == (news(3), news(1), news(2))


def test_a_newer_fact_replaces_the_older_on_its_subject() -> None:
    queue = RumorQueue()
    queue.put(b"x", news(1))
    queue.put(b"x", news(2))
    assert queue.take(A, 1000, 9) == (news(2),)


def test_a_rumor_goes_when_told_often_enough() -> None:
    queue = RumorQueue()
    queue.put(b"x", news(1))
    queue.put(b"y", news(2), sends_max=1)
    assert len(queue.take(A, 1000, 2)) == 2
    assert queue.take(B, 1000, 2) == (news(1),)
    assert len(queue) == 0


def test_the_teller_need_not_hear_it_and_nobody_hears_it_thrice() -> None:
    queue = RumorQueue()
    queue.put(b"x", news(1), teller=A)
    assert queue.take(A, 1000, 12) == ()
    assert [len(queue.take(B, 1000, 12)) for _ in range(3)] == [1, 1, 0]
    assert queue.take(C, 1000, 12) == (news(1),)


def test_in_a_small_swarm_a_rumor_ends_with_its_rounds() -> None:
    queue = RumorQueue()
    queue.put(b"x", news(1))
    for _ in range(12):
        assert len(queue) == 1
        queue.end_round(12)
    assert len(queue) == 0


def test_what_does_not_fit_waits_for_a_larger_message() -> None:
    queue = RumorQueue()
    big = Revoked(bytes(16_384))
    queue.put(b"big", big)
    queue.put(b"small", news(1))
    assert queue.take(A, 4096, 12) == (news(1),)
    assert big in queue.take(A, 48 * 1024, 12)


def test_a_full_queue_loses_what_was_told_most() -> None:
    queue = RumorQueue(subjects_max=2)
    queue.put(b"told", news(1))
    queue.take(A, 1000, 12)
    queue.put(b"fresh", news(2))
    queue.put(b"new", news(3))
    assert b"told" not in queue
    assert len(queue) == 2


@given(st.integers(0, 2**62), st.integers(0, 512), st.integers(0, 6), st.integers(0, 2048))
def test_the_estimate_of_a_size_is_never_too_small(
    number: int, vitals: int, links: int, link: int
) -> None:
    alive = sign(record_of(1, number, number))
    for rumor in (
        type(alive)(alive.record, alive.signature, (bytes(link),) * links),
        Suspect(A, number, number, B),
        Dead(A, number, number, B),
        Pulse(bytes(vitals), bytes(64)),
        Revoked(bytes(link)),
        PlanNews(number, bytes(32)),
    ):
        alone = len(encode(Gossip((rumor,)))) - len(encode(Gossip(())))
        assert alone <= rumor_bytes(rumor)
