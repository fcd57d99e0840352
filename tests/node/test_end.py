"""Scenes of a run's end, and of the plan and the people that a swarm agrees on."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from node_scene import World

from peerlm.config import with_changes
from peerlm.effects import Expel, Log, RunExchange, Send, ServeExchange, StartWorker, WriteModel
from peerlm.events import NewPlan, NewRevocation, Received, SnapshotWritten
from peerlm.identity.root import SignedPlan
from peerlm.node.status import why
from peerlm.swarm.vitals import Ledger
from peerlm.types import FragmentId, ObjectHash
from peerlm.wire.message import ExchangeAnswer, ExchangeRequest, StateGive

BUDGET = 600_000


def finished(world: World) -> bool:
    return all(
        world.summary(m.number).phase == "done" and world.summary(m.number).model_dir
        for m in world.up()
    )


def run_of(n: int, seed: int = 1, **changes: object) -> World:
    return World(seed, **{"run.token_budget": BUDGET, **changes}).swarm(n)


def models(world: World) -> list[np.ndarray]:
    return [np.concatenate(m.disk.models[-1]) for m in world.machines.values() if m.disk.models]


def assert_same_models(world: World) -> None:
    first, *others = models(world)
    for other in others:
        assert np.linalg.norm(other - first) < 1e-3 * np.linalg.norm(first)


# ------------------------------------------------------------------------------------- the budget


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_at_the_budget_all_settle_and_write_the_same_model(n: int) -> None:
    world = run_of(n)
    world.within(60, lambda: finished(world), "all are done")
    assert world.spread() < 1e-3
    assert len(models(world)) == n
    assert_same_models(world)
    over = world.summary(0).swarm_tokens - BUDGET
    assert 0 <= over < n * 2 * world.speed, "nobody trains long past the budget"
    before = world.summary(0).swarm_tokens
    world.run(30)
    assert finished(world), "they stay"
    assert world.summary(0).swarm_tokens == before
    assert world.spread() < 1e-3
    assert all(m.labour.worker is None for m in world.up())


def test_settling_ends_in_full_precision() -> None:
    world = run_of(3)
    world.within(60, lambda: finished(world), "all are done")
    last = [e for m in world.up() for _, e in m.effects if isinstance(e, RunExchange)][-1]
    assert (last.codec_request, last.codec_reply) == ("fp32", "fp32")


def test_a_node_that_was_away_gets_the_finished_weights() -> None:
    world = run_of(3)
    world.run(4)
    world.kill(1)
    world.within(90, lambda: finished(world), "the others are done")
    world.restart(1)
    world.within(30, lambda: finished(world), "it is done too")
    assert world.machines[1].installed_from()[-1] == "peers"
    assert world.spread() < 1e-3
    assert_same_models(world)


def test_a_newcomer_after_the_end_gets_the_finished_weights() -> None:
    world = run_of(2)
    world.within(60, lambda: finished(world), "done")
    world.add(2, 1)
    world.within(30, lambda: finished(world), "it is done too")
    assert_same_models(world)


def test_a_node_restarted_when_all_are_done_is_done_again() -> None:
    world = run_of(3)
    world.within(60, lambda: finished(world), "done")
    before = models(world)[0]
    world.run(2)
    world.kill(0)
    world.run(10)
    world.restart(0)
    world.within(30, lambda: finished(world), "done again")
    assert world.spread() < 1e-3
    after = np.concatenate(world.machines[0].disk.models[-1])
    assert np.linalg.norm(after - before) < 1e-3 * np.linalg.norm(before)


def test_all_restarted_when_all_are_done() -> None:
    world = run_of(3)
    world.within(60, lambda: finished(world), "done")
    before = models(world)[0]
    world.run(2)
    for i in range(3):
        world.kill(i)
    for i in range(3):
        world.restart(i)
    world.within(40, lambda: finished(world), "done again")
    assert_same_models(world)
    assert np.linalg.norm(models(world)[0] - before) < 1e-3 * np.linalg.norm(before)


def test_the_last_node_finishes_alone() -> None:
    world = run_of(3)
    world.run(3)
    world.kill(0)
    world.kill(2)
    world.within(60, lambda: finished(world), "it needs nobody")
    assert world.summary(1).phase == "done"


def test_a_node_that_dies_while_settling_holds_nobody_up() -> None:
    world = run_of(3)
    world.run(60, lambda: world.all_in("settling", "done"))
    world.kill(1)
    world.within(60, lambda: finished(world), "the others are done")
    assert_same_models(world)


def test_halves_that_finish_apart_end_with_one_model() -> None:
    world = run_of(4)
    world.run(3)
    world.split([0, 1], [2, 3])
    world.within(90, lambda: finished(world), "both halves are done")
    assert world.spread() > 1e-3
    world.heal()

    def one() -> bool:
        return finished(world) and world.spread() < 1e-3

    world.within(90, one, "one model")
    world.run(5)
    assert one()
    assert_same_models(world)


def test_a_partner_that_never_settles_delays_the_end_no_longer_than_the_deadline() -> None:
    world = run_of(3, **{"mix.settle_deadline_s": 10.0})
    world.run(60, lambda: world.all_in("settling"))
    world.loss = 1.0
    took = world.run(60, lambda: finished(world))
    assert took < 15
    assert finished(world)


# --------------------------------------------------------------------------------------- the plan


def test_a_raised_budget_spreads_and_training_goes_on() -> None:
    world = run_of(3)
    world.within(60, lambda: finished(world), "done")
    more = with_changes(world.plan.plan, {"run.token_budget": 2 * BUDGET}, "test")
    signed = world.sign(more, 2)
    world.machines[2].post(NewPlan(signed.blob))
    world.within(10, lambda: world.all_in("training", "ready"), "they train again")
    assert all(world.summary(i).plan_revision == 2 for i in range(3))
    assert all(m.disk.plan == signed.blob for m in world.up())
    world.within(
        90,
        lambda: finished(world) and all(len(m.disk.models) == 2 for m in world.up()),
        "done again, and written",
    )
    assert world.summary(0).swarm_tokens >= 2 * BUDGET
    assert_same_models(world)


def test_a_node_that_missed_a_revision_learns_it_when_it_comes_back() -> None:
    world = run_of(3, **{"run.token_budget": 50_000_000})
    world.run(5)
    world.kill(1)
    changed = with_changes(world.plan.plan, {"mix.inner_steps": 10}, "test")
    world.machines[0].post(NewPlan(world.sign(changed, 2).blob))
    world.run(3)
    world.restart(1)
    world.within(30, world.all_mixing, "all three")
    assert world.summary(1).plan_revision == 2


def test_other_texts_are_fetched_while_the_old_one_is_read() -> None:
    world = run_of(3, **{"run.token_budget": 50_000_000})
    world.within(30, world.all_mixing, "all three")
    other = b"other text, from the store " * 40
    shard = ObjectHash(blake3(other).digest())
    world.machines[0].disk.objects[shard] = other
    changes = {
        "data.source": "swarm:other*3+old",
        "data.shards": (shard.hex(), *world.plan.plan.data.shards),
        "data.parts": (1, 1),
    }
    plan = with_changes(world.plan.plan, changes, "test")
    begun = len(world.machines[1].effects)
    world.machines[0].post(NewPlan(world.sign(plan, 2).blob))
    world.within(30, lambda: all(shard in m.disk.objects for m in world.up()), "all have it")

    def started() -> bool:
        return any(isinstance(e, StartWorker) for _, e in world.machines[1].effects[begun:])

    world.within(30, started, "a worker that reads it")
    world.within(30, world.all_mixing, "they train on")
    since = [e for _, e in world.machines[1].effects[begun:]]
    assert not [e for e in since if isinstance(e, Log) and ("is", "ready") in e.fields]
    texts = world.summary(1).texts
    assert [(text.name, text.share) for text in texts] == [("other", 0.75), ("old", 0.25)]
    begun = len(world.machines[1].effects)
    world.machines[0].post(
        NewPlan(world.sign(with_changes(plan, {"data.source": "swarm:other+old"}, "test"), 3).blob)
    )
    world.within(30, started, "a worker that draws by other weights")
    assert [text.share for text in world.summary(1).texts] == [0.5, 0.5]


def test_no_revision_changes_the_model_or_its_tokenizer() -> None:
    world = run_of(2, **{"run.token_budget": 50_000_000})
    for changes in ({"model.dim": 64}, {"data.vocab": 300}, {"data.tokenizer": "f" * 64}):
        plan = with_changes(world.plan.plan, changes, "test")
        world.machines[0].post(NewPlan(world.sign(plan, 2).blob))
    world.run(3)
    assert all(world.summary(i).plan_revision == 1 for i in (0, 1))


def differing(world: World) -> SignedPlan:
    return world.sign(with_changes(world.plan.plan, {"mix.inner_steps": 50}, "test"), 1)


def test_two_plans_of_one_revision_name_the_field_and_do_not_mix() -> None:
    world = World(1)
    world.add(0)
    world.run(2)
    world.add(1, 0, plan=differing(world))
    world.run(20)
    lines = [*world.summary(0).refused_plans.values(), *world.summary(1).refused_plans.values()]
    assert len(lines) == 2
    assert all("mix.inner_steps" in line and "20" in line and "50" in line for line in lines)
    for machine in world.up():
        moved = [e for _, e in machine.effects if isinstance(e, (RunExchange, ServeExchange))]
        assert moved == []
    assert world.summary(1).phase == "seeking", "and gets no weights"
    assert world.summary(0).phase == "training", "nor does any harm"


def test_a_later_revision_reconciles_them() -> None:
    world = World(1)
    world.add(0)
    world.run(2)
    world.add(1, 0, plan=differing(world))
    world.run(5)
    later = world.sign(with_changes(world.plan.plan, {"mix.inner_steps": 30}, "test"), 2)
    world.machines[0].post(NewPlan(later.blob))
    world.within(30, world.all_mixing, "one plan, one swarm")
    assert world.summary(1).plan_revision == 2
    assert not world.summary(0).refused_plans
    assert not world.summary(1).refused_plans


def test_an_older_or_forged_plan_changes_nothing() -> None:
    world = run_of(2, **{"run.token_budget": 50_000_000})
    world.run(3)
    forger = World(99)
    forged = forger.sign(with_changes(world.plan.plan, {"train.lr": 1.0}, "test"), 9)
    world.machines[0].post(NewPlan(forged.blob))
    world.machines[0].post(NewPlan(b"no plan at all"))
    world.run(2)
    assert all(world.summary(i).plan_revision == 1 for i in (0, 1))
    assert world.all_mixing()


def test_who_asks_while_finished_weights_are_written_is_given_these() -> None:
    world = run_of(2)
    world.within(200, lambda: finished(world), "both are done")
    node, asker = world.machines[0].node, world.machines[1].keys.peer_id
    assert node is not None
    snapshots = node.work.snapshots
    assert snapshots.is_final
    snapshots.is_writing, snapshots._writing_final, snapshots.is_final = True, True, False
    assert node.work.asked_for_state(asker, world.now) == [], "not yet"
    number, tokens = snapshots.number + 1, snapshots.tokens
    written = SnapshotWritten(number, tokens, snapshots._offers, 0.01)
    (given,) = node.work.snapshot_written(written, world.now)
    assert isinstance(given, Send)
    assert isinstance(given.message, StateGive)
    assert given.message.final


# ----------------------------------------------------------------------------------- revocation


def test_a_revoked_node_is_expelled_everywhere_within_five_seconds() -> None:
    world = World(1).swarm(4)
    world.within(10, world.all_mixing, "four mix")
    peer = world.machines[3].keys.peer_id
    world.machines[0].post(NewRevocation(world.revocation_of(3)))

    def expelled() -> bool:
        return all(
            any(isinstance(e, Expel) and e.peer == peer for _, e in world.machines[i].effects)
            for i in (0, 1, 2)
        )

    world.within(5, expelled, "everybody has expelled it")
    count = [len(m.effects) for m in world.machines.values()]
    world.run(20)
    for i in (0, 1, 2):
        late = world.machines[i].effects[count[i] :]
        assert not [e for _, e in late if isinstance(e, RunExchange) and e.peer == peer]
        assert world.member(i, 3) is None
    world.kill(1)
    world.restart(1)
    world.run(15)
    assert world.member(1, 3) is None, "a restarted node remembers"
    told = why(world.summary(3))[0]
    assert "revoked" in told, "and it is told why, before all else"
    assert "peerlm rm" in told, "and what to do"


def test_of_who_is_expelled_no_other_plan_is_told_any_more() -> None:
    world = World(1)
    world.add(0)
    world.run(2)
    world.add(1, 0, plan=differing(world))
    world.within(20, lambda: bool(world.summary(0).refused_plans), "it is told")
    world.machines[0].post(NewRevocation(world.revocation_of(1)))
    world.within(5, lambda: not world.summary(0).refused_plans, "nobody can mend that plan now")


@pytest.mark.parametrize("is_lost", [False, True])
def test_who_comes_after_a_revocation_counts_what_the_revoked_has_trained(
    monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    world = World(1).swarm(3)
    world.within(10, world.all_mixing, "three mix")
    world.run(10)
    trained = world.summary(2).tokens
    assert trained > 1000
    world.machines[0].post(NewRevocation(world.revocation_of(2)))
    world.run(5)
    if is_lost:  # what is said when a link comes up, as by a link that is replaced at once
        monkeypatch.setattr(Ledger, "tallies", lambda ledger: ())
    world.add(3, 0)
    world.run(1)
    monkeypatch.undo()

    def agree() -> bool:
        totals = [world.summary(n).swarm_tokens for n in (0, 1, 3)]
        return max(totals) - min(totals) < trained / 2

    world.within(60, agree, "all count the same")


# --------------------------------------------------------------------------------------- malice


@pytest.mark.parametrize(
    "change",
    [
        {"plan_hash": b"x" * 32},
        {"fragment": 77},
        {"codec_request": "int4"},
        {"codec_reply": "gzip"},
        {"request_bytes": 1},
        {"request_bytes": 2**28},
    ],
)
def test_a_wrong_exchange_request_is_refused_and_harmless(change: dict[str, object]) -> None:
    world = World(1).swarm(2)
    world.within(10, world.all_mixing, "two mix")
    asked = next(
        e.message
        for _, e in world.machines[1].effects
        if isinstance(e, Send) and isinstance(e.message, ExchangeRequest)
    )
    wrong = dataclasses.replace(asked, transfer=b"w" * 16, **change)
    world.machines[0].post(Received(world.machines[1].keys.peer_id, wrong))
    (answer,) = [
        e.message
        for _, e in world.machines[0].effects
        if isinstance(e, Send)
        and isinstance(e.message, ExchangeAnswer)
        and e.message.transfer == b"w" * 16
    ]
    assert answer.verdict == "refuse"
    world.run(10)
    assert world.all_mixing()
    assert world.spread() < 0.05


def test_a_replayed_exchange_has_one_effect() -> None:
    world = World(1).swarm(2)
    world.within(10, world.all_mixing, "two mix")
    asker, answerer = world.machines[1], world.machines[0]
    requests = [
        e.message
        for _, e in asker.effects
        if isinstance(e, Send) and isinstance(e.message, ExchangeRequest)
    ]
    for request in requests[-3:]:
        answerer.post(Received(asker.keys.peer_id, request))
    world.run(10)
    served = [e.transfer for _, e in answerer.effects if isinstance(e, ServeExchange)]
    assert len(served) == len(set(served))


def test_weights_of_another_size_or_full_of_nan_do_not_spread() -> None:
    world = World(1).swarm(3)
    world.within(10, world.all_mixing, "three mix")
    world.run(5)
    for slow in world.machines[2].labour.slow.values():
        slow.phi *= 1e4
    world.run(20)
    world.kill(2)
    assert world.spread() < 0.05
    norm = max(float(np.abs(s.phi).max()) for s in world.machines[0].labour.slow.values())
    assert norm < 10


# ----------------------------------------------------------------------------------- determinism

TRACE = """
import sys
sys.path.insert(0, {path!r})
from node_scene import World
world = World(7, **{{"run.token_budget": 900_000}}).swarm(3)
world.run(5); world.kill(1); world.run(3); world.restart(1, new_ports=True)
world.split([0], [1, 2]); world.run(9); world.heal(); world.freeze(2, 7.0); world.run(25)
print(world.digest(), world.summary(0).swarm_tokens)
"""


def test_one_seed_gives_one_trace_whatever_the_hash_seed() -> None:
    code = TRACE.format(path=str(Path(__file__).parent))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        )
        for seed in ("1", "2")
    ]
    traces = [process.communicate()[0] for process in processes]
    assert traces[0] == traces[1]
    assert len(traces[0].split()) == 2


def test_another_seed_gives_another_trace() -> None:
    a, b = World(1).swarm(2), World(2).swarm(2)
    a.run(3)
    b.run(3)
    assert a.digest() != b.digest()


def test_nothing_is_written_twice_at_the_end() -> None:
    world = run_of(2)
    world.within(60, lambda: finished(world), "done")
    world.run(60)
    for machine in world.up():
        assert len([e for _, e in machine.effects if isinstance(e, WriteModel)]) == 1
        assert FragmentId(0) in machine.labour.slow
        finals = [s for s in machine.disk.snapshots if s.final]
        assert len(finals) == 1
