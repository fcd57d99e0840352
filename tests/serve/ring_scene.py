"""Stage servers and a gateway in one process, with a network between them that loses, delays and repeats what a test says.

Time is virtual: it passes from one arrival to the next, in steps where that is long.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from serve_scene import fragment_values

from peerlm.config import Plan
from peerlm.data.tokenizer import ByteTokenizer
from peerlm.errors import WireError
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.stages import held_fragments
from peerlm.serve import lap as laps
from peerlm.serve.engine import Held, TorchSampler
from peerlm.serve.gateway import Gateway, Shape, Stuck
from peerlm.serve.guests import Guests
from peerlm.serve.lap import Kind, Row
from peerlm.serve.route import Logits, Turn, Version
from peerlm.serve.scheduler import Scheduler
from peerlm.serve.service import Service
from peerlm.serve.stage_server import StageServer
from peerlm.serve.stage_weights import Weights
from peerlm.train import protocol
from peerlm.types import Instant, PeerId

ME = PeerId(b"m" * 16)
STEP_S = 0.05
LINE_S = 0.001


def peer(name: str) -> PeerId:
    return PeerId(name.encode().ljust(16, b"."))


def staged(plan: Plan, count: int) -> Plan:
    return replace(plan, model=replace(plan.model, stages=count))


class Said:
    """What a stage server says."""

    def __init__(self) -> None:
        self.messages: list[protocol.Message] = []

    def send(self, message: protocol.Message) -> None:
        self.messages.append(message)


class Host:
    """A stage server of stages `first` to `last`, with the weights of `model`."""

    def __init__(
        self,
        plan: Plan,
        model: LanguageModel,
        name: str,
        first: int,
        last: int,
        sessions: int = 32,
        cache_bytes: int = 1 << 30,
        device: str = "cpu",
    ) -> None:
        self.peer, self.run = peer(name), (first, last)
        self.plan, self.said, self.nonsense = plan, Said(), 0
        setup = protocol.ServeSetup(
            *(self.peer, protocol.packed(plan), "/nowhere", first, last),
            *(sessions, 1, cache_bytes, device),
        )
        self.server = StageServer(setup, self.said)
        self.load(model, "v1")

    def load(self, model: LanguageModel, name: str) -> None:
        held = range(self.run[0], self.run[1] + 1)
        wanted = {spec.id for spec in held_fragments(self.plan, held)}
        values = fragment_values(self.plan, model)
        mine = [
            v for spec, v in zip(fragments(self.plan), values, strict=True) if spec.id in wanted
        ]
        weights = Weights(name, Held(self.server._slots, held, mine))
        if self.server._guests is None:
            self.server._guests = Guests(self.server._slots.count, weights)
        self.server._guests.version = weights

    def forget_all(self) -> None:
        assert self.server._guests is not None
        self.server._guests = Guests(self.server._slots.count, self.server._guests.version)

    def fill(self) -> None:
        """Another gateway's texts take every slot, and are never given up."""
        guests = self.server._guests
        assert guests is not None
        for slot in range(self.server._slots.count):
            guests.seat((peer("x"), peer("x"), 1), [Row(slot, 0, 1)], Instant(1e9))

    def hear(self, source: PeerId, data: bytes, now: Instant) -> list[tuple[PeerId, bytes]]:
        self.server._take(source, data, now)
        while self.server._waiting:
            self.server._advance(now)
        said, self.said.messages = self.said.messages, []
        self.nonsense += sum(isinstance(m, protocol.Nonsense) for m in said)
        return [(m.peer, m.data) for m in said if isinstance(m, protocol.Hop)]


Meddle = Callable[[PeerId, PeerId, bytes], list[tuple[float, bytes]]]
"""From, to, lap → what arrives instead, each after so many seconds."""


class Ring:
    """A route through these hosts."""

    faults_pass = True

    def __init__(self, plan: Plan, hosts: Sequence[Host], seed: int = 0) -> None:
        model = plan.model
        self.now = 0.0
        self.gateway = Gateway(
            Shape(model.stages, model.dim, plan.data.vocab, model.context), 7, random.Random(seed)
        )
        self.hosts = {host.peer: host for host in hosts}
        self.meddle: Meddle = lambda _source, _target, data: [(LINE_S, data)]
        self.reasons: dict[int, Stuck] = {}
        self._order = itertools.count()
        self._line: list[tuple[float, int, PeerId, PeerId, bytes]] = []
        self.tell_hosts()

    def tell_hosts(self) -> None:
        runs = {host.peer: host.run for host in self.hosts.values()}
        self._post(ME, self.gateway.hosts_are(ME, runs, Instant(self.now)))

    def kill(self, host: Host, *, is_seen: bool = True) -> None:
        del self.hosts[host.peer]
        if is_seen:
            self.tell_hosts()

    def begin(self, turns: Sequence[Turn]) -> None:
        self._post(ME, self.gateway.begin(turns, Instant(self.now)))

    def ended(self) -> tuple[list[int], Logits]:
        self._post(ME, self.gateway.look(Instant(self.now)))
        while not self.gateway.has_ended or self._arrives_by(self.now):
            if self._arrives_by(self.now + STEP_S):
                self._deliver(*heapq.heappop(self._line))
            else:
                self.now += STEP_S
            self._post(ME, self.gateway.look(Instant(self.now)))
        slots, logits, why = self.gateway.take()
        self.reasons.update(why)
        return slots, logits

    def _arrives_by(self, when: float) -> bool:
        return bool(self._line) and self._line[0][0] <= when

    @property
    def again(self) -> int:
        return self.gateway.again

    def clear(self, slot: int) -> None: ...

    def release(self, slot: int) -> None:
        self._post(ME, self.gateway.over(slot))

    def version_of(self, slot: int) -> str | None:
        return self.gateway.version_of(slot)

    def why(self, slot: int) -> str:
        return self.reasons.get(slot, Stuck("not finite", False)).why

    def is_full(self, slot: int) -> bool:
        return slot in self.reasons and self.reasons[slot].is_full

    def _deliver(self, when: float, _: int, source: PeerId, target: PeerId, data: bytes) -> None:
        self.now = max(self.now, when)
        now = Instant(self.now)
        if target == ME:
            try:
                self._post(ME, self.gateway.hear(source, data, now))
            except WireError:
                return
        elif target in self.hosts:
            self._post(target, self.hosts[target].hear(source, data, now))
        elif laps.read_head(data).kind is Kind.FORWARD:
            # as the sender's daemon answers when a connection breaks
            self._post(source, [(ME, laps.lost(laps.read_head(data), target, "it is gone"))])

    def _post(self, source: PeerId, sent: list[tuple[PeerId, bytes]]) -> None:
        for target, data in sent:
            for delay_s, arrives in self.meddle(source, target, data):
                at = self.now + delay_s
                heapq.heappush(self._line, (at, next(self._order), source, target, arrives))


def ring_service(ring: Ring, *, slots: int = 8, chunk: int = 32) -> Service:
    version = Version("swarm", None, ring)
    return Service(Scheduler(slots, 64, chunk), TorchSampler(), ByteTokenizer(), version)
