"""Whom state is fetched from: what is compared, and what when those who offered it are gone."""

from __future__ import annotations

import random

from peerlm.effects import Send
from peerlm.node.acquire import COMPARE_S, Acquisition, agreeing_donors
from peerlm.types import Instant, PeerId
from peerlm.wire.message import FragmentOffer, StateAsk, StateGive

ANN, BOB, EVE = (PeerId(bytes([n]) * 16) for n in (1, 2, 3))
PLAN = b"p" * 32


def offer(version: int = 1, tokens: int = 100, sketch: float = 1.0) -> StateGive:
    fragments = (FragmentOffer(0, version, b"h" * 32, 40, (sketch,) * 32),)
    return StateGive(PLAN, tokens, False, fragments)


def test_a_donor_that_is_gone_before_offers_are_compared_is_forgotten_and_others_are_asked() -> (
    None
):
    acquisition = Acquisition({0: 10}, lambda peer: ("host", 7702), random.Random(1))
    acquisition.want_state(Instant(0.0))
    acquisition.donors_are((ANN, BOB, EVE), Instant(0.0))
    acquisition.on_state_give(ANN, offer(), PLAN, Instant(0.1))
    acquisition.donors_are((BOB, EVE), Instant(0.2))
    asked = acquisition.wake(Instant(0.2 + COMPARE_S))
    assert {e.peer for e in asked if isinstance(e, Send) and e.message == StateAsk()} == {BOB, EVE}


def test_of_two_donors_that_disagree_the_one_with_more_outer_steps_is_taken() -> None:
    lagging, ahead = offer(3, tokens=101), offer(50, tokens=100, sketch=-1.0)
    assert agreeing_donors({ANN: lagging, BOB: ahead}) == (BOB,)


def test_of_three_donors_those_that_agree_are_taken() -> None:
    alone, first, second = offer(90, sketch=-1.0), offer(3), offer(5)
    assert agreeing_donors({ANN: alone, BOB: first, EVE: second}) == (EVE, BOB)
