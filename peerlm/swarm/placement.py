"""Placement: which stages this node should host, decided by itself from what it has heard.

There is no coordinator. A node looks at its `View`, asks what the swarm would be worth with each run of
stages that it could hold, and takes the best if that is enough better: more stages hosted, fewer that lack
hosts, or the slowest stages faster by a factor of at least `GAIN`. Everything below keeps many nodes that think so
at once, from views that are old and unequal, from doing harm:

- *What is announced counts as done.* A node that loads stages says so (`Host.target`), and others decide as if it had
  them, unless its line needs long for them. If two took up the same, the one that stands behind (`_place_in_line`) sees that it is not needed and stops.
- *In order.* For a stage that lacks hosts, each node knows how many others could help sooner (those that need drop
  nothing first, then by loading time); it waits its turn. Whoever does not move costs those behind it a few seconds.
- *Three times.* What drops anything, or is for speed alone, has to be concluded `CONFIRMATIONS` times in a row, spaced
  by jittered ticks; then a node goes with a probability of one in as many as could.
- *Load before drop.* The old stages are served until the new ones are here and every stage that would be dropped has
  other hosts that are ready and mean to stay.
- *The gone count for nothing.* Only members of the view are hosts; one that drains is none either, but serves on until
  others do (`handed_over`).
- *At rest only gaps are filled.* Once the run is over (`is_at_rest`) stages that lack hosts get them, and nothing moves for speed.

Every move makes the swarm worth more by one measure, so with equal views moves come to an end; `GAIN` keeps noise of
measured speeds from beginning anew. SWARM parallelism (arXiv 2301.11913) rebalances by queues and a pair of
peers a period; Petals (arXiv 2209.01188) by throughput per block with the same kind of threshold.

Pure: `now` and an rng come in, a `Decision` goes out; what a node thought before is in its `Mind`, which it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import inf
from random import Random

from peerlm.swarm.together import best_together
from peerlm.swarm.worth import (
    LOAD_S_MAX,
    NOBODY,
    NONE,
    TIED,
    Capability,
    Demand,
    Host,
    Hostings,
    View,
    Worth,
    overlap,
)
from peerlm.types import Instant, PeerId, after

REPLICAS = 2
"""Hosts a stage should have while nodes suffice."""

GAIN = 1.08
"""A node moves for speed if what it hosts is this much faster than the slowest stages, or if it and others
together make those faster by as much."""

NOTICED = 1e-3
"""What slowest stages gain at least by a move for speed."""

CONFIRMATIONS = 3

TICK_S = 15.0
"""Between two looks at speeds; each is drawn from 0.75 to 1.25 of it."""

QUICK_S = 3.0
"""Between two looks at a stage that lacks hosts."""

TURN_S = 4.0
"""What each place in line for a stage that lacks hosts waits: longer than news takes to most of the swarm."""

REST_S = 600.0
"""After a look without result speeds are looked at again when hostings have changed, or after this long."""

CLAIM_S = 6.0
"""A node hosts nothing new before its announcement is this old, so that most have heard it."""

HANDOVER_S = LOAD_S_MAX
"""How long a node that has loaded waits for others to be ready for what it would drop. Then one ready host is enough; where
it goes to a stage that nobody else hosts, one is enough at once."""

PATIENCE_S = 600.0
"""Whoever cannot drop its old stages for this long stops, and keeps them."""


NEVER = Instant(0.0)


class Verb(StrEnum):
    """What the node should do."""

    KEEP = "keep"
    """Go on: host what it hosts, load what it loads."""
    TAKE = "take"
    """Announce `stages` as target and load what is missing; nothing is dropped."""
    MOVE = "move"
    """The same, but stages will be dropped."""
    SWITCH = "switch"
    """Host `stages`, which are loaded: a part of the target, or all of it; the rest is dropped."""
    WITHDRAW = "withdraw"
    """Stop loading; the target is again what it hosts."""
    DROP = "drop"
    """Host only `stages`, at once: it can or may no longer host more."""


@dataclass(frozen=True, slots=True)
class Mind:
    """What a node remembers from one look to the next. A fresh one is always safe."""

    concluded: range = NONE
    """What it should host, by its last looks."""
    times: int = 0
    """How often it concluded that in a row."""
    since: Instant = NEVER
    """When it did so first; while loading: when it announced."""
    counted: Instant = NEVER
    counted_on: frozenset[PeerId] = frozenset()
    """Who was loading already when it announced."""
    final: range = NONE
    """What it means to host in the end, of which its target is a step."""
    is_joint: bool = False
    """What it loads is its part of a plan of several."""
    loaded_at: Instant | None = None
    """When it first looked with its target loaded."""
    hosts_seen: tuple[int, ...] = ()
    """Hosts of each stage at the last look at speeds that found nothing to do."""
    rested: Instant = NEVER
    next_tick: Instant = NEVER


@dataclass(frozen=True, slots=True)
class Decision:
    """Do `verb` with `stages` (for KEEP: what it hosts), keep `mind`, ask again at `look_at` or when members, hostings
    or its own capability change."""

    verb: Verb
    stages: range
    why: str
    mind: Mind
    look_at: Instant


def decide(
    demand: Demand,
    view: View,
    me: PeerId,
    loaded: range,
    now: Instant,
    rng: Random,
    mind: Mind,
    replicas: int = REPLICAS,
    *,
    is_at_rest: bool = False,
) -> Decision:
    """What `me`, a member of `view`, should do. `loaded`: the run of its target whose bytes are here (see `next_stage`).
    `is_at_rest`: nothing is trained any more, so speed is worth nothing."""
    look = _Look(demand, view, me, now, rng, mind, replicas, is_at_rest)
    host = view[me]
    if not demand.allows(host.capability, host.hosts):
        return look.narrow()
    if not host.is_settled():
        return look.while_loading(loaded)
    if host.draining or not demand.counts(host.capability):
        return look.rest("it drains" if host.draining else "its role hosts nothing")
    return look.while_settled()


def next_stage(view: View, me: PeerId, loaded: range) -> int | None:
    """What to load next of the target; None: nothing. First that with the fewest hosts, then on from there, so that
    what is loaded is always one run. `loaded` begins as what of the target is hosted."""
    target = view[me].target
    ends = (loaded.start - 1, loaded.stop) if loaded else target
    hosts = [
        (sum(stage in host.hosts for peer, host in view.items() if peer != me), stage)
        for stage in ends
        if stage in target
    ]
    return min(hosts)[1] if hosts else None


def handed_over(demand: Demand, view: View, me: PeerId, replicas: int = REPLICAS) -> bool:
    """Whether a node that drains may go: all it hosts has `replicas` other hosts, ready and staying. So it is in the simulation; a
    real node, whose owner waits, goes when it has one (`node.handing_over`)."""
    return all(_ready(demand, view, me, stage) >= replicas for stage in view[me].hosts)


class _Look:
    """One look of one node."""

    def __init__(
        self,
        demand: Demand,
        view: View,
        me: PeerId,
        now: Instant,
        rng: Random,
        mind: Mind,
        replicas: int,
        is_at_rest: bool,
    ) -> None:
        self.demand, self.view, self.me, self.host = demand, view, me, view[me]
        self.now, self.rng, self.mind, self.replicas = now, rng, mind, replicas
        self.is_at_rest = is_at_rest

    @cached_property
    def others(self) -> Hostings:
        """All but this node, by what they will host."""
        return self._hostings(lambda peer, host: host.target)

    def _before_us(self) -> Hostings:
        """The others; of those who announced when we did and stand behind us in line, only what they host."""
        mine, known = _place_in_line(self.demand, self.me, self.host), self.mind.counted_on

        def run_of(peer: PeerId, host: Host) -> range:
            if host.is_settled() or peer in known:
                return host.target
            is_behind = mine < _place_in_line(self.demand, peer, host)
            return host.hosts if is_behind else host.target

        return self._hostings(run_of)

    def _hostings(self, run_of: Callable[[PeerId, Host], range]) -> Hostings:
        """The others by `run_of`; who loads for long is no host before it is one."""
        runs, late = list[tuple[Capability, range]](), list[int]()
        for peer, host in self.view.items():
            if peer == self.me or host.draining:
                continue
            run = run_of(peer, host)
            runs.append((host.capability, run))
            is_late = self.demand.load_s(host.capability, run, host.hosts) > LOAD_S_MAX
            if is_late and self.demand.counts(host.capability):
                late += [stage for stage in run if stage not in host.hosts]
        return Hostings(self.demand, runs, self.replicas, late)

    # ---------------------------------------------------------------------------------- states

    def narrow(self) -> Decision:
        """It hosts more than it can or may: keep the part that is worth most, at once."""
        hosts, capability = self.host.hosts, self.host.capability
        parts = [part for part in _parts(hosts) if self.demand.allows(capability, part)]
        kept = max(
            parts,
            key=lambda run: self.others.with_host(capability, run).order(),
            default=NONE,
        )
        return self._do(Verb.DROP, kept, "it can or may host no more")

    def while_loading(self, loaded: range) -> Decision:
        hosts, target, capability = self.host.hosts, self.host.target, self.host.capability
        if self.host.draining or not self.demand.allows(capability, target):
            return self._do(Verb.WITHDRAW, hosts, "it can or may not host them any more")
        if hosts and any(not count for count in self._counts_with(target)):
            return self._do(Verb.WITHDRAW, hosts, "a stage has no host, and this is no help")
        is_fresh = self.now - self.mind.since < 2 * CLAIM_S
        is_move = len(overlap(target, hosts)) < len(hosts)
        is_late = is_move and loaded == target
        is_to_check = hosts and (is_fresh or is_late or self.is_at_rest)
        if is_to_check and not self._is_worth_going() and not self._is_still_planned():
            return self._do(Verb.WITHDRAW, hosts, "others have taken them")
        if is_fresh and not hosts and (other := self._covering()) is not None:
            before_us = self._before_us()
            cover = before_us.cover_with(target)
            is_no_help = cover >= before_us.cover_with(hosts)
            if is_no_help or cover[0] > before_us.cover_with(other)[0]:
                return self._do(Verb.WITHDRAW, hosts, "another stage needs it more")
        if loaded == target:
            return self._when_loaded(hosts, target)
        is_more = len(overlap(loaded, hosts)) == len(hosts) < len(loaded)
        if is_more and not is_move:
            look_at = self._soon(TICK_S)
            return Decision(Verb.SWITCH, loaded, "loaded so far", self.mind, look_at)
        return self._keep(QUICK_S if is_fresh else TICK_S, "loading")

    def _counts_with(self, run: range) -> list[int]:
        return [count + (stage in run) for stage, count in enumerate(self.others.counts)]

    def _when_loaded(self, hosts: range, target: range) -> Decision:
        mind = self.mind
        if mind.loaded_at is None:
            mind = replace(mind, loaded_at=self.now)
        assert mind.loaded_at is not None
        waited_s, claimed_s = self.now - mind.loaded_at, self.now - mind.since
        others = [_ready(self.demand, self.view, self.me, s) for s in hosts if s not in target]
        is_awaited = any(not self.others.counts[s] for s in target if s not in hosts)
        enough = 1 if is_awaited or waited_s >= HANDOVER_S else self.replicas
        if not others or (claimed_s >= CLAIM_S and min(others) >= enough):
            return self._do(Verb.SWITCH, target, "loaded")
        if waited_s >= PATIENCE_S:
            return self._do(Verb.WITHDRAW, hosts, "nobody is ready for what it would drop")
        return self._keep(QUICK_S, "loaded; others are not ready for what it drops", mind)

    def while_settled(self) -> Decision:
        hosts, now = self.host.hosts, self.now
        if (run := self._covering()) is not None:
            return self._to_cover(run)
        if not hosts:
            return self._to_join()
        if self.is_at_rest:
            return self.rest("the run is over, and nothing lacks hosts that it could hold")
        if now < self.mind.next_tick:
            return self._keep_until(self.mind.next_tick, "nothing to do")
        is_same = tuple(self.others.counts) == self.mind.hosts_seen
        if is_same and now - self.mind.rested < REST_S:
            return self.rest("nothing to do", self.mind.rested)
        if (run := self._faster()) is not None:
            return self._for_speed(run, is_joint=False)
        run, is_better = self._plan()
        if is_better and self._can_be_spared(run):
            return self._for_speed(run, is_joint=True)
        return self.rest("nothing better")

    # ----------------------------------------------------------------------------- conclusions

    def _covering(self) -> range | None:
        """The run that leaves the fewest stages without host, then lacking hosts, if fewer than now."""
        hosts, others = self.host.hosts, self.others
        if all(stage in hosts for stage in others.lacking(hosts)):
            return None
        runs = self.demand.options(self.host.capability, hosts)
        best = min([others.cover_with(hosts), *(others.cover_with(run) for run in runs)])
        if best == others.cover_with(hosts):
            return None
        return self._best([run for run in runs if others.cover_with(run) == best])

    def _faster(self) -> range | None:
        """A run that makes the slowest stages faster, if by `GAIN` those it hosts are faster than they, or it would
        be itself, its line being less of a hindrance. How much the swarm gains does not count: in a large one
        no node alone makes a difference of a tenth."""
        hosts, capability = self.host.hosts, self.host.capability
        rates = self.others.rates_with(capability, hosts, GAIN)
        if not min(rates):
            return None
        slowest = {stage for stage, rate in enumerate(rates) if rate <= min(rates) * TIED}
        has_time = min(rates[stage] for stage in hosts) == inf
        enough = 0.0 if has_time else self.demand.speed(capability, hosts) * GAIN
        stay = Worth(*self.others.cover_with(hosts), tuple(sorted(rates)))
        runs = [
            run
            for run in self.demand.options(capability, hosts, inf)
            if not slowest.isdisjoint(run)
            and self._can_be_spared(run)
            and self.demand.speed(capability, run) >= enough
            and self.others.cover_with(run) == (stay.unhosted, stay.lacking)
            and self.others.with_host(capability, run, GAIN).is_faster_than(stay, 1 + NOTICED)
        ]
        return self._best(runs)

    def _can_be_spared(self, run: range) -> bool:
        """Whether all that it would drop has another host that is ready. Two only hosts cannot change places: each would
        wait for the other."""
        dropped = [stage for stage in self.host.hosts if stage not in run]
        return all(_ready(self.demand, self.view, self.me, stage) for stage in dropped)

    def _best(self, runs: list[range]) -> range | None:
        """The run most worth hosting; of equals the one soonest loaded, then the one of the last look."""
        hosts, capability = self.host.hosts, self.host.capability
        best: tuple[object, ...] | None = None
        found = None
        for run in runs:
            worth = self.others.with_host(capability, run)
            load_s = self.demand.load_s(capability, run, hosts)
            key = worth.order(), -load_s, run == self.mind.concluded, self.rng.random()
            if best is None or key > best:
                best, found = key, run
        return found

    def _to_cover(self, run: range) -> Decision:
        """Some stage has too few hosts: in order of the line, those who drop nothing at once."""
        mind = self._again(run, QUICK_S)
        drops = any(stage not in run for stage in self.host.hosts)
        lacking = self.others.lacking(self.host.hosts)
        fixed = [stage for stage in lacking if stage in run and stage not in self.host.hosts]
        turn_s = TURN_S * self._ahead(fixed)
        needed = CONFIRMATIONS if drops else 1
        if mind.times < needed or self.now - mind.since < turn_s:
            return self._keep(QUICK_S, f"stages {_shown(fixed)} lack hosts; others first", mind)
        return self._go(run, f"stages {_shown(fixed)} lack hosts")

    def _to_join(self) -> Decision:
        """It hosts nothing: a moment by chance, so that of many who come at once each sees some of the others."""
        mind = self._again(NONE, 0.0)
        if mind.times == 1:
            return self._keep(QUICK_S, "choosing", mind)
        run = self._best(self.demand.options(self.host.capability, NONE, inf))
        if run is None:
            return self.rest("no stage fits")
        return self._go(run, "worth most here")

    def _for_speed(self, run: range, is_joint: bool) -> Decision:
        mind = self._again(run, TICK_S)
        is_turn = is_joint or self.rng.random() * self._able_to_speed_up() < 1
        if mind.times < CONFIRMATIONS or not is_turn:
            return self._tick(replace(mind, hosts_seen=()), "a faster place, not sure yet")
        return self._go(run, "the slowest stage gets faster", is_joint)

    def _again(self, run: range, gap_s: float) -> Mind:
        """The mind that has concluded `run` once more, if the last time is `gap_s` (less jitter) ago."""
        mind = self.mind
        if mind.concluded != run or not mind.times:
            return replace(mind, concluded=run, times=1, since=self.now, counted=self.now)
        if self.now - mind.counted < gap_s * 0.7:
            return mind
        return replace(mind, times=mind.times + 1, counted=self.now)

    # ------------------------------------------------------------------------------ the others

    def _plan(self) -> tuple[range, bool]:
        """Our part in the best placement of all, and whether that is enough better than the one there is."""
        plan = best_together(self.demand, self.view, self.replicas)
        if plan.get(self.me, self.host.target) == self.host.target:
            return self.host.target, False
        hosted = {peer: host.target for peer, host in self.view.items() if not host.draining}
        before = self._of(hosted)
        after = self._of({**hosted, **plan})
        is_better = after.covers_more_than(before) or after.is_faster_than(before, GAIN)
        return plan[self.me], is_better

    def _of(self, hosted: dict[PeerId, range]) -> Worth:
        members = ((self.view[peer].capability, run) for peer, run in hosted.items())
        return Hostings(self.demand, members, self.replicas).with_host(NOBODY, NONE, GAIN * TIED)

    def _is_worth_going(self) -> bool:
        before_us, capability = self._before_us(), self.host.capability
        stay = before_us.with_host(capability, self.host.hosts, GAIN)
        go = before_us.with_host(capability, self.mind.final or self.host.target, GAIN)
        is_faster = not self.is_at_rest and go.is_faster_than(stay, 1 + NOTICED / 2)
        return go.covers_more_than(stay) or is_faster

    def _is_still_planned(self) -> bool:
        """Whether our part of the plan of several is the target, though alone it is no gain."""
        is_planned = self.mind.is_joint and not self.is_at_rest
        plan = best_together(self.demand, self.view, self.replicas) if is_planned else {}
        target = self.host.target
        return len(overlap(plan.get(self.me, NONE), target)) == len(target)

    def _ahead(self, fixed: list[int]) -> int:
        """How many turns others have before us at stages that lack hosts: those able to help, in their order,
        by as many as are needed at a time."""
        if not fixed:
            return 0
        mine, before = self._turn(self.me, self.host, fixed), 0
        for peer, host in self.view.items():
            if peer == self.me or host.draining or not host.is_settled():
                continue
            theirs = self._turn(peer, host, fixed)
            if theirs is not None and (mine is None or theirs < mine):
                before += 1
        counts = [self.others.counts[stage] + (stage in self.host.hosts) for stage in fixed]
        return before // max(1, sum(self.replicas - count for count in counts))

    def _turn(self, peer: PeerId, host: Host, fixed: list[int]) -> tuple[object, ...] | None:
        """Its place in line for `fixed`: whoever drops nothing, soonest loaded; then the slow. None: it cannot help."""
        capability, hosts = host.capability, host.hosts
        adding = dropping = False
        load_s = float("inf")
        for stage in fixed:
            if stage in hosts:
                continue
            hull = (
                range(min(stage, *hosts), max(stage, *hosts) + 1)
                if hosts
                else range(stage, stage + 1)
            )
            if self.demand.allows(capability, hull):
                adding, load_s = True, min(load_s, self.demand.load_s(capability, hull, hosts))
            elif self.demand.allows(capability, range(stage, stage + 1)):
                dropping = True
        if adding:
            return 0, 0.0, load_s, peer
        is_free = all(self.others.counts[stage] >= self.replicas for stage in hosts)
        if dropping and (is_free or peer == self.me):
            return 1, capability.speed, 0.0, peer
        return None

    def _able_to_speed_up(self) -> int:
        """Nodes that spend no time on the slowest stages and could host one: as many could move."""
        rates = self.others.rates_with(self.host.capability, self.host.hosts, TIED)
        slowest = [stage for stage, rate in enumerate(rates) if rate < inf]
        return sum(
            host.is_settled()
            and not host.draining
            and not any(stage in host.hosts for stage in slowest)
            and any(
                self.demand.allows(host.capability, range(stage, stage + 1)) for stage in slowest
            )
            for host in self.view.values()
        )

    # --------------------------------------------------------------------------------- answers

    def _go(self, final: range, why: str, is_joint: bool = False) -> Decision:
        run = self._step_to(final)
        is_move = any(stage not in run for stage in self.host.hosts)
        loading = (p for p, host in self.view.items() if p != self.me and not host.is_settled())
        mind = Mind(
            since=self.now,
            next_tick=self._soon(TICK_S),
            final=final,
            is_joint=is_joint,
            counted_on=frozenset(loading),
        )
        verb = Verb.MOVE if is_move else Verb.TAKE
        return Decision(verb, run, why, mind, self._soon(QUICK_S))

    def _step_to(self, final: range) -> range:
        """As much of `final` as can be announced at once, and of what it hosts, what `final` keeps."""
        hosts = self.host.hosts
        kept = overlap(hosts, final)
        part = replace(self.host.capability, wish=final)
        steps = self.demand.options(part, hosts)
        keeping = [run for run in steps if len(overlap(run, kept)) == len(kept)]
        return self._best(keeping) or final

    def _do(self, verb: Verb, run: range, why: str) -> Decision:
        look_at = self._soon(QUICK_S if not run else TICK_S)
        return Decision(verb, run, why, Mind(next_tick=look_at), look_at)

    def rest(self, why: str, since: Instant | None = None) -> Decision:
        """Nothing to do until hostings change, or for long."""
        seen = tuple(self.others.counts)
        tick = self._soon(TICK_S)
        rested = self.now if since is None else since
        mind = Mind(hosts_seen=seen, rested=rested, next_tick=tick)
        return Decision(Verb.KEEP, self.host.hosts, why, mind, after(rested, REST_S))

    def _tick(self, mind: Mind, why: str) -> Decision:
        tick = self._soon(TICK_S)
        return Decision(Verb.KEEP, self.host.hosts, why, replace(mind, next_tick=tick), tick)

    def _keep(self, wait_s: float, why: str, mind: Mind | None = None) -> Decision:
        return self._keep_until(self._soon(wait_s), why, mind)

    def _keep_until(self, when: Instant, why: str, mind: Mind | None = None) -> Decision:
        return Decision(Verb.KEEP, self.host.hosts, why, mind or self.mind, when)

    def _soon(self, wait_s: float) -> Instant:
        return after(self.now, wait_s * self.rng.uniform(0.75, 1.25))


def _place_in_line(demand: Demand, peer: PeerId, host: Host) -> tuple[float, PeerId]:
    """Of two who load what only one need load, the one with the smaller place goes on."""
    return demand.load_s(host.capability, host.target, host.hosts), peer


def _ready(demand: Demand, view: View, me: PeerId, stage: int) -> int:
    """Members but `me` that host `stage` now and mean to go on."""
    return sum(
        stage in host.hosts
        and stage in host.target
        and not host.draining
        and peer != me
        and demand.counts(host.capability)
        for peer, host in view.items()
    )


def _parts(run: range) -> Iterator[range]:
    for start in run:
        for stop in range(start + 1, run.stop + 1):
            yield range(start, stop)


def _shown(stages: list[int]) -> str:
    return ", ".join(map(str, stages))
