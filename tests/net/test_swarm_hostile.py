"""A hostile peer that was let in: what it sends is refused and counted, and moves nobody far.

The honest node is a real one, alone and paused, so that nothing but the hostile peer can move its
slow weights; the last scenes let it train and take the hostile peer for a partner.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
import zmq
from hostile import Hostile, Vector, entered
from numpy.typing import NDArray
from swarm import NODE, Node, Swarm, options, succeed, wait_for
from words import Replies, chunk_sizes, fp32_chunks
from zmq.utils import z85

from peerlm.errors import PeerlmError
from peerlm.identity.chain import claimed_run
from peerlm.identity.invite import enrol, make_invite, root_inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import create_run
from peerlm.mix import algorithms
from peerlm.mix.chunks import chunk_at, chunk_count
from peerlm.mix.codec import encode
from peerlm.mix.robust import FIRST_CLIP
from peerlm.mix.vector import BLOCK
from peerlm.types import Role, TransferId, WallTime
from peerlm.wire.message import (
    ExchangeAnswer,
    ExchangeRequest,
    FragmentOffer,
    Gossip,
    Hello,
    PullAnswer,
    PullRequest,
    Refusal,
    StateAsk,
    StateGive,
)
from peerlm.wire.versions import OLDEST_VERSION, PROTOCOL_VERSION

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="function")]


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    swarm = Swarm(tmp_path_factory.mktemp("hostile"))
    try:
        swarm.found()
        yield swarm
    finally:
        swarm.close()


@pytest.fixture
def honest(swarm: Swarm) -> Node:
    """Paused, and its slow weights at rest."""
    [node] = swarm.nodes
    node.ask("pause")
    node.wait(lambda s: s["state"] == "ready", "it is paused")

    def at_rest() -> bool:
        return same(node.weights(), node.weights())

    wait_for(at_rest, "its weights are at rest")
    return node


@pytest_asyncio.fixture
async def hostile(honest: Node) -> AsyncIterator[Hostile]:
    async with entered(honest.folder, honest.address) as peer:
        yield peer


def same(a: list[Vector], b: list[Vector]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def refusals(node: Node) -> int:
    reasons = node.status()["exchange_reasons"]
    return sum(n for reason, n in reasons.items() if "refuse" in reason)


# ------------------------------------------------------------------------------- being let in


async def test_stale_and_foreign_certificates_are_refused(hostile: Hostile, honest: Node) -> None:
    past = WallTime(time.time() - 86_400)
    foreign, keys = create_run("another"), NodeKeys.generate()
    token = make_invite(root_inviter(foreign), {Role.TRAIN}, past, past, ())
    chain = enrol(token.inviter, keys, WallTime(past - 60))
    for hello in (
        Hello(PROTOCOL_VERSION, hostile.run_id, chain),
        Hello(PROTOCOL_VERSION, foreign.run_id, chain),
        Hello(PROTOCOL_VERSION, hostile.run_id, hostile.chain[:-1]),
        Hello(PROTOCOL_VERSION, hostile.run_id, (*hostile.chain[:-1], b"\0" * 100)),
        Hello(OLDEST_VERSION - 1, hostile.run_id, hostile.chain),
    ):
        assert isinstance(await hostile.knock(honest.address, hello), Refusal)


async def test_an_expired_certificate_of_this_run_is_refused(
    hostile: Hostile, honest: Node
) -> None:
    from peerlm.identity import files

    root = files.read_root(honest.folder)
    assert root is not None
    past = WallTime(time.time() - 86_400)
    token = make_invite(root_inviter(root), {Role.TRAIN}, past, past, ())
    chain = enrol(token.inviter, NodeKeys.generate(), WallTime(past - 60))
    answer = await hostile.knock(
        honest.address, Hello(PROTOCOL_VERSION, claimed_run(chain)[0], chain)
    )
    assert isinstance(answer, Refusal)
    assert answer.reason == "expired"


# --------------------------------------------------------------------------- weights it sends


BAD_WEIGHTS = {
    "NaN": lambda phi: np.full_like(phi, np.nan),
    "one NaN": lambda phi: np.where(np.arange(phi.size) == phi.size // 2, np.float32(np.nan), phi),
    "infinite": lambda phi: np.full_like(phi, np.inf),
    "1e30": lambda phi: np.full_like(phi, 1e30),
    "tenfold": lambda phi: 10 * phi,
    "of another shape": lambda phi: phi[:-1],
    "longer": lambda phi: np.append(phi, phi[:7]),
}


@pytest.mark.parametrize("what", BAD_WEIGHTS)
async def test_bad_weights_are_refused_and_move_nothing(
    hostile: Hostile, honest: Node, what: str
) -> None:
    before, refused = honest.weights(), refusals(honest)
    for fragment in (0, 2):
        phi = before[fragment]
        request = await hostile.accepted(fragment)
        payload = BAD_WEIGHTS[what](phi).astype(np.float32)
        assert isinstance(await hostile.send_weights(request, payload), PeerlmError)
        if what not in ("of another shape", "longer"):
            assert (await hostile.answer_to(request)).verdict == "refuse"
            assert refusals(honest) > refused
        if "NaN" in what or what in ("infinite", "1e30"):
            again = await hostile.ask(hostile.request(fragment))
            assert (again.verdict, again.reason) == ("refuse", "excluded")
            break
    assert same(honest.weights(), before)


def moved_by(honest: Node, fragment: int, phi: NDArray[np.float32]) -> float:
    """How far a fragment has moved. The reply may be here before it has: the next snapshot tells, or one soon after."""
    moved = 0.0
    for _ in range(20):
        now = honest.weights()[fragment]
        moved = float(np.linalg.norm((now - phi).astype(np.float64)))
        if moved:
            break
    return moved


async def test_opposite_weights_move_the_honest_by_no_more_than_clipping_allows(
    hostile: Hostile, honest: Node
) -> None:
    before = honest.weights()
    mix = hostile.plan.plan.mix
    share = algorithms.get(mix.algorithm).coefficient(mix, 1.0)
    for fragment, phi in enumerate(before):
        request = await hostile.accepted(fragment)
        reply = await hostile.send_weights(request, -phi)
        assert isinstance(reply, bytes), reply
        moved = moved_by(honest, fragment, phi)
        size = np.linalg.norm(phi.astype(np.float64))
        assert 0 < moved <= share * FIRST_CLIP * size * (1 + 1e-4)


async def test_a_replayed_exchange_has_no_second_effect(hostile: Hostile, honest: Node) -> None:
    phi = honest.weights()[1]
    request, payload = await hostile.accepted(1), (0.9 * phi).astype(np.float32)
    assert isinstance(await hostile.send_weights(request, payload), bytes)
    after = honest.weights()
    assert not np.array_equal(after[1], phi)
    for _ in range(3):
        again = await hostile.ask(request)
        assert "seen before" in again.reason
        assert isinstance(await hostile.send_weights(request, payload, 1.0), PeerlmError)
    async with entered(honest.folder, honest.address) as another:  # nor for an accomplice
        answer = await another.ask(request)
        assert (answer.verdict, answer.reason) == ("refuse", "transfer id is taken")
    assert same(honest.weights(), after)


async def test_one_id_for_several_transfers_harms_nobody(hostile: Hostile, honest: Node) -> None:
    """A daemon that ran two transfers of one id would trip over its own promise."""
    text = bytes.fromhex(hostile.plan.plan.data.shards[0])
    keys = (secrets.token_bytes(32), secrets.token_bytes(32))
    pull = PullRequest(secrets.token_bytes(16), text, *keys)
    verdicts = []
    for _ in range(3):
        hostile.say(pull)
        verdicts.append((await hostile.wait_message(PullAnswer)).verdict)
    assert verdicts == ["accept", "refuse", "refuse"]
    mixing = await hostile.ask(hostile.request(0, transfer=pull.transfer))
    assert (mixing.verdict, mixing.reason) == ("refuse", "transfer id is taken")
    request = await hostile.accepted(0)
    async with entered(honest.folder, honest.address) as another:
        elsewhere = another.request(1, transfer=request.transfer)
        assert (await another.ask(elsewhere)).verdict == "refuse"
    hostile.say(replace(pull, transfer=request.transfer))
    assert (await hostile.wait_message(PullAnswer)).verdict == "refuse"
    assert honest.status()["state"] == "ready"


async def test_wrong_keys_move_nothing(hostile: Hostile, honest: Node) -> None:
    before = honest.weights()
    request = await hostile.accepted(0)
    forged = replace(request, key_up=secrets.token_bytes(32))
    outcome = await hostile.send_weights(forged, (0.9 * before[0]).astype(np.float32), 2.0)
    assert isinstance(outcome, PeerlmError)
    unasked = hostile.request(0)  # nobody has agreed to this one
    outcome = await hostile.send_weights(unasked, before[0], 2.0)
    assert isinstance(outcome, PeerlmError)
    assert same(honest.weights(), before)


async def test_requests_that_do_not_fit_are_refused(hostile: Hostile, honest: Node) -> None:
    wrong = {
        "size": {"request_bytes": 12},
        "fragment": {"fragment": 999},
        "codec": {"codec_request": "int4"},
        "codec ": {"codec_reply": "zip"},
        "plan": {"plan_hash": bytes(32)},
    }
    for reason, changes in wrong.items():
        answer = await hostile.ask(replace(hostile.request(), **changes))  # type: ignore[arg-type]
        assert answer.verdict == "refuse"
        assert reason.strip() in answer.reason


async def test_a_flood_of_requests_is_bounded(hostile: Hostile, honest: Node) -> None:
    answers = []
    for _ in range(200):
        request = hostile.request(3)
        answer = await hostile.ask(request)
        answers.append((answer.verdict, answer.reason))
    assert ("refuse", "rate") in answers
    assert honest.status()["state"] == "ready"


# ------------------------------------------------------------------------------ what it says


async def test_garbage_on_an_encrypted_link_is_dropped(hostile: Hostile, honest: Node) -> None:
    context = zmq.Context()
    try:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.curve_publickey = z85.encode(hostile.keys.curve_public)
        socket.curve_secretkey = z85.encode(hostile.keys.curve_secret)
        socket.curve_serverkey = z85.encode(hostile.victim_curve)
        socket.connect(f"tcp://127.0.0.1:{hostile.victim_control}")
        socket.send(secrets.token_bytes(1000))
        socket.send_multipart([b"too", b"many", b"parts"])
        socket.send(b"\x93\x1f\xc0")
        socket.send(b"\xdd\xff\xff\xff\xff")
        socket.send(bytes(64 << 20))  # past any message: the connection ends
        wait_for(lambda: honest.said().count("misbehaved") >= 4, "it is noted", also="")
        socket.close()
    finally:
        context.term()
    assert (await hostile.ask(hostile.request())).verdict in ("accept", "busy")


async def test_vitals_of_nonsense_do_not_break_status(hostile: Hostile, honest: Node) -> None:
    hostile.pose_as_member()
    me = hostile.keys.peer_id.hex()
    await asyncio.to_thread(wait_for, lambda: honest.member(me), "it is taken for a member")
    nan, huge = float("nan"), 1e308
    for loss in (nan, float("inf"), -huge, huge):
        hostile.say(Gossip((hostile.pulse(loss=loss, val_loss=loss, distance=loss),)))
        hostile.say(Gossip((hostile.pulse(tokens_per_s=loss),)))
        assert honest.status()["state"] == "ready"
    stolen = hostile.pulse()
    hostile.say(Gossip((replace(stolen, signature=bytes(64)),)))
    assert honest.status()["members"]


# --------------------------------------------------------------------- taken for a partner


async def test_an_id_of_the_victims_own_is_not_served(hostile: Hostile, honest: Node) -> None:
    hostile.pose_as_member()
    honest.ask("resume")
    asked = await hostile.wait_message(ExchangeRequest)
    hostile.say(ExchangeAnswer(asked.transfer, "accept", "", 1.0))
    other = (asked.fragment + 1) % len(hostile.sizes)
    hostile.say(hostile.request(other, transfer=asked.transfer))
    text = bytes.fromhex(hostile.plan.plan.data.shards[0])
    hostile.say(PullRequest(asked.transfer, text, bytes(32), bytes(32)))
    assert (await hostile.answer_to(asked)).verdict == "refuse"
    assert (await hostile.wait_message(PullAnswer)).verdict == "refuse"
    assert honest.status()["state"] == "training"


@pytest.mark.parametrize("what", ["NaN", "1e30", "short", "silence"])
async def test_bad_replies_are_refused(hostile: Hostile, honest: Node, what: str) -> None:
    hostile.pose_as_member()
    before = honest.status()["exchanges"]
    honest.ask("resume")
    asked = await hostile.wait_message(ExchangeRequest)
    await reply_badly(hostile, asked, what)

    def is_counted() -> bool:
        now = honest.status()["exchanges"]
        return bool(now["refused"] + now["timed_out"] > before["refused"] + before["timed_out"])

    await asyncio.to_thread(wait_for, is_counted, "the bad reply is counted")
    values = await asyncio.to_thread(honest.weights)
    assert all(np.isfinite(v).all() and np.abs(v).max() < 1e3 for v in values)
    status = honest.status()
    assert status["exchanges"]["ok"] == before["ok"]
    assert status["worker"]["nonfinite_steps"] == 0


async def reply_badly(hostile: Hostile, asked: ExchangeRequest, what: str) -> None:
    size, scale = hostile.sizes[asked.fragment], np.nan if what == "NaN" else 1e30
    if asked.codec_reply == "fp32":
        chunks = fp32_chunks(np.full(size, scale, np.float32))
    else:
        chunks = bad_blocks(asked.codec_reply, size, scale)
    if what == "short":
        chunks[-1] = chunks[-1][:-5]
    side = Replies(chunks, chunk_sizes(asked.codec_request, size), asked.codec_reply)
    keys = (asked.key_up, asked.key_down)
    answering = asyncio.create_task(
        hostile.bulk.answer(TransferId(asked.transfer), side, keys, 5.0, 20.0)
    )
    await asyncio.sleep(0)
    hostile.say(ExchangeAnswer(asked.transfer, "accept", "", 1.0))
    if what == "silence":
        answering.cancel()
        return
    with suppress(PeerlmError):
        await answering


def bad_blocks(codec: str, size: int, scale: float) -> list[bytes]:
    """A reply of small integers, every block with this scale."""
    rng, chunks = np.random.default_rng(1), []
    for index in range(chunk_count(size)):
        part = chunk_at(index, size)
        honest = bytearray(encode(np.ones(part.stop - part.start, np.float32), codec, rng))
        scales = np.full(-(-(part.stop - part.start) // BLOCK), scale, "<f4").tobytes()
        honest[: len(scales)] = scales
        chunks.append(bytes(honest))
    return chunks


# ----------------------------------------------------------------------- taken for a donor


def lies(peer: Hostile, what: str) -> StateGive:
    """Finished weights that nobody has, far ahead of everybody."""
    plan_hash = peer.plan.plan_hash
    honest = [
        FragmentOffer(i, 1, secrets.token_bytes(32), 4 * size, (1.0,) * 32)
        for i, size in enumerate(peer.sizes)
    ]
    lying = {
        "huge": [replace(offer, size=2**32) for offer in honest],
        "empty": [replace(offer, size=0, sketch=()) for offer in honest],
        "twice": [honest[0], *honest],
        "no data": honest,
    }
    return StateGive(plan_hash, 2**40, what == "no data", tuple(lying[what]))


async def test_a_lying_donor_keeps_nobody_out(swarm: Swarm, honest: Node) -> None:
    newcomer = swarm.node()
    address, token = honest.address, swarm.token
    settings = options("--set-node", NODE)
    succeed(
        "join", address, "--token", token, "--state", newcomer.folder, "--enrol-only", *settings
    )
    honest.kill()
    newcomer.up()
    newcomer.wait(lambda s: s["address"], "it is up, and knows nobody")
    async with entered(honest.folder, newcomer.address) as peer:
        peer.pose_as_member()
        for what in ("huge", "empty", "twice", "no data"):
            await peer.wait_message(StateAsk)
            peer.say(lies(peer, what))
        pull = await peer.wait_message(PullRequest)
        for _ in range(3):
            peer.say(PullAnswer(pull.transfer, "accept", "", 4 * peer.sizes[0]))
        honest.up()
        await asyncio.to_thread(
            newcomer.wait, lambda s: s["state"] == "training", "it has weights, from who has some"
        )
        values = await asyncio.to_thread(newcomer.weights)
        assert all(np.isfinite(v).all() for v in values)
    newcomer.kill()
