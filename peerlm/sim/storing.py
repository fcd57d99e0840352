"""The swarm's store in a simulated swarm: nodes die for good, reboot, come new and empty, and chunks follow by their catalogs.

Every node has a `Catalog` of its own and nothing else to go by. Who is there it hears as news, all in one order, each
node with a delay of its own; a death or a reboot is noticed after `DETECTED_S`. It fetches what it wants from whoever the
catalog names: who is down lets it wait, who has not got the chunk says so. Lines are shared evenly by what goes over them when
a chunk sets out. Repair has a ceiling, but for what is urgent. A chunk that is another's to keep goes after a day, if
its owners have it; where there are *liars*, who say that they have all that they should, and have nothing, if the owners
show it (`sim.proving`).

Where each copy is, the truth, is kept beside, and no catalog sees it. Catalogs share the tables they work out (`Tables`), or
two hundred nodes would each work out the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import numpy.typing as npt

from peerlm.sim.clock import Clock
from peerlm.sim.figures import Figure, quantiles
from peerlm.sim.proving import Prover, shown_by
from peerlm.store.catalog import Catalog, StoreNode, Want
from peerlm.store.manifest import CHUNK_BYTES, Chunk
from peerlm.store.owners import Tables
from peerlm.store.rendezvous import Field, Site
from peerlm.types import ObjectHash, PeerId

LINE_BYTES_S = 125e6
"""1 Gbit/s, each way."""

REPAIR_BYTES_S = 20e6
REPAIR_SLOTS = 2
URGENT_SLOTS = 8
"""Chunks in flight to a node: without and with urgent ones."""

PATIENCE_S = 600.0
DETECTED_S = 10.0
NEWS_S = (0.1, 3.0)

ROUND_TRIP_S = 0.02
NO_ANSWER_S = 5.0
"""Whoever is asked and is down costs this."""
REST_S = (30.0, 3600.0)
"""Nobody had it: asked again after so long, and after twice as long each time, up to."""

CAPACITY_BYTES = (100e9, 1000e9)
"""Log-uniform."""
IN_RACKS = 0.4
RACK_NODES = 6
"""Part of the nodes that has a label, and about how many share one."""

REPLACED_S = (1800.0, 4 * 3600.0)
REBOOT_EVERY_S = 5 * 86_400.0
RACK_REBOOT_EVERY_S = 10 * 86_400.0
REBOOT_S = (60.0, 480.0)
"""Each node, and each rack as a whole, reboots about so often, for so long."""

KEEP_S = 86_400.0
LOOK_S = 3600.0
"""Surplus is looked through so often; it goes after `KEEP_S`."""

PEACE_S = 8 * 3600.0
"""At the end nothing happens for so long, and everything must be well after it."""

MANIFEST = ObjectHash(bytes(32))
HOUR_S = 3600.0
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Setting:
    """deaths: part of the nodes that dies for good in an hour.
    liars: so many come after an hour, with as much room as the largest, and stay.
    is_gullible: what is said counts as shown. For tests: it is what proofs are against."""

    nodes: int = 200
    chunks: int = 10_000
    replicas: int = 3
    days: float = 30.0
    deaths: float = 0.01
    seed: int = 1
    liars: int = 0
    is_gullible: bool = False


@dataclass(slots=True, eq=False)
class Node:
    peer: PeerId
    capacity: int
    label: str
    catalog: Catalog
    holds: npt.NDArray[np.bool_]
    """By chunk: what lies on its disk."""
    is_up: bool = True
    is_dead: bool = False
    heard: int = -1
    """Number of the last news."""
    flying: dict[ObjectHash, bool] = field(default_factory=dict)
    """What it fetches; whether as urgent."""
    resting: dict[ObjectHash, float] = field(default_factory=dict)
    """What nobody had, and until when it is not asked for again."""
    failed: dict[ObjectHash, int] = field(default_factory=dict)
    """How often in a row."""
    life: int = 0
    """Grows when it goes down: what was in flight then is void."""
    sending: int = 0
    receiving: int = 0
    paced_until: float = 0.0
    wakes_at: float = math.inf
    first_share: npt.NDArray[np.bool_] | None = None
    """What it was due when it came."""
    surplus_since: dict[ObjectHash, float] = field(default_factory=dict)
    repaired_bytes: int = 0
    """Fetched and sent for repair since the last full hour."""
    prover: Prover | None = None
    """Where there are liars."""
    is_liar: bool = False


class Scarce:
    """Chunks with at most one copy of some kind: how many ever, and how long at most."""

    def __init__(self, chunks: int) -> None:
        self.since = np.full(chunks, np.nan)
        self.ever = np.zeros(chunks, bool)
        self.none_ever = np.zeros(chunks, bool)
        self.longest_s = 0.0

    def fewer(
        self, chunks: npt.NDArray[np.int64], copies: npt.NDArray[np.int64], now: float
    ) -> None:
        """`copies` of each are left."""
        scarce = chunks[(copies <= 1) & np.isnan(self.since[chunks])]
        self.since[scarce] = now
        self.ever[scarce] = True
        self.none_ever[chunks[copies == 0]] = True

    def more(
        self, chunks: npt.NDArray[np.int64], copies: npt.NDArray[np.int64], now: float
    ) -> None:
        saved = chunks[(copies > 1) & ~np.isnan(self.since[chunks])]
        if len(saved):
            self.longest_s = max(self.longest_s, float((now - self.since[saved]).max()))
            self.since[saved] = np.nan

    def end(self, now: float) -> None:
        left = self.since[~np.isnan(self.since)]
        if len(left):
            self.longest_s = max(self.longest_s, float((now - left).max()))


@dataclass(slots=True)
class Tally:
    deaths: int = 0
    joins: int = 0
    reboots: int = 0
    fetches: int = 0
    urgent_fetches: int = 0
    broken_fetches: int = 0
    repair_bytes: int = 0
    """Fetched because others had died or were away."""
    repair_bytes_least: int = 0
    """What the dead held of what was due there."""
    filled_bytes: int = 0
    """Fetched by newcomers of what was due to them when they came."""
    filled_bytes_least: float = 0.0
    """Their shares by capacity."""
    dropped: int = 0
    unproven: int = 0
    """Times that a copy stayed, since its owners say that they have it and have not shown it."""
    proofs: int = 0
    """Questions for one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    setting: Setting
    tally: Tally
    lost: Sequence[tuple[float, int]]
    """When, which chunk."""
    reachable: Scarce
    """By copies on nodes that are up."""
    existing: Scarce
    """By copies on any disk that is not gone for good."""
    hottest: Sequence[float]
    """Of each hour in which repair moved a chunk per node or more: the busiest node's bytes, fetched and sent, ÷ the mean."""
    hottest_bytes_s: float
    """Of the busiest node in its busiest hour."""
    deviation: float
    """The worst of any node at any full hour: due bytes against the share by capacity."""
    lacking: int
    """Copies that owners had not got at the end, after `PEACE_S` of peace."""
    digest: str


class Swarm:
    """A virtual clock, all nodes, and where every copy is."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.clock = setting, Clock()
        self.rng = Random(f"{setting.seed} store")
        hashes = [self._name(f"chunk {number}", 32) for number in range(setting.chunks)]
        self.chunks = [Chunk(ObjectHash(name), CHUNK_BYTES) for name in hashes]
        self.number_of = {chunk.hash: number for number, chunk in enumerate(self.chunks)}
        self.nodes: dict[PeerId, Node] = {}
        """All that are not dead."""
        self.members: dict[PeerId, StoreNode] = {}
        """As everybody hears of them."""
        self.news: list[tuple[StoreNode, ...]] = []
        self.tables = Tables()
        self.reachable_copies = np.zeros(setting.chunks, np.int64)
        self.copies = np.zeros(setting.chunks, np.int64)
        self.reachable, self.existing = Scarce(setting.chunks), Scarce(setting.chunks)
        self.lost: list[tuple[float, int]] = []
        self.tally = Tally()
        self.hottest: list[float] = []
        self.hottest_bytes_s = self.deviation = 0.0
        self._count = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def _name(self, what: str, size: int) -> bytes:
        return hashlib.blake2b(f"{self.setting.seed} {what}".encode(), digest_size=size).digest()

    def digest(self) -> str:
        """Equal digests, equal runs: it takes in every fetch and all news, with their times."""
        return self._digest.hexdigest()

    # --------------------------------------------------------------------------- coming and going

    def found(self) -> None:
        """The first nodes, with all that is due to them."""
        for _ in range(self.setting.nodes):
            self._new(self._draw_label())
        self._tell()
        for node in self.nodes.values():
            node.heard = 0
            node.catalog.nodes_are(self.news[0])
            self._copied(node, [want.hash for want in node.catalog.wanted(self.setting.chunks)])

    def _draw_label(self) -> str:
        racks = max(1, round(self.setting.nodes * IN_RACKS / RACK_NODES))
        is_in_rack = self.rng.random() < IN_RACKS
        return f"rack {self.rng.randrange(racks)}" if is_in_rack else ""

    def _new(self, label: str) -> Node:
        self._count += 1
        peer = PeerId(self._name(f"node {self._count}", 16))
        low, high = map(math.log, CAPACITY_BYTES)
        capacity = int(math.exp(self.rng.uniform(low, high)))
        catalog = Catalog(peer, self.tables)
        catalog.know(MANIFEST, self.chunks, self.setting.replicas)
        node = Node(peer, capacity, label, catalog, np.zeros(self.setting.chunks, bool))
        if self.setting.liars:
            node.prover = Prover(peer, catalog, Random(f"{self.setting.seed} {self._count}"))
        self.nodes[peer] = node
        self.members[peer] = StoreNode(peer, capacity, label, True)
        return node

    def join(self, label: str) -> None:
        node = self._new(label)
        self.tally.joins += 1
        self._tell()
        self._hear(node, len(self.news) - 1)
        wants = node.catalog.wanted(self.setting.chunks)
        node.first_share = np.zeros(self.setting.chunks, bool)
        node.first_share[[self.number_of[want.hash] for want in wants]] = True
        capacity = sum(member.capacity for member in self.members.values())
        share = node.capacity / capacity * self.setting.replicas
        self.tally.filled_bytes_least += share * self.setting.chunks * CHUNK_BYTES

    def lie(self) -> None:
        """A liar comes: it fetches nothing, and says of all that it should keep that it does."""
        node = self._new("")
        node.capacity, node.is_liar = int(CAPACITY_BYTES[1]), True
        self.members[node.peer] = self._member(node, True)
        self._tell()
        self._hear(node, len(self.news) - 1)

    def die(self, node: Node) -> None:
        """For good; a new and empty one comes for it after a while."""
        self.tally.deaths += 1
        summary = node.catalog.summary()
        self.tally.repair_bytes_least += summary.due_bytes - summary.lacking_bytes
        self._down(node)
        node.is_dead = True
        del self.nodes[node.peer]
        gone = np.flatnonzero(node.holds)
        self.copies[gone] -= 1
        self.existing.fewer(gone, self.copies[gone], self.clock.now)
        lost = gone[self.copies[gone] == 0].tolist()
        self.lost += [(self.clock.now, chunk) for chunk in lost]
        self.clock.at(self.rng.uniform(*REPLACED_S), self.join, node.label)

    def reboot(self, node: Node, for_s: float) -> None:
        if node.is_up:
            self.tally.reboots += 1
            self._down(node)
            self.clock.at(for_s, self._back, node)

    def _down(self, node: Node) -> None:
        if not node.is_up:
            return
        node.is_up = False
        node.life += 1
        node.flying.clear()
        node.sending = node.receiving = 0
        gone = np.flatnonzero(node.holds)
        self.reachable_copies[gone] -= 1
        self.reachable.fewer(gone, self.reachable_copies[gone], self.clock.now)
        self.clock.at(DETECTED_S, self._missed, node, node.life)

    def _back(self, node: Node) -> None:
        if node.is_dead:
            return
        node.is_up = True
        node.life += 1
        back = np.flatnonzero(node.holds)
        self.reachable_copies[back] += 1
        self.reachable.more(back, self.reachable_copies[back], self.clock.now)
        if self.members.get(node.peer) != (here := self._member(node, True)):
            self.members[node.peer] = here
            self._tell()
        self._hear(node, len(self.news) - 1)

    def _missed(self, node: Node, life: int) -> None:
        if node.life == life:
            self.members[node.peer] = self._member(node, False)
            self._tell()
            self.clock.at(PATIENCE_S, self._given_up, node, life)

    def _given_up(self, node: Node, life: int) -> None:
        if node.life == life:
            del self.members[node.peer]
            self._tell()

    def _member(self, node: Node, is_live: bool) -> StoreNode:
        return StoreNode(node.peer, node.capacity, node.label, is_live)

    # ------------------------------------------------------------------------------------- news

    def _tell(self) -> None:
        number = len(self.news)
        self.news.append(tuple(self.members.values()))
        self._digest.update(f"{self.clock.now:.4f} news {len(self.members)}".encode())
        if number:
            for node in self.nodes.values():
                self.clock.at(self.rng.uniform(*NEWS_S), self._hear, node, number)

    def _hear(self, node: Node, number: int) -> None:
        if node.is_up and number > node.heard:
            node.heard = number
            node.catalog.nodes_are(self.news[number])
            self._work(node)

    # --------------------------------------------------------------------------------- fetching

    def _work(self, node: Node) -> None:
        """Set out for what is wanted, as far as there are slots and the ceiling lets it."""
        now = self.clock.now
        if node.is_liar:
            return
        node.resting = {name: until for name, until in node.resting.items() if until > now}
        busy = len(node.flying) + len(node.resting)
        throttled = sum(not is_urgent for is_urgent in node.flying.values())
        for want in node.catalog.wanted(busy + URGENT_SLOTS):
            if want.hash in node.flying or want.hash in node.resting:
                continue
            if len(node.flying) >= URGENT_SLOTS:
                break
            if not want.is_urgent:
                if throttled >= REPAIR_SLOTS:
                    break
                if node.paced_until > now:
                    self._wake(node, node.paced_until)
                    break
                node.paced_until = now + want.size / REPAIR_BYTES_S
                throttled += 1
            self._set_out(node, want)
        if node.resting:
            self._wake(node, min(node.resting.values()))

    def _wake(self, node: Node, when: float) -> None:
        if when < node.wakes_at:
            node.wakes_at = when
            self.clock.on(when, self._woken, node, when)

    def _woken(self, node: Node, when: float) -> None:
        if node.wakes_at == when:
            node.wakes_at = math.inf
            if node.is_up:
                self._work(node)

    def _set_out(self, node: Node, want: Want) -> None:
        asked_s = 0.0
        chunk = self.number_of[want.hash]
        for peer in node.catalog.sources(want.hash):
            source = self.nodes.get(peer)
            if source is None or not source.is_up:
                asked_s += NO_ANSWER_S
                continue
            asked_s += ROUND_TRIP_S
            if source.holds[chunk]:
                rate = LINE_BYTES_S / max(source.sending + 1, node.receiving + 1)
                node.flying[want.hash] = want.is_urgent
                source.sending += 1
                node.receiving += 1
                lives = node.life, source.life
                self.clock.at(asked_s + want.size / rate, self._arrived, node, source, want, lives)
                return
        failures = node.failed[want.hash] = node.failed.get(want.hash, 0) + 1
        until = self.clock.now + min(REST_S[0] * 2 ** min(failures - 1, 20), REST_S[1])
        node.resting[want.hash] = until

    def _arrived(self, node: Node, source: Node, want: Want, lives: tuple[int, int]) -> None:
        is_here, is_sent = node.life == lives[0], source.life == lives[1]
        if is_sent:
            source.sending -= 1
        if is_here:
            node.receiving -= 1
            del node.flying[want.hash]
            if is_sent:
                self._booked(node, source, want)
            else:
                self.tally.broken_fetches += 1
            self._work(node)

    def _booked(self, node: Node, source: Node, want: Want) -> None:
        chunk = self.number_of[want.hash]
        self._digest.update(f"{self.clock.now:.4f} {node.peer.hex()} {chunk}".encode())
        self.tally.fetches += 1
        self.tally.urgent_fetches += want.is_urgent
        if node.first_share is not None and node.first_share[chunk]:
            node.first_share[chunk] = False
            self.tally.filled_bytes += want.size
        else:
            self.tally.repair_bytes += want.size
            node.repaired_bytes += want.size
            source.repaired_bytes += want.size
        self._copied(node, [want.hash])

    def _copied(self, node: Node, names: Sequence[ObjectHash]) -> None:
        for name in names:
            node.catalog.kept(name)
            node.failed.pop(name, None)
        new = np.array([self.number_of[name] for name in names], np.int64)
        node.holds[new] = True
        for copies, scarce in (
            (self.copies, self.existing),
            (self.reachable_copies, self.reachable),
        ):
            copies[new] += 1
            scarce.more(new, copies[new], self.clock.now)

    # ----------------------------------------------------------------------------------- hourly

    def look(self) -> None:
        """Surplus goes; loads and shares are looked at."""
        for node in self.nodes.values():
            if node.is_up:
                self._tidy(node)
        self._look_at_loads()
        due = {n.peer: n.catalog.summary().due_bytes for n in self.nodes.values() if n.is_up}
        capacity = sum(member.capacity for member in self.members.values())
        total = sum(chunk.size for chunk in self.chunks) * self.setting.replicas
        for peer, due_bytes in due.items():
            if (member := self.members.get(peer)) is not None:
                share = total * member.capacity / capacity
                self.deviation = max(self.deviation, abs(due_bytes / share - 1))
        self.clock.at(LOOK_S, self.look)

    def _tidy(self, node: Node) -> None:
        now, since = self.clock.now, node.surplus_since
        node.surplus_since = {name: since.get(name, now) for name in node.catalog.surplus()}
        for name, when in node.surplus_since.items():
            chunk = self.number_of[name]
            owners = [self.nodes.get(peer) for peer in node.catalog.owners(name)]
            there = [o for o in owners if o and o.is_up and (o.holds[chunk] or o.is_liar)]
            if (
                now - when >= KEEP_S
                and len(there) == len(owners)
                and self._shown(node, name, there)
            ):
                node.catalog.lost(name)
                node.holds[chunk] = False
                self.copies[chunk] -= 1
                self.reachable_copies[chunk] -= 1
                self.tally.dropped += 1
                if self.copies[chunk] == 0:
                    self.lost.append((now, chunk))
                is_true = self.reachable_copies[chunk] >= len(owners)
                assert is_true or self.setting.is_gullible, (now, chunk)

    def _shown(self, node: Node, name: ObjectHash, owners: Sequence[Node]) -> bool:
        """Whether these, who say that they have it, show it. Where nobody lies, they do."""
        if node.prover is None or self.setting.is_gullible:
            return True
        chunk = self.number_of[name]
        others = [(o.prover, bool(o.holds[chunk])) for o in owners if o.prover is not None]
        asked = shown_by(node.prover, name, others, self.clock.now)
        self.tally.proofs += asked.questions
        self.tally.unproven += not asked.is_shown
        return asked.is_shown

    def _look_at_loads(self) -> None:
        loads = [node.repaired_bytes for node in self.nodes.values()]
        if sum(loads) >= 2 * CHUNK_BYTES * len(loads):
            self.hottest.append(max(loads) * len(loads) / sum(loads))
        self.hottest_bytes_s = max(self.hottest_bytes_s, max(loads) / LOOK_S)
        for node in self.nodes.values():
            node.repaired_bytes = 0


# ------------------------------------------------------------------------------------ whole runs


def play(setting: Setting) -> Outcome:
    swarm = Swarm(setting)
    swarm.found()
    swarm.clock.at(LOOK_S, swarm.look)
    for _ in range(setting.liars):
        swarm.clock.at(HOUR_S, swarm.lie)
    end = setting.days * DAY_S
    _trouble(swarm, setting, end)
    swarm.clock.run(end + PEACE_S)
    for scarce in (swarm.reachable, swarm.existing):
        scarce.end(swarm.clock.now)
    true = [node for node in swarm.nodes.values() if not node.is_liar]
    lacking = sum(node.catalog.summary().lacking for node in true)
    return Outcome(
        setting,
        swarm.tally,
        swarm.lost,
        swarm.reachable,
        swarm.existing,
        swarm.hottest,
        swarm.hottest_bytes_s,
        swarm.deviation,
        lacking,
        swarm.digest(),
    )


def _trouble(swarm: Swarm, setting: Setting, end: float) -> None:
    """Deaths, reboots and reboots of racks, each a Poisson process."""
    draws = Random(f"{setting.seed} trouble")

    def death() -> None:
        if len(swarm.nodes) > setting.replicas:
            swarm.die(draws.choice(list(swarm.nodes.values())))

    def reboot() -> None:
        swarm.reboot(draws.choice(list(swarm.nodes.values())), draws.uniform(*REBOOT_S))

    def rack_reboot() -> None:
        labels = sorted({node.label for node in swarm.nodes.values() if node.label})
        if labels:
            label, for_s = draws.choice(labels), draws.uniform(*REBOOT_S)
            for node in [n for n in swarm.nodes.values() if n.label == label]:
                swarm.reboot(node, for_s)

    racks = max(1, round(setting.nodes * IN_RACKS / RACK_NODES))
    for what, rate in (
        (death, setting.deaths * setting.nodes / HOUR_S),
        (reboot, setting.nodes / REBOOT_EVERY_S),
        (rack_reboot, racks / RACK_REBOOT_EVERY_S),
    ):
        when = 0.0
        while rate and (when := when + draws.expovariate(rate)) < end:
            swarm.clock.on(when, what)


def figures(outcomes: Sequence[Outcome]) -> dict[str, float | int | Figure | None]:
    """What came out of all runs, by name."""

    def total(name: str) -> float:
        return float(sum(getattr(outcome.tally, name) for outcome in outcomes))

    def ratio(moved: float, least: float) -> float | None:
        return moved / least if least else None

    days = sum(outcome.setting.days for outcome in outcomes) or 1.0
    repair, filled = total("repair_bytes"), total("filled_bytes")
    least, least_filled = total("repair_bytes_least"), total("filled_bytes_least")
    return {
        "deaths": int(total("deaths")),
        "joins": int(total("joins")),
        "reboots": int(total("reboots")),
        "lost": sum(len(outcome.lost) for outcome in outcomes),
        "unreachable_ever": sum(int(o.reachable.none_ever.sum()) for o in outcomes),
        "single_reachable_ever": sum(int(o.reachable.ever.sum()) for o in outcomes),
        "single_reachable_longest_s": max((o.reachable.longest_s for o in outcomes), default=0.0),
        "single_existing_ever": sum(int(o.existing.ever.sum()) for o in outcomes),
        "single_existing_longest_s": max((o.existing.longest_s for o in outcomes), default=0.0),
        "lacking_at_the_end": sum(outcome.lacking for outcome in outcomes),
        "fetches": int(total("fetches")),
        "urgent_fetches": int(total("urgent_fetches")),
        "broken_fetches": int(total("broken_fetches")),
        "dropped": int(total("dropped")),
        "unproven": int(total("unproven")),
        "proofs": int(total("proofs")),
        "repair_bytes_a_day": repair / days,
        "repair_to_least": ratio(repair, least),
        "filled_bytes_a_day": filled / days,
        "filled_to_least": ratio(filled, least_filled),
        "moved_to_least": ratio(repair + filled, least + least_filled),
        "hottest_to_mean": quantiles(value for o in outcomes for value in o.hottest),
        "hottest_bytes_s": max((o.hottest_bytes_s for o in outcomes), default=0.0),
        "deviation_worst": max((o.deviation for o in outcomes), default=0.0),
    }


def deviation_of_many(setting: Setting, chunks: int) -> float:
    """The worst node's, with the same nodes and so many chunks: how even shares are where chance is smaller."""
    swarm = Swarm(Setting(setting.nodes, 1, setting.replicas, seed=setting.seed))
    swarm.found()
    hashing = Field([Site(m.peer, float(m.capacity), m.label) for m in swarm.members.values()])
    keys = np.random.default_rng(setting.seed).integers(0, 2**64, chunks, dtype=np.uint64)
    owned = np.bincount(hashing.first(keys, setting.replicas).ravel(), minlength=len(hashing))
    weights = np.array([site.weight for site in hashing.sites])
    share = weights / weights.sum() * chunks * min(setting.replicas, len(hashing))
    return float(max(np.abs(owned / share - 1)))
