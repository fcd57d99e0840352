"""What a node that holds a part of the model takes for facts, and whose finished weights it compares with."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from peerlm.config import NodeSettings, Plan
from peerlm.effects import WriteSnapshot
from peerlm.events import WorkerExited
from peerlm.node.coverage import Coverage
from peerlm.node.facts import Facts
from peerlm.node.finals import Finals, agree
from peerlm.node.lifecycle import FRESH_GRACE_S, Phase
from peerlm.node.reasons import reason_of
from peerlm.node.seen import Seen
from peerlm.node.snapshots import Restored
from peerlm.node.work import Work
from peerlm.swarm.hosting import Hosting, Run
from peerlm.swarm.ways import Way
from peerlm.types import FragmentId, Instant, PeerId
from peerlm.wire.message import FragmentOffer, StateGive

ME, ANN, BOB, EVE = (PeerId(bytes([n]) * 16) for n in range(4))
PLAN_HASH = b"p" * 32


def work(
    first: int, last: int, count: int, *, origin: bool = False, plan: Plan | None = None
) -> Work:
    stage_of = {FragmentId(stage): stage for stage in range(first, last + 1)}
    return Work(
        ME,
        plan or Plan(),
        PLAN_HASH,
        dict.fromkeys(stage_of, 10),
        Hosting(first, last, count, stage_of),
        NodeSettings(),
        lambda peer: ("host", 7703),
        lambda peer: 0.0,
        lambda peer: Way(),
        random.Random(1),
        Instant(0.0),
        coverage=Coverage(plan or Plan(), b"", random.Random(1), Instant(0.0)),
        origin=origin,
        restored=None,
        may_train=True,
    )


def facts(work: Work, runs: dict[PeerId, Run], **seen: object) -> Facts:
    peers = tuple(sorted(runs))
    work.seen = Seen(runs=runs, donors=peers, partners=peers, trainers=peers)._replace(**seen)
    return Facts(work, Instant(0.0))


# ------------------------------------------------------------------------------------- donors


@pytest.mark.parametrize(
    ("runs", "donors"),
    [
        ({}, 0),
        ({ANN: (1, 1)}, 0),  # stage 2 is with nobody
        ({ANN: (1, 1), BOB: (2, 2)}, 2),  # together
        ({ANN: (0, 2)}, 1),
        ({ANN: (0, 1), BOB: (0, 0), EVE: (2, 2)}, 3),
        ({ANN: (0, 0), BOB: (3, 3)}, 0),
    ],
)
def test_donors_count_when_together_they_have_what_is_held_here(
    runs: dict[PeerId, Run], donors: int
) -> None:
    assert facts(work(1, 2, 4), runs).donors == donors


def test_who_is_done_with_other_stages_has_no_finished_weights_for_this_one() -> None:
    """Else a stage's only host, started again when the run is done, would wait for ever for what it has itself."""
    part = work(1, 2, 4)
    assert not facts(part, {ANN: (0, 0), BOB: (3, 3)}, done=(ANN, BOB)).donors_done
    assert not facts(part, {ANN: (0, 1), BOB: (2, 3)}, done=(ANN,)).donors_done
    assert facts(part, {ANN: (0, 1), BOB: (2, 3)}, done=(ANN, BOB)).donors_done
    assert facts(work(0, 0, 1), {ANN: (0, 0)}, done=(ANN,)).donors_done


def test_of_a_model_in_one_piece_everybody_is_a_donor() -> None:
    assert facts(work(0, 0, 1), {ANN: (0, 0), BOB: (0, 0)}).donors == 2


def test_a_stage_may_be_begun_by_whoever_is_to_hold_it_while_nothing_was_learnt() -> None:
    part = work(1, 1, 2)
    assert facts(part, {}).origin
    assert not facts(part, {}, swarm_tokens=1).origin
    assert facts(work(1, 1, 2, origin=True), {}, swarm_tokens=1).origin
    assert not facts(work(0, 1, 2), {}).origin  # who holds all of it asks


def test_a_stage_whose_weights_come_from_elsewhere_is_begun_by_nobody_else() -> None:
    plan = replace(Plan(), run=replace(Plan().run, initial="a" * 64))
    assert not facts(work(1, 1, 2, plan=plan), {}).origin


@pytest.mark.parametrize(
    ("runs", "changes", "keepers"),
    [
        ({ANN: (0, 0)}, {}, 0),  # nothing was learnt: it draws its weights itself
        ({ANN: (0, 0)}, {"swarm_tokens": 1}, 1),
        ({ANN: (0, 0), BOB: (2, 2)}, {"swarm_tokens": 1}, 2),
        ({}, {"swarm_tokens": 1}, 0),
    ],
)
def test_copies_are_looked_for_where_nobody_may_begin_the_weights_anew(
    runs: dict[PeerId, Run], changes: dict[str, int], keepers: int
) -> None:
    found = facts(work(1, 1, 3), runs, **changes)
    assert (found.donors, found.keepers) == (0, keepers)
    given = replace(Plan(), run=replace(Plan().run, initial="given"))
    assert facts(work(1, 1, 3, plan=given), runs).keepers == len(runs)
    assert facts(work(1, 1, 3, origin=True), runs, **changes).keepers == 0
    assert facts(work(0, 0, 1), runs, **changes).keepers == 0


def test_who_has_weights_of_its_own_takes_no_copy() -> None:
    part = work(1, 1, 3)
    part.restored = Restored(1, 100, ())
    assert facts(part, {ANN: (0, 0)}, swarm_tokens=200).keepers == 0


def test_stages_that_nobody_trains_are_lacking() -> None:
    part = work(1, 1, 4)
    facts(part, {ANN: (0, 0), BOB: (2, 3)})
    assert part.lacking() == []
    facts(part, {ANN: (0, 0), BOB: (2, 3)}, trainers=(ANN,))
    assert part.lacking() == [2, 3]
    facts(part, {ANN: (0, 0), BOB: (2, 2)})
    assert part.lacking() == [3]
    facts(part, {ANN: (0, 3), BOB: (2, 3)})
    assert part.lacking() == [0], "who holds everything trains by itself"
    assert work(0, 3, 4).lacking() == []


def test_a_fragment_is_mixed_with_those_that_hold_it_too() -> None:
    part = work(1, 2, 4)
    facts(part, {ANN: (0, 1), BOB: (2, 3), EVE: (0, 3)})
    assert part.partners_of(FragmentId(1)) == (ANN, EVE)
    assert part.partners_of(FragmentId(2)) == (BOB, EVE)


def test_the_text_is_shared_by_those_that_hold_the_ends() -> None:
    runs = {ANN: (0, 1), BOB: (2, 3), EVE: (0, 0)}
    ends, middle = work(0, 1, 4), work(1, 2, 4)
    facts(ends, runs)
    facts(middle, runs)
    assert ends.steering.readers(ends.seen) == (ME, ANN, EVE)
    assert middle.steering.readers(middle.seen) == (ANN, EVE)


# ------------------------------------------------------------------------------------- placing


def test_a_node_without_a_stage_waits_and_goes_on_with_one_from_what_it_had() -> None:
    none = work(1, 0, 2)
    none.start(Seen(donors=(ANN,), runs={ANN: (0, 1)}), Instant(0.0))
    assert none.phase is Phase.STARTING
    assert reason_of(none)
    none.worker.tokens, none.paused, none.worker.supervision.generation = 77, True, 4
    leaving = none.leave(Instant(1.0)) + none.wind_up(Instant(1.0), overdue=False, keeps=False)
    assert none.has_wound_up
    assert not [e for e in leaving if isinstance(e, WriteSnapshot)]
    whole = work(0, 1, 2)
    assert not facts(whole, {ANN: (0, 0)}).origin
    whole.go_on_from(none)
    assert facts(whole, {ANN: (0, 0)}).origin, "it has looked who is there"
    part = work(1, 1, 2)
    part.go_on_from(none)
    assert (part.worker.tokens, part.paused) == (77, True)
    assert Facts(part, Instant(0.0)).waited_s >= FRESH_GRACE_S
    assert not part.worker_exited(WorkerExited(4, "killed"), Instant(2.0)), "of the old worker"
    part.start(Seen(), Instant(2.0))
    assert part.phase is Phase.SEEKING


# ------------------------------------------------------------------------------- finished weights


def shown(fragments: dict[int, float], *, tokens: int = 100) -> StateGive:
    offers = (
        FragmentOffer(f, 1, bytes([f]) * 32, 40, (value,) * 32) for f, value in fragments.items()
    )
    return StateGive(PLAN_HASH, tokens, True, tuple(offers))


def test_offers_agree_by_what_is_in_both() -> None:
    assert agree(shown({0: 1.0, 1: 1.0}), shown({1: 1.0, 2: -1.0}), 0.01)
    assert not agree(shown({0: 1.0, 1: 1.0}), shown({1: -1.0, 2: 1.0}), 0.01)
    assert not agree(shown({1: -1.0}), shown({0: 1.0, 1: 1.0}), 0.01)
    assert agree(shown({0: 1.0}), shown({1: -1.0}), 0.01)  # nothing to compare


def outdone(ours: StateGive, others: dict[PeerId, StateGive]) -> bool:
    finals = Finals()
    finals.ask(tuple(sorted(others)), Instant(0.0))
    for peer, give in others.items():
        finals.shown(ME, ours, peer, give, 0.001)
    return finals.outdone


def test_a_part_gives_way_to_two_that_hold_another_one_of_a_stage_of_it() -> None:
    ours = shown({0: 1.0, 1: 1.0})
    assert not outdone(ours, {ANN: shown({1: 1.0, 2: 1.0})})
    assert outdone(ours, {ANN: shown({1: -1.0}), BOB: shown({1: -1.0, 2: 1.0})})
    assert not outdone(ours, {ANN: shown({0: 1.0}), BOB: shown({1: -1.0}, tokens=1)})
    assert outdone(ours, {ANN: shown({1: -1.0}, tokens=101)})


def test_only_those_are_compared_that_hold_something_of_ours() -> None:
    part = work(1, 2, 5)
    facts(part, {ANN: (0, 1), BOB: (3, 4), EVE: (2, 4)}, done=(ANN, BOB, EVE))
    assert part._comparable() == [ANN, EVE]
