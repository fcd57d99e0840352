"""Names that were removed do not come back with whoever was away, though tombstones end; and nothing is lost where all were."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from store_scene import Store, author, peer_of, sign

from peerlm.config import StoreSection
from peerlm.errors import AuthError
from peerlm.node.library import Library
from peerlm.node.stored import Stored
from peerlm.store.current import COMPANY_S, DAY_S, SETTLED_S
from peerlm.store.names import HIGHEST, LOWEST
from peerlm.types import Instant, PeerId, WallTime
from peerlm.wire.message import Named, NameRecord, NamesAsk, NamesGive

A, B, C, D = (peer_of(number) for number in range(1, 5))


def live(store: Store, days: float) -> None:
    """Let time pass for those who are up."""
    store.run(days * DAY_S, step_s=DAY_S / 2)


def swarm(count: int = 3) -> Store:
    """A swarm of some days, with two names."""
    store = Store(count)
    for name in ("plays", "laws"):
        store.publish(A, name, [random.Random(name).randbytes(100)])
    live(store, 3)
    assert all(node.storing.register.is_current for node in store.nodes.values())
    return store


def living(store: Store, peer: PeerId) -> list[str]:
    return sorted(e.record.name for e in store.nodes[peer].storing.register.living())


def known(store: Store, peer: PeerId) -> int:
    return len(store.nodes[peer].storing.register.names)


def settle(store: Store) -> None:
    """For as long as it takes to be current again."""
    store.run(5 * SETTLED_S, step_s=10)


def everybody(store: Store) -> list[list[str]]:
    return [living(store, peer) for peer, node in store.nodes.items() if node.is_up]


def test_a_tombstone_ends_after_thirty_days_and_the_name_is_free() -> None:
    store = swarm()
    store.remove(A, "plays")
    live(store, 29)
    assert [known(store, peer) for peer in store.nodes] == [2, 2, 2]
    live(store, 2)
    assert [known(store, peer) for peer in store.nodes] == [1, 1, 1]
    store.publish(B, "plays", [b"anew"])
    live(store, 40)
    assert everybody(store) == [["laws", "plays"]] * 3


@pytest.mark.parametrize("days", [15, 25, 60, 200])
def test_who_was_away_brings_nothing_back_and_keeps_what_is_alive(days: float) -> None:
    store = swarm()
    store.kill(C)
    store.remove(A, "plays")
    live(store, days)
    store.back(C)
    assert "plays" not in [*living(store, A), *living(store, B)]
    settle(store)
    assert everybody(store) == [["laws"]] * 3
    live(store, 3)
    assert everybody(store) == [["laws"]] * 3
    assert all(node.storing.register.is_current for node in store.nodes.values())


def test_who_was_away_takes_the_name_that_was_written_anew() -> None:
    """Its own record counts further, and so does its tombstone."""
    store = swarm()
    for _ in range(3):
        store.remove(C, "plays")
        store.publish(C, "plays", [b"again and again"])
    store.remove(C, "laws")
    live(store, 1)
    store.kill(C)
    store.remove(A, "plays")
    live(store, 60)
    store.publish(A, "plays", [b"anew"])
    store.publish(B, "laws", [b"anew too"])
    live(store, 60)
    store.back(C)
    settle(store)
    assert everybody(store) == [["laws", "plays"]] * 3
    hashes = {tuple(n.storing.register.encode()) for n in store.nodes.values()}
    assert len(hashes) == 1


def test_what_was_written_while_alone_comes_along() -> None:
    store = swarm()
    store.part({A: 0, B: 0, C: 1})
    store.remove(A, "plays")
    live(store, 60)
    assert not store.nodes[C].storing.register.is_current, "it was alone"
    store.publish(C, "mine", [b"written alone"])
    store.part({})
    settle(store)
    assert everybody(store) == [["laws", "mine"]] * 3


def test_one_that_all_others_have_left_has_for_each_what_it_missed() -> None:
    store = swarm(2)
    store.kill(B)
    store.remove(A, "plays")
    live(store, 100)
    assert known(store, A) == 2
    store.back(B)
    settle(store)
    assert everybody(store) == [["laws"]] * 2
    live(store, 2)
    assert everybody(store) == [["laws"]] * 2
    assert known(store, A) == known(store, B) == 1, "in company again"


def test_where_all_were_away_nothing_is_lost_and_nothing_comes_back() -> None:
    store = swarm()
    store.kill(C)
    store.remove(A, "plays")
    store.publish(B, "news", [b"news"])
    live(store, 1)
    store.kill(A, B)
    live(store, 60)
    for peer in (C, B, A):
        store.back(peer)
        store.run(10)
    newcomer = store.add(D)
    store.run(COMPANY_S + 300, step_s=20)
    assert everybody(store) == [["laws", "news"]] * 4
    assert newcomer.storing.register.is_current
    live(store, 2)
    assert everybody(store) == [["laws", "news"]] * 4
    assert known(store, A) == 2, "the tombstone has ended"


def test_a_newcomer_that_hears_of_it_from_one_that_was_away_does_not_keep_it() -> None:
    store = swarm()
    store.kill(C)
    store.remove(A, "plays")
    live(store, 60)
    store.part({A: 0, B: 0, C: 1, D: 1})
    store.back(C)
    store.add(D)
    store.run(60)
    assert living(store, D) == ["laws", "plays"]
    store.part({})
    settle(store)
    assert everybody(store) == [["laws"]] * 4


def test_old_names_are_taken_from_one_that_is_current_alone() -> None:
    store = swarm()
    old = store.nodes[C].storing.register.names.get("plays")
    assert old is not None
    store.remove(A, "plays")
    live(store, 60)
    storing = store.nodes[A].storing
    store.perform(A, storing.hear(old.proof, C, store.now))
    store.perform(A, storing.received(C, NamesGive((old.proof,)), store.now))
    assert everybody(store) == [["laws"]] * 3
    store.perform(A, storing.received(C, NamesGive((old.proof,), True), store.now))
    assert living(store, A) == ["laws", "plays"], "it was not removed, or C would not have it"
    assert living(store, B) == ["laws"], "no rumor goes about what is old"


@pytest.mark.parametrize("is_believed", [True, False])
def test_what_newcomers_do_not_believe_stays_with_those_who_know_it(is_believed: bool) -> None:
    """Its writer was revoked: that a current node has not got it does not say that it was removed."""
    store = swarm()
    live(store, 60)
    store.kill(A, B, C)
    for newcomer in (A, B):
        store.nodes[newcomer].memory = b""
        store.back(newcomer)
    store.run(COMPANY_S + 120, step_s=20)
    assert store.nodes[A].storing.register.is_current
    live(store, 60)
    store.part({A: 0, B: 0, C: 1})
    store.back(C)
    for peer in (A, B, C):
        if peer != C or not is_believed:
            store.nodes[peer].storing.register._author = refuse
    store.part({})
    settle(store)
    assert living(store, C) == ([] if is_believed else ["laws", "plays"])


def refuse(proof: Named) -> PeerId:
    raise AuthError("revoked", "no longer a member")


@pytest.mark.parametrize("may_store", [True, False])
def test_no_name_goes_by_the_word_of_one_that_may_not_store(may_store: bool) -> None:
    said = NameRecord("plays", "files", b"m" * 32, 10, 1, A, 1.0, 3, False, "")
    certificates = SimpleNamespace(sign_name=sign, author_of=author, wall=WallTime(60 * DAY_S))
    company: Any = SimpleNamespace(
        certificates=certificates,
        me=A,
        allows=lambda peer, role: peer == A or may_store,
        spread_name=lambda *_: [],
        endpoint=lambda peer: None,
    )
    stored, rng, now = Stored(1), random.Random(1), Instant(0.0)
    library = Library(company, Mock(), StoreSection(), stored, {}, rng, now)
    names = library.storing.register.names
    names.merge(said, sign(said))
    library.received(B, NamesAsk(LOWEST, HIGHEST, (), True, True), now)
    assert len(names) == (not may_store)


@pytest.mark.parametrize("seed", range(2))
def test_a_swarm_of_which_some_are_always_away_has_what_was_written_and_not_removed(
    seed: int,
) -> None:
    store, rng = swarm(4), random.Random(seed)
    wanted = {"plays", "laws"}
    for _ in range(25):
        up = [peer for peer, node in store.nodes.items() if node.is_up]
        down = [peer for peer in store.nodes if peer not in up]
        if len(up) > 2 and rng.random() < 0.6:
            store.kill(rng.choice(up))
        elif down:
            store.back(rng.choice(down))
            settle(store)
        writer = rng.choice([peer for peer, node in store.nodes.items() if node.is_up])
        assert set(living(store, writer)) == wanted
        name = rng.choice(["plays", "laws", "news", "poems"])
        if name in wanted:
            store.remove(writer, name)
        else:
            store.publish(writer, name, [rng.randbytes(50)])
        wanted ^= {name}
        live(store, rng.choice([0.5, 2, 12, 35]))
    for peer in [peer for peer, node in store.nodes.items() if not node.is_up]:
        store.back(peer)
    settle(store)
    assert everybody(store) == [sorted(wanted)] * 4
