from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from peerlm.swarm.vitals import Ledger
from peerlm.types import PeerId
from peerlm.wire.codec import encode
from peerlm.wire.message import Pulse, Vitals

A, B, C = (PeerId(bytes([i]) * 16) for i in range(3))


def vitals(peer: PeerId, epoch: int, version: int, tokens: int) -> Vitals:
    return Vitals(
        peer, epoch, version, tokens, "training", True, True, False, 1, None, None, None, 0.0
    )


def pulse(v: Vitals) -> Pulse:
    return Pulse(encode(v), bytes(64))


def tell(ledger: Ledger, *told: Vitals) -> None:
    for v in told:
        ledger.merge(v, pulse(v))
        ledger.check()


@st.composite
def pulses(draw: st.DrawFn) -> Vitals:
    """Honest ones: in an epoch tokens grow with the version."""
    version = draw(st.integers(0, 5))
    peer = draw(st.sampled_from((A, B, C)))
    return vitals(peer, draw(st.integers(1, 3)), version, 100 * version)


@given(st.lists(pulses(), max_size=30), st.randoms(use_true_random=False))
def test_any_order_of_gossip_gives_the_same_count(told: list[Vitals], rng: random.Random) -> None:
    first, second = Ledger(), Ledger()
    tell(first, *told)
    shuffled = list(told) + told[:5]
    rng.shuffle(shuffled)
    tell(second, *shuffled)
    assert first.tallies() == second.tallies()
    assert first.total() == second.total() == sum(tokens for _, _, tokens in first.tallies())
    assert [first.version_of(p) for p in (A, B, C)] == [second.version_of(p) for p in (A, B, C)]


@given(st.lists(pulses(), max_size=30))
def test_the_count_never_goes_backwards(told: list[Vitals]) -> None:
    ledger, before = Ledger(), 0
    for v in told:
        tell(ledger, v)
        assert ledger.total() >= before
        before = ledger.total()


def test_a_restart_counts_anew_and_loses_nothing() -> None:
    ledger = Ledger()
    tell(ledger, vitals(A, 1, 9, 500), vitals(A, 2, 0, 0), vitals(A, 2, 1, 40))
    assert ledger.total() == ledger.tokens_of(A) == 540
    newest = ledger.latest(A)
    assert newest is not None
    assert (newest.epoch, newest.tokens) == (2, 40)


def test_old_news_is_no_news() -> None:
    ledger = Ledger()
    tell(ledger, vitals(A, 2, 3, 30))
    assert not ledger.is_news(vitals(A, 2, 3, 30))
    assert not ledger.is_news(vitals(A, 2, 2, 20))
    assert not ledger.is_news(vitals(A, 1, 9, 0)), "an old epoch that counted nothing"
    assert ledger.is_news(vitals(A, 1, 9, 70))
    assert ledger.is_news(vitals(A, 3, 0, 0))


def test_old_epochs_are_handed_on_with_their_proof() -> None:
    ledger = Ledger()
    last_of_1, only_of_2, now = vitals(A, 1, 8, 80), vitals(A, 2, 4, 40), vitals(A, 3, 1, 10)
    tell(ledger, vitals(A, 1, 7, 70), last_of_1, only_of_2, now)
    everything = [pulse(last_of_1), pulse(only_of_2), pulse(now)]
    assert ledger.pulses_since(A, 0, 0) == everything
    assert ledger.pulses_since(A, 1, 8) == everything[1:]
    assert ledger.pulses_since(A, 3, 1) == ledger.pulses_since(B, 0, 0) == []


def test_a_snapshot_restores_the_count_and_stale_ones_do_no_harm() -> None:
    ledger, again = Ledger(), Ledger()
    tell(ledger, vitals(A, 1, 1, 100), vitals(B, 1, 1, 50))
    stale = ledger.tallies()
    tell(ledger, vitals(A, 1, 2, 200))
    again.restore(ledger.tallies())
    again.restore(stale)
    assert again.total() == 250
    assert again.version_of(A) == (0, 0)
    tell(again, vitals(A, 1, 2, 200))
    assert again.total() == 250


def test_what_was_there_before_we_heard_of_it_is_told_apart() -> None:
    ledger = Ledger()
    ledger.restore([(B, 1, 50)])
    tell(ledger, vitals(A, 1, 1, 100))
    assert (ledger.total(), ledger.hearsay) == (150, 150)
    tell(ledger, vitals(A, 1, 2, 130))
    ledger.count_own(C, 1, 7)
    assert (ledger.total(), ledger.hearsay) == (187, 150), "that was seen being added"
    ledger.restore([(A, 1, 120), (B, 1, 60)])
    assert (ledger.total(), ledger.hearsay) == (197, 160)


def test_only_what_no_pulse_stands_behind_is_unproven() -> None:
    ledger = Ledger()
    ledger.restore([(B, 1, 50)])
    tell(ledger, vitals(A, 1, 1, 100), vitals(B, 2, 1, 20))
    assert ledger.unproven() == [(B, 1, 50)]
    ledger.forget(A)
    assert ledger.unproven() == [(A, 1, 100), (B, 1, 50)]


def test_our_own_tokens_count_before_others_hear_of_them() -> None:
    ledger = Ledger()
    ledger.count_own(A, 1, 700)
    assert ledger.total() == 700
    tell(ledger, vitals(A, 1, 0, 600))
    assert ledger.total() == 700


def test_an_expelled_node_takes_its_word_but_not_its_tokens() -> None:
    ledger = Ledger()
    tell(ledger, vitals(A, 1, 1, 100))
    ledger.forget(A)
    assert ledger.latest(A) is None
    assert ledger.pulses_since(A, 0, 0) == []
    assert ledger.total() == 100


def test_a_full_ledger_refuses_newcomers_first_and_forgets_nobody() -> None:
    ledger = Ledger(entries_max=4, newcomers_max=2)
    tell(ledger, vitals(A, 1, 1, 10), vitals(B, 1, 1, 20))
    assert not ledger.is_news(vitals(C, 1, 1, 1000))
    tell(ledger, vitals(A, 2, 1, 5), vitals(A, 3, 1, 5), vitals(A, 4, 1, 5))
    assert ledger.total() == 40
    tell(ledger, vitals(A, 3, 2, 6))
    assert ledger.total() == 41
    ledger.restore([(C, 1, 999)])
    assert ledger.refused == 1


def test_restarts_without_training_take_no_room() -> None:
    ledger = Ledger(entries_max=3)
    for epoch in range(100):
        tell(ledger, vitals(A, epoch, 1, 0))
    assert ledger.version_of(A) == (99, 1)


def test_no_claim_of_tokens_can_make_the_count_too_large_to_tell() -> None:
    ledger = Ledger()
    tell(ledger, *(vitals(A, epoch, 1, 2**62) for epoch in range(1, 10)))
    ledger.restore((A, epoch, 2**62) for epoch in range(10, 5000))
    assert ledger.total() <= 2**62
    assert all(tokens <= 2**50 for _, _, tokens in ledger.tallies())
    ledger.check()
