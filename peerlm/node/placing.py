"""Which stages this node holds, decided and carried out: `swarm.placement` joined to a real node.

The rule needs a view of all live members. It is read from their vitals, where each says what it holds, what it is
loading and what it offers; members with fixed stages are hosts that never move, and one that holds the whole model is
left out, because it trains for nobody else. What the rule decides happens in this order: the target is announced in our
vitals; the stages that are lacking are loaded as objects (`stock`) while the worker goes on with the old ones; when the
rule says so the node hands over (`move`), and its work begins anew with the new stages. A node that has just come holds
nothing until it has decided. When the run is over what was placed stays as it is, but for stages that lack hosts:
copies go on being kept and stages being taken over, since texts are still answered with them.

How fast a node would be with stages that it does not hold follows from how fast it is at each kind of module. Its
worker tries that when it begins; once its speed in training is known, that sets the scale for all of them.

A speed or a line that nobody has measured yet must neither drive a node away nor bring it: an unknown speed counts
as the middle of the known ones, an unknown line as no hindrance.
"""

from __future__ import annotations

import hashlib
import math
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from peerlm.config import Plan
from peerlm.effects import Effect, Log, PrepareCorpus, Save
from peerlm.model.stages import BACKWARD, KINDS, NOTHING, stages, window_tokens
from peerlm.node.lifecycle import Phase
from peerlm.node.stock import Stock
from peerlm.store.placed import Copy, Placed
from peerlm.swarm.offering import Offering
from peerlm.swarm.placement import Decision, Mind, Verb, decide
from peerlm.swarm.ways import HOP_S_MAX
from peerlm.swarm.worth import LOAD_S_MAX, NONE, Capability, Demand, Host, View, overlap
from peerlm.types import FragmentId, Instant, Memory, PeerId, Role, after
from peerlm.wire.message import Vitals

if TYPE_CHECKING:
    from peerlm.node.company import Company
    from peerlm.node.work import Work

PACE = {"wan": 1.0, "lan": 2.0, "test": 5.0}
"""By the plan's `swarm.profile`: how much faster than by the rule's timers nodes decide. News travels that much faster."""

LOOK_S = 1.0
"""Between two looks at the others, divided by the pace."""

HEARD_S = 3.0
"""An announcement is this old, divided by the pace, before stages are held of which nothing has to be loaded."""

PATIENCE_S = 60.0
"""A node that has found nobody who gives it the weights of its stages for so long gives them up, and decides anew."""

LOAD_S_MOST = 2 * LOAD_S_MAX
"""What has not been loaded by then is given up: an announcement that does not come true keeps others away."""

AGAIN_S = 60.0
"""After a move that came to nothing, no other for so long."""

KEEPERS = 2
"""Nodes that keep copies of a stage with one host."""

MEASURE_S = 600.0
MEASURED_AT_LEAST = 60
NOISE = 0.2
"""A speed is said after so many reports of the worker, and another one after so long if it differs by so much: what is
said should not waver, since every change makes others think."""

SMOOTHING = 0.05

TRIAL_SHARE = 0.7
"""Of what a trial of modules shows is taken for the speed in training until that is known: it takes inner steps too, and packs streams."""

PACE_MAX = 1e12

FLOPS_S_MAX = 1e18
"""More than any machine has: a claim beyond counts as this much."""

PLENTY = Memory(None, 2**62)
"""What a node with fixed stages holds, fits it."""

ENDING = frozenset({Phase.DRAINING, Phase.SETTLING})
"""Phases in which stages stay where they are: what is in them is about to become final."""

EMPTY = (1, 0)
"""First and last of no stages, as vitals have it."""


def run_said(first: int, last: int, count: int) -> range:
    """Stages named in vitals; none for what cannot be."""
    return range(first, last + 1) if first <= last < count else NONE


def said_of(run: range) -> tuple[int, int]:
    return (run[0], run[-1]) if run else EMPTY


@dataclass(frozen=True, slots=True)
class Offered:
    """What the daemon knows of a node of a model in stages.

    is_auto: it decides by itself. memory: offered for stages. placed: kept from earlier lives. every_s: between copies.
    has_text: it has text of its own, as who holds stage 0 needs where each node trains on its own.
    """

    is_auto: bool
    memory: Memory
    placed: Placed = field(default_factory=Placed)
    every_s: float = 30.0
    has_text: bool = False


@dataclass(frozen=True, slots=True)
class Around:
    """The swarm, and how this node stands in it, as they matter to a decision.

    heard, unheard: live members that have said something of themselves, and that have not. is_seeking: it waits for somebody who has the weights
    of its stages. is_busy: the run's phase leaves no time for moves, or it is going to leave itself. is_at_rest: the run is over.
    is_blank: nothing was learnt yet, and whoever holds a stage may draw its weights. donors: who has weights.
    has_learnt: the swarm has. given: stages of which a donor holds the weights, be it one that holds everything.
    """

    others: Mapping[PeerId, Host]
    autos: frozenset[PeerId]
    heard: int
    unheard: int
    is_installed: bool
    is_seeking: bool
    is_busy: bool
    is_blank: bool
    may_train: bool
    line_bytes_s: float | None
    donors: tuple[PeerId, ...]
    has_learnt: bool = True
    given: frozenset[int] = frozenset()
    delay_s: float = 0.0
    is_at_rest: bool = False


def look_around(company: Company, work: Work, *, is_leaving: bool = False) -> Around:
    """As it is now."""
    plan = company.plan.plan
    others, autos, heard, unheard = hosts_said(company, plan.model.stages)
    runs = [work.seen.runs[peer] for peer in work.seen.donors]
    return Around(
        others=others,
        autos=autos,
        heard=heard,
        unheard=unheard,
        is_installed=work.installed,
        is_seeking=work.phase is Phase.SEEKING,
        is_busy=work.phase in ENDING or is_leaving,
        is_blank=plan.run.initial == "drawn" and not company.ledger.total(),
        may_train=work.may_train,
        line_bytes_s=work.steering.tempo.line_bytes_s,
        donors=work.seen.donors,
        has_learnt=company.ledger.total() > 0,
        given=frozenset(s for first, last in runs for s in range(first, last + 1)),
        delay_s=company.membership.usual_delay() or 0.0,
        is_at_rest=work.phase is Phase.DONE,
    )


class Placing:
    """One node's own part of the placement. `target`: what it will hold; `move`: set once it is to be held."""

    def __init__(
        self,
        me: PeerId,
        plan: Plan,
        sizes: Mapping[FragmentId, int],
        held: range,
        offered: Offered,
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        rng: random.Random,
        now: Instant,
    ) -> None:
        """`sizes`: of every fragment of the plan, in elements."""
        self.cut = cut = stages(plan)
        self.me, self.held, self.target = me, held, held
        self.is_auto, self._offering = offered.is_auto, Offering(offered.memory)
        self.demand, self.count = Demand.of(cut, window=window_tokens(plan)), len(cut)
        self.flops = [stage.flops * (1 + BACKWARD) for stage in cut]
        self.move: range | None = None
        self.why = self._reason = "its stages are fixed"
        if offered.is_auto:
            before = (
                "it held them before" if offered.placed.held else "it began the run with what fits"
            )
            self.why = self._reason = before if held else ""
        self.flops_s = 0.0
        self._tried: tuple[float, ...] = ()
        self._scale = TRIAL_SHARE
        stage_of = {f: stage.index for stage in cut for f in stage.fragments}
        copies = offered.placed.copies
        self.stock = Stock(stage_of, sizes, copies, endpoint, rng, offered.every_s)
        self._kept = offered.placed
        self._rng, self._mind = rng, Mind()
        self._pace = PACE[plan.swarm.profile]
        self._due, self._look_at = now, now
        self._held_since = self._not_before = self._announced_at = now
        self._outline: object = None
        self._rate, self._reports, self._measured_at = 0.0, 0, now
        self._is_text_shared, self._keeps_text = plan.data.source != "local", False
        self._wish = None if self._is_text_shared or offered.has_text else range(1, self.count)

    # --------------------------------------------------------------------------------- what is said

    def say(self, vitals: Vitals, line_bytes_s: float | None) -> Vitals:
        """Vitals with what others decide by."""
        first, last = said_of(self.target)
        return replace(
            vitals,
            is_auto=self.is_auto,
            target_first=first,
            target_last=last,
            memory_host=self.memory.host,
            memory_device=self.memory.device,
            flops_s=self.flops_s,
            line_bytes_s=line_bytes_s or 0.0,
            paces=tuple(map(math.ceil, self.paces)),
        )

    @property
    def memory(self) -> Memory:
        """What it says it offers."""
        return self._offering.said

    def offers(self, memory: Memory, now: Instant) -> None:
        """A reading of what the machine could offer. More room is a reason to look at once."""
        held = self.demand.memory[self.held] if self.held else NOTHING
        if self._offering.read(memory, held):
            self._mind = replace(self._mind, hosts_seen=())
            self._look_at = now

    def capability(self, around: Around) -> Capability:
        roles = frozenset({Role.TRAIN}) if around.may_train else frozenset[Role]()
        line = around.line_bytes_s or math.inf
        wish, paces = self._wish, self.paces
        return Capability(self.memory, self.flops_s, line, roles, wish, around.delay_s, paces)

    @property
    def paces(self) -> tuple[float, ...]:
        """Tokens a second with one module of each kind; empty: not tried."""
        return tuple(pace * self._scale for pace in self._tried)

    def tried(self, paces: tuple[float, ...]) -> None:
        """What its worker can do, by the trial when it began. One worker's word is enough: another's differs by noise."""
        if not self._tried and len(paces) == len(KINDS):
            self._tried = tuple(min(max(0.0, pace), PACE_MAX) for pace in paces)

    def measure(self, tokens_per_s: float, busy: float, now: Instant) -> None:
        """A report of the worker: tokens a second that it passed, and the share of the time in which it worked."""
        if tokens_per_s <= 0.0 or busy <= 0.0:
            return
        rate = tokens_per_s / busy * sum(self.flops[stage] for stage in self.held)
        self._reports += 1
        self._rate += max(SMOOTHING, 1 / self._reports) * (rate - self._rate)
        is_due = not self.flops_s or now - self._measured_at >= MEASURE_S
        if self._reports >= MEASURED_AT_LEAST and is_due:
            self._measured_at = now
            if abs(self._rate - self.flops_s) > NOISE * self.flops_s:
                self.flops_s = self._rate
                self._set_scale()

    def _set_scale(self) -> None:
        """By what training with the stages held has shown."""
        tried = Capability(self.memory, 0.0, math.inf, frozenset(), paces=self._tried)
        by_trial = self.demand.computes(tried, self.held)
        if by_trial > 0.0:
            self._scale = self.flops_s / by_trial

    # ------------------------------------------------------------------------------------- looking

    def is_due(self, now: Instant) -> bool:
        return self._looks and self._due <= now

    @property
    def _looks(self) -> bool:
        """Who has stages that are fixed has nothing to decide, but may have been given copies at the beginning of the run."""
        return self.is_auto or bool(self.stock.copies)

    def look(self, around: Around, now: Instant) -> list[Effect]:
        """See whether others are there to load from, decide if it is time to, and keep copies."""
        self._due = after(now, LOOK_S / self._pace * self._rng.uniform(0.75, 1.25))
        if not self.is_auto:
            return self._shed(around)
        is_still = self.move is not None or around.is_busy or now < self._not_before
        if is_still:
            return []
        if self.held and not around.is_installed:
            return self._give_up_late(around, now)
        if not self.held and (around.unheard or not around.heard):
            return []  # who is there?
        view = self.view(around)
        effects: list[Effect] = []
        outline = {peer: (host.hosts, host.target, host.draining) for peer, host in view.items()}
        if outline != self._outline or now >= self._look_at:
            self._outline = outline
            effects += self._decide(view, around, now)
        is_late = self.move is None and now - self._announced_at > LOAD_S_MOST
        if is_late and not self.stock.has_loaded(self.lacking):
            self.why = "what it was to load has not come"
            self.target, self._not_before = self.held, after(now, AGAIN_S)
            self._mind = Mind()
            effects += self.stock.forget(loaded=True, copies=())
        if self.move is None:
            effects += self._load(view, around, now)
            effects += self._copy(view, around, now)
        return [*effects, *self._keep()]

    def view(self, around: Around) -> View:
        """Others and this node, with speeds for all."""
        hosts = self.held if around.is_installed else NONE
        ours = Host(self.capability(around), hosts, self.target)
        everybody = {**around.others, self.me: ours}
        everybody = {peer: self._with_speed(host) for peer, host in everybody.items()}
        known = [h.capability.speed for h in everybody.values() if h.capability.speed > 0.0]
        usual = statistics.median(known) if known else 1.0
        return {
            peer: host
            if host.capability.speed > 0.0
            else replace(host, capability=replace(host.capability, speed=usual))
            for peer, host in everybody.items()
        }

    def _with_speed(self, host: Host) -> Host:
        """Where training has shown none yet, that of the trial, with what it will hold."""
        if host.capability.speed > 0.0:
            return host
        run = host.target or range(self.count)
        speed = self.demand.computes(host.capability, run)
        return replace(host, capability=replace(host.capability, speed=speed))

    def _decide(self, view: View, around: Around, now: Instant) -> list[Effect]:
        hosts = view[self.me].hosts
        loaded = self.target if self._is_loaded(around, now) else overlap(hosts, self.target)
        clock = Instant(now * self._pace)
        over, mind = around.is_at_rest, self._mind
        found = decide(self.demand, view, self.me, loaded, clock, self._rng, mind, is_at_rest=over)
        self._mind, self._look_at = found.mind, Instant(found.look_at / self._pace)
        if found.verb is Verb.KEEP:
            if not self.why or hosts != self.target:
                self.why = found.why
            return []
        self.why = found.why
        return [_log(found), *self._follow(found, now)]

    def _follow(self, found: Decision, now: Instant) -> list[Effect]:
        match found.verb:
            case Verb.TAKE | Verb.MOVE:
                self.target, self._announced_at, self._reason = found.stages, now, found.why
            case Verb.WITHDRAW:
                self.target, self._reason = self.held, found.why
                return self.stock.forget(loaded=True, copies=())
            case Verb.SWITCH:
                self.target = self.move = found.stages
                self.why = self._reason
            case Verb.DROP:
                self.target = self.move = found.stages
        return []

    def _give_up_late(self, around: Around, now: Instant) -> list[Effect]:
        if not around.is_seeking or around.is_blank:
            self._held_since = now
        if now - self._held_since < PATIENCE_S:
            return []
        self._mind = Mind()
        self.target = self.move = NONE
        self.why = "nobody has given it the weights of its stages"
        return [Log("warning", "placement", (("verb", "drop"), ("why", self.why)))]

    # ------------------------------------------------------------------------------------- loading

    @property
    def lacking(self) -> tuple[int, ...]:
        """Stages of the target that are not held."""
        return tuple(stage for stage in self.target if stage not in self.held)

    def _is_loaded(self, around: Around, now: Instant) -> bool:
        if around.is_blank:  # others who have chosen the same should be heard
            return now - self._announced_at >= HEARD_S / self._pace
        return self.stock.has_loaded(self.lacking)

    def _load(self, view: View, around: Around, now: Instant) -> list[Effect]:
        if not self.lacking or around.is_blank:
            return []
        hosted = self._hosted(view)
        unhosted = [stage for stage in self.lacking if stage not in hosted]
        effects = self.stock.load(self.lacking, unhosted, now)
        effects += self._ask(view, hosted, around, now)
        if self.stock.has_loaded(self.lacking):
            self._look_at = now
        elif unhosted:
            names = ", ".join(map(str, unhosted))
            self.why = f"nobody holds stage {names}; a copy of its weights is looked for"
        return effects

    def _hosted(self, view: View) -> set[int]:
        return {stage for peer, host in view.items() for stage in host.hosts if peer != self.me}

    def _ask(self, view: View, hosted: set[int], around: Around, now: Instant) -> list[Effect]:
        """Hosts of what is being fetched; where there is none, anybody may have a copy."""
        wanted = self.stock.wanted
        donors = around.donors
        if all(stage in hosted for stage in wanted):
            donors = tuple(
                peer
                for peer in donors
                if peer not in view or any(stage in view[peer].hosts for stage in wanted)
            )
        return self.stock.donors_are(donors, now)

    # -------------------------------------------------------------------------------------- copies

    def _copy(self, view: View, around: Around, now: Instant) -> list[Effect]:
        """Keep copies of stages with one host, and of the text where it is stage 0, if it is ours to; forget those that
        are not."""
        if around.is_blank or not self.held:
            return []
        counts = [sum(s in host.hosts for host in view.values()) for s in range(self.count)]
        ours = [s for s in range(self.count) if self._is_keeper(s, view, around)]
        given = [
            s for s in range(self.count) if s not in ours and counts[s] and s not in self.lacking
        ]
        effects = self.stock.forget(loaded=False, copies=given)
        effects += self.stock.copy_due([s for s in ours if counts[s] == 1], now)
        if 0 in ours and self._is_text_shared and not self._keeps_text:
            self._keeps_text = True
            effects.append(PrepareCorpus(is_kept=True))
        return effects + (
            self._ask(view, self._hosted(view), around, now) if not self.lacking else []
        )

    def _shed(self, around: Around) -> list[Effect]:
        """Forget the copies with which the run began, of stages that have learnt since. Nobody else has them before that, and a node with fixed stages
        gets no newer ones."""
        orphans = self.orphans(around)
        old = [s for s in range(self.count) if s in self.held or s not in orphans]
        if not around.has_learnt:
            return []
        return [*self.stock.forget(loaded=False, copies=old), *self._keep()]

    def _is_keeper(self, stage: int, view: View, around: Around) -> bool:
        """By rendezvous: of those that decide by themselves and have it not, the first by a hash of both."""
        able = [
            peer
            for peer, host in view.items()
            if host.hosts and stage not in host.hosts and (peer in around.autos or peer == self.me)
        ]
        first = sorted(able, key=lambda peer: hashlib.blake2b(peer + stage.to_bytes(4)).digest())
        return self.me in first[:KEEPERS]

    def orphans(self, around: Around) -> tuple[int, ...]:
        """Stages without any host, of which others may have our copies."""
        hosted = {s for host in around.others.values() for s in host.hosts}
        hosted |= around.given | {*self.held}
        return tuple(stage for stage in range(self.count) if stage not in hosted)

    # -------------------------------------------------------------------------------------- moving

    def objects(self) -> dict[FragmentId, Copy]:
        """What is to be held from here on and lies on the disk."""
        here = tuple(s for s in self.lacking if self.stock.has_loaded((s,)))
        return self.stock.loaded(here)

    def moved(self, held: range, failure: str, now: Instant) -> list[Effect]:
        """These stages are held now: those of the move, or the old ones after a `failure`."""
        self.held = self.target = held
        self.move, self._held_since, self._outline = None, now, None
        self._rate, self._reports, self._keeps_text = 0.0, 0, False
        self._look_at = now
        if failure:
            self.why, self._mind = failure, Mind()
            self._not_before = after(now, AGAIN_S)
        return [*self.stock.forget(loaded=True, copies=held), *self._keep()]

    def _keep(self) -> list[Effect]:
        placed = Placed(self.held, dict(self.stock.copies))
        if placed == self._kept:
            return []
        self._kept = placed
        return [Save("placement", placed.encode())]

    def deadline(self) -> Instant | None:
        if not self._looks:
            return None
        due = self.stock.deadline()
        return self._due if due is None else min(self._due, due)


def _log(found: Decision) -> Log:
    names = ",".join(map(str, found.stages)) or "none"
    return Log("info", "placement", (("verb", found.verb), ("stages", names), ("why", found.why)))


# ------------------------------------------------------------------------------- from what is said


def hosts_said(
    company: Company, count: int
) -> tuple[dict[PeerId, Host], frozenset[PeerId], int, int]:
    """Live members of a model in `count` stages as hosts; those of them that decide by themselves; how many
    members have said something, and how many nothing yet."""
    hosts: dict[PeerId, Host] = {}
    autos, heard, unheard = set[PeerId](), 0, 0
    for peer, member in company.membership.members().items():
        if not member.is_live or peer == company.me or peer in company.refused_plans:
            continue
        vitals = company.vitals_of(peer)
        if vitals is None:
            unheard += 1
            continue
        heard += 1
        if (host := host_said(vitals, company.gate.roles_of(peer), count)) is not None:
            hosts[peer] = host
            if vitals.is_auto:
                autos.add(peer)
    return hosts, frozenset(autos), heard, unheard


def host_said(vitals: Vitals, roles: frozenset[Role], count: int) -> Host | None:
    """None for who holds everything: it trains by itself."""
    held = run_said(vitals.first_stage, vitals.last_stage, count)
    if len(held) == count:
        return None
    target = run_said(vitals.target_first, vitals.target_last, count) if vitals.is_auto else held
    memory = Memory(vitals.memory_device, vitals.memory_host) if vitals.is_auto else PLENTY
    capability = Capability(
        memory=memory,
        speed=min(max(0.0, vitals.flops_s), FLOPS_S_MAX),
        link_bytes_s=vitals.line_bytes_s if vitals.line_bytes_s > 0.0 else math.inf,
        roles=roles,
        wish=None if vitals.is_auto else held,
        delay_s=min(vitals.delay_us / 1e6, HOP_S_MAX),
        paces=tuple(min(float(pace), PACE_MAX) for pace in vitals.paces)
        if len(vitals.paces) == len(KINDS)
        else (),
    )
    hosts = held if vitals.active else NONE
    # Who is ready but does not train has weights to give, and trains for nobody.
    draining = vitals.is_draining or vitals.phase == Phase.READY
    return Host(capability, hosts, target, draining)
