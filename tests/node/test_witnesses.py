"""Before a copy goes others show the chunk: a claim is no copy, and what takes too long is none either."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from blake3 import blake3
from store_scene import Node, Store, peer_of

from peerlm.effects import Effect, MakeProof, Send
from peerlm.events import ProofMade
from peerlm.node.proofs import SHOWN_MAX, SHOWN_S, Proofs, drawn_for
from peerlm.node.stored import Stored
from peerlm.node.survey import Surveys
from peerlm.node.witnesses import AGAIN_S, ASKED_MAX, CLAIMS_S, PROVEN_S, Shown, Witnesses
from peerlm.store.catalog import Catalog
from peerlm.types import Instant, ObjectHash, PeerId
from peerlm.wire.message import Message, ProofAsk, ProofGive

A, B, C, D, E = (peer_of(number) for number in range(1, 6))


def contents(count: int) -> list[bytes]:
    rng = random.Random(1)
    return [rng.randbytes(200 + i) for i in range(count)]


# ------------------------------------------------------------------------------- in a store


def empty_handed(store: Store, peer: PeerId) -> Node:
    """It offers more room than all others, says of everything that it keeps it, and keeps nothing."""
    node = Node(store._made(peer, Stored(0)), 10**12, "", claims_all=True, refuses=True)
    store.nodes[peer] = node
    store.start(peer)
    return node


Asked = Callable[[ProofAsk], tuple[PeerId, ProofAsk]]

LIES: dict[str, tuple[bool, Asked | None]] = {
    "says that it lacks it after all": (False, None),
    "is silent": (True, None),
    "has us show it": (False, lambda ask: (A, ask)),
    "has us show it as if it asked": (
        False,
        lambda ask: (A, replace(ask, nonce=drawn_for(A, ask.seed))),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_who_only_says_that_it_keeps_a_chunk_never_lets_the_last_copy_go(lie: str) -> None:
    store = Store(1, keep_s=0.0)
    manifest = store.publish(A, "plays", contents(12), replicas=1)
    liar = empty_handed(store, D)
    liar.is_silent, liar.passes_on = LIES[lie]
    due = store.nodes[A].storing.catalog.surplus()
    assert len(due) > 6, "it is the liar's to keep"
    store.run(50)
    assert store.copies(manifest) == [1] * 12
    store.run(600, 2.0)
    assert store.copies(manifest) == [1] * 12
    if lie != "is silent":
        assert D in store.nodes[A].storing.standing().distrusted


def test_a_true_keeper_beside_a_liar_is_not_enough_for_two() -> None:
    store = Store(1, keep_s=0.0)
    manifest = store.publish(A, "plays", contents(12), replicas=2)
    empty_handed(store, D).is_silent = True
    store.add(B, capacity=10**11)
    store.run(50)
    assert min(store.copies(manifest)) == 2


def test_to_let_a_chunk_go_costs_one_question_to_each_that_is_to_keep_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store(5, keep_s=0.0)
    asked: Counter[bytes] = Counter()
    send = store._send

    def sent(peer: PeerId, other: PeerId, message: Message) -> None:
        if peer == A and isinstance(message, ProofAsk):
            asked[message.object_hash] += 1
        send(peer, other, message)

    monkeypatch.setattr(store, "_send", sent)
    manifest = store.publish(A, "plays", contents(100))
    store.run(50)
    gone = {chunk.hash for chunk in manifest.chunks} - store.nodes[A].disk.keys()
    assert len(gone) > 20
    assert store.copies(manifest) == [3] * 100
    assert sum(count == 3 for chunk, count in asked.items() if chunk in gone) >= len(gone) - 1
    assert sum(asked.values()) <= 3 * len(gone) + 3, "but for those of now and then"


def test_nodes_that_show_one_chunk_in_ten_seconds_are_waited_for_and_not_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of an earlier release."""
    store = Store(4, keep_s=0.0)
    shown_at: dict[PeerId, Instant] = {}
    send = store._send

    def sent(peer: PeerId, other: PeerId, message: Message) -> None:
        if isinstance(message, ProofAsk):
            if store.now - shown_at.get(other, -100.0) < SHOWN_S:
                return
            shown_at[other] = store.now
        send(peer, other, message)

    monkeypatch.setattr(store, "_send", sent)
    manifest = store.publish(A, "plays", contents(15), replicas=2)
    store.run(1200)
    assert store.copies(manifest) == [2] * 15
    assert not any(node.storing.standing().distrusted for node in store.nodes.values())


# --------------------------------------------------------------------------------- one by one


class Scene:
    """Chunks that three others say to keep."""

    def __init__(self) -> None:
        self.now, self.busy = Instant(100.0), set[PeerId]()
        self.witnesses = Witnesses(self.busy.__contains__, random.Random(1))
        self.data = {ObjectHash(blake3(data).digest()): data for data in contents(10)}
        self.chunks = list(self.data)
        self.anew: dict[PeerId, ProofAsk] = {}
        """What the last answer has led to."""

    def call(self, *chunks: ObjectHash, needed: int = 3, by: str = "BCD") -> dict[PeerId, ProofAsk]:
        peers = [peer_of("ABCDE".index(letter) + 1) for letter in by]
        called = [(chunk, needed, peers) for chunk in chunks]
        return asks(self.witnesses.call(called, self.now))

    def wait(self, seconds: float) -> dict[PeerId, ProofAsk]:
        self.now = Instant(self.now + seconds)
        return asks(self.witnesses.wake(self.now))

    def digest(self, ask: ProofAsk) -> bytes:
        return blake3(ask.nonce).update(self.data[ObjectHash(ask.object_hash)]).digest()

    def answer(self, peer: PeerId, ask: ProofAsk, digest: bytes | None = None) -> Shown | None:
        """What follows; None: it was no answer to anything."""
        chunk, given = ObjectHash(ask.object_hash), self.digest(ask) if digest is None else digest
        give = ProofGive(chunk, ask.nonce, given)
        if not self.witnesses.is_about(peer, give):
            return None
        effects = self.witnesses.came(peer, give, self.now)
        made = [effect for effect in effects if isinstance(effect, MakeProof)]
        self.anew = asks([effect for effect in effects if isinstance(effect, Send)])
        if not made:
            return Shown()
        assert made == [MakeProof(peer, chunk, ask.nonce)]
        return self.witnesses.made(ProofMade(peer, chunk, ask.nonce, self.digest(ask)))


def asks(effects: list[Effect]) -> dict[PeerId, ProofAsk]:
    sent = [effect for effect in effects if isinstance(effect, Send)]
    found = {e.peer: e.message for e in sent if isinstance(e.message, ProofAsk)}
    assert len(found) == len(sent), "one question to each"
    for peer, ask in found.items():
        assert ask.nonce == drawn_for(peer, ask.seed)
    return found


def test_a_chunk_is_shown_once_all_have_and_each_was_asked_by_a_number_of_its_own() -> None:
    scene = Scene()
    asked = scene.call(scene.chunks[0])
    assert len({ask.nonce for ask in asked.values()}) == len({a.seed for a in asked.values()}) == 3
    assert scene.answer(B, asked[C]) is None, "that was another's"
    found = [scene.answer(peer, ask) for peer, ask in asked.items()]
    assert found == [Shown(), Shown(), Shown(scene.chunks[0], 3)]
    assert not scene.witnesses.are_called


def test_what_is_not_shown_by_all_within_half_a_minute_stays() -> None:
    scene = Scene()
    asked = scene.call(scene.chunks[0])
    scene.answer(B, asked[B])
    scene.answer(C, asked[C])
    assert scene.wait(AGAIN_S) == {D: asked[D]}, "the same again"
    assert scene.wait(PROVEN_S - AGAIN_S) == {}
    assert scene.answer(D, asked[D]) is None
    assert not scene.witnesses.are_called


def test_one_answers_for_another_who_lacks_it_and_is_told_of() -> None:
    scene = Scene()
    asked = scene.call(scene.chunks[0], needed=2)
    first, second = asked
    assert scene.answer(first, asked[first], b"") == Shown()
    assert scene.witnesses.take_lacking() == [(first, scene.chunks[0])]
    assert scene.witnesses.take_lacking() == []
    anew = scene.anew
    assert first not in anew
    assert anew[second] != asked[second]
    assert scene.answer(second, asked[second]) is None, "an answer to what is not asked any more"
    found = [scene.answer(peer, ask) for peer, ask in anew.items()]
    assert found[-1] == Shown(scene.chunks[0], 2)


def test_who_shows_something_else_is_a_liar_and_nothing_goes() -> None:
    scene = Scene()
    asked = scene.call(scene.chunks[0])
    assert scene.answer(B, asked[B], b"x" * 32) == Shown(liar=B)
    scene.witnesses.gone(B)
    assert scene.answer(C, asked[C]) is None
    assert not scene.witnesses.are_called


def test_what_is_damaged_here_or_to_stay_is_not_asked_for_any_more() -> None:
    scene = Scene()
    asked = scene.call(*scene.chunks[:3])
    give = ProofGive(scene.chunks[0], asked[B].nonce, scene.digest(asked[B]))
    scene.witnesses.came(B, give, scene.now)
    unread = ProofMade(B, scene.chunks[0], asked[B].nonce, b"")
    assert scene.witnesses.made(unread) == Shown()
    scene.witnesses.give_up(scene.chunks[1:2])
    anew = scene.wait(1.0)
    assert {ask.object_hash for ask in anew.values()} == {scene.chunks[2]}
    scene.witnesses.give_up(scene.chunks)
    assert not scene.witnesses.are_called


def test_too_few_who_say_so_are_not_even_asked_and_the_busy_later() -> None:
    scene = Scene()
    assert scene.call(scene.chunks[0], by="BC") == {}
    assert not scene.witnesses.are_called
    scene.busy.add(C)
    assert scene.call(scene.chunks[0]) == {}
    scene.busy.clear()
    assert set(scene.wait(1.0)) == {B, C, D}
    scene.call(scene.chunks[1])
    scene.wait(CLAIMS_S)
    assert not scene.witnesses.are_called, "what they have said is old"


def test_nobody_is_asked_more_than_it_answers() -> None:
    scene = Scene()
    prover = Proofs(B, Catalog(B), Surveys(), random.Random(1), scene.now)
    hashes = [ObjectHash(number.to_bytes(32, "big")) for number in range(2 * SHOWN_MAX)]
    asked = asks(scene.witnesses.call([(chunk, 1, [B]) for chunk in hashes], scene.now))
    count = 0
    while asked:
        count += 1
        ask = asked[B]
        chunk = ObjectHash(ask.object_hash)
        assert prover.asked(A, ask, hashes, scene.now) == [MakeProof(A, chunk, ask.nonce)]
        prover.made(ProofMade(A, chunk, ask.nonce, b"d" * 32))
        give = ProofGive(chunk, ask.nonce, b"d" * 32)
        assert scene.witnesses.is_about(B, give)
        effects = scene.witnesses.came(B, give, scene.now)
        made = ProofMade(B, chunk, ask.nonce, b"d" * 32)
        assert scene.witnesses.made(made) == Shown(chunk, 1)
        asked = asks([effect for effect in effects if isinstance(effect, Send)])
        scene.now = Instant(scene.now + 0.01)
    assert count == ASKED_MAX < SHOWN_MAX
    assert scene.wait(SHOWN_S), "later again"


def test_who_asks_for_more_chunks_than_anybody_needs_is_not_shown_them() -> None:
    prover = Proofs(B, Catalog(B), Surveys(), random.Random(1), Instant(0.0))
    hashes = [ObjectHash(number.to_bytes(32, "big")) for number in range(3 * SHOWN_MAX)]

    def asked(chunk: ObjectHash, now: float) -> bool:
        ask = ProofAsk(chunk, drawn_for(B, b"s" * 16), b"s" * 16)
        made = prover.asked(A, ask, hashes, Instant(now))
        for effect in made:
            assert isinstance(effect, MakeProof)
            prover.made(ProofMade(A, chunk, effect.nonce, b"d" * 32))
        return bool(made)

    assert sum(asked(chunk, 1.0) for chunk in hashes) == SHOWN_MAX
    assert not asked(hashes[0], 1.0 + SHOWN_S / 2)
    assert asked(hashes[0], 1.0 + SHOWN_S)
