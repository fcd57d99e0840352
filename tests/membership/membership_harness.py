"""A small world for membership alone: virtual clock, links, delay, loss, freezes, partitions.

Stands in for node/ and its driver in the barest way: it opens links to members that come alive,
closes them to the dead, and carries introductions out by swapping records. Links behave like TCP:
ordered by delay, cut after `cut_after_s` of silence, at once when a process dies with `reset=True`.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any

from peerlm.effects import Effect, Introduce, Send, SendFresh
from peerlm.membership.member import State
from peerlm.membership.membership import Membership, MembershipMessage
from peerlm.membership.profile import LAN, Profile
from peerlm.membership.table import MemberChanged
from peerlm.types import Instant, PeerId
from peerlm.wire.codec import encode
from peerlm.wire.message import Alive, NodeRecord


def peer_id(number: int) -> PeerId:
    return PeerId(hashlib.sha256(number.to_bytes(4, "big")).digest()[:16])


def record_of(number: int, epoch: int = 1, counter: int = 0, *, left: bool = False) -> NodeRecord:
    return NodeRecord(peer_id(number), epoch, counter, f"h{number}", 7700, 7701, 7702, left)


def sign(record: NodeRecord) -> Alive:
    return Alive(encode(record), bytes(64), (b"certificate of " + record.peer,))


class World:
    def __init__(
        self,
        n: int,
        seed: int = 0,
        profile: Profile = LAN,
        loss: float = 0.0,
        seeds: tuple[str, ...] = ("tcp://h0:7700",),
    ) -> None:
        self.rng = random.Random(seed)
        self.profile, self.loss, self.seeds = profile, loss, seeds
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.nodes: dict[int, Membership] = {}
        self.wakes: dict[int, float] = {}
        self.links: dict[tuple[int, int], None] = {}
        self.fresh: dict[tuple[int, int], float] = {}
        self.frozen: dict[int, list[Callable[[], None]]] = {}
        self.side: dict[int, int] = {}
        self.epochs: dict[int, int] = {}
        self.history: list[tuple[float, int, MemberChanged]] = []
        self.effects: list[tuple[float, int, Effect]] = []
        self.numbers = {peer_id(i): i for i in range(n + 64)}
        for number in range(n):
            self.start(number)

    # ------------------------------------------------------------------------------- what happens

    def start(self, number: int, **settings: Any) -> Membership:
        self.epochs[number] = self.epochs.get(number, 0) + 1
        rng = random.Random(f"{self.rng.random()} {number}")
        node = Membership(
            record_of(number, self.epochs[number]),
            self.profile,
            rng,
            Instant(self.now),
            sign=sign,
            curve_of=lambda peer: bytes(32),
            **{"seeds": self.seeds, **settings},
        )
        self.nodes[number] = node
        self._carry(number, node.wake(Instant(self.now)))
        return node

    def crash(self, number: int, *, reset: bool = False) -> None:
        """The process is gone. `reset`: its machine says so to its peers."""
        del self.nodes[number]
        self.wakes.pop(number, None)
        for pair in [pair for pair in self.links if number in pair]:
            other = pair[0] if pair[1] == number else pair[1]
            self.at(0.01 if reset else 15.0, lambda o=other: self._cut(o, number))

    def freeze(self, number: int, seconds: float) -> None:
        self.frozen[number] = []
        self.at(seconds, lambda: self._thaw(number))

    def split(self, *sides: list[int], cut_after_s: float = 6.0) -> None:
        self.side = {number: i for i, side in enumerate(sides) for number in side}
        for a, b in [pair for pair in self.links if not self._reaches(*pair)]:
            self.at(cut_after_s, lambda a=a, b=b: self._cut(a, b))

    def heal(self) -> None:
        self.side = {}

    def leave(self, number: int) -> None:
        self._carry(number, self.nodes[number].leave(Instant(self.now)))

    # -------------------------------------------------------------------------------- what is seen

    def state(self, viewer: int, number: int) -> State | None:
        member = self.nodes[viewer].member(peer_id(number))
        return None if member is None else member.state

    def all_hold(self, number: int, state: State) -> bool:
        return all(self.state(v, number) is state for v in self.nodes if v != number)

    def whole(self) -> bool:
        """Every live node holds every other alive."""
        return all(self.all_hold(number, State.ALIVE) for number in self.nodes)

    def deaths(self) -> list[tuple[float, int, int]]:
        """(when, at whom, of whom), each verdict."""
        return [
            (t, viewer, self.numbers[c.peer])
            for t, viewer, c in self.history
            if c.new is State.DEAD and c.old is not State.DEAD
        ]

    def digest(self) -> str:
        lines = "\n".join(f"{t!r} {n} {effect!r}" for t, n, effect in self.effects)
        return hashlib.sha256(lines.encode()).hexdigest()

    # ------------------------------------------------------------------------------------- clock

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let time pass; stops early, and says after how long, once `until` holds."""
        start, end = self.now, self.now + seconds
        while self.heap and self.heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self.heap)
            action()
            if until():
                return self.now - start
        self.now = end
        return seconds

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.heap, (self.now + delay_s, self.order, action))

    # ----------------------------------------------------------------------------------- private

    def _reaches(self, a: int, b: int) -> bool:
        return self.side.get(a) == self.side.get(b)

    def _on(self, number: int, action: Callable[[], None]) -> None:
        """Do it on that node, now or when it thaws."""
        if number in self.frozen:
            self.frozen[number].append(action)
        elif number in self.nodes:
            action()

    def _thaw(self, number: int) -> None:
        for action in self.frozen.pop(number):
            action()
        self._schedule(number)

    def _carry(self, number: int, effects: list[Effect]) -> None:
        node = self.nodes[number]
        node.check()
        for effect in effects:
            self.effects.append((self.now, number, effect))
            match effect:
                case Send(peer, message):
                    self._post(number, self.numbers[peer], message, fresh=False)
                case SendFresh(peer=peer, message=message):
                    self.fresh[number, self.numbers[peer]] = self.now + 5.0
                    self._post(number, self.numbers[peer], message, fresh=True)
                case Introduce(address):
                    other = int(address.removeprefix("tcp://h").removesuffix(":7700"))
                    self.at(0.02, lambda o=other: self._introduce(number, o))
        for change in node.changes():
            self.history.append((self.now, number, change))
            other = self.numbers[change.peer]
            if change.restarted:
                self._cut(number, other)
            if change.new is State.ALIVE and (number, other) not in self.links:
                self.at(0.02, lambda o=other: self._connect(number, o))
            elif change.new > State.SUSPECT:
                self._cut(number, other)
                self._cut(other, number)
        self._schedule(number)

    def _schedule(self, number: int) -> None:
        due = max(self.nodes[number].deadline(), self.now)
        if due < self.wakes.get(number, float("inf")):
            self.wakes[number] = due
            self.at(due - self.now, lambda: self._wake(number, due))

    def _wake(self, number: int, due: float) -> None:
        if self.wakes.get(number) == due:
            del self.wakes[number]
            self._on(number, lambda: self._wake_now(number))

    def _wake_now(self, number: int) -> None:
        node, now = self.nodes[number], Instant(self.now)
        self._carry(number, node.wake(now) if node.deadline() <= now else [])

    def _post(self, a: int, b: int, message: object, *, fresh: bool) -> None:
        routed = fresh or (a, b) in self.links or self.fresh.get((b, a), 0.0) > self.now
        lost = not fresh and self.rng.random() < self.loss
        if routed and not lost and self._reaches(a, b):
            sender = self.epochs[a]
            self.at(
                self.rng.uniform(0.001, 0.01),
                lambda: self._on(b, lambda: self._receive(b, a, sender, message)),
            )

    def _receive(self, number: int, sender: int, epoch: int, message: object) -> None:
        assert isinstance(message, MembershipMessage)
        heard = self.nodes[number].on_message(peer_id(sender), message, Instant(self.now))
        self._carry(number, heard.effects)

    def _introduce(self, a: int, b: int) -> None:
        if a in self.nodes and b in self.nodes and b not in self.frozen and self._reaches(a, b):
            self.nodes[a].introduced(f"tcp://h{b}:7700", peer_id(b))
            self._connect(a, b)

    def _connect(self, a: int, b: int) -> None:
        """A link with a greeting on it, as node/ makes them."""
        up = a in self.nodes and b in self.nodes and a != b and self._reaches(a, b)
        if not up or (a, b) in self.links:
            return
        self.links[a, b] = self.links[b, a] = None
        for x, y in ((a, b), (b, a)):
            mine = self.nodes[y].myself
            self._on(x, lambda x=x, y=y, mine=mine: self._greet(x, y, mine))

    def _greet(self, number: int, other: int, alive: Alive) -> None:
        node, now = self.nodes[number], Instant(self.now)
        self._carry(number, node.learn(alive, peer_id(other), now))
        self._carry(number, node.on_link_up(peer_id(other), now))

    def _cut(self, number: int, other: int) -> None:
        """This end sees its link to the other end close."""
        if self.links.pop((number, other), 0) is None:
            self._on(number, lambda: self._down(number, other))

    def _down(self, number: int, other: int) -> None:
        self._carry(number, self.nodes[number].on_link_down(peer_id(other), Instant(self.now)))


def swarm(n: int, seed: int = 0, **settings: Any) -> World:
    """A world whose nodes have all found each other."""
    world = World(n, seed, **settings)
    took = world.run(20.0, world.whole)
    assert took < 20.0, f"seed {seed}: {n} nodes did not find each other in 20 s"
    world.run(2.0)
    return world
