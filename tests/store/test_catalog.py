"""A node's catalog: what is due here, what is wanted, what may go; beside a plain model of the same rules."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerlm.store.catalog import REPLICAS_MAX, Catalog, StoreNode, Summary, Want
from peerlm.store.manifest import Chunk
from peerlm.store.owners import Tables, empty_table
from peerlm.store.rendezvous import Field, Site, keys_of
from peerlm.types import ObjectHash, PeerId

MIB = 1 << 20


def peer(number: int) -> PeerId:
    return PeerId(blake3(f"peer {number}".encode()).digest()[:16])


def node(number: int, capacity: int = 100, label: str = "", is_live: bool = True) -> StoreNode:
    return StoreNode(peer(number), capacity, label, is_live)


def nodes(count: int) -> list[StoreNode]:
    return [node(number, 100 + 10 * number) for number in range(count)]


def away(stable: Sequence[StoreNode], *gone: PeerId) -> list[StoreNode]:
    return [n._replace(is_live=False) if n.peer in gone else n for n in stable]


def name(text: object) -> ObjectHash:
    return ObjectHash(blake3(str(text).encode()).digest())


def chunks(*numbers: int) -> list[Chunk]:
    return [Chunk(name(number), 4 * MIB - number) for number in numbers]


def catalog(
    stable: Sequence[StoreNode], count: int = 40, replicas: int = 3, me: int = 0
) -> Catalog:
    found = Catalog(peer(me))
    found.nodes_are(stable)
    found.know(name("manifest"), chunks(*range(count)), replicas)
    return found


def due_to(stable: Sequence[StoreNode], me: PeerId, count: int = 40) -> set[int]:
    mine = Catalog(me)
    mine.know(name("manifest"), chunks(*range(count)), 3)
    mine.nodes_are(stable)
    return {number for number in range(count) if mine.is_due(name(number))}


# ------------------------------------------------------------------------------- who holds what


def test_every_chunk_is_due_to_its_owners_and_to_nobody_else() -> None:
    stable = nodes(7)
    one = catalog(stable)
    due = {n.peer: due_to(stable, n.peer) for n in stable}
    for number in range(40):
        owners = one.owners(name(number))
        assert len(set(owners)) == 3
        assert {p for p in due if number in due[p]} == set(owners)


def test_who_does_not_store_is_due_nothing() -> None:
    stable = nodes(5)
    for me in (peer(9), peer(5)):
        mine = Catalog(me)
        mine.nodes_are([*stable, node(5, capacity=0)])
        mine.know(name("manifest"), chunks(*range(40)), 3)
        assert mine.summary().due == 0
        assert mine.wanted(10) == []
        assert set(mine.sources(name(1))) == {n.peer for n in stable}


def test_fewer_nodes_than_replicas_each_hold_all() -> None:
    mine = catalog(nodes(2))
    assert mine.summary().due == 40
    assert mine.summary().replicas_possible == 2
    assert len(mine.owners(name(0))) == 2


def test_an_unknown_object_has_sources_but_no_owners() -> None:
    mine = catalog(nodes(5))
    assert mine.owners(name("unknown")) == ()
    assert not mine.is_due(name("unknown"))
    assert set(mine.sources(name("unknown"))) == {peer(n) for n in range(1, 5)}


def test_sources_are_the_live_owners_and_then_all_others_by_hashing() -> None:
    stable = nodes(8)
    mine = catalog(stable, me=99)
    field = Field([Site(n.peer, float(n.capacity), n.label) for n in stable])
    for number in range(10):
        order = field.order(keys_of([name(number)])[0])
        peers = [field.sites[place].peer for place in order]
        assert list(mine.sources(name(number))) == peers
        assert list(mine.owners(name(number))) == peers[:3]
        mine.nodes_are(away(stable, peers[1]))
        assert list(mine.sources(name(number))) == [p for p in peers if p != peers[1]]
        mine.nodes_are(stable)


# -------------------------------------------------------------------------- what is here, wanted


def test_what_is_due_is_wanted_until_it_is_here_and_again_when_it_is_lost() -> None:
    mine = catalog(nodes(5))
    due = [chunk for chunk in chunks(*range(40)) if mine.is_due(chunk.hash)]
    wanted = mine.wanted(100)
    assert {(w.hash, w.size) for w in wanted} == set(due)
    assert not any(want.is_urgent for want in wanted)
    assert mine.wanted(3) == wanted[:3]
    for want in wanted[:2]:
        mine.kept(want.hash)
    assert mine.lacking == mine.summary().lacking == len(due) - 2
    assert mine.wanted(3) == wanted[2:5]
    mine.lost(wanted[0].hash)
    assert mine.wanted(1) == wanted[:1]
    for want in wanted:
        mine.kept(want.hash)
    assert mine.wanted(3) == []
    assert mine.summary().held_due == mine.summary().due == len(due)


def test_owners_of_something_new_do_not_all_begin_with_the_same_chunk() -> None:
    firsts = {catalog(nodes(3), me=me).wanted(1)[0].hash for me in range(3)}
    assert len(firsts) == 3


def test_what_is_not_due_here_is_surplus_and_what_nobody_lists_is_unreferenced() -> None:
    mine = catalog(nodes(8))
    other = next(n for n in range(40) if not mine.is_due(name(n)))
    mine.kept(name(other))
    mine.kept(name("stray"))
    assert mine.surplus() == [name(other)]
    assert mine.unreferenced() == [name("stray")]
    mine.lost(name("stray"))
    mine.lost(name(other))
    assert mine.surplus() == mine.unreferenced() == []


def test_a_chunk_of_several_manifests_is_kept_once_and_as_often_as_the_most_careful_wants() -> None:
    mine = catalog(nodes(8), count=10, replicas=2)
    mine.know(name("other"), [*chunks(8, 9, 10), *chunks(9)], 4)
    assert [len(mine.owners(name(n))) for n in (7, 8, 10)] == [2, 4, 4]
    assert mine.summary().chunks_known == 11
    assert mine.summary().bytes_known == sum(chunk.size for chunk in chunks(*range(11)))
    mine.forget(name("other"))
    assert [len(mine.owners(name(n))) for n in (7, 8, 10)] == [2, 2, 0]
    assert mine.knows(name("manifest"))
    assert not mine.knows(name("other"))
    mine.forget(name("other"))
    mine.know(name("manifest"), chunks(*range(10)), 3)
    assert {len(mine.owners(name(n))) for n in range(10)} == {3}


def test_what_was_here_before_its_manifest_counts_and_stays_when_that_goes() -> None:
    mine = Catalog(peer(0))
    mine.kept(name(1))
    mine.nodes_are(nodes(1))
    mine.know(name("manifest"), chunks(1, 2), 1)
    assert mine.unreferenced() == []
    assert mine.wanted(9) == [Want(*chunks(2)[0], False)]
    mine.forget(name("manifest"))
    assert mine.unreferenced() == [name(1)]
    assert mine.summary() == Summary(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    mine.know(name("next"), chunks(3, 1), 1)  # in the rows that were freed
    assert mine.wanted(9) == [Want(*chunks(3)[0], False)]


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerlm.store.catalog.STEP", 3)


def test_of_what_is_being_learnt_nothing_counts_before_the_last_step(short_steps: None) -> None:
    mine = catalog(nodes(8), count=10)
    mine.kept(name(12))
    before = mine.summary()
    learning = mine.learn(name("other"), chunks(*range(5, 20)), 2)
    for _ in range(4):
        assert not learning.step()
        assert mine.summary() == before
        assert mine.surplus() == []
        assert not mine.is_due(name(12))
        assert mine.owners(name(12)) == ()
        assert mine.replicas(name(12)) == 0
    assert learning.step()
    assert mine.summary().chunks_known == 20
    assert len(mine.owners(name(12))) == 2
    assert mine.lists(name("other"), name(12))
    assert not mine.lists(name("other"), name(2))
    assert not mine.lists(name("none"), name(12))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_happens_between_steps_the_end_is_the_same(
    short_steps: None, data: st.DataObject
) -> None:
    """A manifest learnt in parts among other changes, beside one that was known at once before them all."""
    stable = nodes(6)
    numbers = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=16))
    replicas = data.draw(st.integers(1, 4))
    mine, other = catalog(stable, count=8), catalog(stable, count=8)
    if data.draw(st.booleans()):  # in how many it was wanted before
        for one in (mine, other):
            one.know(name("new"), chunks(*numbers), data.draw(st.integers(1, 4)))
    other.know(name("new"), chunks(*numbers), replicas)
    learning = mine.learn(name("new"), chunks(*numbers), replicas)
    is_given_up = False
    while True:
        match data.draw(st.sampled_from(["step", "step", "nodes", "forget", "kept", "give up"])):
            case "step":
                if learning.step():
                    break
            case "nodes":
                stable = data.draw(st.sampled_from([nodes(6), nodes(5), away(nodes(6), peer(1))]))
                mine.nodes_are(stable)
            case "forget":
                for one in (mine, other):
                    one.forget(name("manifest"))
            case "kept":
                here = data.draw(st.integers(0, 20))
                for one in (mine, other):
                    one.kept(name(here))
            case "give up":
                learning.give_up()
                is_given_up = True
                break
    if is_given_up:
        for one in (mine, other):
            one.forget(name("new"))
    other.nodes_are(stable)
    assert mine.summary() == other.summary()
    for number in range(21):
        assert mine.owners(name(number)) == other.owners(name(number))
        assert mine.is_due(name(number)) == other.is_due(name(number))
    assert sorted(mine.unreferenced()) == sorted(other.unreferenced())
    assert {w.hash for w in mine.wanted(99)} == {w.hash for w in other.wanted(99)}


def test_absurd_numbers_of_replicas_cost_no_more_than_many() -> None:
    mine = catalog(nodes(REPLICAS_MAX + 8), count=3, replicas=10**9)
    assert len(mine.owners(name(0))) == REPLICAS_MAX


# ------------------------------------------------------------------- reboots, deaths and urgency


def test_a_reboot_moves_nothing() -> None:
    stable = nodes(12)
    before = {n.peer: due_to(stable, n.peer) for n in stable}
    for gone in stable:
        for one in stable:
            assert due_to(away(stable, gone.peer), one.peer) == before[one.peer]


def test_two_owners_away_at_once_have_stand_ins_that_are_the_owners_later() -> None:
    stable = nodes(12)
    one = catalog(stable)
    first, second, third = one.owners(name(0))
    gone = away(stable, first, second)
    later = [n for n in stable if n.peer not in (first, second)]
    owners = catalog(later).owners(name(0))
    assert third in owners
    for n in later:
        mine = Catalog(n.peer)
        mine.know(name("manifest"), chunks(0), 3)
        mine.nodes_are(gone)
        assert mine.owners(name(0)) == (first, second, third)
        assert mine.is_due(name(0)) == (n.peer in owners)
        wants = mine.wanted(1)
        assert [want.is_urgent for want in wants] == [True] * (n.peer in owners)
        assert mine.summary().urgent == len(wants)
        mine.nodes_are(later)
        assert [want.is_urgent for want in mine.wanted(1)] == [False] * (n.peer in owners)
    asker = catalog(gone, me=99)
    assert set(asker.sources(name(0))[:3]) == set(owners)
    assert asker.sources(name(0))[0] == third


@pytest.mark.parametrize("replicas", [1, 2])
def test_few_replicas_are_stood_in_for_as_soon_as_one_is_away(replicas: int) -> None:
    stable = nodes(8)
    gone = catalog(stable, replicas=replicas).owners(name(0))[0]
    due = 0
    for n in stable:
        mine = catalog(away(stable, gone), replicas=replicas, me=stable.index(n))
        due += mine.is_due(name(0)) and n.peer != gone
    assert due == replicas


def test_an_owner_that_lacks_a_chunk_does_not_count_itself_among_those_that_are_left() -> None:
    stable = nodes(12)
    first, second, third = catalog(stable).owners(name(0))
    mine = Catalog(third)
    mine.know(name("manifest"), chunks(0), 3)
    mine.nodes_are(stable)
    assert not mine.wanted(1)[0].is_urgent
    mine.nodes_are(away(stable, first))
    assert mine.wanted(1)[0].is_urgent
    mine.nodes_are(stable)
    assert not mine.wanted(1)[0].is_urgent
    assert second in mine.sources(name(0))[:2]


def test_urgent_ones_come_first() -> None:
    stable = nodes(12)
    mine = catalog(stable, count=300)
    mine.nodes_are(away(stable, peer(3), peer(4)))
    urgency = [want.is_urgent for want in mine.wanted(300)]
    assert urgency == sorted(urgency, reverse=True)
    assert 0 < sum(urgency) < len(urgency)


def test_a_label_that_fails_as_one_leaves_every_chunk_alone() -> None:
    stable = [node(n, label=f"rack {n // 4}") for n in range(16)]
    without = away(stable, *(peer(n) for n in range(4)))
    for me in range(4, 16):
        assert due_to(without, peer(me), 200) == due_to(stable, peer(me), 200)
    one, live = catalog(without, count=200), {peer(n) for n in range(4, 16)}
    for number in range(200):
        assert len(live.intersection(one.owners(name(number)))) >= 2


# -------------------------------------------------------------------------------- moves at scale


def test_a_death_and_a_join_among_200_move_little_more_than_they_must() -> None:
    rng = Random(1)
    stable = [
        node(n, rng.randint(100, 400), f"rack {n // 6}" if n < 60 else "") for n in range(201)
    ]
    keys = np.random.default_rng(1).integers(0, 2**64, 20_000, dtype=np.uint64)
    replicas = np.full(len(keys), 3, np.int16)
    table = empty_table().with_rows(keys, replicas, np.arange(len(keys)))
    held = []
    for members in (stable[:200], stable, [*stable[:7], *stable[8:]]):  # a join, a death
        table = table.with_nodes(keys, replicas, members)
        peers = [site.peer for site in table.field.sites]
        held.append([{peers[place] for place in places} for places in table.owners.T.tolist()])
    for before, after, changed in ((held[0], held[1], 200), (held[1], held[2], 7)):
        moved = sum(len(now - then) for then, now in zip(before, after, strict=True))
        least = sum(peer(changed) in then | now for then, now in zip(before, after, strict=True))
        assert least > 0
        assert moved <= 1.2 * least


@pytest.mark.parametrize("labels", [[""], ["", "a", "b", "c"], ["a", "b"], ["a", "b", "c", "d"]])
def test_a_table_that_followed_changes_is_the_one_made_anew(labels: list[str]) -> None:
    rng = Random(len(labels))
    keys = np.random.default_rng(1).integers(0, 2**64, 400, dtype=np.uint64)
    replicas = np.array([rng.choice([0, 1, 2, 3, 3, 4]) for _ in keys], np.int16)
    rows = np.arange(len(keys))
    one = empty_table().with_rows(keys, replicas, rows)
    stable = [node(n, rng.randint(50, 400), rng.choice(labels)) for n in range(40)]
    for number in range(40, 60):
        one = one.with_nodes(keys, replicas, stable)
        anew = empty_table().with_rows(keys, replicas, rows).with_nodes(keys, replicas, stable)
        assert (one.owners == anew.owners).all()
        assert (one.stand_ins == anew.stand_ins).all()
        for _ in range(rng.choice([0, 1, 1, 2])):
            stable.pop(rng.randrange(len(stable)))
        at = rng.randrange(len(stable))
        match rng.choice(["join", "change", "flip", "flip", "new label"]):
            case "join":
                stable.append(node(number, rng.randint(50, 400), rng.choice(labels)))
            case "change":
                stable[at] = stable[at]._replace(capacity=rng.randint(50, 400))
            case "new label":
                stable[at] = stable[at]._replace(label=f"label {number}")
            case _:
                stable[at] = stable[at]._replace(is_live=not stable[at].is_live)


# ------------------------------------------------------------------------------ beside a model


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, object]]:
    """What happens to a catalog, in words."""
    member = st.tuples(
        st.integers(0, 9),
        st.sampled_from([0, 50, 100, 400]),
        st.sampled_from(["", "", "a", "b"]),
        st.booleans() | st.just(True),
    )
    step = st.one_of(
        st.tuples(st.just("nodes"), st.lists(member, unique_by=lambda m: m[0], max_size=10)),
        st.tuples(
            st.just("know"),
            st.tuples(
                st.integers(0, 3), st.lists(st.integers(0, 30), max_size=12), st.integers(1, 5)
            ),
        ),
        st.tuples(st.just("forget"), st.integers(0, 3)),
        st.tuples(st.just("kept"), st.integers(0, 35)),
        st.tuples(st.just("lost"), st.integers(0, 35)),
    )
    return draw(st.lists(step, max_size=14))


def expected_owners(stable: Sequence[StoreNode], chunk: ObjectHash, replicas: int) -> list[PeerId]:
    """By the rule, one chunk at a time."""
    field = Field([Site(n.peer, float(n.capacity), n.label) for n in stable if n.capacity])
    order = field.order(keys_of([chunk])[0])
    return [field.sites[place].peer for place in order][:replicas]


@settings(max_examples=60)
@given(histories())
def test_whatever_happens_what_is_due_follows_from_what_is_known_alone(
    history: list[tuple[str, object]],
) -> None:
    shared = Tables()
    twins = [Catalog(peer(0)), Catalog(peer(0), shared), Catalog(peer(0), shared)]
    known: dict[int, tuple[list[int], int]] = {}
    stable: list[StoreNode] = []
    here: set[int] = set()
    for what, how in history:
        match what, how:
            case "nodes", list() as members:
                stable = [StoreNode(peer(n), c, label, live) for n, c, label, live in members]
                for twin in twins:
                    twin.nodes_are(stable)
            case "know", (manifest, numbers, replicas) if isinstance(numbers, list):
                if manifest in known:
                    numbers = known[manifest][0]  # a manifest never changes
                known[manifest] = numbers, replicas
                for twin in twins:
                    twin.know(name(f"manifest {manifest}"), chunks(*numbers), replicas)
            case "forget", int() as manifest:
                known.pop(manifest, None)
                for twin in twins:
                    twin.forget(name(f"manifest {manifest}"))
            case "kept", int() as number:
                here.add(number)
                for twin in twins:
                    twin.kept(name(number))
            case "lost", int() as number:
                here.discard(number)
                for twin in twins:
                    twin.lost(name(number))
    wanted_in = {
        number: max(replicas for numbers, replicas in known.values() if number in numbers)
        for numbers, _ in known.values()
        for number in numbers
    }
    live = [n for n in stable if n.is_live]
    due, urgent = set(), set()
    for number, replicas in wanted_in.items():
        owners = expected_owners(stable, name(number), replicas)
        there = [p for p in owners if p in {n.peer for n in live}]
        standing = owners
        if len(there) < len(owners) and len(there) <= min(1, replicas - 1):
            standing = owners + expected_owners(live, name(number), replicas)
        if peer(0) in standing:
            due.add(number)
            left = len([p for p in there if p != peer(0)])
            if len(there) < len(owners) and left <= min(1, replicas - 1) and number not in here:
                urgent.add(number)
        for twin in twins:
            assert list(twin.owners(name(number))) == owners
            assert twin.is_due(name(number)) == (peer(0) in standing)
            assert set(twin.sources(name(number))) == {
                n.peer for n in live if n.capacity and n.peer != peer(0)
            }
    size = {number: chunk.size for number, chunk in enumerate(chunks(*range(36)))}
    expected = Summary(
        chunks_known=len(wanted_in),
        bytes_known=sum(size[n] for n in wanted_in),
        due=len(due),
        due_bytes=sum(size[n] for n in due),
        held_due=len(due & here),
        lacking=len(due - here),
        lacking_bytes=sum(size[n] for n in due - here),
        surplus=len(here & wanted_in.keys() - due),
        urgent=len(urgent),
        replicas_possible=min(
            max(wanted_in.values(), default=0), len([n for n in live if n.capacity])
        ),
    )
    for twin in twins:
        assert twin.summary() == expected
        assert {w.hash for w in twin.wanted(99)} == {name(n) for n in due - here}
        assert {w.hash for w in twin.wanted(99) if w.is_urgent} == {name(n) for n in urgent}
        assert set(twin.surplus()) == {name(n) for n in here & wanted_in.keys() - due}
        assert set(twin.unreferenced()) == {name(n) for n in here - wanted_in.keys()}
    assert twins[0].wanted(99) == twins[1].wanted(99) == twins[2].wanted(99)
