"""Several nodes of a store in one process: their cores, a clock, and disks that are dictionaries."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from blake3 import blake3

from peerlm import effects as fx
from peerlm.config import StoreSection
from peerlm.effects import Effect
from peerlm.errors import AuthError, ChunkCorrupt
from peerlm.events import ManifestRead, ObjectKept, ProofMade, PullEnded
from peerlm.node.register import Writing
from peerlm.node.stored import Stored
from peerlm.node.storing import Storing
from peerlm.store.manifest import Chunk, Kind, Manifest, manifest_hash, of_files
from peerlm.types import Instant, ObjectHash, PeerId, TransferId, WallTime
from peerlm.wire.codec import decode_as, encode
from peerlm.wire.message import (
    HaveAsk,
    HaveGive,
    Message,
    Named,
    NameRecord,
    ProofAsk,
    ProofGive,
    PullAnswer,
    PullRequest,
)

SIGNATURE = b"s" * 64


def peer_of(number: int) -> PeerId:
    return PeerId(number.to_bytes(16, "big"))


def sign(record: NameRecord) -> Named:
    return Named(encode(record), SIGNATURE, ())


def author(proof: Named) -> PeerId:
    if proof.signature != SIGNATURE:
        raise AuthError("bad_signature", "not signed")
    return PeerId(decode_as(NameRecord, proof.record).writer)


@dataclass
class Node:
    storing: Storing
    capacity: int
    label: str
    disk: dict[ObjectHash, bytes] = field(default_factory=dict)
    is_up: bool = True
    memory: bytes = b""
    refuses: bool = False
    """It serves nothing, whatever it claims."""
    claims_all: bool = False
    """It says of everything that it keeps it, and shows nothing."""
    is_silent: bool = False
    """Then it does not even say that it has no proof."""
    passes_on: Callable[[ProofAsk], tuple[PeerId, ProofAsk]] | None = None
    """Or it has another answer in its stead: whom it asks what, for what it was asked."""
    askers: dict[bytes, tuple[PeerId, bytes]] = field(default_factory=dict)
    """By the number that was passed on: who waits for the answer, and to which number."""
    surveyed: list[int] = field(default_factory=list)
    told: list[ObjectHash] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)


class Store:
    """`settings`: of every node. Messages and pulls take no time; `run` lets time pass."""

    def __init__(
        self, count: int, seed: int = 1, capacity: int = 10**9, **settings: object
    ) -> None:
        self.rng = random.Random(seed)
        self.now = Instant(0.0)
        self.settings = StoreSection(**{"repair_after_s": 60.0, **settings})  # type: ignore[arg-type]
        self.nodes: dict[PeerId, Node] = {}
        self.pulled: Counter[PeerId] = Counter()
        """By whom it was served."""
        self.sides: dict[PeerId, int] = {}
        """Of a partition: who is on which; those of one side reach each other."""
        self._queue: list[tuple[PeerId, Callable[[Storing], list[Effect]]]] = []
        for number in range(1, count + 1):
            self.add(peer_of(number), capacity)

    def add(self, peer: PeerId, capacity: int = 10**9, label: str = "") -> Node:
        self.nodes[peer] = Node(self._made(peer, Stored(capacity)), capacity, label)
        self.start(peer)
        return self.nodes[peer]

    def _made(self, peer: PeerId, stored: Stored) -> Storing:
        def spread(proof: Named, _: bytes, now: Instant, teller: PeerId | None) -> list[Effect]:
            others = [p for p in self.nodes if p not in (peer, teller) and self.reach(peer, p)]
            for other in others:
                self._tell(other, lambda s, p=proof: s.hear(p, peer, self.now))  # type: ignore[misc]
            return []

        storing = Storing(
            peer,
            self.settings,
            stored,
            sign,
            author,
            spread,
            lambda other: ("host", 1),
            random.Random(self.rng.random()),
            self.now,
        )
        storing.register.wall = self.wall
        return storing

    @property
    def wall(self) -> WallTime:
        return WallTime(1.0 + self.now)

    def start(self, peer: PeerId) -> None:
        self._perform(peer, self.nodes[peer].storing.start(self.now))
        self.look_around()
        for other, node in self.nodes.items():
            if other != peer and node.is_up:
                self._perform(other, node.storing.link_up(peer))
                self._perform(peer, self.nodes[peer].storing.link_up(other))
        self.settle()

    def reach(self, one: PeerId, other: PeerId) -> bool:
        return self.sides.get(one) == self.sides.get(other)

    def part(self, sides: dict[PeerId, int]) -> None:
        """From now on these do not reach each other across sides; {}: all do again."""
        self.sides = sides
        self.look_around()
        for peer, node in self.nodes.items():
            for other in self.nodes:
                if other != peer and node.is_up and self.nodes[other].is_up:
                    self._perform(peer, node.storing.link_up(other))
        self.settle()

    def look_around(self) -> None:
        for peer, node in self.nodes.items():
            if node.is_up:
                live = {
                    p: (n.capacity, n.label)
                    for p, n in self.nodes.items()
                    if n.is_up and p != peer and n.capacity and self.reach(peer, p)
                }
                self._perform(peer, node.storing.nodes_are(live, self.now))
        self.settle()

    def kill(self, *peers: PeerId) -> None:
        for peer in peers:
            self.nodes[peer].is_up = False
        self.look_around()

    def back(self, peer: PeerId) -> None:
        """It starts again with what is on its disk."""
        node = self.nodes[peer]
        here = tuple((h, len(data)) for h, data in node.disk.items())
        node.is_up = True
        node.storing = self._made(peer, Stored(node.capacity, here, node.memory))
        self.start(peer)

    # ------------------------------------------------------------------------------------ time

    def run(self, seconds: float, step_s: float = 1.0) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = Instant(self.now + step_s)
            for peer, node in self.nodes.items():
                node.storing.register.wall = self.wall
                if node.is_up:
                    linked = [
                        p
                        for p, n in self.nodes.items()
                        if n.is_up and p != peer and self.reach(peer, p)
                    ]
                    self._perform(peer, node.storing.wake(lambda: linked, self.now))  # noqa: B023
            self.settle()
        for node in self.nodes.values():
            node.storing.audit()

    def settle(self) -> None:
        while self._queue:
            peer, call = self._queue.pop(0)
            if self.nodes[peer].is_up:
                self._perform(peer, call(self.nodes[peer].storing))

    def _tell(self, peer: PeerId, call: Callable[[Storing], list[Effect]]) -> None:
        self._queue.append((peer, call))

    # ------------------------------------------------------------------------------ what is done

    def put(self, peer: PeerId, data: bytes) -> Chunk:
        chunk = Chunk(ObjectHash(blake3(data).digest()), len(data))
        node = self.nodes[peer]
        node.disk[chunk.hash] = data
        self._perform(peer, node.storing.came(ObjectKept(*chunk), self.now))
        return chunk

    def publish(
        self,
        peer: PeerId,
        name: str,
        contents: list[bytes],
        replicas: int = 3,
        kind: Kind = Kind.FILES,
        **options: object,
    ) -> Manifest:
        chunks = [self.put(peer, data) for data in contents]
        manifest = of_files(kind, [("all", chunks)], {})
        encoded = manifest.encode()
        self.put(peer, encoded)
        storing, size = self.nodes[peer].storing, len(encoded)
        wanted = Writing(
            name, kind, manifest_hash(encoded), size, replicas, **options,  # type: ignore[arg-type]
        )  # fmt: skip
        effects = storing.write(wanted, self.wall, self.now)
        self._perform(peer, effects)
        self.settle()
        return manifest

    def remove(self, peer: PeerId, name: str) -> None:
        gone = Writing(name, Kind.FILES, replaces=True)
        self.perform(peer, self.nodes[peer].storing.write(gone, self.wall, self.now))

    def perform(self, peer: PeerId, effects: list[Effect]) -> None:
        self._perform(peer, effects)
        self.settle()

    def _perform(self, peer: PeerId, effects: list[Effect]) -> None:
        node = self.nodes[peer]
        for effect in effects:
            match effect:
                case fx.Send():
                    self._send(peer, effect.peer, effect.message)
                case fx.RunPull():
                    self._pull(peer, effect)
                case fx.ReadManifest():
                    self._read_manifest(peer, effect.manifest)
                case fx.DropChunks():
                    for object_hash in effect.hashes:
                        node.disk.pop(object_hash, None)
                case fx.MakeProof():
                    data = node.disk.get(effect.object_hash)
                    digest = b"" if data is None else blake3(effect.nonce).update(data).digest()
                    made = ProofMade(effect.peer, effect.object_hash, effect.nonce, digest)
                    self._tell(peer, lambda s, m=made: s.handle(m, self.now))  # type: ignore[misc]
                case fx.TellReaders():
                    node.told += effect.hashes
                case fx.TellSurveyed():
                    node.surveyed.append(effect.number)
                case fx.Save():
                    node.memory = effect.data
                case fx.Log():
                    node.logs.append(effect.event)
                case fx.CancelTransfer():
                    pass
                case _:
                    raise AssertionError(effect)

    def _send(self, sender: PeerId, to: PeerId, message: Message) -> None:
        if to not in self.nodes or not self.nodes[to].is_up or not self.reach(sender, to):
            return
        if isinstance(message, PullRequest):
            node, wanted = self.nodes[to], ObjectHash(message.object_hash)
            size = None if node.refuses else node.storing.size_of(wanted)
            verdict = "refuse" if size is None else "accept"
            answer = PullAnswer(message.transfer, verdict, "", size or 0)
            self._tell(sender, lambda s: s.received(to, answer, self.now))
        elif isinstance(message, HaveAsk) and self.nodes[to].claims_all:
            give = HaveGive(message.number, b"\xff" * 128)
            self._tell(sender, lambda s: s.received(to, give, self.now))
        elif isinstance(message, ProofAsk) and (passes_on := self.nodes[to].passes_on):
            holder, ask = passes_on(message)
            self.nodes[to].askers[ask.nonce] = (sender, message.nonce)
            self._tell(holder, lambda s: s.received(to, ask, self.now))
        elif isinstance(message, ProofGive) and message.nonce in self.nodes[to].askers:
            asker, nonce = self.nodes[to].askers[message.nonce]
            mine = replace(message, nonce=nonce)
            self._tell(asker, lambda s: s.received(to, mine, self.now))
        elif isinstance(message, ProofAsk) and self.nodes[to].claims_all:
            shown = ProofGive(message.object_hash, message.nonce, b"")
            if not self.nodes[to].is_silent:
                self._tell(sender, lambda s: s.received(to, shown, self.now))
        else:
            self._tell(to, lambda s: s.received(sender, message, self.now))

    def _pull(self, peer: PeerId, run: fx.RunPull) -> None:
        is_there = self.nodes[run.peer].is_up and self.reach(peer, run.peer)
        data = self.nodes[run.peer].disk.get(run.object_hash) if is_there else None
        outcome = "lost" if data is None else "ok"
        if data is not None and blake3(data).digest() != run.object_hash:
            outcome = "corrupt"
        if outcome == "ok":
            assert data is not None
            self.nodes[peer].disk[run.object_hash] = data
            self.pulled[run.peer] += 1
        ended = PullEnded(TransferId(run.transfer), outcome)
        self._tell(peer, lambda s: s.handle(ended, self.now))

    def _read_manifest(self, peer: PeerId, wanted: ObjectHash) -> None:
        from peerlm.store.manifest import read_manifest

        try:
            found = read_manifest(self.nodes[peer].disk[wanted])
        except ChunkCorrupt as error:
            read = ManifestRead(wanted, (), str(error), is_wrong=True)
        else:
            read = ManifestRead(wanted, tuple((c.hash, c.size) for c in found.chunks))
        self._tell(peer, lambda s: s.handle(read, self.now))

    # --------------------------------------------------------------------------------- what is so

    def copies(self, manifest: Manifest) -> list[int]:
        """Of each chunk, on disks of nodes that are up."""
        up = [node.disk for node in self.nodes.values() if node.is_up]
        return [sum(chunk.hash in disk for disk in up) for chunk in manifest.chunks]
