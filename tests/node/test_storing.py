"""The swarm's store, node by node: what is published is kept by as many as should, whatever becomes of them."""

from __future__ import annotations

import random

import pytest
from store_scene import Store, peer_of, sign

from peerlm.effects import Log
from peerlm.errors import StateError
from peerlm.events import ObjectKept, ObjectLost, PullEnded
from peerlm.node.leftovers import NAMELESS_S
from peerlm.node.refusals import COMPLAIN_S
from peerlm.node.register import Writing
from peerlm.store.catalog import Catalog
from peerlm.store.manifest import Kind
from peerlm.types import ObjectHash, PeerId, TransferId, WallTime, after, short
from peerlm.wire.message import HaveAsk, HaveGive, Message, Named, NameRecord

A, B, C, D, E = (peer_of(number) for number in range(1, 6))


def contents(count: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(200 + i) for i in range(count)]


def test_what_one_publishes_three_keep() -> None:
    store = Store(5)
    manifest = store.publish(A, "plays", contents(40))
    store.run(5)
    assert min(store.copies(manifest)) >= 3
    assert all(node.storing.lacking == 0 for node in store.nodes.values())
    assert all(node.storing.register.names.get("plays") for node in store.nodes.values())


def test_no_more_are_kept_than_should_be_once_others_have_them() -> None:
    store = Store(5, keep_s=0.0)
    manifest = store.publish(A, "plays", contents(40))
    store.run(120)
    assert store.copies(manifest) == [3] * 40


def test_two_die_at_once_and_nothing_is_lost() -> None:
    store = Store(5)
    manifest = store.publish(A, "plays", contents(40))
    store.run(5)
    store.kill(A, B)
    store.run(70)
    assert store.copies(manifest) == [3] * 40, "the three that are left keep everything"


def test_a_chunk_with_one_replica_left_is_copied_before_patience_ends() -> None:
    store = Store(6)
    manifest = store.publish(A, "plays", contents(60))
    store.run(5)
    store.kill(B, C)
    store.run(5)
    assert min(store.copies(manifest)) >= 2
    store.run(60)
    assert min(store.copies(manifest)) >= 3


def test_a_reboot_moves_nothing() -> None:
    store = Store(5, keep_s=0.0)
    store.publish(A, "plays", contents(40))
    store.run(120)
    moved = store.pulled.total()
    store.kill(C)
    store.run(30)
    store.back(C)
    store.run(120)
    assert store.pulled.total() == moved


def test_who_was_away_hears_of_names_and_of_removed_ones() -> None:
    store = Store(3)
    gone = store.publish(A, "gone", contents(3, 1))
    store.run(5)
    store.kill(C)
    kept = store.publish(A, "kept", contents(3, 2))
    store.perform(A, store.nodes[A].storing.write(
        Writing("gone", Kind.FILES, replaces=True), WallTime(2.0), store.now
    ))  # fmt: skip
    store.back(C)
    store.run(70)
    assert store.copies(kept) == [3] * 3
    assert store.copies(gone) == [0] * 3, "what no name stands for is dropped"


def test_who_was_away_for_long_drops_checkpoints_below_the_floor_and_brings_none_back() -> None:
    store = Store(3, keep_s=0.0)
    made = [
        store.publish(A, f"checkpoint-{number:012}", contents(3, number), kind=Kind.CHECKPOINT)
        for number in range(1, 5)
    ]
    store.run(5)
    store.kill(C)
    store.perform(A, store.nodes[A].storing.raise_floor(4, WallTime(2.0), store.now))
    store.run(60)
    store.back(C)
    store.run(130)
    for node in store.nodes.values():
        living = [entry.record.name for entry in node.storing.register.living()]
        assert living == ["checkpoint-000000000004"]
    assert [store.copies(manifest) for manifest in made] == [[0] * 3] * 3 + [[3] * 3]


def test_a_long_manifest_is_taken_in_and_let_go_part_by_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peerlm.store.catalog.STEP", 8)
    store = Store(2, keep_s=0.0)
    manifest = store.publish(A, "long", contents(50))
    storing = store.nodes[A].storing
    whole = ObjectHash(storing.register.living()[0].record.manifest)
    assert not storing.catalog.knows(whole)
    assert storing.standing().unread == 1
    assert storing.deadline() < store.now, "it is to go on at once"
    store.run(3, step_s=0.1)
    assert storing.catalog.knows(whole)
    assert store.copies(manifest) == [2] * 50
    removed = Writing("long", Kind.FILES, replaces=True)
    store.perform(A, storing.write(removed, WallTime(2.0), store.now))
    assert not storing.catalog.knows(whole)
    assert 0 < len(storing.catalog.unreferenced()) < 50
    assert storing.deadline() < store.now
    store.run(60)
    assert store.copies(manifest) == [0] * 50, "a removed name's chunks go at once"


def test_a_name_that_is_removed_while_its_manifest_is_taken_in_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peerlm.store.catalog.STEP", 8)
    store = Store(1)
    store.publish(A, "long", contents(50))
    storing = store.nodes[A].storing
    removed = Writing("long", Kind.FILES, replaces=True)
    store.perform(A, storing.write(removed, WallTime(2.0), store.now))
    store.run(1, step_s=0.1)
    assert (storing.catalog.rows, storing.catalog.manifests) == (0, set())
    assert len(storing.catalog.unreferenced()) == 51


def test_a_name_that_is_wanted_more_often_while_its_manifest_is_taken_in_is_kept_so_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peerlm.store.catalog.STEP", 8)
    store = Store(4)
    manifest = store.publish(A, "long", contents(50), replicas=1)
    storing = store.nodes[A].storing
    assert all(node.storing.unread for node in store.nodes.values())
    record = storing.register.living()[0].record
    whole = ObjectHash(record.manifest)
    again = Writing("long", Kind.FILES, whole, record.size, 3, replaces=True)
    store.perform(A, storing.write(again, WallTime(2.0), store.now))
    store.run(20)
    assert all(node.storing.catalog.is_known_in(whole, 3) for node in store.nodes.values())
    assert min(store.copies(manifest)) >= 3


def test_what_is_put_while_a_long_name_is_let_go_waits_for_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peerlm.store.catalog.STEP", 8)
    store = Store(1, keep_s=0.0)
    store.publish(A, "long", contents(50))
    store.run(10)
    removed = Writing("long", Kind.FILES, replaces=True)
    storing = store.nodes[A].storing
    store.perform(A, storing.write(removed, WallTime(2.0), store.now))
    assert storing.catalog.is_untidy
    again = [store.put(A, data) for data in contents(50)[30:]]
    store.run(NAMELESS_S - 60, step_s=10.0)
    assert set(store.nodes[A].disk) == {chunk.hash for chunk in again}
    store.run(120, step_s=10.0)
    assert not store.nodes[A].disk


def test_what_comes_is_not_summed_up_with_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def costly(_: Catalog) -> None:
        raise AssertionError("it looks at each chunk there is")

    monkeypatch.setattr(Catalog, "summary", costly)
    store = Store(3)
    store.publish(A, "plays", contents(20))
    store.perform(A, store.nodes[A].storing.repair_now(store.now))
    store.run(5)
    assert all(node.storing.lacking == 0 for node in store.nodes.values())


def test_the_floors_name_is_nobodys() -> None:
    store = Store(1)
    with pytest.raises(StateError, match="the store's own"):
        store.publish(A, "checkpoint-floor", contents(1))


def test_a_name_that_leads_to_no_manifest_is_fetched_once_and_holds_nothing_up() -> None:
    store = Store(2, keep_s=0.0)
    wrong = store.put(A, b"no manifest")
    named = store.nodes[A].storing.write(
        Writing("wrong", Kind.FILES, wrong.hash, wrong.size), WallTime(1.0), store.now
    )
    store.perform(A, named)
    gone = store.publish(A, "gone", contents(3))
    store.run(300)
    node = store.nodes[B]
    assert store.pulled[A] == 5, "three chunks and two that names lead to"
    assert node.logs.count("manifest_unusable") == 1
    assert (node.storing.lacking, node.storing.standing().unread) == (0, 0)
    store.perform(A, store.nodes[A].storing.write(
        Writing("gone", Kind.FILES, replaces=True), WallTime(2.0), store.now
    ))  # fmt: skip
    store.run(70)
    assert store.copies(gone) == [0] * 3


def test_a_reader_who_gives_up_ends_no_search_of_the_nodes_own() -> None:
    store = Store(2)
    store.nodes[A].refuses = True
    store.publish(A, "plays", contents(5))
    storing = store.nodes[B].storing
    store.run(2000, step_s=30.0)
    (record,) = [entry.record for entry in storing.register.living()]
    wanted = ObjectHash(record.manifest)
    store.perform(B, storing.read(wanted, record.size, store.now))
    store.perform(B, storing.read_no_more(wanted))
    store.nodes[A].refuses = False
    store.run(150)
    assert (storing.lacking, storing.standing().unread) == (0, 0)


def test_what_was_removed_is_not_fetched_any_more() -> None:
    store = Store(2)
    store.nodes[A].refuses = True
    manifest = store.publish(A, "plays", contents(5))
    store.run(5)
    waiting = store.nodes[B].storing
    assert waiting.standing().unfound == 1, "the manifest itself"
    removed = store.nodes[A].storing.write(
        Writing("plays", Kind.FILES, replaces=True), WallTime(2.0), store.now
    )
    store.perform(A, removed)
    store.nodes[A].refuses = False
    store.run(70)
    assert (waiting.standing().pulling, waiting.lacking) == (0, 0)
    assert store.copies(manifest) == [0] * 5


def test_a_name_is_taken_until_it_is_removed() -> None:
    store = Store(2)
    store.publish(A, "plays", contents(1))
    with pytest.raises(StateError, match="the name plays is taken"):
        store.publish(B, "plays", contents(2))
    store.publish(B, "plays", contents(2), replaces=True)
    for node in store.nodes.values():
        entry = node.storing.register.names.get("plays")
        assert entry is not None
        assert entry.record.writer == B


def test_who_would_not_be_believed_writes_no_name() -> None:
    store = Store(2)
    register = store.nodes[A].storing.register
    register._sign = lambda record: Named(sign(record).record, b"x" * 64, ())
    with pytest.raises(StateError, match="this node may not write names: not signed"):
        store.publish(A, "plays", contents(1))
    assert not register.living()


@pytest.mark.parametrize("name", ["", "Plays", "../etc", "a" * 97, "a b", "é"])
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(StateError, match="cannot be a name"):
        Store(1).publish(A, name, contents(1))


def test_names_of_strangers_and_without_sense_are_not_heard() -> None:
    store = Store(2)
    record = NameRecord("evil", "files", b"m" * 32, 10, 5, C, 0.0, 3, False, "")
    good = sign(record)
    wrong = [
        Named(good.record, b"x" * 64, ()),
        Named(b"garbage", good.signature, ()),
        sign(NameRecord("../up", "files", b"m" * 32, 10, 5, C, 0.0, 3, False, "")),
        sign(NameRecord("evil", "program", b"m" * 32, 10, 5, C, 0.0, 3, False, "")),
        sign(NameRecord("evil", "files", b"short", 10, 5, C, 0.0, 3, False, "")),
        sign(NameRecord("evil", "files", b"m" * 32, 10, 5, C, 0.0, 0, False, "")),
    ]
    storing = store.nodes[A].storing
    for proof in wrong:
        assert storing.hear(proof, B, store.now) == []
    assert len(storing.register.names) == 0
    assert storing.register.refused.total() == len(wrong)
    wake = storing.register.wake
    assert [effect for effect in wake(list, store.now) if isinstance(effect, Log)] == [
        Log(
            "warning",
            "names_refused",
            (
                ("count", 6),
                ("last", ""),
                ("writer", ""),
                ("told_by", short(B)),
                ("why", "no manifest, or no replicas"),
                ("since_start", "bad_signature (1), malformed (5)"),
            ),
        )
    ]
    storing.hear(wrong[0], B, store.now)
    assert not wake(list, store.now), "once a minute"
    assert wake(list, after(store.now, COMPLAIN_S))[0].fields[:3] == (
        *(("count", 1), ("last", "evil"), ("writer", short(C))),
    )


def test_damage_is_mended_from_others() -> None:
    store = Store(3)
    manifest = store.publish(A, "plays", contents(10))
    store.run(5)
    node, lost = store.nodes[B], manifest.chunks[4].hash
    del node.disk[lost]
    store.perform(B, node.storing.handle(ObjectLost(lost, "a flipped bit"), store.now))
    store.run(5)
    assert store.copies(manifest) == [3] * 10
    assert "chunk_lost" in node.logs


def test_a_node_without_room_reads_and_keeps_nothing_for_long() -> None:
    store = Store(3, keep_s=0.0)
    reader = store.add(D, capacity=0)
    manifest = store.publish(A, "plays", contents(6))
    store.run(5)
    assert reader.disk == {}
    for chunk in manifest.chunks:
        store.perform(D, reader.storing.read(chunk.hash, chunk.size, store.now))
    store.run(1)
    assert set(reader.told) == {chunk.hash for chunk in manifest.chunks}


def test_what_is_read_once_takes_no_more_room_than_a_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peerlm.node.leftovers.BORROWED_BYTES", 2000)
    store = Store(2)
    reader = store.add(D, capacity=0)
    manifest = store.publish(A, "plays", contents(40))
    store.run(5)
    for chunk in manifest.chunks:
        store.perform(D, reader.storing.read(chunk.hash, chunk.size, store.now))
        store.run(0.1, step_s=0.1)
    store.run(2)
    assert len(reader.told) == 40
    assert 1000 <= reader.storing.used <= 2000
    assert store.copies(manifest) >= [2] * 40


def test_who_has_no_room_keeps_what_it_put_until_enough_others_have_it() -> None:
    store = Store(1, keep_s=0.0)
    writer = store.add(D, capacity=0)
    manifest = store.publish(D, "plays", contents(5), replicas=2)
    store.run(120)
    assert store.copies(manifest) == [2] * 5, "one disk would not do"
    store.add(B)
    store.run(120)
    assert store.copies(manifest) == [2] * 5
    assert not writer.storing.catalog.surplus()


def test_what_has_its_name_still_to_come_is_not_dropped_for_want_of_room() -> None:
    store = Store(1, capacity=3000, keep_s=0.0)
    node = store.nodes[A]
    store.publish(A, "plays", contents(20))
    late = store.put(A, b"put, not published")
    store.run(120)
    assert late.hash in node.disk
    store.run(3600, step_s=30.0)
    assert late.hash not in node.disk


def test_a_name_is_saved_at_once_by_who_writes_it_and_who_hears_it() -> None:
    store = Store(2)
    store.run(5)
    store.publish(A, "plays", contents(1))
    assert all(store.nodes[peer].memory for peer in (A, B))


def test_a_full_node_says_so_and_takes_no_more() -> None:
    store = Store(2)
    small = store.add(C, capacity=6000)
    store.publish(A, "plays", contents(40))
    store.run(5)
    assert small.storing.used <= 6000
    assert small.storing.standing().full
    assert small.storing.lacking > 0


def test_who_cannot_show_what_it_claims_is_no_keeper_any_more() -> None:
    store = Store(4, keep_s=0.0)
    manifest = store.publish(A, "plays", contents(12))
    store.run(5)
    liar = store.nodes[B]
    liar.disk = dict.fromkeys(liar.disk, b"other bytes")
    liar.refuses = True
    store.run(600)
    trusted = [node for peer, node in store.nodes.items() if peer != B]
    assert all(B in node.storing.standing().distrusted for node in trusted)
    honest = [sum(c.hash in node.disk for node in trusted) for c in manifest.chunks]
    assert min(honest) == 3
    assert "store_node_distrusted" in store.nodes[A].logs


def test_nothing_is_dropped_on_a_guess() -> None:
    """A chunk that is others' to keep stays as long as they do not say that they have it."""
    store = Store(2, keep_s=0.0)
    store.publish(A, "plays", contents(10), replicas=1)
    store.run(5)
    for node in list(store.nodes.values()):
        node.refuses = True
    late = store.add(C, capacity=10**11)  # nearly everything is due to it, and it gets nothing
    store.run(120)
    assert late.disk == {} or all(len(d) < 3000 for d in late.disk.values())
    everywhere = set(store.nodes[A].disk) | set(store.nodes[B].disk)
    assert len(everywhere) >= 10


def test_what_comes_into_use_while_others_are_asked_is_not_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, asked = Store(5, keep_s=0.0), []
    send = store._send

    def sent(peer: PeerId, other: PeerId, message: Message) -> None:
        if peer == A and isinstance(message, HaveAsk) and message.is_due:
            asked.append(message)
        send(peer, other, message)

    monkeypatch.setattr(store, "_send", sent)
    store.nodes[A].storing.is_held = lambda _: bool(asked)
    manifest = store.publish(A, "plays", contents(40))
    store.run(120)
    assert asked
    assert all(chunk.hash in store.nodes[A].disk for chunk in manifest.chunks)


def test_a_survey_counts_who_is_there() -> None:
    store = Store(4)
    manifest = store.publish(A, "plays", contents(30))
    store.run(5)
    storing = store.nodes[A].storing
    survey, effects = storing.survey([chunk.hash for chunk in manifest.chunks], store.now)
    store.perform(A, effects)
    assert survey.counts == store.copies(manifest)
    on_disks = {p: sum(c.hash in n.disk for c in manifest.chunks) for p, n in store.nodes.items()}
    assert survey.here == on_disks.pop(A)
    assert survey.kept == on_disks
    assert store.nodes[A].surveyed == [survey.number]


def test_of_a_manifest_it_is_asked_who_has_it_all_and_two_copies_are_enough() -> None:
    store = Store(1)
    manifest = store.publish(A, "plays", contents(3))
    storing = store.nodes[A].storing
    whole = ObjectHash(storing.register.living()[0].record.manifest)
    asked = storing.held_by(whole, store.now)
    assert asked is not None
    assert (asked[0].counts, asked[1]) == ([1] * 4, 1), "alone, one is all there can be"
    store.nodes[A].refuses = True
    store.add(B)
    asked = storing.held_by(whole, store.now)
    assert asked is not None
    survey, enough, effects = asked
    store.perform(A, effects)
    assert (survey.least, enough) == (1, 2)
    store.nodes[A].refuses = False
    store.run(70)
    asked = storing.held_by(whole, store.now)
    assert asked is not None
    store.perform(A, asked[2])
    assert asked[0].counts == [2, *store.copies(manifest)] == [2] * 4
    assert storing.held_by(ObjectHash(b"x" * 32), store.now) is None


def test_a_silent_node_holds_no_survey_up() -> None:
    store = Store(3)
    manifest = store.publish(A, "plays", contents(3))
    store.run(5)
    storing = store.nodes[A].storing
    survey, _ = storing.survey([chunk.hash for chunk in manifest.chunks], store.now)
    storing.received(B, HaveGive(survey.number, b"\xff"), store.now)
    storing.wake(lambda: (), type(store.now)(store.now + 10))
    assert survey.is_done
    assert survey.silent == [C]
    assert survey.counts == [2, 2, 2]


def test_an_object_that_nobody_has_is_looked_for_until_it_is_not_wanted() -> None:
    store = Store(2)
    missing = ObjectHash(b"m" * 32)
    storing = store.nodes[A].storing
    store.perform(A, storing.read(missing, 10, store.now))
    store.run(3)
    assert storing.standing().unfound == 1
    store.perform(A, storing.read_no_more(missing))
    assert storing.standing().pulling == 0


def test_what_the_disk_takes_ends_the_trouble_that_is_told_of() -> None:
    store = Store(2)
    chunk, storing = store.put(B, b"there"), store.nodes[A].storing
    ended = PullEnded(TransferId(b"t" * 16), "failed", "the disk is full")
    store.perform(A, storing.handle(ended, store.now))
    assert storing.standing().trouble == "the disk is full"
    store.perform(A, storing.handle(ObjectKept(*chunk), store.now))
    assert storing.standing().trouble == ""
