"""One hostile node among honest ones that train together: how much worse do they learn?

Every node trains a small network whose best loss is known (`learner.Teacher`), takes its outer steps
and mixes by the machine the daemon uses (`mix.exchange.Exchanges`) with the same arithmetic, gates,
clipping and scores. There is no network in between: messages and tensors arrive at once and in
order. Nodes take their inner steps in random order and their boundaries at different steps, so
pairs meet at random and never wait. An inner step takes `STEP_S`, which only exclusions notice.

The last node may be an attacker (attackers.py). It trains and mixes honestly for itself, to stay
where the others are, and lies to everybody. What is measured is the loss of the mean of the honest
nodes' weights beyond the teacher's entropy: the *excess*.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from peerlm.config import Plan
from peerlm.effects import CancelTransfer, Effect, RunExchange, Send, ServeExchange
from peerlm.events import ExchangeEnded, ExchangeServed
from peerlm.mix import algorithms, flow
from peerlm.mix.codec import decode, encode
from peerlm.mix.exchange import Exchanges
from peerlm.mix.fragment import Kind, SlowFragment
from peerlm.mix.robust import ClipTracker
from peerlm.mix.vector import Vector
from peerlm.sim.attackers import Attacker
from peerlm.sim.learner import Pupil, Teacher, by_id
from peerlm.swarm.sampler import sampler_named
from peerlm.train.cadence import Cadence
from peerlm.train.schedule import rate
from peerlm.types import FragmentId, Instant, PeerId, TransferId
from peerlm.wire.message import ExchangeAnswer, ExchangeDone, ExchangeRequest, Message

STEP_S = 0.1
"""Virtual time of an inner step: a run of 2000 is shorter than the first exclusion."""

SLOWNESS = 4

GENERATION = 1
"""Of every worker; none ever dies here."""

WARMUP, FINAL_RATE = 0.05, 0.1
"""Of the learning rate's schedule, as a plan's."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run. `attack`: a name in `attackers.ATTACKS`, or empty for honest nodes alone."""

    attack: str = ""
    clip: bool = True
    seed: int = 1
    nodes: int = 8
    steps: int = 2000
    fragments: int = 2
    parted: int = 0
    """So many of the first nodes mix with each other alone for the second quarter of the run."""
    slow: int = 0
    """So many of the first nodes take one inner step while the others take four."""
    plan: Plan = field(default_factory=Plan)
    """Of which only the mixing counts."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the honest nodes."""

    excess: float
    """Of the mean of their weights, in nats a symbol."""
    excess_local: float
    """The mean of their own."""
    clipped: float
    """Share of what came from honest partners that was clipped."""
    refused: int
    """What came from the attacker and failed a gate."""
    excluded_at: int | None
    """Inner steps after which all of them had excluded the attacker; None: that never was so."""
    wronged: int
    """Pairs of honest nodes of which one has ever excluded the other."""


class Unclipped(ClipTracker):
    """The control: lets a difference of any norm pass."""

    def tau(self, phi_norm: float) -> float:
        return math.inf


@dataclass
class Machine:
    """One node: its exchanges, its slow weights, its worker."""

    me: PeerId
    exchanges: Exchanges
    slow: list[SlowFragment]
    theta: list[Vector]
    pupil: Pupil
    cadence: Cadence
    rng: np.random.Generator
    attacker: Attacker | None
    applied: list[int]
    serving: dict[TransferId, ServeExchange] = field(default_factory=dict)

    def follow(self, fragment: int) -> None:
        """φ moved: so does θ, at once."""
        batch = self.slow[fragment].take_batch()
        assert batch is not None, "an outer step or a flow without a correction"
        assert batch.kind is Kind.ADD, "honest training went astray"
        self.theta[fragment] += batch.values
        self.applied[fragment] = batch.seq
        self.slow[fragment].applied(batch.seq, GENERATION)


class Swarm:
    """All nodes of a case. `run` it once."""

    def __init__(self, case: Case, learner: Teacher) -> None:
        self.case, self.plan, self.learner = case, case.plan, learner
        self.peers = tuple(PeerId(bytes([number]) * 16) for number in range(1, case.nodes + 1))
        self.machines = {me: self._machine(number, me) for number, me in enumerate(self.peers)}
        self.attacker = self.peers[-1] if case.attack else None
        self.honest = [self.machines[p] for p in self.peers if p != self.attacker]
        self.step = 0
        self._order = random.Random(f"{case.seed} order")
        self._mail: deque[tuple[PeerId, PeerId, Message]] = deque()
        self._ready: deque[tuple[PeerId, RunExchange]] = deque()
        self._sides = self._clipped = self._refused = 0
        self._excluded_at: int | None = None
        self._wronged: set[tuple[PeerId, PeerId]] = set()

    def _machine(self, number: int, me: PeerId) -> Machine:
        case, sizes = self.case, self.learner.sizes
        exchanges = Exchanges(
            me,
            self.plan,
            by_id(sizes),
            sampler_named(self.plan.mix.sampler, case.seed),
            lambda peer: (peer.hex(), 1),
            random.Random(f"{case.seed} partners {number}"),
        )
        exchanges.standing.active, exchanges.standing.frozen = True, False
        hostile = bool(case.attack) and number == case.nodes - 1
        slow = [SlowFragment(phi) for phi in self.learner.initial(case.seed)]
        for fragment, state in exchanges.outcomes.fragments.items():
            exchanges.outcomes.stepped(FragmentId(fragment), 0, slow[fragment].phi_norm())
            if not case.clip:
                state.clip = Unclipped(self.plan.mix.clip_factor)
        cadence = Cadence(by_id(sizes), self.plan.mix.inner_steps)
        for _ in range(number * self.plan.mix.inner_steps // case.nodes):
            cadence.stepped()
        return Machine(
            me=me,
            exchanges=exchanges,
            slow=slow,
            theta=[fragment.new_generation(GENERATION) for fragment in slow],
            pupil=self.learner.pupil(number, np.random.default_rng([case.seed, number, 1])),
            cadence=cadence,
            rng=np.random.default_rng([case.seed, number, 2]),
            attacker=Attacker(case.attack, len(sizes)) if hostile else None,
            applied=[0] * len(sizes),
        )

    @property
    def now(self) -> Instant:
        return Instant(self.step * STEP_S)

    def run(self) -> Outcome:
        turns = list(self.machines.values())
        for step in range(1, self.case.steps + 1):
            self.step = step
            self._order.shuffle(turns)
            for machine in turns:
                if step % SLOWNESS == 0 or machine.me not in self.peers[: self.case.slow]:
                    self._inner_step(machine)
            if self.step % self.plan.mix.inner_steps == 0:
                self._look()
        return self._outcome()

    # -------------------------------------------------------------------------------- training

    def _inner_step(self, machine: Machine) -> None:
        machine.pupil.steps(machine.theta, 1, rate(self.step, self.case.steps, WARMUP, FINAL_RATE))
        machine.cadence.stepped()
        self._carry(machine, machine.exchanges.wake(self.now))
        for fragment in machine.cadence.ready():
            self._outer_step(machine, fragment)
        self._settle_mail()

    def _outer_step(self, machine: Machine, fragment: FragmentId) -> None:
        machine.cadence.handed_in(fragment)
        mix, algorithm = self.plan.mix, algorithms.get(self.plan.mix.algorithm)
        result = machine.slow[fragment].boundary(
            machine.theta[fragment], machine.applied[fragment], GENERATION, algorithm, mix
        )
        machine.follow(fragment)
        machine.cadence.taken(fragment)
        machine.exchanges.outcomes.stepped(fragment, result.version, result.phi_norm)
        partners = self._partners(machine.me)
        started = machine.exchanges.stepped(fragment, partners, self.now)
        self._carry(machine, started)

    def _partners(self, me: PeerId) -> list[PeerId]:
        apart = self.peers[: self.case.parted]
        is_parted = self.case.steps <= 4 * self.step < 2 * self.case.steps
        return [
            peer
            for peer in self.peers
            if peer != me and not (is_parted and (peer in apart) != (me in apart))
        ]

    # -------------------------------------------------------------------------------- exchanges

    def _carry(self, machine: Machine, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._mail.append((machine.me, peer, message))
                case ServeExchange():
                    machine.serving[effect.transfer] = effect
                case RunExchange():
                    self._ready.append((machine.me, effect))
                case CancelTransfer(transfer):
                    machine.serving.pop(transfer, None)
                case _:
                    pass  # a line for the log

    def _settle_mail(self) -> None:
        """Deliver, and move tensors, until nothing is left to do."""
        while self._mail or self._ready:
            while self._mail:
                sender, to, message = self._mail.popleft()
                self._carry(self.machines[to], self._heard(self.machines[to], sender, message))
            if self._ready:
                me, run = self._ready.popleft()
                self._exchange(self.machines[me], self.machines[run.peer], run)

    def _heard(self, machine: Machine, sender: PeerId, message: Message) -> list[Effect]:
        match message:
            case ExchangeRequest():
                return machine.exchanges.on_request(sender, message, self.now)
            case ExchangeAnswer():
                return machine.exchanges.on_answer(sender, message, self.now)
            case ExchangeDone():
                return machine.exchanges.on_done(sender, message, self.now)
            case _:
                raise AssertionError(f"{message} is not of an exchange")

    def _exchange(self, here: Machine, there: Machine, run: RunExchange) -> None:
        """Move the tensors of an exchange both sides have agreed to: both drivers' work."""
        serve = there.serving.pop(run.transfer, None)
        if serve is None:
            return  # refused meanwhile; the message is on its way
        request = self._request(here, run)
        response = flow.respond(
            there.slow[run.fragment],
            request,
            codec_request=run.codec_request,
            codec_reply=run.codec_reply,
            weight=serve.weight,
            clip_norm=serve.clip_norm,
            rng=there.rng,
        )
        done = response if isinstance(response, flow.Refused) else response.flow
        self._count(there, here, done)
        served = ExchangeServed(run.transfer, *_outcome(done))
        if isinstance(response, flow.Refused):
            self._carry(there, there.exchanges.served(served, self.now))
            return
        there.follow(run.fragment)
        self._carry(there, there.exchanges.served(served, self.now))
        self._absorb(here, there, run, request, response.payload)

    def _absorb(
        self,
        here: Machine,
        there: Machine,
        run: RunExchange,
        request: memoryview,
        reply: memoryview,
    ) -> None:
        slow, codec = here.slow[run.fragment], run.codec_reply
        if there.attacker is not None:
            phi, codecs = there.slow[run.fragment].phi, (run.codec_request, run.codec_reply)
            reply = there.attacker.reply(run.fragment, phi, request, codecs, there.rng)
        elif here.attacker is not None:
            # The reply is the way from its lie; it wants the way from where it is.
            there_phi = decode(reply, slow.size, codec)
            there_phi += decode(request, slow.size, run.codec_request)
            reply, codec = encode(there_phi - slow.phi, "fp32", here.rng), "fp32"
        done = flow.absorb(
            slow, reply, codec_reply=codec, weight=run.weight, clip_norm=run.clip_norm
        )
        self._count(here, there, done)
        if not isinstance(done, flow.Refused):
            here.follow(run.fragment)
        ended = ExchangeEnded(run.transfer, *_outcome(done))
        self._carry(here, here.exchanges.ended(ended, self.now))

    def _request(self, here: Machine, run: RunExchange) -> memoryview:
        slow = here.slow[run.fragment]
        if here.attacker is None:
            return flow.make_request(slow, run.codec_request, here.rng).payload
        return here.attacker.request(run.fragment, slow.phi, run.codec_request, here.rng)

    # --------------------------------------------------------------------------------- figures

    def _count(self, receiver: Machine, sender: Machine, done: flow.Flow | flow.Refused) -> None:
        """What `receiver` made of what `sender` sent."""
        if receiver.attacker is not None:
            return
        if sender.attacker is not None:
            self._refused += isinstance(done, flow.Refused)
        elif isinstance(done, flow.Flow):
            self._sides += 1
            self._clipped += done.clipped

    def _look(self) -> None:
        """Who has excluded whom by now."""
        for machine in self.honest:
            for other in self.honest:
                if machine.exchanges.outcomes.scores.excluded(other.me, self.now):
                    self._wronged.add((machine.me, other.me))
        if self.attacker is not None and self._excluded_at is None:
            attacker = self.attacker
            if all(m.exchanges.outcomes.scores.excluded(attacker, self.now) for m in self.honest):
                self._excluded_at = self.step

    def _outcome(self) -> Outcome:
        each = [[slow.phi for slow in machine.slow] for machine in self.honest]
        mean: list[Vector] = [
            np.stack(phis).mean(axis=0, dtype=np.float64).astype(np.float32)
            for phis in zip(*each, strict=True)
        ]
        floor = self.learner.floor
        return Outcome(
            excess=self.learner.loss(mean) - floor,
            excess_local=sum(self.learner.loss(phi) for phi in each) / len(each) - floor,
            clipped=self._clipped / max(self._sides, 1),
            refused=self._refused,
            excluded_at=self._excluded_at,
            wronged=len(self._wronged),
        )


def _outcome(done: flow.Flow | flow.Refused) -> tuple[str, str, float, float, float, bool, float]:
    """The fields of an exchange's event, from `outcome` to `booked`."""
    if isinstance(done, flow.Refused):
        return "refused", done.reason, 0.0, 0.0, 0.0, False, 0.0
    norms = (done.raw_norm, done.applied_norm, done.phi_norm)
    return ("ok", "", *norms, done.clipped, done.withheld_norm)
