"""Whether others keep what they say: who is slow is waited for, and nobody shows us what is ours."""

from __future__ import annotations

import random
from dataclasses import replace

import msgpack
import pytest
import version_2.codec
import version_2.message
from blake3 import blake3
from store_scene import peer_of

from peerlm.effects import Effect, MakeProof, Send
from peerlm.errors import UnknownMessage
from peerlm.events import ProofMade
from peerlm.node.proofs import PROOF_S, SILENT_S, Proofs, drawn_for
from peerlm.node.survey import Surveys
from peerlm.store.catalog import Catalog
from peerlm.types import Instant, ObjectHash, PeerId
from peerlm.wire.codec import encode
from peerlm.wire.message import HaveAsk, HaveGive, ProofAsk, ProofGive

ME, PEER, OTHER = (peer_of(number) for number in (1, 2, 3))

DATA = b"what it should keep"
CHUNK, ELSE = ObjectHash(blake3(DATA).digest()), ObjectHash(blake3(b"else").digest())


class Scene:
    """This node asks `PEER` for a chunk that it has itself."""

    def __init__(self) -> None:
        self.surveys, self.now = Surveys(), Instant(0.0)
        self.proofs = Proofs(ME, Catalog(ME), self.surveys, random.Random(1), self.now)
        self.surveys.claimed = self.proofs.claimed
        self.proofs.claimed(PEER, [CHUNK])

    def ask(self) -> ProofAsk:
        """The next time that the peer is asked."""
        asked = self.next_sent()
        assert isinstance(asked, ProofAsk)
        return asked

    def next_sent(self) -> object:
        while not (sent := self.sent(self.wait(self.proofs.due - self.now))):
            pass
        return sent[0]

    def wait(self, seconds: float) -> list[Effect]:
        self.now = Instant(self.now + seconds)
        return self.proofs.wake({CHUNK, ELSE}, [PEER], self.now)

    def sent(self, effects: list[Effect]) -> list[object]:
        return [effect.message for effect in effects if isinstance(effect, Send)]

    def doubt(self) -> HaveAsk:
        """The peer has been silent."""
        asked = self.next_sent()
        assert isinstance(asked, HaveAsk)
        return asked

    def says_still(self, asked: HaveAsk) -> tuple[list[object], bool]:
        """What is sent when the peer says that it keeps the chunk, and whether it is not believed any more."""
        self.surveys.heard(PEER, HaveGive(asked.number, b"\x80"), self.now)
        (done,) = self.surveys.take_done()
        assert self.proofs.is_about(done)
        effects, liar = self.proofs.surveyed(self.now)
        return self.sent(effects), liar is not None

    def shown(self, ask: ProofAsk, data: bytes = DATA) -> list[Effect]:
        give = ProofGive(CHUNK, ask.nonce, blake3(ask.nonce).update(data).digest())
        return self.proofs.came(PEER, give, self.now)


@pytest.mark.parametrize("times", [1, 2])
def test_an_answer_counts_however_late_it_is_while_the_same_is_asked_for(times: int) -> None:
    scene = Scene()
    first = scene.ask()
    for _ in range(times):
        assert scene.says_still(scene.doubt()) == ([first], False)
    assert scene.shown(first) == [MakeProof(PEER, CHUNK, first.nonce)]
    assert scene.ask() != first, "the next turn"


def test_an_answer_that_comes_while_it_is_doubted_ends_the_doubt() -> None:
    scene = Scene()
    first = scene.ask()
    scene.doubt()
    assert scene.shown(first) == [MakeProof(PEER, CHUNK, first.nonce)]
    assert not scene.surveys.are_open


def test_who_is_silent_three_times_is_not_believed() -> None:
    scene = Scene()
    first, began = scene.ask(), scene.now
    for _ in range(2):
        assert scene.says_still(scene.doubt()) == ([first], False)
    assert scene.says_still(scene.doubt()) == ([], True)
    assert scene.now - began == 7 * SILENT_S > 3 * PROOF_S
    assert scene.shown(first) == [], "too late"


def test_who_says_that_it_lacks_it_and_that_it_keeps_it_is_asked_with_another_number() -> None:
    scene = Scene()
    first = scene.ask()
    lacks = ProofGive(CHUNK, first.nonce, b"")
    (doubt,) = scene.sent(scene.proofs.came(PEER, lacks, scene.now))
    assert isinstance(doubt, HaveAsk)
    for _ in range(3):
        assert scene.proofs.came(PEER, lacks, scene.now) == [], "it has said so"
    (second,), is_liar = scene.says_still(doubt)
    assert isinstance(second, ProofAsk)
    assert (second.object_hash, is_liar) == (CHUNK, False)
    assert second.nonce != first.nonce


@pytest.mark.parametrize("asker", [PEER, OTHER])
def test_nobody_has_the_answer_to_a_question_to_another_from_us(asker: PeerId) -> None:
    scene = Scene()
    ask = scene.ask()

    def reflected(**changes: object) -> list[Effect]:
        return scene.proofs.asked(asker, replace(ask, **changes), {CHUNK, ELSE}, scene.now)

    seeds = (ask.seed, b"", ask.seed[:15], b"t" * 16, ask.seed + PEER, ask.seed + ME)
    assert [reflected(seed=seed) for seed in seeds] == [[]] * 6
    assert reflected(object_hash=ELSE) == []
    mine = drawn_for(ME, ask.seed)
    assert reflected(nonce=mine) == [MakeProof(asker, CHUNK, mine)]


def test_who_knows_nothing_of_seeds_shows_what_it_keeps_all_the_same() -> None:
    """It reads the number alone, and answers as it always did."""
    scene = Scene()
    ask = scene.ask()
    (number, *fields) = msgpack.unpackb(encode(ask))
    assert (number, fields[:2]) == (ProofAsk.code, [CHUNK, ask.nonce])
    assert scene.shown(ask) == [MakeProof(PEER, CHUNK, ask.nonce)]
    digest = blake3(ask.nonce).update(DATA).digest()
    assert scene.proofs.made(ProofMade(PEER, CHUNK, ask.nonce, digest)) == ([], False)


def test_who_answers_wrongly_is_not_believed() -> None:
    scene = Scene()
    ask = scene.ask()
    scene.shown(ask, b"something else")
    digest = blake3(ask.nonce).update(DATA).digest()
    assert scene.proofs.made(ProofMade(PEER, CHUNK, ask.nonce, digest)) == ([], True)


def test_a_node_of_the_version_before_passes_over_the_question() -> None:
    """It offers no room, so it is not even asked."""
    with pytest.raises(UnknownMessage):
        version_2.codec.decode(encode(Scene().ask()))
    assert not hasattr(version_2.message.Vitals, "store_bytes")
