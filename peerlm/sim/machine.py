"""One machine: a disk that survives, and a process that carries out a node's effects.

This file is the process, its connections and its introductions; what the process works with is
labour.py's and transfers.py's. Everything that takes time takes it on the world's clock, and an
action of a process that has died since does nothing.

A connection is a *line*: two machines have as many as were opened (a link, and one for each probe
over a fresh connection), and a node is told of the first and of the last. The far end of a line
learns of a death at once if the dead machine's kernel still answers, else by silence.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from peerlm import effects as fx
from peerlm import events as ev
from peerlm.config import NodeSettings, with_changes
from peerlm.effects import Effect
from peerlm.events import Event
from peerlm.identity.gate import Gate
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import verify_plan
from peerlm.membership.address_book import AddressBook, read_book
from peerlm.node.birth import Birth
from peerlm.node.dial_back import Ports
from peerlm.node.node import Acquaintance, Node
from peerlm.sim.channels import ChannelEnd, ChannelEnds
from peerlm.sim.disk import Disk
from peerlm.sim.holding import Holding
from peerlm.sim.labour import Labour
from peerlm.sim.learner import by_id
from peerlm.types import PeerId, WallTime
from peerlm.wire.codec import encode
from peerlm.wire.message import ExchangeRequest, Message

if TYPE_CHECKING:
    from peerlm.sim.world import World

REFUSED_S = 0.05
SILENT_S = 8.0
"""How long a driver waits for an answer that never comes."""

TRY_S = 3.0
"""And how long for a connection to somewhere, to see whether that can be made."""

KNOCKS_S = (1.0, 3.0, 7.0)
"""When TCP sends its first packet again, counted from the first (RFC 6298)."""

FRESH_LINE_S = 10.0
"""A connection made for one probe is kept so long."""

PORT, PORTS = 7700, 10
"""Of a machine's first introductions, and from there to the next when it moves."""

NEVER = float("inf")


NO_STORE = {"store.checkpoint_every_s": 0.0}
"""Machines have no chunks (`sim.storing` has): nobody gathers a checkpoint."""


class Machine:
    """See the module's docstring. `life` grows with every start and death of the process."""

    def __init__(
        self, world: World, number: int, keys: NodeKeys, disk: Disk, settings: dict[str, Any]
    ) -> None:
        self.world, self.number, self.keys, self.disk = world, number, keys, disk
        self.settings = with_changes(NodeSettings(), {**NO_STORE, **settings}, "node.toml")
        self.seeds: tuple[str, ...] = ()
        self.node: Node | None = None
        self.life = 0
        self.host = f"h{number}"
        self.port = PORT
        self.speed = world.speed_of(number)
        """Tokens a second of its worker."""
        self.slowness: tuple[float, float] | None = None
        """Seconds each message waits before it is read, uniform between the two."""
        self.wall_skew_s = 0.0
        self.fatal = ""
        """Workers die of this while it is set."""
        self.disk_lied = False
        """It may have begun its life with a boot epoch it has had before."""
        self.tokens_trained = 0
        """Over all its lives; what no count in the swarm may exceed."""
        self.exchanges: Counter[str] = Counter()
        """What became of those of its past lives."""
        self.poisoned = False
        """The next inner step breaks θ."""
        self.labour: Labour
        self.holding: Holding
        self.lines: dict[PeerId, dict[str, None]] = {}
        self.admitted: dict[PeerId, bytes] = {}
        self._admissions: dict[PeerId, bytes] = {}
        """Of the event at hand, to be checked when its effects are done."""
        self.halted: list[str] = []
        self.effects: list[tuple[float, Effect]] = []
        """What the node asked for, of all its lives, while the world remembers."""
        self._frozen: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None
        self._answering: PeerId | None = None
        """Whose question, come over a connection made for it, is being answered by the same way."""
        self._introducing: dict[str, int] = {}
        self._introductions = 0
        self._wake_at = NEVER
        self._tokens_seen = 0
        self._heard_until = 0.0

    # ---------------------------------------------------------------------------- life and death

    def start(self, *, new_ports: bool = False) -> None:
        assert self.node is None, f"machine {self.number} is up"
        world, disk = self.world, self.disk
        self.life += 1
        self.port += PORTS if new_ports else 0
        disk.epoch += 1
        self.lines, self.admitted, self._introducing = {}, {}, {}
        self._admissions = {}
        world.begins(self)
        self._wake_at, self._tokens_seen, self._heard_until = NEVER, 0, 0.0
        rng = random.Random(f"{world.seed} {self.number} {self.life}")
        root = world.root
        gate = Gate(root.public_key, root.run_id)
        gate.revocations.merge(disk.revocations)
        plan = verify_plan(disk.plan, root.public_key, root.run_id)
        book = read_book(disk.book, world.now, self.wall)[0] if disk.book else AddressBook()
        self.holding = holding = Holding(self)
        last = holding.snapshot
        self.labour = Labour(self, plan.plan, rng.getrandbits(64))
        self._seeds = random.Random(f"work {world.seed} {self.number} {self.life}")
        birth = Birth(
            keys=self.keys,
            chain=disk.chain,
            gate=gate,
            plan=plan,
            settings=self.settings,
            ports=Ports(self.host, self.port, self.port + 1, self.port + 2),
            epoch=disk.epoch,
            sizes=holding.sizes,
            seeds=self.seeds,
            book=book,
            origin=disk.origin,
            restored=holding.restored,
            tallies=last.tallies if last else (),
            passes=disk.passes,
            profile=world.profile,
            hosting=holding.hosting,
            offered=holding.offered,
            all_sizes=by_id(world.sizes) if holding.offered else {},
        )
        self.node = Node(birth, rng, world.now, self.wall)
        self._perform(self.node.start(world.now, self.wall))

    def die(self, *, silently: bool = False) -> None:
        """The process is gone. Whoever is connected with it is told by the kernel, or, `silently`
        (power, a cable), finds out by silence."""
        if self.node is None:
            return
        self.exchanges = self.all_exchanges()
        self.node, self._frozen = None, None
        self.life += 1
        self.labour.channels.close(silently=silently)
        for peer, ways in self.lines.items():
            for way in ways:
                if silently:
                    self.world.watch(self.world.of(peer), self)
                else:
                    self.world.reset(self, self.world.of(peer), way)

    @property
    def address(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    @property
    def addresses(self) -> int:
        """How many it has had."""
        return 1 + (self.port - PORT) // PORTS

    @property
    def is_up(self) -> bool:
        return self.node is not None

    @property
    def is_frozen(self) -> bool:
        return self._frozen is not None

    @property
    def wall(self) -> WallTime:
        return WallTime(self.world.wall + self.wall_skew_s)

    def remember(self, swarm: Mapping[PeerId, Acquaintance]) -> None:
        """Begin among these, as if they had been met before."""
        assert self.node is not None
        for effect in self.node.remember(swarm, self.world.now):
            assert isinstance(effect, fx.Admit), f"remembering is more than admitting: {effect}"
            self._do(effect)
        self.node.company.membership.changes()

    def be_linked(self, there: Machine) -> None:
        """A link that has long been there: whatever is said on a new one has been said."""
        me, other = self.keys.peer_id, there.keys.peer_id
        if other in self.lines:
            return
        assert self.node is not None
        assert there.node is not None
        way, now = self.world.new_way("link"), self.world.now
        self.lines[other], there.lines[me] = {way: None}, {way: None}
        self.node.handle(ev.LinkUp(other, True), now, self.wall)
        there.node.handle(ev.LinkUp(me, False), now, there.wall)

    def resume(self) -> None:
        """Go on after a beginning that was made up."""
        self._perform([])

    def perform(self, effects: list[Effect]) -> None:
        """What the node asks for when it is told something that is no event."""
        self._perform(effects)

    def channel_dialled(self, dialler: ChannelEnds, end: ChannelEnd, effect: fx.RunChannel) -> None:
        """Somebody has connected for a channel."""
        self.act(self.life, self.labour.channels.dialled, dialler, end, effect)

    def freeze(self) -> None:
        """It stands still: nothing is heard from it, what comes waits."""
        if self._frozen is None and self.is_up:
            self._frozen = []

    def thaw(self, seconds: float) -> None:
        """It goes on as if nothing had been, `seconds` later."""
        waiting, self._frozen = self._frozen or [], None
        for action, args in waiting:
            action(*args)
        if self.node is not None:
            self.post(ev.LoopLagged(seconds))

    def all_exchanges(self) -> Counter[str]:
        """What became of its exchanges, over all its lives."""
        if self.node is None:
            return self.exchanges
        now = self.node.summary(self.world.now).exchanges
        return Counter({what: self.exchanges[what] + n for what, n in now.items()})

    def logs(self) -> list[tuple[float, fx.Log]]:
        return [(at, e) for at, e in self.effects if isinstance(e, fx.Log)]

    def installed_from(self) -> list[str]:
        """Where its weights came from, over all its lives."""
        return [
            str(dict(e.fields)["origin"]) for _, e in self.logs() if e.event == "state_installed"
        ]

    # -------------------------------------------------------------------------- events, the clock

    def post(self, event: Event) -> None:
        """The node's next event, now or when the machine thaws."""
        if self._frozen is not None:
            self._frozen.append((self._post_if, (self.life, event)))
        elif self.node is not None:
            world, now = self.world, self.world.now
            if world.trace.is_told:
                world.trace.event(now, self.number, event)
            self._perform(self.node.handle(event, now, self.wall))

    def _post_if(self, life: int, event: Event) -> None:
        if self.life == life:
            self.post(event)

    def later(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        """Do this after a while, if this process still lives; a frozen one does it when it thaws."""
        self.world.clock.at(delay_s, self._act, self.life, action, args)

    def act(self, life: int, action: Callable[..., None], *args: Any) -> None:
        """Now, if that process still lives, or when it thaws."""
        self._act(life, action, args)

    def employ(self) -> None:
        """Its work begins anew, with the stages that are held now."""
        self.labour = Labour(self, self.labour.plan, self._seeds.getrandbits(64))

    def _act(self, life: int, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.life != life or self.node is None:
            return
        if self._frozen is not None:
            self._frozen.append((self._act, (life, action, args)))
        else:
            action(*args)

    def _perform(self, effects: list[Effect]) -> None:
        node, world = self.node, self.world
        assert node is not None
        now = world.now
        for effect in effects:
            world.trace.effect(now, self.number, effect)
            if world.remembers:
                self.effects.append((now, effect))
            self._do(effect)
            if self.node is None:
                return
        node.check()
        if self._admissions:
            self._check_admissions()
        if world.observer is not None:
            for change in node.company.membership.changes():
                world.observer(world.now, self.number, change)
        tokens = node.company.ledger.total()
        assert tokens >= self._tokens_seen, "the swarm's tokens went backwards"
        self._tokens_seen = tokens
        due = max(node.deadline(), now + 0.001)
        if due < self._wake_at or self._wake_at <= now:
            self._wake_at = due
            world.clock.at(due - now, self._act, self.life, self._wake, (due,))

    def _check_admissions(self) -> None:
        for peer, key in self._admissions.items():
            if peer in self.admitted:  # and not expelled in the same breath
                self.world.check_admission(self, peer, key)
        self._admissions.clear()

    def _wake(self, due: float) -> None:
        if self._wake_at == due and self.node is not None:
            self._wake_at = NEVER
            self._perform(self.node.wake(self.world.now, self.wall))

    # ------------------------------------------------------------------------------------ effects

    def _do(self, effect: Effect) -> None:
        match effect:
            case fx.Send(peer=peer, message=message):
                self._send(peer, message)
            case fx.SendFresh():
                self._send_fresh(effect)
            case fx.Introduce(address=address):
                self._introduce(address)
            case fx.AnswerIntroduction():
                self._answer(effect)
            case fx.Admit(peer=peer, curve_key=key):
                self.admitted[peer] = self._admissions[peer] = key
            case fx.Expel(peer=peer):
                self.admitted.pop(peer, None)
                self._close(peer)
            case fx.OpenLink():
                self._open(effect)
            case fx.TryDial():
                self._try_dial(effect)
            case fx.Halt(error=error):
                self.halted.append(error)
                self.die()
            case fx.Rehost():
                self.holding.move(effect)
            case fx.Log():
                pass
            case _:
                self.labour.perform(effect)

    # ----------------------------------------------------------------------------------- messages

    def _send(self, peer: PeerId, message: Message) -> None:
        if isinstance(message, ExchangeRequest):
            self.labour.transfers.asks(message)
        ways = self.lines.get(peer)
        if not ways:
            return
        there, data = self.world.of(peer), encode(message)
        self.world.trace.message(self.number, there.number, data)
        self.world.network.carry(
            self.number,
            there.number,
            len(data),
            there.arrive,
            there.life,
            self.keys.peer_id,
            message,
            sure=peer == self._answering,
        )

    def _send_fresh(self, effect: fx.SendFresh) -> None:
        """A connection of its own, kept for a while; the other side takes it for a line."""
        there, data = self.world.of(effect.peer), encode(effect.message)
        self.world.trace.message(self.number, there.number, data)
        way = self.world.new_way("fresh")
        self.world.network.carry(
            self.number,
            there.number,
            len(data),
            there.fresh_line,
            effect.control_port,
            self.keys.peer_id,
            way,
            effect.message,
            fresh=True,
        )

    def arrive(self, life: int, peer: PeerId, message: Message, *, fresh: bool = False) -> None:
        """A message came over a line with that life of this machine."""
        if self.life == life and peer in self.admitted:
            if self.slowness is None:
                if self._frozen is None and self.node is not None:
                    self._read(peer, message, fresh)
                else:
                    self._act(life, self._read, (peer, message, fresh))
                return
            now = self.world.now
            self._heard_until = max(self._heard_until, now + self.world.rng.uniform(*self.slowness))
            self.later(self._heard_until - now, self._read, peer, message, fresh)

    def _read(self, peer: PeerId, message: Message, fresh: bool) -> None:
        """What it is answered goes the way it came, as daemons do it."""
        self._answering = peer if fresh else None
        self.post(ev.Received(peer, message))
        self._answering = None

    def fresh_line(self, port: int, peer: PeerId, way: str, message: Message) -> None:
        """A peer has opened a connection for this message."""
        knows = self.node is not None and peer in self.admitted and port == self.port + 1
        if (
            self.number in self.world.guarded
            or not knows
            or not self.world.network.reaches(self.number, self.world.of(peer).number)
        ):
            return
        self.line_up(peer, way, dialled=False)
        self.arrive(self.life, peer, message, fresh=True)
        self.world.clock.at(FRESH_LINE_S, self.line_down, peer, "closed", way)

    # -------------------------------------------------------------------------------------- lines

    def line_up(self, peer: PeerId, way: str, *, dialled: bool) -> None:
        """One more way to the peer."""
        if self.node is not None and peer in self.admitted:
            is_new = peer not in self.lines
            self.lines.setdefault(peer, {})[way] = None
            if is_new:
                self.post(ev.LinkUp(peer, dialled))

    def line_down(self, peer: PeerId, reason: str, way: str) -> None:
        """One way to the peer is gone; perhaps it was the last."""
        ways = self.lines.get(peer)
        if self.node is None or ways is None or way not in ways:
            return
        del ways[way]
        if not ways:
            del self.lines[peer]
            self.post(ev.LinkDown(peer, reason))

    def lines_down(self, peer: PeerId, reason: str) -> None:
        """Nothing was heard from the peer for too long: all ways to it are closed, at both ends."""
        for way in list(self.lines.get(peer, ())):
            self.line_down(peer, reason, way)
            self.world.reset(self, self.world.of(peer), way)

    def _close(self, peer: PeerId) -> None:
        for way in self.lines.pop(peer, ()):
            self.world.reset(self, self.world.of(peer), way)

    def _open(self, effect: fx.OpenLink) -> None:
        """A CURVE handshake: both must know the other's key."""
        there = self.world.of(effect.peer)
        listens = there.is_up and there.port + 1 == effect.control_port
        if not self.world.dials(self.number, there.number) or not listens:
            self.later(SILENT_S, self._not_opened, effect.peer, "timeout")
        elif self.keys.peer_id not in there.admitted:
            self.later(REFUSED_S, self._not_opened, effect.peer, "denied")
        else:
            self.world.carry(self, there, there.shake, self, self.life, effect.control_port)

    def shake(self, dialler: Machine, life: int, port: int) -> None:
        """The handshake is through."""
        if dialler.life == life and self.port + 1 == port and self.is_up:
            me, other, way = self.keys.peer_id, dialler.keys.peer_id, self.world.new_way("link")
            self.line_up(other, way, dialled=False)
            dialler.line_up(me, way, dialled=True)

    def _not_opened(self, peer: PeerId, reason: str) -> None:
        if peer not in self.lines:
            self.post(ev.LinkDown(peer, reason))

    # ------------------------------------------------------------------------------ introductions

    def _introduce(self, address: str) -> None:
        """Say hello there; whatever becomes of it, the node hears of it within `SILENT_S`."""
        self._introductions += 1
        attempt = self._introductions
        self._introducing[address] = attempt
        self.later(SILENT_S, self._not_introduced, address, attempt, "no answer")
        if not self.world.is_lost():
            self._knock(address, attempt, 0)

    def _knock(self, address: str, attempt: int, tries: int) -> None:
        """Open a TCP connection: a packet that gets no answer is sent again after 1, 3 and 7 s."""
        if self._introducing.get(address) != attempt:
            return
        world, there = self.world, self.world.at_address(address)
        if there is not None and not world.dials(self.number, there.number):
            if tries < len(KNOCKS_S):
                before_s = KNOCKS_S[tries - 1] if tries else 0.0
                self.later(KNOCKS_S[tries] - before_s, self._knock, address, attempt, tries + 1)
        elif there is None or not there.is_up:
            self.later(REFUSED_S, self._not_introduced, address, attempt, "connection refused")
        else:
            assert self.node is not None
            route = f"{self.number} {self.life} {address}".encode()
            hello = self.node.company.introductions.hello(world.now)
            world.carry(self, there, there.post, ev.HelloCame(route, hello, self.host))

    def _try_dial(self, effect: fx.TryDial) -> None:
        """As an introduction, of which nothing stays."""
        world, there = self.world, self.world.of(effect.peer)
        where = (there.host, there.port, there.port + 1, there.port + 2)
        asked = (effect.host, effect.intro_port, effect.control_port, effect.bulk_port)
        if not world.dials(self.number, there.number):
            self.later(TRY_S, self.post, ev.DialTried(effect.peer, "no answer"))
        elif there.node is None or asked != where:
            self.later(REFUSED_S, self.post, ev.DialTried(effect.peer, "connection refused"))
        else:
            assert self.node is not None
            hello = self.node.company.introductions.hello(world.now)
            answer = there.node.company.introductions.hello_came(
                ev.HelloCame(b"", hello, self.host)
            )
            said = [e.answer for e in answer if isinstance(e, fx.AnswerIntroduction)]
            self.later(REFUSED_S, self.post, ev.DialTried(effect.peer, answer=said[0]))

    def _not_introduced(self, address: str, attempt: int, why: str) -> None:
        if self._introducing.get(address) == attempt:
            del self._introducing[address]
            self.post(ev.IntroductionFailed(address, "connect", why))

    def _answer(self, effect: fx.AnswerIntroduction) -> None:
        number, life, address = effect.route.decode().split(" ")
        asker = self.world.machines[int(number)]
        event = ev.IntroductionAnswered(address, self.host, effect.answer)
        self.world.carry(self, asker, asker.answered, int(life), event)

    def answered(self, life: int, event: ev.IntroductionAnswered) -> None:
        if self.life == life and self._introducing.pop(event.address, None) is not None:
            self.post(event)
