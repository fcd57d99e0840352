"""Whom an object of the store is asked of first, and then."""

from __future__ import annotations

import random

import pytest

from peerlm.effects import Send
from peerlm.node.makers import Makers
from peerlm.node.pulls import Pulls
from peerlm.types import Instant, ObjectHash, PeerId
from peerlm.wire.message import PullAnswer, PullRequest

ADA, BEA, CLEO = (PeerId(bytes([n]) * 16) for n in range(1, 4))
CHUNK = ObjectHash(b"c" * 32)


def asked(effects: list) -> list[tuple[PeerId, PullRequest]]:
    return [(e.peer, e.message) for e in effects if isinstance(e, Send)]


def pulls(maker: PeerId | None) -> Pulls:
    def endpoint(peer: PeerId) -> tuple[str, int]:
        return "127.0.0.1", 7

    return Pulls(
        lambda _: (ADA, BEA, CLEO), lambda _: maker, endpoint, random.Random(1), Instant(0.0)
    )


def test_who_made_it_is_asked_and_nobody_else() -> None:
    for maker in (ADA, BEA, CLEO):
        ((peer, _),) = asked(pulls(maker).want([(CHUNK, 5)], Instant(0.0)))
        assert peer == maker


def test_a_maker_that_is_no_source_any_more_is_passed_over() -> None:
    ((peer, _),) = asked(pulls(PeerId(b"x" * 16)).want([(CHUNK, 5)], Instant(0.0)))
    assert peer in (ADA, BEA, CLEO)


@pytest.mark.parametrize("verdict", ["refuse", "busy"])
def test_a_maker_that_cannot_give_it_keeps_nobody_waiting(verdict: str) -> None:
    work = pulls(BEA)
    tried = []
    effects = work.want([(CHUNK, 5)], Instant(0.0))
    for second in range(1, 4):
        if not (now := asked(effects)):
            break
        ((peer, request),) = now
        tried.append(peer)
        answer = PullAnswer(request.transfer, verdict, "no", 0)
        effects = work.on_answer(peer, answer, Instant(second / 1000))
        work.check()
    assert tried[0] == BEA
    assert sorted(tried) == [ADA, BEA, CLEO], "each once, and at once"


def test_of_a_slow_maker_others_are_known_too() -> None:
    work = pulls(BEA)
    ((_, request),) = asked(work.want([(CHUNK, 5)], Instant(0.0)))
    work.on_answer(BEA, PullAnswer(request.transfer, "accept", "", 5), Instant(0.1))
    work.wake(Instant(1.0))
    assert work._fetch._donors_of(CHUNK) == [BEA]
    work.wake(Instant(2.5))
    assert set(work._fetch._donors_of(CHUNK)) == {ADA, BEA, CLEO}


def test_makers_are_known_while_the_name_is_fresh_and_never_this_node() -> None:
    makers = Makers(ADA, lambda _manifest, _chunk: False)
    makers.heard(ObjectHash(b"m" * 32), (ADA, BEA), Instant(0.0), {CHUNK: BEA})
    assert makers.maker_of(CHUNK) == BEA
    makers.expire(Instant(1e6))
    assert makers.maker_of(CHUNK) is None
    makers.heard(ObjectHash(b"m" * 32), (ADA, BEA), Instant(0.0), {CHUNK: ADA})
    assert makers.maker_of(CHUNK) is None
