"""Both who pull, the swarm's store and a joiner, with two transfers of one object under way."""

from __future__ import annotations

import random

from peerlm.effects import CancelTransfer, Effect, RunPull, Send
from peerlm.events import PullEnded, PullProgressed
from peerlm.node.acquire import COMPARE_S, Acquisition
from peerlm.node.pulls import Pulls
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId, TransferId
from peerlm.wire.message import FragmentOffer, PullAnswer, PullRequest, StateGive

ANN, BOB = (PeerId(bytes([n]) * 16) for n in (1, 2))
PLAN = b"p" * 32
SIZE = 40_000
T0 = Instant(10.0)
Asked = list[tuple[PeerId, PullRequest]]


def asked(effects: list[Effect]) -> Asked:
    sent = [(e.peer, e.message) for e in effects if isinstance(e, Send)]
    return [(peer, message) for peer, message in sent if isinstance(message, PullRequest)]


def beside_ann(puller: Pulls | Acquisition, effects: list[Effect]) -> tuple[Asked, Instant]:
    """Bob brings an object a second and Ann next to nothing, until Bob is asked for what she is at: the two requests
    for it."""
    now, waiting, at_ann = T0, asked(effects), dict[ObjectHash, PullRequest]()
    while now < 60.0:
        now, begun = Instant(now + 1.0), list[Effect]()
        for peer, request in waiting:
            answer = PullAnswer(request.transfer, "accept", "", SIZE)
            transfer = TransferId(request.transfer)
            on_answer = puller.on_answer if isinstance(puller, Pulls) else puller.on_pull_answer
            effects = on_answer(peer, answer, now)
            assert isinstance(effects[0], RunPull)
            if peer == ANN:
                at_ann[ObjectHash(request.object_hash)] = request
                begun += puller.progressed(PullProgressed(transfer, 10), now)
            else:
                begun += puller.ended(PullEnded(transfer, "ok"), now)
            puller.check()
        waiting = asked(begun)
        for request in at_ann.values():  # else it stalls
            transfer = TransferId(request.transfer)
            puller.progressed(PullProgressed(transfer, int(10 * now)), now)
        for peer, request in waiting:
            slow = [r for h, r in at_ann.items() if h[0] == request.object_hash[0]]
            if peer == BOB and slow:
                return [(ANN, slow[0]), (BOB, request)], now
        waiting += asked(puller.wake(now))
    raise AssertionError("no pull was hedged")


def test_the_store_takes_the_first_of_two_and_hears_no_more_of_the_other() -> None:
    both, nobody = (ANN, BOB), None
    place = ("host", 7702)
    pulls = Pulls(lambda _: both, lambda _: nobody, lambda _: place, random.Random(1), T0)
    wanted = [(ObjectHash(bytes([n]) * 32), SIZE) for n in range(20)]
    ((_, slow), (_, hedge)), now = beside_ann(pulls, pulls.want(wanted, T0))
    assert slow.object_hash == hedge.object_hash
    assert slow.transfer != hedge.transfer
    pulls.on_answer(BOB, PullAnswer(hedge.transfer, "accept", "", SIZE), now)
    came = {name for name, _ in pulls.take_arrived()}
    effects = pulls.ended(PullEnded(TransferId(hedge.transfer), "ok"), now)
    assert CancelTransfer(TransferId(slow.transfer)) in effects
    assert not pulls.is_taken(TransferId(slow.transfer))
    assert pulls.on_answer(ANN, PullAnswer(slow.transfer, "accept", "", SIZE), now) == []
    for late in ("ok", "corrupt", "lost"):
        assert pulls.ended(PullEnded(TransferId(slow.transfer), late), now) == []
    assert pulls.take_arrived() == [(slow.object_hash, SIZE)]
    assert slow.object_hash not in came
    assert pulls.take_corrupt() == []
    assert pulls.hedged_bytes == int(10 * now), "all that came by the slow one"
    pulls.check()


def give(peer: PeerId) -> StateGive:
    """Its own snapshot: other hashes than anybody's."""
    fragments = (
        FragmentOffer(f, 1, bytes([f]) * 31 + peer[:1], SIZE, (1.0,) * 32) for f in range(9)
    )
    return StateGive(PLAN, 100, False, tuple(fragments))


def test_a_joiner_installs_what_came_first_of_two_snapshots() -> None:
    sizes = {FragmentId(f): SIZE // 4 for f in range(9)}
    acquisition = Acquisition(sizes, lambda _: ("host", 7702), random.Random(1))
    acquisition.want_state(T0)
    acquisition.donors_are((ANN, BOB), T0)
    effects = acquisition.on_state_give(ANN, give(ANN), PLAN, T0)
    effects += acquisition.on_state_give(BOB, give(BOB), PLAN, T0)
    effects += acquisition.wake(Instant(T0 + COMPARE_S))
    ((_, slow), (_, hedge)), now = beside_ann(acquisition, effects)
    assert slow.object_hash != hedge.object_hash
    acquisition.on_pull_answer(BOB, PullAnswer(hedge.transfer, "accept", "", SIZE), now)
    effects = acquisition.ended(PullEnded(TransferId(hedge.transfer), "ok"), now)
    assert CancelTransfer(TransferId(slow.transfer)) in effects
    assert acquisition.ended(PullEnded(TransferId(slow.transfer), "ok"), now) == []
    twice_bytes = acquisition.hedged_bytes
    assert twice_bytes == int(10 * now)
    while not acquisition.state_arrived:
        now = Instant(now + 1.0)
        assert now < 100.0
        effects += acquisition.wake(now)
        waiting, effects = [entry for entry in asked(effects) if entry[0] == BOB], []
        for _, request in waiting:
            acquisition.on_pull_answer(BOB, PullAnswer(request.transfer, "accept", "", SIZE), now)
            effects += acquisition.ended(PullEnded(TransferId(request.transfer), "ok"), now)
            acquisition.check()
    installed = {fragment: name for fragment, _, name, _ in acquisition.installation().objects}
    assert len(installed) == 9
    assert acquisition.hedged_bytes >= twice_bytes, "of what is over too"
    assert installed[FragmentId(slow.object_hash[0])] == hedge.object_hash
