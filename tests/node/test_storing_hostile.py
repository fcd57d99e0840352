"""What one member that means harm, or one that dies at a bad moment, can do to what others keep."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from store_scene import Store, peer_of, sign

from peerlm.effects import MakeProof, Send
from peerlm.errors import StateError
from peerlm.events import ObjectLost
from peerlm.node import intake
from peerlm.node.proofs import drawn_for
from peerlm.node.register import Writing
from peerlm.node.trust import FALSE_CLAIM_S, FORGOTTEN_S, WRONG_BYTES_S, Trust
from peerlm.store.manifest import Chunk, Kind, Manifest, of_files, read_manifest
from peerlm.types import Instant, ObjectHash, PeerId, WallTime
from peerlm.wire.message import HaveAsk, HaveGive, NameRecord, ProofAsk

A, B, C, D, E = (peer_of(number) for number in range(1, 6))


def contents(count: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(200 + i) for i in range(count)]


def tell(
    store: Store, writer: PeerId, name: str, manifest: bytes, size: int, lamport: int = 1
) -> None:
    """All hear of a record that its writer made up."""
    record = NameRecord(name, Kind.FILES, manifest, size, lamport, writer, 1.0, 3, False, "")
    for peer, node in store.nodes.items():
        store.perform(peer, node.storing.hear(sign(record), None, store.now))


def test_a_manifest_that_is_said_to_be_huge_does_not_stop_repair() -> None:
    store = Store(5)
    tell(store, E, "evil", b"h" * 32, 2**62)
    manifest = store.publish(A, "plays", contents(20))
    store.run(10)
    assert min(store.copies(manifest)) >= 3
    assert not any(node.storing.standing().full for node in store.nodes.values())


def test_manifests_that_exist_nowhere_do_not_stop_repair() -> None:
    store = Store(3)
    for number in range(40):
        tell(store, C, f"evil{number}", number.to_bytes(32, "big"), 64 << 20)
    store.run(3)
    manifest = store.publish(A, "plays", contents(20))
    store.run(5)
    assert min(store.copies(manifest)) >= 3


def test_chunks_that_are_lost_do_not_stop_repair_of_others() -> None:
    """Who has put them dies before anybody has more than the manifest."""
    store = Store(3)
    lost = [Chunk(ObjectHash(number.to_bytes(32, "big")), 100) for number in range(70)]
    encoded = of_files(Kind.FILES, [("lost", lost)], {}).encode()
    whole = store.put(A, encoded)
    tell(store, A, "lost", whole.hash, whole.size)
    store.run(4)
    manifest = store.publish(B, "plays", contents(40, seed=2))
    store.run(6)
    assert min(store.copies(manifest)) >= 3
    assert store.nodes[C].storing.standing().unfound > 0


def test_who_looks_for_a_manifest_in_vain_does_not_end_the_search_for_it() -> None:
    store = Store(3)
    store.publish(A, "plays", contents(4))
    manifest = ObjectHash(store.nodes[A].storing.register.living()[0].record.manifest)
    store.run(2000)
    for peer in (A, B):
        store.nodes[peer].refuses = True
    store.nodes[C].disk.pop(manifest)
    store.perform(C, store.nodes[C].storing.lost(ObjectLost(manifest, "rot"), store.now))
    store.perform(C, store.nodes[C].storing.read(manifest, 1, store.now))
    store.perform(C, store.nodes[C].storing.read_no_more(manifest))
    for peer in (A, B):
        store.nodes[peer].refuses = False
    store.run(70)
    assert manifest in store.nodes[C].disk


def test_what_is_put_again_waits_for_its_name_although_an_older_name_was_removed() -> None:
    store = Store(1)
    store.publish(A, "plays", contents(3))
    store.perform(
        A,
        store.nodes[A].storing.write(
            Writing("plays", Kind.FILES, replaces=True), WallTime(2.0), store.now
        ),
    )
    chunks = [store.put(A, data) for data in contents(3)]
    store.run(60)
    assert all(chunk.hash in store.nodes[A].disk for chunk in chunks)


def test_a_lamport_at_the_end_of_numbers_does_not_end_all_writing() -> None:
    store = Store(3)
    tell(store, C, "evil", b"", 0, lamport=2**62)
    store.publish(A, "plays", contents(2))
    assert all(node.storing.register.names.get("plays") for node in store.nodes.values())
    with pytest.raises(StateError, match="number"):
        store.publish(A, "evil", contents(2), replaces=True)


def test_sizes_that_a_liar_gives_to_others_chunks_do_not_keep_newcomers_from_them() -> None:
    store = Store(3)
    manifest = store.publish(A, "plays", contents(6))
    store.run(5)
    lies = [Chunk(chunk.hash, chunk.size + 1) for chunk in manifest.chunks]
    for peer in (A, B, C):
        store.nodes[peer].refuses = True
    node = store.add(D)
    encoded = of_files(Kind.FILES, [("lies", lies)], {}).encode()
    whole = store.put(D, encoded)
    tell(store, C, "lies", whole.hash, whole.size)  # and is read first
    for peer in (A, B, C):
        store.nodes[peer].refuses = False
    store.run(20)
    assert not node.storing.catalog.summary().lacking
    assert node.storing.used == sum(map(len, node.disk.values())) > 0


def test_many_names_are_followed_together() -> None:
    store = Store(2)
    storing = store.nodes[A].storing
    counts = []
    follow = storing._follow_names
    storing._follow_names = lambda now: counts.append(now) or follow(now)  # type: ignore[method-assign,func-returns-value]
    for number in range(600):
        record = NameRecord(f"n{number}", Kind.FILES, b"", 0, 1, B, 1.0, 3, False, "")
        store.perform(A, storing.hear(sign(record), B, store.now))
    assert len(counts) < 300
    store.run(2)
    assert counts[-1] > 0


def test_two_do_not_drop_what_each_has_said_to_keep() -> None:
    """A view that flaps: B asks about what is not its own, then says to A that it is, and then it is not again."""
    store = Store(3, keep_s=0.0)
    manifest = store.publish(A, "plays", contents(1), replicas=1)
    chunk = manifest.chunks[0].hash
    storing = store.nodes[B].storing
    storing._keep(chunk, 200)
    storing._dropping.ask_about([chunk], [A, C], store.now)
    storing.catalog.is_due = lambda _: True  # type: ignore[method-assign]
    said = storing.received(A, HaveAsk(7, (chunk,), True), store.now)
    assert said == [Send(A, HaveGive(7, b"\x80"))]
    del storing.catalog.is_due
    assert storing._dropping._survey is None


def test_who_asks_for_proofs_all_the_time_is_not_answered() -> None:
    store = Store(2)
    chunk = store.publish(A, "plays", contents(1)).chunks[0].hash
    made = []
    for _ in range(50):
        store.now = Instant(store.now + 0.1)
        ask = asked_of(A, chunk)
        effects = store.nodes[A].storing.received(B, ask, store.now)
        made += [effect for effect in effects if isinstance(effect, MakeProof)]
        store.perform(A, effects)
    assert len(made) == 1


def test_more_chunks_than_can_be_known_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "CHUNKS_MAX", 20)
    store = Store(3)
    mine = store.publish(A, "plays", contents(10))
    store.publish(B, "evil", contents(15, seed=1))
    store.run(40)
    for node in store.nodes.values():
        assert node.storing.catalog.rows == 10
        assert "too_many_chunks" in node.logs
    assert min(store.copies(mine)) == 3


# ------------------------------------------------------------------------------- false claims


def surveyed(store: Store, peer: PeerId, hashes: list[ObjectHash]) -> list[int]:
    survey, effects = store.nodes[peer].storing.survey(hashes, store.now)
    store.perform(peer, effects)
    return survey.counts


@pytest.mark.parametrize("is_silent", [False, True])
def test_who_claims_everything_and_shows_nothing_is_not_believed(is_silent: bool) -> None:
    store = Store(4)
    liar = store.nodes[D]
    liar.claims_all, liar.is_silent, liar.refuses = True, is_silent, True
    hashes = [c.hash for c in store.publish(A, "plays", contents(10)).chunks]
    store.run(5)
    before = surveyed(store, A, hashes)
    store.run(600)
    storing = store.nodes[A].storing
    assert D in storing.standing().distrusted
    assert "does not show it" in storing.standing().distrusted[D].why
    liar.disk.clear()
    assert surveyed(store, A, hashes) == store.copies(store_manifest(store)) <= before
    assert B not in storing.standing().distrusted


def asked_of(peer: PeerId, chunk: bytes, seed: bytes = b"s" * 16) -> ProofAsk:
    return ProofAsk(chunk, drawn_for(peer, seed), seed)


PASSED_ON = {
    "as it came": (lambda ask: ask, "does not show it"),
    "as from an older node": (lambda ask: replace(ask, seed=b""), "does not show it"),
    "with another seed": (lambda ask: replace(ask, seed=b"t" * 16), "does not show it"),
    "as a question to the other": (
        lambda ask: asked_of(B, ask.object_hash, ask.seed),
        "could not show",
    ),
}


@pytest.mark.parametrize("how", PASSED_ON)
def test_who_has_another_show_what_it_claims_is_not_believed(how: str) -> None:
    store = Store(4)
    liar, (changed, why) = store.nodes[D], PASSED_ON[how]
    liar.claims_all = liar.refuses = True
    liar.passes_on = lambda ask: (B, changed(ask))
    hashes = [c.hash for c in store.publish(A, "plays", contents(10), replicas=4).chunks]
    store.run(5)
    surveyed(store, A, hashes)
    store.run(600)
    distrusted = store.nodes[A].storing.standing().distrusted
    assert why in distrusted[D].why
    assert liar.askers, "it has tried"
    assert {B, C}.isdisjoint(distrusted)


def store_manifest(store: Store) -> Manifest:
    storing = store.nodes[A].storing
    (entry,) = storing.register.living()
    return read_manifest(store.nodes[A].disk[ObjectHash(entry.record.manifest)])


def test_who_has_dropped_what_it_claimed_and_says_so_is_believed() -> None:
    store = Store(4)
    chunks = store.publish(A, "plays", contents(10)).chunks
    store.run(5)
    node = store.nodes[D].storing
    for _ in range(20):
        surveyed(store, A, [chunk.hash for chunk in chunks])
        for chunk in chunks:
            if chunk.hash in node.here:
                del store.nodes[D].disk[chunk.hash]
                store.perform(D, node.lost(ObjectLost(chunk.hash, "rot"), store.now))
        store.run(60)
    assert not any(n.storing.standing().distrusted for n in store.nodes.values())


def test_who_does_not_send_what_it_says_it_keeps_is_not_believed() -> None:
    store = Store(3)
    manifest = store.publish(A, "plays", contents(10))
    store.run(5)
    liar = store.nodes[B]
    liar.refuses = True
    reader = store.add(E, capacity=0)
    hashes = [chunk.hash for chunk in manifest.chunks]
    for _ in range(6):
        surveyed(store, E, hashes)
        for chunk in manifest.chunks:
            store.perform(E, reader.storing.read(chunk.hash, chunk.size, store.now))
        store.run(30)
        for chunk in manifest.chunks:
            reader.disk.pop(chunk.hash, None)
            reader.storing._lose(chunk.hash)
    assert B in reader.storing.standing().distrusted


def test_a_node_that_sent_wrong_bytes_serves_again_when_its_disk_was_mended() -> None:
    store = Store(2)
    manifest = store.publish(A, "plays", contents(6))
    store.run(5)
    store.kill(B)
    good = dict(store.nodes[A].disk)
    store.nodes[A].disk = {h: b"rot" + data for h, data in good.items()}
    reader = store.add(C)
    store.run(20)
    assert A in reader.storing.standing().distrusted
    assert not reader.disk
    store.nodes[A].disk = good
    store.run(200)
    assert not reader.storing.standing().distrusted
    assert all(chunk.hash in reader.disk for chunk in manifest.chunks)


def test_each_fault_costs_longer_and_a_day_without_one_begins_anew() -> None:
    trust, now = Trust(), Instant(0.0)
    for expected in (60.0, 600.0, 3600.0, 3600.0):
        trust.distrust(A, "why", WRONG_BYTES_S, now)
        assert trust.at(Instant(now + expected - 1))[A].why == "why"
        now = Instant(now + expected)
        assert trust.at(now) == {}
        trust.forget(now)
    now = Instant(now + FORGOTTEN_S)
    trust.forget(now)
    trust.distrust(A, "why", FALSE_CLAIM_S, now)
    assert trust.at(now)[A].until == now + FALSE_CLAIM_S[0]
    trust.distrust(A, "again", FALSE_CLAIM_S, Instant(now + 1))
    again = trust.at(Instant(now + 2))[A]
    assert (again.since, again.until) == (now, now + 1 + FALSE_CLAIM_S[1])
