"""A node that decides by itself which stages it holds: what it takes others for, when it moves, and what it brings along."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.config import Plan, with_changes
from peerlm.effects import DropObjects, Effect, PrepareCorpus, RunPull, Save, Send
from peerlm.events import PullEnded
from peerlm.model.plan import fragments
from peerlm.model.stages import memory_of, stages
from peerlm.node.placing import (
    AGAIN_S,
    EMPTY,
    FLOPS_S_MAX,
    HEARD_S,
    LOAD_S_MOST,
    MEASURE_S,
    MEASURED_AT_LEAST,
    PATIENCE_S,
    TRIAL_SHARE,
    Around,
    Offered,
    Placing,
    host_said,
)
from peerlm.node.stock import COPY_S_MAX
from peerlm.store.placed import Copy, Placed
from peerlm.swarm.offering import READINGS
from peerlm.swarm.worth import NONE, Capability, Host
from peerlm.types import FragmentId, Instant, Memory, ObjectHash, PeerId, Role, after
from peerlm.wire.message import (
    FragmentOffer,
    PullAnswer,
    PullRequest,
    StateAsk,
    StateGive,
    Vitals,
)

ME, ANN, BOB, EVE = (PeerId(bytes([n]) * 16) for n in range(4))
PLAN_HASH = b"p" * 32
TRAINS = frozenset({Role.TRAIN})
PLAN = with_changes(Plan(), {"model.stages": 2, "swarm.profile": "test"}, "test")
CUT = stages(PLAN)
STAGE_OF = {f: stage.index for stage in CUT for f in stage.fragments}
ROOM = max(memory_of(CUT, range(s, s + 1)).total() for s in range(2))


def host(run: range, speed: float = 0.0) -> Host:
    return Host(Capability(Memory(None, ROOM), speed, float("inf"), TRAINS), run, run)


def hash_of(fragment: FragmentId) -> ObjectHash:
    return ObjectHash(bytes([fragment % 256, fragment // 256]) * 16)


def give(stage: int, version: int = 7) -> StateGive:
    """What a host of this stage offers."""
    offers = [
        FragmentOffer(spec.id, version, hash_of(spec.id), 4 * spec.size, (0.0,) * 32)
        for spec in fragments(PLAN)
        if STAGE_OF[spec.id] == stage
    ]
    return StateGive(PLAN_HASH, 100, False, tuple(offers))


def copies_of(stage: int) -> dict[FragmentId, Copy]:
    return {
        FragmentId(o.fragment): Copy(o.version, ObjectHash(o.object_hash), o.size, o.sketch)
        for o in give(stage).fragments
    }


class Life:
    """One node, looked at again and again; whoever is asked gives at once what it has."""

    def __init__(
        self,
        held: range = NONE,
        placed: Placed | None = None,
        plan: Plan = PLAN,
        room: int = ROOM,
        is_auto: bool = True,
        **around: Any,
    ) -> None:
        self.now, self.effects = Instant(100.0), list[Effect]()
        offered = Offered(is_auto, Memory(None, room), placed or Placed(held), every_s=5.0)
        sizes = {spec.id: spec.size for spec in fragments(PLAN)}
        self.node = Placing(
            ME, plan, sizes, held, offered, lambda peer: ("h", 1), random.Random(1), self.now
        )
        self.around = Around(
            others={},
            autos=frozenset({ANN, BOB, EVE}),
            heard=0,
            unheard=0,
            is_installed=bool(held),
            is_seeking=True,
            is_busy=False,
            is_blank=False,
            may_train=True,
            line_bytes_s=None,
            donors=(),
        )
        self.see(**around)

    def see(self, others: dict[PeerId, Host] | None = None, **changes: Any) -> None:
        if others is not None:
            donors = tuple(sorted(peer for peer, host in others.items() if host.hosts))
            changes = {"others": others, "heard": len(others), "donors": donors, **changes}
        self.around = replace(self.around, **changes)

    def has(self, peer: PeerId) -> StateGive | None:
        host = self.around.others.get(peer)
        return give(host.hosts[0]) if host and host.hosts else None

    def look(self) -> None:
        self.carry(self.node.stock.wake(self.now))
        self.carry(self.node.look(self.around, self.now))

    def carry(self, effects: list[Effect]) -> None:
        stock = self.node.stock
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case Send(peer, StateAsk()) if (shown := self.has(peer)) is not None:
                    self.carry(stock.shows(peer, shown, PLAN_HASH, self.now))
                case Send(peer, PullRequest(transfer=transfer)):
                    answer = PullAnswer(transfer, "accept", "", 4)
                    sizes = {hash_of(s.id): 4 * s.size for s in fragments(PLAN)}
                    answer = replace(answer, size=sizes[ObjectHash(effect.message.object_hash)])
                    self.carry(stock.answers(peer, answer, self.now))
                case RunPull(transfer=transfer):
                    self.carry(stock.ended(PullEnded(transfer, "ok", ""), self.now))

    def until(self, holds: Callable[[], bool], within_s: float = 60.0) -> float:
        """Seconds until it is so."""
        began = self.now
        while not holds():
            assert self.now - began < within_s, f"not within {within_s:g} s: {self.node.why}"
            self.now = after(self.now, within_s / 600)
            self.look()
        return self.now - began

    def rests(self, seconds: float) -> bool:
        end = self.now + seconds
        while self.now < end and self.node.move is None:
            self.now = after(self.now, 0.1)
            self.look()
        return self.node.move is None and self.node.target == self.node.held

    @property
    def kept(self) -> list[bytes]:
        return [e.data for e in self.effects if isinstance(e, Save)]


def vitals(**changes: Any) -> Vitals:
    plain = Vitals(ANN, 1, 1, 0, "training", True, True, False, 1, None, None, None, 0.0, 1, 1)
    return replace(plain, **changes)


# ------------------------------------------------------------------------------- what others are


def test_others_are_hosts_by_their_own_word() -> None:
    fixed = host_said(vitals(), TRAINS, 3)
    assert fixed is not None
    assert (fixed.hosts, fixed.target, fixed.capability.wish) == (range(1, 2),) * 3
    auto = vitals(is_auto=True, target_first=0, target_last=1, memory_host=9, flops_s=5.0)
    moving = host_said(auto, TRAINS, 3)
    assert moving is not None
    assert (moving.hosts, moving.target, moving.capability.wish) == (range(1, 2), range(2), None)
    assert (moving.capability.memory, moving.capability.speed) == (Memory(None, 9), 5.0)
    seeking = host_said(vitals(active=False), TRAINS, 3)
    assert seeking is not None
    assert (seeking.hosts, seeking.target) == (NONE, range(1, 2))


@pytest.mark.parametrize("changes", [{"phase": "ready"}, {"is_draining": True}])
def test_who_does_not_train_or_goes_is_counted_on_by_nobody(changes: dict[str, Any]) -> None:
    found = host_said(vitals(**changes), TRAINS, 3)
    assert found is not None
    assert found.draining


def test_what_cannot_be_is_none_and_who_holds_everything_is_no_host() -> None:
    for first, last in (EMPTY, (2, 3), (9, 2**60)):
        found = host_said(vitals(first_stage=first, last_stage=last), TRAINS, 3)
        assert found is not None
        assert found.hosts == NONE
    for claim, speed in ((1e300, FLOPS_S_MAX), (-1.0, 0.0)):
        found = host_said(vitals(flops_s=claim), TRAINS, 3)
        assert found is not None
        assert found.capability.speed == speed
    assert host_said(vitals(first_stage=0, last_stage=2), TRAINS, 3) is None


# ------------------------------------------------------------------------------------ newcomers


def test_a_newcomer_decides_nothing_before_it_has_heard_who_is_there() -> None:
    assert Life().rests(30)
    assert Life(others={ANN: host(range(1))}, unheard=1).rests(30)


def test_beside_those_who_have_everything_it_takes_what_it_can() -> None:
    life = Life(others={}, heard=1, is_blank=True)
    life.until(lambda: life.node.move is not None)
    assert life.node.move in (range(1), range(1, 2))
    life = Life(others={}, heard=1, is_blank=True, room=2 * ROOM)
    life.until(lambda: life.node.move == range(2))


def test_while_nothing_is_learnt_it_goes_at_once_where_nobody_is() -> None:
    life = Life(others={ANN: host(range(1))}, is_blank=True)
    life.until(lambda: life.node.target == range(1, 2))
    assert HEARD_S / 6 < life.until(lambda: life.node.move is not None) < 5
    assert not life.kept
    assert life.node.move == range(1, 2)
    assert life.node.objects() == {}


def test_it_has_the_weights_before_it_holds_a_stage() -> None:
    life = Life(others={ANN: host(range(1)), BOB: host(range(1, 2)), EVE: host(range(1, 2))})
    life.until(lambda: life.node.target == range(1))
    life.until(lambda: life.node.move == range(1))
    asked = {e.peer for e in life.effects if isinstance(e, Send)}
    assert asked == {ANN}
    assert set(life.node.objects()) == {f for f, stage in STAGE_OF.items() if stage == 0}
    assert DropObjects not in map(type, life.effects)
    life.carry(life.node.moved(range(1), "", life.now))
    assert life.kept == [Placed(range(1)).encode()]
    assert [len(e.hashes) for e in life.effects if isinstance(e, DropObjects)] == [
        sum(stage == 0 for stage in STAGE_OF.values())
    ]


def test_a_node_that_gets_no_weights_gives_up_and_one_that_could_not_move_waits() -> None:
    life = Life(range(1), others={ANN: host(range(1, 2))}, is_installed=False)
    assert life.until(lambda: life.node.move is not None, 100) > PATIENCE_S - 1
    assert life.node.move == NONE
    life = Life(others={ANN: host(range(1))}, is_blank=True)
    life.until(lambda: life.node.move is not None)
    life.carry(life.node.moved(NONE, "the disk is full", life.now))
    assert life.node.why == "the disk is full"
    assert life.until(lambda: life.node.move is not None, 100) > AGAIN_S - 1


def test_a_run_that_ends_moves_nobody() -> None:
    assert Life(range(1), others={ANN: host(range(1))}, is_busy=True).rests(30)


def test_when_the_run_is_over_copies_are_kept_and_the_stage_of_a_dead_host_is_taken_over() -> None:
    others = {ANN: host(range(1)), BOB: host(range(1, 2))}
    life = Life(range(1), others=others, is_at_rest=True)
    life.until(lambda: life.node.stock.has_copy(1))
    assert life.rests(10)
    pulls = [e for e in life.effects if isinstance(e, RunPull)]
    assert len(pulls) == len(copies_of(1)), "what has not changed is not pulled again"
    life.see({ANN: host(range(1))})
    life.until(lambda: life.node.move == range(1, 2), 10)
    assert life.node.objects() == copies_of(1)


def test_when_the_run_is_over_who_leaves_is_relieved_by_who_has_room() -> None:
    held = {ANN: host(range(1)), BOB: host(range(1, 2)), EVE: host(range(1, 2))}
    life = Life(range(1), room=2 * ROOM, others=held, is_at_rest=True)
    assert life.rests(30), "both stages have two"
    leaving = {peer: replace(host(range(1, 2)), draining=True) for peer in (BOB, EVE)}
    life.see({ANN: host(range(1)), **leaving})
    life.until(lambda: life.node.move == range(2), 10)
    assert {e.peer for e in life.effects if isinstance(e, RunPull)} <= {BOB, EVE}


def test_when_the_run_is_over_nobody_moves_for_speed() -> None:
    fast, slow = host(range(1), speed=50.0), host(range(1, 2), speed=1.0)
    others = {ANN: fast, PeerId(b"z" * 16): fast, BOB: slow, EVE: slow}
    life = Life(range(1), others=others)
    life.until(lambda: life.node.target == range(1, 2), 100)
    assert Life(range(1), others=others, is_at_rest=True).rests(100)
    life.see(is_at_rest=True)
    life.until(lambda: life.node.target == range(1) and life.node.move is None, 10)


# -------------------------------------------------------------------------------------- copies


def test_a_stage_with_one_host_is_copied_again_and_again() -> None:
    life = Life(range(1), others={ANN: host(range(1)), BOB: host(range(1, 2))})
    life.until(lambda: life.node.stock.has_copy(1) and bool(life.kept))
    asks = len([e for e in life.effects if isinstance(e, Send) and e.message == StateAsk()])
    life.rests(7)
    assert len([e for e in life.effects if isinstance(e, Send) and e.message == StateAsk()]) > asks
    life.see({ANN: host(range(1)), BOB: host(range(1, 2)), EVE: host(range(1, 2))})
    life.effects.clear()
    life.rests(20)
    assert not [e for e in life.effects if isinstance(e, Send)]


def test_what_cannot_be_loaded_is_given_up() -> None:
    life = Life(range(1), others={ANN: host(range(1)), BOB: host(range(1))})
    life.has = lambda peer: None  # type: ignore[method-assign]
    life.until(lambda: life.node.target == range(1, 2))
    life.until(lambda: life.node.target == range(1), LOAD_S_MOST + 5)
    assert life.rests(AGAIN_S - 5)


def test_only_a_few_keep_copies_and_forget_what_others_keep() -> None:
    others = {PeerId(bytes([n]) * 16): host(range(1)) for n in range(1, 30)}
    everybody = {*others}
    others[PeerId(b"z" * 16)] = host(range(1, 2))
    life = Life(range(1), Placed(range(1), copies_of(1)), others=others, autos=everybody)
    life.until(lambda: not life.node.stock.has_copy(1), 5)
    assert not [e for e in life.effects if isinstance(e, Send)]


def test_a_copy_that_does_not_come_is_given_up_until_it_is_due() -> None:
    life = Life(range(1), others={ANN: host(range(1)), BOB: host(range(1, 2), speed=100.0)})
    life.node.flops_s = 1.0
    life.has = lambda peer: None  # type: ignore[method-assign]
    life.until(lambda: bool(life.node.stock.wanted))
    life.until(lambda: not life.node.stock.wanted, COPY_S_MAX + 5)


def test_copies_are_shown_when_a_stage_has_no_host() -> None:
    life = Life(range(1), Placed(range(1), copies_of(1)), others={ANN: host(range(1, 2))})
    node = life.node
    assert node.stock.shown(node.orphans(life.around)) == ()
    life.see({ANN: host(range(1))})
    shown = node.stock.shown(node.orphans(life.around))
    assert {offer[0] for offer in shown} == set(copies_of(1))


def test_who_began_with_given_weights_keeps_those_it_does_not_hold_until_others_have_learnt() -> (
    None
):
    placed = Placed(range(1), copies_of(1))
    life = Life(range(1), placed, is_auto=False, has_learnt=False, others={})
    node = life.node

    def shown() -> set[FragmentId]:
        return {offer[0] for offer in node.stock.shown(node.orphans(life.around))}

    assert node.is_due(life.now)
    life.look()
    assert shown() == set(copies_of(1))
    life.see({ANN: host(range(1, 2))})
    life.look()
    assert shown() == set()
    assert node.stock.has_copy(1), "it is the only other one"
    life.see({}, given=frozenset({0, 1}))
    assert shown() == set(), "somebody holds everything, and has newer ones"
    life.see({ANN: host(range(1, 2))}, has_learnt=True, given=frozenset())
    life.look()
    assert not node.stock.has_copy(1)
    gone = [e.hashes for e in life.effects if isinstance(e, DropObjects)]
    assert {h for names in gone for h in names} == {c.object_hash for c in copies_of(1).values()}
    assert life.kept == [Placed(range(1)).encode()]
    life.now = after(life.now, 60.0)
    assert not node.is_due(life.now)
    assert node.deadline() is None
    assert node.target == range(1)


def test_who_keeps_a_copy_of_stage_0_keeps_the_text_too() -> None:
    others = {ANN: host(range(1)), BOB: host(range(1, 2))}
    life = Life(range(1, 2), others=others)
    life.until(lambda: life.node.stock.has_copy(0))
    assert [e for e in life.effects if isinstance(e, PrepareCorpus)] == [
        PrepareCorpus(is_kept=True)
    ]
    life = Life(range(1), others=others)
    life.until(lambda: life.node.stock.has_copy(1))
    assert PrepareCorpus not in map(type, life.effects)


def test_a_node_without_text_of_its_own_does_not_go_where_it_is_needed() -> None:
    plan = with_changes(PLAN, {"data.source": "local"}, "test")
    life = Life(others={ANN: host(range(1, 2))}, is_blank=True, plan=plan)
    life.until(lambda: life.node.move is not None)
    assert life.node.move == range(1, 2)


def test_a_node_takes_more_when_its_machine_has_more_room() -> None:
    life = Life(range(1), others={ANN: host(range(1))} | {p: host(range(1, 2)) for p in (BOB, EVE)})
    assert life.rests(20)
    for _ in range(READINGS):
        life.node.offers(Memory(None, 2 * ROOM), life.now)
    said = life.node.say(vitals(), None)
    assert said.memory_host == 2 * ROOM
    life.until(lambda: life.node.move == range(2))
    life.carry(life.node.moved(range(2), "", life.now))
    for _ in range(READINGS):
        life.node.offers(Memory(None, 1), life.now)
    assert life.node.memory == Memory(None, memory_of(CUT, range(2)).total())
    assert life.rests(30), "what is held is kept"


# --------------------------------------------------------------------------------- a host is gone


def test_a_stage_whose_only_host_is_gone_is_taken_over_with_the_copy() -> None:
    life = Life(range(1), others={ANN: host(range(1)), BOB: host(range(1, 2))})
    life.until(lambda: life.node.stock.has_copy(1))
    life.see({ANN: host(range(1))})
    life.effects.clear()
    assert life.until(lambda: life.node.move is not None, 10) > 1
    assert (life.node.move, life.node.why) == (range(1, 2), "stages 1 lack hosts")
    assert life.node.objects() == copies_of(1)
    assert not [e for e in life.effects if isinstance(e, Send)]


def test_without_a_copy_it_asks_everybody_for_theirs() -> None:
    life = Life(range(1), others={ANN: host(range(1)), BOB: host(range(1))})
    life.has = lambda peer: give(1) if peer == BOB else None  # type: ignore[method-assign]
    life.until(lambda: life.node.move == range(1, 2), 10)
    assert life.node.objects() == copies_of(1)


def test_the_only_host_of_a_stage_stays() -> None:
    assert Life(range(1), Placed(range(1), copies_of(1)), others={ANN: host(NONE)}).rests(20)


# --------------------------------------------------------------------------------------- speeds


def test_a_speed_is_of_the_time_in_which_it_worked_and_said_when_it_is_known() -> None:
    life = Life(range(1))
    for _ in range(MEASURED_AT_LEAST - 1):
        life.node.measure(100.0, 0.5, life.now)
    assert life.node.flops_s == 0.0
    life.node.measure(100.0, 0.5, life.now)
    assert life.node.flops_s == pytest.approx(200 * 3 * CUT[0].flops)
    said = life.node.flops_s
    life.node.measure(110.0, 0.5, life.now)
    assert life.node.flops_s == said
    life.node.measure(0.0, 0.0, life.now)
    life.now = after(life.now, MEASURE_S)
    life.node.measure(110.0, 0.5, life.now)
    assert life.node.flops_s == said, "about as fast"
    for _ in range(2 * MEASURED_AT_LEAST):
        life.now = after(life.now, MEASURE_S)
        life.node.measure(200.0, 0.5, life.now)
    assert life.node.flops_s > 1.5 * said


def test_modules_that_were_tried_tell_what_it_would_do_elsewhere_and_training_sets_the_scale() -> (
    None
):
    life = Life(range(1), others={ANN: host(range(1)), BOB: host(range(1, 2), speed=1e9)})
    life.node.tried((1e6, 0.0, 1e4))
    assert life.node.paces == (), "of another list of kinds"
    life.node.tried((1e9, 2e3, 4e3, 1e3, 1e2))
    tried = life.node.paces
    assert tried == tuple(TRIAL_SHARE * pace for pace in (1e9, 2e3, 4e3, 1e3, 1e2))
    demand, capability = life.node.demand, life.node.capability(life.around)
    ends, inner = (demand.computes(capability, range(s, s + 1)) for s in range(2))
    assert ends < inner, "it is slow at the head"
    seen = life.node.view(life.around)
    assert seen[ME].capability.speed == ends
    assert seen[ANN].capability.speed == pytest.approx((1e9 + ends) / 2)
    for _ in range(MEASURED_AT_LEAST):
        life.node.measure(100.0, 0.5, life.now)
    capability = life.node.capability(life.around)
    assert demand.computes(capability, range(1)) == pytest.approx(life.node.flops_s)
    assert demand.computes(capability, range(1, 2)) == pytest.approx(
        life.node.flops_s * inner / ends
    )
    told = host_said(life.node.say(vitals(), None), TRAINS, 2)
    assert told is not None
    assert demand.computes(told.capability, range(1)) == pytest.approx(life.node.flops_s, rel=0.02)


def test_an_unknown_speed_is_the_middle_one() -> None:
    life = Life(range(1), others={ANN: host(range(1), speed=8.0), BOB: host(range(1, 2))})
    assert {h.capability.speed for h in life.node.view(life.around).values()} == {8.0}


# -------------------------------------------------------------------------------- whatever is said

COUNTS = st.integers(0, 5) | st.integers(0, 2**62)
CLAIMS = st.builds(
    vitals,
    first_stage=COUNTS,
    last_stage=COUNTS,
    target_first=COUNTS,
    target_last=COUNTS,
    is_auto=st.booleans(),
    active=st.booleans(),
    is_draining=st.booleans(),
    memory_host=COUNTS | st.just(2 * ROOM),
    memory_device=st.none() | COUNTS,
    flops_s=st.floats(allow_nan=False, allow_infinity=False),
    line_bytes_s=st.floats(allow_nan=False, allow_infinity=False),
    delay_us=COUNTS,
    paces=st.lists(COUNTS, max_size=8).map(tuple),
)


@given(st.lists(CLAIMS, max_size=5), st.sampled_from([NONE, range(1), range(1, 2)]))
@settings(max_examples=60, deadline=None)
def test_no_claim_of_a_member_is_too_much(claims: list[Vitals], held: range) -> None:
    said = {PeerId(bytes([n + 1]) * 16): host_said(v, TRAINS, 2) for n, v in enumerate(claims)}
    life = Life(held, others={peer: host for peer, host in said.items() if host is not None})
    life.has = lambda peer: None  # type: ignore[method-assign]
    life.rests(8)
    run = life.node.move or life.node.target
    assert memory_of(CUT, run).total() <= ROOM
