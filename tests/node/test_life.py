"""Scenes of a swarm's life: nodes found one, come, train, mix, die, come back and are cut off."""

from __future__ import annotations

import pytest
from node_scene import DAY, World

from peerlm.effects import RunExchange, RunPull
from peerlm.events import Leave, Pause, Resume
from peerlm.identity.chain import Verified
from peerlm.types import Role


def trained(world: World, number: int) -> int:
    return world.summary(number).tokens


def phases(world: World, number: int) -> str:
    return world.summary(number).phase


def mixing(n: int, seed: int = 1, **changes: object) -> World:
    world = World(seed, **changes).swarm(n)
    world.within(10, world.all_mixing, "all train and mix")
    return world


def test_three_nodes_found_a_swarm_train_and_mix() -> None:
    world = mixing(3)
    world.run(20)
    first = [trained(world, i) for i in range(3)]
    assert all(tokens > 100_000 for tokens in first)
    world.run(10)
    assert all(trained(world, i) > first[i] for i in range(3))
    assert world.spread() < 0.05, "they stay near each other while they train"
    assert all(world.summary(i).val_loss is not None for i in range(3))
    assert max(m.labour.loss() for m in world.up()) < 0.1, "and near what they learn"


def test_without_mixing_nodes_would_drift_apart() -> None:
    mixed, apart = mixing(3), World(1, **{"mix.algorithm": "local"}).swarm(3)
    mixed.run(20)
    apart.run(20)
    assert all(trained(apart, i) for i in range(3))
    assert apart.spread() > 2 * mixed.spread()


def test_every_node_counts_the_tokens_of_all() -> None:
    world = mixing(3)
    world.run(10)
    own = sum(trained(world, i) for i in range(3))
    for i in range(3):
        assert own - 3 * 2 * world.speed < world.summary(i).swarm_tokens <= own


def test_the_first_node_is_not_special() -> None:
    world = mixing(3)
    world.kill(0)
    world.run(5)
    before = trained(world, 1)
    world.run(5)
    world.within(30, world.all_mixing, "the others go on, and know that it died")
    assert trained(world, 1) > before
    world.restart(0)
    world.within(30, world.all_mixing, "it takes part again")
    world.run(2)
    tokens = world.summary(0).swarm_tokens
    assert tokens >= world.summary(1).swarm_tokens - 3 * world.speed


def test_it_comes_back_on_other_ports() -> None:
    world = mixing(3)
    world.run(2)
    world.kill(0)
    world.run(1)
    world.restart(0, new_ports=True)
    took = world.within(30, world.all_mixing, "found at its new address")
    assert took < 20
    member = world.member(1, 0)
    assert member is not None
    assert member.address == "tcp://h0:7710"


def test_a_newcomer_enters_by_any_nodes_address() -> None:
    world = mixing(2)
    world.kill(0)
    world.run(1)
    world.add(2, 1)
    world.within(15, lambda: phases(world, 2) == "training", "joins by the second node")
    world.add(3, 2)
    world.within(15, lambda: phases(world, 3) == "training", "and the next one by the newcomer")
    world.restart(0)
    world.within(30, world.all_mixing, "all four are one swarm")


def test_all_killed_at_once_resume_from_their_snapshots() -> None:
    world = mixing(3)
    world.run(45)
    before = max(world.summary(i).swarm_tokens for i in range(3))
    for i in range(3):
        world.kill(i)
    world.run(5)
    for i in range(3):
        world.restart(i)
    world.run(0.5)
    interval_s = 30.0
    after = min(world.summary(i).swarm_tokens for i in range(3))
    assert after >= before - (interval_s + 3) * 3 * world.speed
    assert max(len(m.disk.snapshots) for m in world.up()) == 2
    world.within(30, world.all_mixing, "they go on")
    assert all(
        e.event != "state_installed" or dict(e.fields)["origin"] != "fresh"
        for m in world.up()
        for at, e in m.logs()
        if at > world.now - 20
    )


def test_all_killed_again_and_again_in_the_first_second() -> None:
    world = World(3).swarm(3)
    for pause in (0.1, 0.3, 0.45, 0.5, 1.0):
        world.run(pause)
        for i in range(3):
            world.kill(i)
            world.restart(i)
    world.within(30, world.all_mixing, "they begin after all")


def test_an_origin_that_lost_its_disk_does_not_begin_anew_beside_a_swarm() -> None:
    world = mixing(3)
    world.run(20)
    world.kill(0)
    origin = world.machines[0]
    origin.disk.snapshots.clear()
    world.restart(0)
    world.within(30, world.all_mixing, "it fetches")
    assert origin.installed_from()[-1] == "peers"


def test_an_origin_that_began_anew_in_a_corner_fetches_when_it_meets_the_others() -> None:
    world = mixing(3)
    world.run(20)
    world.kill(0)
    world.machines[0].disk.snapshots.clear()
    world.split([0], [1, 2])
    world.restart(0)
    world.run(20)
    assert phases(world, 0) == "training", "after a while alone it makes initial weights again"
    world.heal()
    world.within(60, world.all_mixing, "one swarm again")
    assert world.machines[0].installed_from()[-2:] == ["fresh", "peers"]
    assert world.spread() < 0.05


def test_only_an_origin_makes_initial_weights() -> None:
    world = World(1).swarm(2)
    world.run(0.2)
    world.kill(0)
    world.run(60)
    assert phases(world, 1) == "seeking"
    assert world.summary(1).phase_reason == "looking for a member that has weights"
    assert world.machines[1].labour.worker is None


def test_a_split_swarm_goes_on_in_both_halves_and_becomes_one_again() -> None:
    world = mixing(4)
    world.split([0, 1], [2, 3])
    world.run(60)
    for a, b in ((0, 2), (1, 3)):
        member = world.member(a, b)
        assert member is not None
        assert member.state == "dead"
    world.heal()
    world.within(60, world.all_mixing, "one swarm again")
    world.run(10)
    assert world.spread() < 0.05
    totals = [world.summary(i).swarm_tokens for i in range(4)]
    assert max(totals) - min(totals) < 4 * 2 * world.speed


@pytest.mark.parametrize("seconds", [0.8, 5.0, 25.0])
def test_a_node_that_stood_still_goes_on(seconds: float) -> None:
    world = mixing(3)
    world.freeze(1, seconds)
    world.run(seconds + 0.1)
    world.within(30, world.all_mixing, "all three again")
    if seconds < 2:
        assert all(e.event != "member_dead" for m in world.up() for _, e in m.logs())


def test_a_joiner_fetches_from_several_donors_and_survives_the_death_of_one() -> None:
    world = mixing(3)
    world.run(5)
    joiner = world.add(3, 0, 1)
    pulls: list[RunPull] = []

    def has_begun() -> bool:
        pulls[:] = [e for _, e in joiner.effects if isinstance(e, RunPull)]
        return len(pulls) >= 2

    # The corpus first, then the weights: kill whoever serves while it is serving.
    world.run(10, has_begun)
    victim = world.number_of(pulls[-1].peer)
    world.kill(victim)
    world.within(20, lambda: phases(world, 3) == "training", "it got everything from the others")
    assert joiner.installed_from() == ["peers"]
    world.within(30, world.all_mixing, "three are left")


def test_weights_come_from_more_than_one_donor() -> None:
    world = mixing(4)
    world.run(5)
    donors = set()
    for number in range(4, 9):
        joiner = world.add(number, 0)
        world.within(20, lambda n=number: phases(world, n) == "training", "joined")
        donors |= {e.peer for _, e in joiner.effects if isinstance(e, RunPull)}
    assert len(donors) >= 3


def test_a_newcomer_is_given_less_weight_at_first() -> None:
    world = mixing(2)
    world.run(5)
    joiner = world.add(2, 0)
    world.within(20, world.all_mixing, "joined")
    served = [
        e
        for m in world.up()
        for _, e in m.effects
        if isinstance(e, RunExchange) and e.peer == joiner.keys.peer_id
    ]
    assert all(0 < e.weight <= 0.5 for e in served)
    world.run(5)
    assert world.spread() < 0.05


def test_pause_and_resume() -> None:
    world = mixing(3)
    world.machines[1].post(Pause())
    world.run(2)
    before, ok = trained(world, 1), world.summary(1).exchanges["ok"]
    assert phases(world, 1) == "ready"
    assert "paused" in world.summary(1).phase_reason
    world.run(10)
    assert trained(world, 1) == before
    assert world.summary(1).exchanges["ok"] > ok, "it still mixes"
    world.machines[1].post(Resume())
    world.run(5)
    assert trained(world, 1) > before


def test_leaving_hands_in_progress_says_goodbye_and_halts() -> None:
    world = mixing(3)
    world.run(5)
    leaver = world.machines[2]
    number = leaver.disk.snapshots[-1].number
    tokens = trained(world, 2)
    leaver.post(Leave())
    world.within(10, lambda: leaver.node is None, "it halts")
    assert leaver.halted == [""]
    assert leaver.disk.snapshots[-1].number > number
    own = [t for peer, _, t in leaver.disk.snapshots[-1].tallies if peer == leaver.keys.peer_id]
    assert own[-1] >= tokens
    world.run(2)
    for i in (0, 1):
        member = world.member(i, 2)
        assert member is not None
        assert member.state == "left"
    world.run(20)
    for machine in world.up():
        words = [e.event for _, e in machine.logs()]
        assert "member_suspected" not in words
        assert "member_dead" not in words
    world.restart(2)
    world.within(30, world.all_mixing, "it may come back")


@pytest.mark.parametrize("moment", ["seeking", "worker dead", "alone"])
def test_leaving_never_hangs(moment: str) -> None:
    world = World(5)
    world.add(0)
    if moment == "seeking":
        world.add(1, 0, start=False)
        world.kill(0)
        world.machines[1].start()
    machine = world.machines[1 if moment == "seeking" else 0]
    world.run(3)
    if moment == "worker dead":
        machine.fatal = "CUDA error"
        machine.labour.worker_ends("CUDA error")
        world.run(0.5)
    machine.post(Leave())
    world.within(10, lambda: machine.node is None, "it halts")
    assert machine.halted == [""]


def test_a_node_that_does_not_train_still_stores_and_mixes() -> None:
    world = mixing(2)
    world.add(2, 0, **{"train.enabled": False})
    world.within(20, lambda: phases(world, 2) == "ready", "holds the weights")
    world.run(5)
    assert world.machines[2].labour.worker is None
    assert world.summary(2).tokens == 0
    assert world.member(0, 2).active


def test_an_observer_neither_trains_nor_mixes() -> None:
    world = mixing(2)
    observer = world.add(2, 0, roles=(Role.OBSERVE,))
    world.run(20)
    assert observer.labour.worker is None
    assert not [e for _, e in observer.effects if isinstance(e, RunExchange)]
    asked = {
        e.peer for i in (0, 1) for _, e in world.machines[i].effects if isinstance(e, RunExchange)
    }
    assert observer.keys.peer_id not in asked


def test_a_worker_that_dies_is_started_again_ever_later() -> None:
    world = mixing(2)
    machine = world.machines[1]
    machine.fatal = "CUDA error: out of memory"
    machine.labour.worker_ends("CUDA error: out of memory")
    world.run(20)
    s = world.summary(1)
    assert s.worker_last_error == "CUDA error: out of memory"
    assert 4 <= s.worker_restarts <= 6, "after 1, 2, 4, 8 seconds"
    member = world.member(0, 1)
    assert member is not None
    assert member.state == "alive", "the node stays a member"
    machine.fatal = ""
    before = s.tokens
    world.run(40)
    assert world.summary(1).tokens > before
    assert world.summary(1).participating


def test_a_broken_theta_is_set_back_and_never_reaches_anybody() -> None:
    world = mixing(3)
    world.run(5)
    world.machines[0].poisoned = True
    world.run(10)
    words = [e.event for _, e in world.machines[0].logs()]
    assert "outer_step_refused" in words
    assert world.spread() < 0.05
    assert world.all_mixing()


def test_a_node_that_slept_past_its_certificate_renews_it_and_goes_on() -> None:
    world = World().swarm(1)
    world.within(30, lambda: world.all_in("training"), "it trains")
    world.kill(0)
    world.run(100 * DAY)
    world.restart(0)
    world.within(30, lambda: world.all_in("training"), "it trains again")
    node = world.machines[0].node
    own = node.company.gate.verified(node.me)
    assert own is not None
    assert own.not_after > world.wall


# ------------------------------------------------------------------------- clocks that are wrong


def own_seat(world: World, number: int) -> Verified:
    node = world.machines[number].node
    seat = node.company.gate.verified(node.me)
    assert seat is not None
    return seat


WATCHING = (Role.OBSERVE,)
A_LOOK_S = 65.0
"""Within this time a node has looked at its certificate."""


def all_linked(world: World) -> bool:
    nodes = [machine.node for machine in world.up()]
    return all(len(node.company.linked()) == len(nodes) - 1 for node in nodes)


@pytest.mark.parametrize("days", [-1, -400, 60])
def test_a_node_that_starts_with_a_wrong_clock_starts_and_is_back_when_it_is_right(
    days: int,
) -> None:
    world = World().swarm(3, roles=WATCHING)
    world.within(10, lambda: all_linked(world), "they meet")
    world.kill(0)
    world.machines[0].wall_skew_s = days * DAY
    world.restart(0)
    world.run(A_LOOK_S)
    world.machines[0].wall_skew_s = 0.0
    world.run(A_LOOK_S)
    world.within(30, lambda: all_linked(world), "they meet again")
    assert own_seat(world, 0).not_before <= world.wall < own_seat(world, 0).not_after


@pytest.mark.parametrize("days", [-400, -1, 60, 100, 40_000])
def test_a_clock_that_is_set_wrong_and_right_again_ends_nobody(days: int) -> None:
    world = World().swarm(3, roles=WATCHING)
    world.within(10, lambda: all_linked(world), "they meet")
    world.machines[1].wall_skew_s = days * DAY
    world.run(A_LOOK_S)
    world.machines[1].wall_skew_s = 0.0
    world.run(A_LOOK_S)
    for number in (0, 2):  # others that start anew have to let it in, and it them
        world.kill(number)
        world.restart(number)
        world.within(30, lambda: all_linked(world), f"they meet again, with machine {number} back")
    assert own_seat(world, 1).not_before <= world.wall < own_seat(world, 1).not_after


def test_with_a_wrong_clock_a_node_trains_and_mixes_where_certificates_hold() -> None:
    world = mixing(2)
    world.kill(0)
    world.machines[0].wall_skew_s = 2 * DAY
    world.restart(0)
    world.within(60, world.all_mixing, "the certificates of the others have long begun at its time")
    world.kill(1)
    world.machines[1].wall_skew_s = -2 * DAY
    world.restart(1)
    world.within(60, lambda: phases(world, 1) == "training", "to it others' are of a time to come")
    world.machines[0].wall_skew_s = world.machines[1].wall_skew_s = 0.0
    world.run(A_LOOK_S)
    world.within(60, world.all_mixing, "clocks are right")
