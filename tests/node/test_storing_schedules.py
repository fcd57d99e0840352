"""The store under anything that happens: what a name stands for is never on no disk, and in the end on enough of them."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from store_scene import Store, peer_of

from peerlm.errors import StateError
from peerlm.events import ObjectLost
from peerlm.node.register import Writing
from peerlm.store.manifest import Kind, Manifest, manifest_hash
from peerlm.types import ObjectHash, PeerId, WallTime

STEPS = 25

DEEDS = (
    *("publish", "publish", "replace", "remove", "put_back", "kill", "restart", "back", "back"),
    *("part", "heal", "heal", "run", "run", "long", "rot", "repair"),
)


class Trouble:
    """A seed's swarm, what was acknowledged and holds, and what becomes of it."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        ceiling = rng.choice([0, 2000])
        keep_s, patience_s = rng.choice([0.0, 0.0, 30.0]), rng.choice([20.0, 60.0])
        self.store = Store(
            0, seed, keep_s=keep_s, repair_after_s=patience_s, repair_bytes_s=ceiling
        )
        for number in range(1, rng.randrange(4, 8)):
            capacity = 10**9 if number == 1 else rng.choice([10**9, 10**9, 10**8, 0])
            self.store.add(peer_of(number), capacity, rng.choice(["", "", "x", "y"]))
        self.kept: dict[str, tuple[Manifest, int]] = {}
        """By name: what its last record stands for, and in how many replicas."""
        self._ranks: dict[str, tuple[int, bytes]] = {}
        self._named = 0

    def nodes(self, *, up: bool) -> list[PeerId]:
        return [peer for peer, node in self.store.nodes.items() if node.is_up == up]

    def _publish(self, peer: PeerId, name: str, data: list[bytes], replicas: int) -> None:
        made = self.store.publish(peer, name, data, replicas=replicas, replaces=True)
        self._wrote(peer, name, (made, replicas))

    def _remove(self, peer: PeerId, name: str) -> None:
        storing, now = self.store.nodes[peer].storing, self.store.now
        written = storing.write(Writing(name, Kind.FILES, replaces=True), WallTime(1.0), now)
        self.store.perform(peer, written)
        self._wrote(peer, name, None)

    def _wrote(self, peer: PeerId, name: str, what: tuple[Manifest, int] | None) -> None:
        """A record of a side that has not heard of a later one holds nowhere in the end."""
        entry = self.store.nodes[peer].storing.register.names.get(name)
        assert entry is not None
        rank = (entry.record.lamport, entry.record.writer)
        if rank > self._ranks.get(name, (0, b"")):
            self._ranks[name] = rank
            self.kept.pop(name, None)
            if what is not None:
                self.kept[name] = what

    def do(self, deed: str) -> None:
        rng, store = self.rng, self.store
        up, down = self.nodes(up=True), self.nodes(up=False)
        some = [random.Random(rng.randrange(30)).randbytes(100) for _ in range(rng.randrange(1, 6))]
        if deed == "back" and down:
            store.back(rng.choice(down))
        elif deed == "heal":
            store.part({})
        if deed in ("back", "heal") or not up:
            return
        peer, names = rng.choice(up), sorted(self.kept)
        match deed:
            case "publish":
                self._named += 1
                self._publish(peer, f"n{self._named}", some, rng.randrange(1, 4))
            case "replace" if names:
                self._publish(peer, rng.choice(names), some, rng.randrange(1, 4))
            case "remove" if names:
                self._remove(peer, rng.choice(names))
            case "put_back" if names:
                name = rng.choice(names)
                manifest, replicas = self.kept[name]
                disk = store.nodes[peer].disk
                if all(chunk.hash in disk for chunk in manifest.chunks):
                    data = [disk[chunk.hash] for chunk in manifest.chunks]
                    self._remove(peer, name)
                    store.run(rng.randrange(40))
                    self._publish(peer, name, data, replicas)
            case "kill":
                store.kill(peer)
            case "restart":
                store.kill(peer)
                store.back(peer)
            case "part":
                store.part({one: rng.randrange(2) for one in store.nodes})
            case "run":
                store.run(rng.randrange(1, 20))
            case "long":
                store.run(70, 2.0)
            case "rot":
                self._rot(peer)
            case "repair":
                store.perform(peer, store.nodes[peer].storing.repair_now(store.now))

    def _rot(self, peer: PeerId) -> None:
        node = self.store.nodes[peer]
        if node.disk:
            rotten = self.rng.choice(sorted(node.disk))
            if self.copies(rotten) > 1:
                del node.disk[rotten]
                lost = node.storing.lost(ObjectLost(rotten, "rot"), self.store.now)
                self.store.perform(peer, lost)

    def copies(self, wanted: ObjectHash) -> int:
        """On disks of nodes that live or may come back."""
        return sum(wanted in node.disk for node in self.store.nodes.values())

    def assert_nothing_is_lost(self) -> None:
        for name, (manifest, _) in self.kept.items():
            assert self.copies(manifest_hash(manifest.encode())), name
            assert all(self.copies(chunk.hash) for chunk in manifest.chunks), name

    def calm(self) -> None:
        for peer in self.nodes(up=False):
            self.store.back(peer)
        self.store.part({})
        self.store.run(240, 2.0)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_acknowledged_is_lost_whatever_happens(seed: int) -> None:
    trouble = Trouble(seed)
    for _ in range(STEPS):
        with suppress(StateError):
            trouble.do(trouble.rng.choice(DEEDS))
        trouble.assert_nothing_is_lost()
    trouble.calm()
    trouble.assert_nothing_is_lost()
    storing = sum(node.capacity > 0 for node in trouble.store.nodes.values())
    for name, (manifest, replicas) in trouble.kept.items():
        assert min(trouble.store.copies(manifest)) >= min(replicas, storing), name
