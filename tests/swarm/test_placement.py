"""Placement, one node at a time: what it decides, how often it has to think so, and when it may let go."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from peerlm.swarm.placement import (
    CLAIM_S,
    CONFIRMATIONS,
    HANDOVER_S,
    Decision,
    Mind,
    Verb,
    decide,
    handed_over,
    next_stage,
)
from peerlm.swarm.together import best_together
from peerlm.swarm.worth import NONE, Capability, Demand, Host, Hostings
from peerlm.types import Instant, Memory, PeerId, Role

GB = 10**9
STAGES = 3
RUNS = [range(a, b) for a in range(STAGES) for b in range(a + 1, STAGES + 1)]
DEMAND = Demand(
    costs=(1.0,) * STAGES,
    memory={run: Memory(len(run) * GB, len(run) * GB) for run in RUNS},
    fetch=(GB,) * STAGES,
    crossing=(0,) * (STAGES + 1),
    roles=frozenset({Role.TRAIN}),
)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(16, "big"))


def machine(stages: int = 1, speed: float = 10.0, link: float = 1e9) -> Capability:
    return Capability(Memory(stages * GB, stages * GB), speed, link, frozenset({Role.TRAIN}))


def host(run: range, stages: int = 0, speed: float = 10.0) -> Host:
    return Host(machine(stages or len(run), speed), run, run)


def swarm(*hosts: Host) -> dict[PeerId, Host]:
    return {peer(number): one for number, one in enumerate(hosts)}


def test_a_node_is_as_fast_as_what_it_computes_its_line_carries_or_its_way_allows() -> None:
    demand = replace(DEMAND, crossing=(5, 5, 5, 5), window=30)
    near = machine(speed=10.0, link=1e9)
    assert demand.speed(near, range(1)) == 10.0
    assert demand.speed(replace(near, link_bytes_s=40.0), range(1)) == 4.0, "10 bytes a token"
    assert demand.speed(replace(near, link_bytes_s=40.0), range(2)) == 8.0
    far = replace(near, delay_s=2.5)
    assert demand.speed(far, range(1)) == 2.0, "a third of a window in 5 s there and back"
    assert demand.speed(far, range(2)) == 8.0
    assert demand.speed(far, range(3)) == 10.0, "it needs nobody"
    assert replace(demand, window=0).speed(far, range(1)) == 10.0


class Life:
    """`peer(0)` of a swarm, asked again and again."""

    def __init__(self, *hosts: Host) -> None:
        self.view, self.mind, self.now = swarm(*hosts), Mind(), Instant(1000.0)
        self.loaded, self.rng, self.demand = NONE, Random(1), DEMAND
        self.is_at_rest = False

    def look(self, after_s: float = 0.0) -> Decision:
        self.now = Instant(self.now + after_s)
        seen = self.demand, self.view, peer(0), self.loaded, self.now, self.rng, self.mind
        decision = decide(*seen, is_at_rest=self.is_at_rest)
        self.mind = decision.mind
        return decision

    def until(self, *verbs: Verb, looks: int = 100) -> Decision:
        for _ in range(looks):
            decision = self.look()
            if decision.verb in verbs:
                return decision
            self.now = Instant(max(self.now + 0.1, decision.look_at))
        raise AssertionError(f"never {verbs}")

    def announce(self, target: range) -> None:
        self.view[peer(0)] = replace(self.view[peer(0)], target=target)

    def rests(self, seconds: float) -> bool:
        end = self.now + seconds
        while self.now < end:
            decision = self.look()
            if decision.verb is not Verb.KEEP:
                return False
            self.now = Instant(max(self.now + 0.1, decision.look_at))
        return True


def test_a_node_that_can_hold_everything_hosts_everything() -> None:
    assert Life(Host(machine(3))).until(Verb.TAKE).stages == range(3)
    others = [host(range(s, s + 1)) for s in (0, 0, 1, 1, 2, 2)]
    assert Life(Host(machine(3)), *others).until(Verb.TAKE).stages == range(3)


def test_a_joiner_takes_what_nobody_hosts_then_what_lacks_hosts_then_what_is_slow() -> None:
    one = [host(range(s, s + 1)) for s in range(3)]
    assert Life(Host(machine()), one[0], one[0], one[2]).until(Verb.TAKE).stages == range(1, 2)
    assert Life(Host(machine()), *one, one[0], one[1]).until(Verb.TAKE).stages == range(2, 3)
    slow = host(range(1, 2), speed=1.0)
    twice = [one[0], one[0], slow, slow, one[2], one[2]]
    assert Life(Host(machine()), *twice).until(Verb.TAKE).stages == range(1, 2)


def test_a_wish_a_role_and_memory_are_kept_to() -> None:
    wish = replace(machine(3), wish=range(1, 3))
    assert Life(Host(wish)).until(Verb.TAKE).stages == range(1, 3)
    serves = replace(machine(3), roles=frozenset({Role.SERVE}))
    assert Life(Host(serves)).rests(1000)
    assert Life(Host(machine(0))).rests(1000)
    life = Life(replace(host(range(3)), capability=wish), host(range(3)))
    assert (life.look().verb, life.look().stages) == (Verb.DROP, range(1, 3))


def test_spare_room_takes_a_stage_without_hosts_at_once() -> None:
    others = [host(range(s, s + 1)) for s in (0, 0, 1, 1)]
    life = Life(host(range(1, 2), stages=2), *others)
    decision = life.look()
    assert (decision.verb, decision.stages) == (Verb.TAKE, range(1, 3))


def test_what_drops_something_is_concluded_three_times() -> None:
    others = [host(range(s, s + 1)) for s in (0, 0, 1)]
    life = Life(host(range(1)), *others, host(range(1, 2)))
    for _ in range(CONFIRMATIONS - 1):
        assert life.look(after_s=4.0).verb is Verb.KEEP
    assert life.until(Verb.MOVE, looks=20).stages == range(2, 3)


def test_an_announcement_counts_as_done() -> None:
    coming = replace(Host(machine()), target=range(2, 3))
    others = [host(range(s, s + 1)) for s in (0, 0, 1, 1, 2)]
    life = Life(host(range(1)), *others, coming)
    assert life.rests(3600)


def test_balance_is_left_alone_and_so_is_a_small_gap() -> None:
    even = [host(range(s, s + 1)) for s in range(3) for _ in range(4)]
    assert Life(*even).rests(4 * 3600)
    uneven = [
        host(range(s, s + 1), speed=10.0 + 0.7 * (s == 0)) for s in range(3) for _ in range(4)
    ]
    assert Life(*uneven).rests(4 * 3600)


def test_a_gap_draws_a_node_to_the_slowest_stage() -> None:
    hosts = [host(range(1)) for _ in range(6)] + [host(range(s, s + 1)) for s in (1, 1, 2, 2)]
    assert Life(*hosts).until(Verb.MOVE).stages in (range(1, 2), range(2, 3))


def test_at_rest_gaps_are_filled_and_a_slow_stage_stays_slow() -> None:
    ends = [host(range(s, s + 1)) for s in (0, 0, 2, 2)]
    slow = host(range(1, 2), speed=1.0)
    life = Life(host(range(1)), *ends, slow, slow)
    life.is_at_rest = True
    assert life.rests(3600)
    life.is_at_rest = False
    move = life.until(Verb.MOVE)
    life.announce(move.stages)
    life.is_at_rest = True
    assert life.until(Verb.WITHDRAW).stages == range(1), "it was for speed"
    life.announce(range(1))
    del life.view[peer(5)], life.view[peer(6)]
    assert life.until(Verb.MOVE).stages == range(1, 2)
    life = Life(host(range(1), stages=2), *ends, slow)
    life.is_at_rest = True
    assert life.until(Verb.TAKE).stages == range(2), "one host is too few"


def test_the_old_is_hosted_until_others_are_ready() -> None:
    life = Life(host(range(1)), host(range(1, 2)), host(range(1, 2)))
    life.view[peer(3)] = replace(Host(machine()), target=range(1))
    life.view[peer(4)] = replace(Host(machine()), target=range(1))
    life.announce(range(2, 3))
    known = frozenset({peer(3), peer(4)})
    life.loaded, life.mind = range(2, 3), Mind(since=life.now, counted_on=known)
    assert life.look(after_s=CLAIM_S).verb is Verb.KEEP
    assert life.look(after_s=HANDOVER_S + 1).verb is Verb.KEEP
    life.view[peer(3)] = host(range(1))
    decision = life.look()
    assert (decision.verb, decision.stages) == (Verb.SWITCH, range(2, 3))


def test_of_two_who_come_at_once_to_one_of_two_empty_stages_one_turns_to_the_other() -> None:
    coming = replace(Host(machine()), target=range(1, 2))
    for link, verb in ((1e8, Verb.KEEP), (1e10, Verb.WITHDRAW)):
        life = Life(Host(machine()), host(range(1)))
        life.view[peer(9)] = replace(coming, capability=machine(link=link))
        life.announce(range(1, 2))
        life.mind = Mind(since=life.now)
        assert life.look(after_s=1.0).verb is verb
    life.announce(NONE)
    assert life.until(Verb.TAKE).stages == range(2, 3)


def test_for_a_stage_without_a_host_one_other_is_enough_at_once() -> None:
    life = Life(host(range(1)), host(range(1)), host(range(1, 2)))
    life.announce(range(2, 3))
    life.loaded, life.mind = range(2, 3), Mind(since=life.now)
    assert life.look(after_s=CLAIM_S / 2).verb is Verb.KEEP
    assert life.look(after_s=CLAIM_S).verb is Verb.SWITCH
    life.view[peer(1)] = replace(host(range(1)), draining=True)
    assert life.look().verb is Verb.WITHDRAW, "now it would leave one without"


def test_the_only_hosts_of_two_stages_do_not_change_places() -> None:
    slow, fast = host(range(1), speed=1.0), host(range(1, 2), speed=9.0)
    demand = replace(DEMAND, costs=(9.0, 1.0, 1.0))
    others = [host(range(2, 3), speed=1.0), host(range(2, 3), speed=1.0)]
    for hosts in ((slow, fast), (fast, slow)):
        life = Life(*hosts, *others)
        life.demand = demand
        assert life.rests(600)


def test_who_loads_for_speed_stops_when_a_stage_has_no_host() -> None:
    others = [host(range(s, s + 1)) for s in (0, 0, 1, 1, 2)]
    life = Life(host(range(1)), *others)
    life.announce(range(1, 2))
    life.mind = Mind(since=life.now)
    del life.view[peer(5)]
    assert life.look(after_s=1000.0).verb is Verb.WITHDRAW
    life.announce(range(1))
    assert life.until(Verb.MOVE).stages == range(2, 3)


def test_of_two_who_take_the_same_the_one_behind_stops() -> None:
    others = [host(range(s, s + 1)) for s in (0, 0, 1, 1, 2)]
    for number, verb in ((9, Verb.KEEP), (None, Verb.WITHDRAW)):
        life = Life(host(range(1, 2), stages=2, speed=0.001), *others)
        life.announce(range(1, 3))
        rival = replace(host(range(1, 2), stages=2), target=range(1, 3))
        if number is None:  # a faster line stands before us
            rival = replace(rival, capability=machine(2, link=1e10))
        life.view[peer(9)] = rival
        life.loaded, life.mind = range(1, 2), Mind(since=life.now)
        assert life.look(after_s=2.0).verb is verb


def test_stages_are_hosted_as_they_come() -> None:
    life = Life(Host(machine(3)), host(range(1)))
    life.announce(range(3))
    assert next_stage(life.view, peer(0), NONE) == 1
    assert next_stage(life.view, peer(0), range(1, 2)) == 2
    assert next_stage(life.view, peer(0), range(1, 3)) == 0
    assert next_stage(life.view, peer(0), range(3)) is None
    life.loaded = range(1, 2)
    assert (life.look().verb, life.look().stages) == (Verb.SWITCH, range(1, 2))


def test_who_drains_is_replaced_and_goes_when_it_has_been() -> None:
    drains = replace(host(range(2, 3)), draining=True)
    others = [host(range(s, s + 1)) for s in (0, 0, 1, 1, 2)]
    life = Life(host(range(1, 2), stages=2), *others, drains)
    assert life.until(Verb.TAKE).stages == range(1, 3)
    assert not handed_over(DEMAND, life.view, peer(6))
    life.view[peer(0)] = host(range(1, 3))
    assert handed_over(DEMAND, life.view, peer(6))


def test_two_find_together_what_neither_finds_alone() -> None:
    """The fast one could host any two stages, but only if the slow one leaves its place to it."""
    hosts = swarm(
        replace(host(range(2), speed=100.0)),
        host(range(2, 3), speed=1.0),
        host(range(1), speed=50.0),
    )
    plan = best_together(DEMAND, hosts, replicas=1)
    assert plan == best_together(DEMAND, dict(reversed(hosts.items())), replicas=1)
    after = [(h.capability, plan.get(p, h.hosts)) for p, h in hosts.items()]
    before = [(h.capability, h.hosts) for h in hosts.values()]
    rate = [min(Hostings(DEMAND, each, 1).rates_with(machine(), NONE)) for each in (before, after)]
    assert rate[1] > 10 * rate[0]
