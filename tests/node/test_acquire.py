"""Whom state is fetched from: what is compared, and what when those who offered it are gone."""

from __future__ import annotations

import random

import pytest

from peerlm.effects import Effect, Send
from peerlm.node.acquire import COMPARE_S, Acquisition, agreeing_donors
from peerlm.types import FragmentId, Instant, PeerId
from peerlm.wire.message import FragmentOffer, PullRequest, StateAsk, StateGive

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


# ---------------------------------------------------------------------------- donors of a part


def part(fragments: dict[int, float], version: int = 1) -> StateGive:
    """An offer of these fragments, with a sketch of each."""
    offers = (
        FragmentOffer(f, version, bytes([f]) * 32, 40, (sketch,) * 32)
        for f, sketch in fragments.items()
    )
    return StateGive(PLAN, 100, False, tuple(offers))


def holder_of(*fragments: int, donors: tuple[PeerId, ...] = (ANN, BOB, EVE)) -> Acquisition:
    sizes = {FragmentId(f): 10 for f in fragments}
    acquisition = Acquisition(sizes, lambda peer: ("host", 7702), random.Random(1))
    acquisition.want_state(Instant(0.0))
    acquisition.donors_are(donors, Instant(0.0))
    return acquisition


def pulled(effects: list[Effect]) -> dict[int, PeerId]:
    """Whom each fragment is asked of."""
    asked = [(e.peer, e.message) for e in effects if isinstance(e, Send)]
    return {m.object_hash[0]: peer for peer, m in asked if isinstance(m, PullRequest)}


def test_what_is_held_here_is_put_together_from_donors_of_parts() -> None:
    acquisition = holder_of(0, 1, 2)
    assert acquisition.on_state_give(ANN, part({0: 1.0, 1: 1.0}), PLAN, Instant(0.1)) == []
    assert acquisition.on_state_give(BOB, part({3: 1.0}), PLAN, Instant(0.1)) == []
    acquisition.on_state_give(EVE, part({2: 1.0, 3: 1.0}), PLAN, Instant(0.2))
    effects = acquisition.wake(Instant(0.1 + COMPARE_S))
    asked = pulled(effects)
    assert asked.keys() <= {0, 1, 2}
    assert {asked[f] for f in asked if f < 2} <= {ANN}
    assert asked.get(2, EVE) == EVE
    assert asked


def test_what_no_donor_has_is_waited_for() -> None:
    acquisition = holder_of(0, 1, donors=(ANN,))
    assert acquisition.on_state_give(ANN, part({0: 1.0}), PLAN, Instant(0.1)) == []
    assert not pulled(acquisition.wake(Instant(5.0)))
    assert acquisition.deadline() is not None
    asked = acquisition.donors_are((ANN, EVE), Instant(6.0))
    assert [e.peer for e in asked if isinstance(e, Send)] == [EVE]
    effects = acquisition.on_state_give(EVE, part({1: 1.0, 2: 1.0}), PLAN, Instant(6.1))
    assert set(pulled(effects or acquisition.wake(Instant(6.1 + COMPARE_S)))) <= {0, 1}
    assert not acquisition.state_arrived


@pytest.mark.parametrize(
    "give",
    [
        part({7: 1.0}),  # nothing of ours
        StateGive(PLAN, 1, False, (FragmentOffer(0, 1, b"h" * 32, 44, (1.0,) * 32),)),
        StateGive(PLAN, 1, False, part({0: 1.0}).fragments * 2),
        StateGive(b"q" * 32, 1, False, part({0: 1.0, 1: 1.0}).fragments),
        StateGive(PLAN, 1, False, ()),
    ],
)
def test_an_offer_that_does_not_fit_counts_as_none(give: StateGive) -> None:
    acquisition = holder_of(0, 1, donors=(ANN,))
    assert acquisition.on_state_give(ANN, give, PLAN, Instant(0.1)) == []
    assert pulled(acquisition.on_state_give(ANN, part({0: 1.0, 1: 1.0}), PLAN, Instant(0.2)))


def test_donors_that_disagree_are_not_both_backed_by_one_that_holds_something_else() -> None:
    ahead, lagging, other = part({0: 1.0}, 9), part({0: -1.0}, 3), part({1: 1.0}, 5)
    assert agreeing_donors({ANN: lagging, BOB: ahead, EVE: other}) == (EVE, BOB)


def test_a_majority_of_a_part_is_one_of_those_that_hold_it() -> None:
    false, true, same = part({0: -1.0}, 9), part({0: 1.0}, 3), part({0: 1.0, 1: 1.0}, 2)
    others = {PeerId(bytes([n]) * 16): part({1: 1.0}, 1) for n in (7, 8)}
    kept = agreeing_donors({ANN: false, BOB: true, EVE: same, **others})
    assert kept == (BOB, EVE, *others)
