"""A copy that would be one more than is wanted is fetched last: who made something new has one, be it due there or not."""

from __future__ import annotations

from unittest.mock import Mock

from blake3 import blake3
from store_scene import Store, peer_of

from peerlm.config import StoreSection
from peerlm.events import ManifestRead
from peerlm.node.awaited import Awaited
from peerlm.node.makers import Makers
from peerlm.node.register import Writing
from peerlm.node.repair import LOOKED_AT, Repair
from peerlm.store.catalog import Catalog, StoreNode
from peerlm.store.manifest import Chunk, Kind, of_files, read_manifest
from peerlm.types import Instant, ObjectHash, PeerId

NODES = [peer_of(number) for number in range(1, 5)]
A, B, C, D = NODES


class Made(Store):
    """Where it is known who has made what."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.made: dict[ObjectHash, PeerId] = {}

    def _read_manifest(self, peer: PeerId, wanted: ObjectHash) -> None:
        chunks = read_manifest(self.nodes[peer].disk[wanted]).chunks
        listed = tuple((c.hash, c.size) for c in chunks)
        read = ManifestRead(wanted, listed, makers=tuple(NODES), made=self.made)
        self._tell(peer, lambda s: s.handle(read, self.now))


def test_what_its_maker_keeps_besides_is_fetched_when_nothing_else_is_left() -> None:
    store = Made(4)
    chunks: list[Chunk] = []
    for number in range(120):
        chunk = store.put(NODES[number % 4], b"chunk %d" % number)
        store.made[chunk.hash] = NODES[number % 4]
        chunks.append(chunk)
    manifest = of_files(Kind.CHECKPOINT, [("model", chunks)], {})
    kept = store.put(A, manifest.encode())
    writing = Writing("kept", Kind.CHECKPOINT, kept.hash, kept.size)
    store.perform(A, store.nodes[A].storing.write(writing, store.wall, store.now))
    store.run(10)
    assert min(store.copies(manifest)) >= 3
    later = 0
    for peer, node in store.nodes.items():
        catalog = node.storing.catalog
        fetched = [h for h in node.disk if h in store.made and store.made[h] != peer]
        is_more = [catalog.is_one_more(h, store.made[h]) for h in fetched]
        assert is_more == sorted(is_more), "these come last"
        later += sum(is_more)
    assert 20 <= later <= 40, "one in four is due to the three others"
    assert [n.storing.lacking for n in store.nodes.values()] == [0] * 4


def test_however_much_is_fetched_last_what_lies_behind_it_comes_first() -> None:
    catalog, now = Catalog(A), Instant(0.0)
    catalog.nodes_are([StoreNode(p, 100, "", True) for p in NODES])
    names = [ObjectHash(blake3(b"%d" % number).digest()) for number in range(3000)]
    made = {name: NODES[1 + number % 3] for number, name in enumerate(names)}
    catalog.know(ObjectHash(b"m" * 32), [Chunk(name, 1) for name in names], 3)
    wanted = [want.hash for want in catalog.each_wanted()]
    first = [h for h in wanted if not catalog.is_one_more(h, made[h])]
    for object_hash in first[:-3]:
        catalog.kept(object_hash)
    assert catalog.lacking > LOOKED_AT + 3, "so much is fetched last"
    fresh = Makers(A, catalog.lists)
    fresh.heard(ObjectHash(b"m" * 32), NODES, now, made)
    pulls, manifests = Mock(wanted={}), Mock(lacked={})
    for said in (pulls.unfound, pulls.forget, pulls.want):
        said.return_value = []
    repair = Repair(StoreSection(), catalog, pulls, Awaited(), manifests, fresh, now)
    repair.look(10**6, now, keeps=True)
    pulls.want.assert_called_once_with([(h, 1) for h in first[-3:]], now)


def test_it_is_one_more_only_while_all_that_should_have_it_live() -> None:
    catalogs = {peer: Catalog(peer) for peer in NODES}
    chunk, manifest = Chunk(ObjectHash(b"c" * 32), 10), ObjectHash(b"m" * 32)

    def are(dead: PeerId | None = None) -> None:
        for catalog in catalogs.values():
            catalog.nodes_are([StoreNode(p, 100, "", p != dead) for p in NODES])
            catalog.know(manifest, [chunk], 3)

    are()
    first, _, last = owners = catalogs[A].owners(chunk.hash)
    (maker,) = set(NODES).difference(owners)
    more = lambda peer, by: catalogs[peer].is_one_more(chunk.hash, by)  # noqa: E731
    assert [more(peer, maker) for peer in owners] == [False, False, True]
    assert not more(last, first), "who made it is one of those that should have it"
    assert not more(last, peer_of(9)), "who made it keeps nothing for others"
    are(dead=maker)
    assert not more(last, maker)
    are(dead=first)
    assert not more(last, maker)
    assert not catalogs[last].is_one_more(ObjectHash(b"x" * 32), maker)
