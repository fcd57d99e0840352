"""One machine of the world: a disk that survives, and a process that carries out a node's effects.

This file is the process and its connections; the work (weights, worker, transfers) is node_toy's.
Everything that takes time takes it on the world's clock, and an action of a process that has died
since does nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from node_toy import SIZES, Disk, Toy

from peerlm import effects as fx
from peerlm import events as ev
from peerlm.config import NodeSettings, with_changes
from peerlm.effects import Effect
from peerlm.events import Event
from peerlm.identity.chain import Chain
from peerlm.identity.gate import Gate
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import SignedPlan, verify_plan
from peerlm.membership.address_book import AddressBook, read_book
from peerlm.node.company import Ports
from peerlm.node.node import Birth, Node
from peerlm.node.snapshots import Restored
from peerlm.types import PeerId
from peerlm.wire.codec import decode, encode
from peerlm.wire.message import Message, Refusal, Welcome

if TYPE_CHECKING:
    from node_world import World

REFUSED_S = 0.05
SILENT_S = 8.0
"""How long a driver waits for an answer that never comes."""


class Machine:
    """See the module's docstring. `life` grows with every start and death of the process."""

    def __init__(
        self, world: World, number: int, keys: NodeKeys, chain: Chain, plan: SignedPlan
    ) -> None:
        self.world, self.number, self.keys = world, number, keys
        self.disk = Disk(plan.blob, chain=chain)
        self.settings = NodeSettings()
        self.seeds: tuple[str, ...] = ()
        self.node: Node | None = None
        self.life = 0
        self.frozen: list[Callable[[], None]] | None = None
        self.base = 7700
        self.host = f"h{number}"
        self.speed = world.speed
        self.toy: Toy
        self.admitted: dict[PeerId, bytes] = {}
        self.lines: dict[PeerId, dict[str, float]] = {}
        self.halted: list[str] = []
        self.effects: list[tuple[float, Effect]] = []
        self.poisoned = False
        """The next inner step breaks θ."""
        self.fatal = ""
        """Workers die of this while it is set."""

    def settle_in(self, *, origin: bool, settings: dict[str, Any]) -> None:
        self.settings = with_changes(NodeSettings(), settings, "node.toml")
        self.disk.origin = origin
        if origin:
            self.disk.objects.update(self.world.corpus)

    # ---------------------------------------------------------------------------- life and death

    def start(self, *, new_ports: bool = False) -> None:
        assert self.node is None, f"machine {self.number} is up"
        world, disk = self.world, self.disk
        self.life += 1
        self.base += 10 if new_ports else 0
        disk.epoch += 1
        self.lines, self.admitted = {}, {}
        self.wake_at = float("inf")
        self.total = 0
        rng = random.Random(f"{world.seed} {self.number} {self.life}")
        gate = Gate(world.root.public_key, world.root.run_id)
        gate.revocations.merge(disk.revocations)
        plan = verify_plan(disk.plan, world.root.public_key, world.root.run_id)
        book = read_book(disk.book, world.now, world.wall)[0] if disk.book else AddressBook()
        last = disk.snapshots[-1] if disk.snapshots else None
        self.toy = Toy(self, plan.plan, rng.getrandbits(64))
        birth = Birth(
            keys=self.keys,
            chain=disk.chain,
            gate=gate,
            plan=plan,
            settings=self.settings,
            ports=Ports(self.host, self.base, self.base + 1, self.base + 2),
            epoch=disk.epoch,
            sizes=SIZES,
            seeds=self.seeds,
            book=book,
            origin=disk.origin,
            restored=Restored(last.number, last.tokens, last.offers) if last else None,
            tallies=last.tallies if last else (),
        )
        self.node = Node(birth, rng, world.now, world.wall)
        self._perform(self.node.start(world.now, world.wall))

    def die(self) -> None:
        """The process is gone; whoever is connected with it is told by the kernel."""
        if self.node is None:
            return
        self.node, self.frozen = None, None
        self.life += 1
        for peer in self.lines:
            other = self.world.machines[self.world.numbers[peer]]
            self.world.carry(
                self.number, other.number, lambda o=other: o.line_down(self.keys.peer_id, "closed")
            )

    @property
    def address(self) -> str:
        return f"tcp://{self.host}:{self.base}"

    def is_frozen(self) -> bool:
        return self.frozen is not None

    def thaw(self, seconds: float) -> None:
        waiting, self.frozen = self.frozen or [], None
        if self.node is not None:
            for action in waiting:
                action()
            self.post(ev.LoopLagged(seconds))

    def logs(self) -> list[tuple[float, fx.Log]]:
        return [(at, e) for at, e in self.effects if isinstance(e, fx.Log)]

    def installed_from(self) -> list[str]:
        """Where its weights came from, over all its lives."""
        return [
            str(dict(e.fields)["origin"]) for _, e in self.logs() if e.event == "state_installed"
        ]

    def distance_to(self, other: Machine) -> float:
        ours, theirs = (np.concatenate([s.phi for s in m.slow]) for m in (self.toy, other.toy))
        return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(ours), 1e-9))

    # -------------------------------------------------------------------------- events, the clock

    def post(self, event: Event) -> None:
        """The node's next event, now or when the machine thaws."""
        if self.frozen is not None:
            life = self.life
            self.frozen.append(lambda: self.post(event) if self.life == life else None)
        elif self.node is not None:
            self._perform(self.node.handle(event, self.world.now, self.world.wall))

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do this after a while, if this process still lives; a frozen one does it when it thaws."""
        life = self.life

        def act() -> None:
            if self.life != life or self.node is None:
                return
            if self.frozen is not None:
                self.frozen.append(act)
            else:
                action()

        self.world.at(delay_s, act)

    def _perform(self, effects: list[Effect]) -> None:
        assert self.node is not None
        for effect in effects:
            self.world.note(self.number, effect)
            self.effects.append((self.world.now, effect))
            self._do(effect)
            if self.node is None:
                return
        self.node.check()
        total = self.node.company.ledger.total()
        assert total >= self.total, "the swarm's tokens went backwards"
        self.total = total
        self._schedule()

    def _schedule(self) -> None:
        assert self.node is not None
        due = max(self.node.deadline(), self.world.now + 0.001)
        if due < self.wake_at or self.wake_at <= self.world.now:
            self.wake_at = due
            self.later(due - self.world.now, lambda: self._wake(due))

    def _wake(self, due: float) -> None:
        if self.wake_at == due and self.node is not None:
            self.wake_at = float("inf")
            self._perform(self.node.wake(self.world.now, self.world.wall))

    # ------------------------------------------------------------------------------------ effects

    def _do(self, effect: Effect) -> None:
        match effect:
            case fx.Send():
                self._send(effect.peer, effect.message)
            case fx.SendFresh():
                self._send_fresh(effect)
            case fx.Introduce():
                self._introduce(effect.address)
            case fx.AnswerIntroduction():
                self._answer(effect)
            case fx.Admit():
                self.admitted[effect.peer] = effect.curve_key
            case fx.Expel():
                self.admitted.pop(effect.peer, None)
                self._close(effect.peer)
            case fx.OpenLink():
                self._open(effect)
            case fx.Halt():
                self.halted.append(effect.error)
                self.die()
            case fx.Log():
                pass
            case _:
                self.toy.perform(effect)

    # ------------------------------------------------------------------------------------ network

    def _introduce(self, address: str) -> None:
        assert self.node is not None
        world, other = self.world, self.world.at_address(address)
        hello = decode(encode(self.node.company.hello(world.now)))
        if other is None or world.machines[other].node is None:
            failed = ev.IntroductionFailed(address, "connect", "connection refused")
            self.later(REFUSED_S, lambda: self.post(failed))
            return
        if world.is_silent(self.number, other) or world.rng.random() < world.loss:
            failed = ev.IntroductionFailed(address, "connect", "no answer")
            self.later(SILENT_S, lambda: self.post(failed))
            return
        route = f"{self.number} {self.life} {address}".encode()
        there = world.machines[other]
        world.carry(self.number, other, lambda: there.post(ev.HelloCame(route, hello, self.host)))

    def _answer(self, effect: fx.AnswerIntroduction) -> None:
        number, life, address = effect.route.decode().split(" ")
        asker = self.world.machines[int(number)]
        answer = decode(encode(effect.answer))
        assert isinstance(answer, Welcome | Refusal)
        event = ev.IntroductionAnswered(address, self.host, answer)
        self.world.carry(
            self.number,
            asker.number,
            lambda: asker.post(event) if asker.life == int(life) else None,
        )

    def _open(self, effect: fx.OpenLink) -> None:
        """A CURVE handshake: both must know the other's key."""
        there = self.world.machines[self.world.numbers[effect.peer]]
        me, life = self.keys.peer_id, self.life

        def shake() -> None:
            assert there.admitted.get(me) == self.keys.curve_public, (
                "dialled without being admitted"
            )
            if self.life == life and there.base + 1 == effect.control_port:
                there.line_up(me, "link", dialled=False)
                self.line_up(effect.peer, "link", dialled=True)

        if (
            self.world.is_silent(self.number, there.number)
            or there.node is None
            or there.base + 1 != effect.control_port
        ):
            self.later(SILENT_S, lambda: self._not_opened(effect.peer, "timeout"))
        elif me not in there.admitted:
            self.later(REFUSED_S, lambda: self._not_opened(effect.peer, "denied"))
        else:
            self.world.carry(self.number, there.number, shake)

    def _not_opened(self, peer: PeerId, reason: str) -> None:
        if peer not in self.lines:
            self.post(ev.LinkDown(peer, reason))

    def line_up(self, peer: PeerId, way: str, *, dialled: bool) -> None:
        if self.node is not None and peer in self.admitted:
            is_new = peer not in self.lines
            self.lines.setdefault(peer, {})[way] = self.world.now
            if is_new:
                self.post(ev.LinkUp(peer, dialled))

    def line_down(self, peer: PeerId, reason: str, way: str = "") -> None:
        """One way to the peer is gone, or all of them."""
        if self.node is None or peer not in self.lines:
            return
        for gone in [way] if way else list(self.lines[peer]):
            self.lines[peer].pop(gone, None)
        if not self.lines[peer]:
            del self.lines[peer]
            self.post(ev.LinkDown(peer, reason))

    def _close(self, peer: PeerId) -> None:
        if self.lines.pop(peer, None) is not None:
            other = self.world.machines[self.world.numbers[peer]]
            me = self.keys.peer_id
            self.world.carry(self.number, other.number, lambda: other.line_down(me, "closed"))

    def _send(self, peer: PeerId, message: Message) -> None:
        if peer in self.lines:
            self._deliver(peer, message)

    def _deliver(self, peer: PeerId, message: Message) -> None:
        there, me = self.world.machines[self.world.numbers[peer]], self.keys.peer_id
        data = encode(message)

        def arrive() -> None:
            if me in there.admitted:
                there.post(ev.Received(me, decode(data)))

        self.world.carry(self.number, there.number, arrive)

    def _send_fresh(self, effect: fx.SendFresh) -> None:
        """A connection of its own, kept for a while; the other side takes it for a link."""
        there, me = self.world.machines[self.world.numbers[effect.peer]], self.keys.peer_id
        if there.base + 1 != effect.control_port or me not in there.admitted:
            return
        way = f"fresh {self.life} {self.world.now}"
        self.world.carry(self.number, there.number, lambda: there.line_up(me, way, dialled=False))
        self._deliver(effect.peer, effect.message)
        self.world.at(10.0, lambda: there.line_down(me, "closed", way))
