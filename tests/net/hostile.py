"""A peer with a valid certificate and no good will, for scenes with real nodes.

It speaks through the daemon's own sockets, so that what it says arrives; what it says is up to the
scene. It answers probes and calls itself active, so honest nodes take it for a partner.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from words import Words, chunk_sizes, fp32_chunks

from peerlm.daemon.bulk import Bulk
from peerlm.daemon.introduction import Introduction
from peerlm.daemon.link import Links
from peerlm.errors import PeerlmError
from peerlm.events import Event, IntroductionAnswered, LinkUp, Received
from peerlm.identity import files
from peerlm.identity.gate import Gate
from peerlm.identity.invite import enrol, make_invite, root_inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import verify_plan
from peerlm.mix.chunks import stream_bytes
from peerlm.model.plan import fragments
from peerlm.types import PeerId, Role, TransferId, WallTime
from peerlm.wire.codec import encode as encode_message
from peerlm.wire.message import (
    Ack,
    Alive,
    ExchangeAnswer,
    ExchangeRequest,
    Gossip,
    Greeting,
    Hello,
    Message,
    NodeRecord,
    Ping,
    Pulse,
    Refusal,
    Vitals,
    Welcome,
)
from peerlm.wire.versions import PROTOCOL_VERSION

M = TypeVar("M", bound=Message)
Vector = NDArray[np.float32]

PATIENCE_S = 30.0


class Hostile:
    """Made by `entered`. `victim`: the node it talks with; `plan`, `sizes`: what they share."""

    def __init__(self, founder: Path) -> None:
        root = files.read_root(founder)
        assert root is not None
        blob = files.read_plan(founder)
        assert blob is not None
        wall = WallTime(time.time())
        until = WallTime(wall + 3600)
        token = make_invite(root_inviter(root), {Role.TRAIN, Role.STORE}, until, until, ())
        self.run_id = root.run_id
        self.plan = verify_plan(blob, root.public_key, root.run_id)
        self.sizes = [spec.size for spec in fragments(self.plan.plan)]
        self.keys = NodeKeys.generate()
        self.chain = enrol(token.inviter, self.keys, wall)
        self.heard: list[Event] = []
        self.victim = PeerId(bytes(16))
        self.victim_curve = b""
        self.victim_control = self.victim_bulk = 0
        self.introduction: Introduction
        self.links: Links
        self.bulk: Bulk
        self._gate = Gate(root.public_key, root.run_id)
        self._came = asyncio.Event()
        self._epoch = int(wall)
        self._version = 0

    # ------------------------------------------------------------------------------- entering

    async def knock(self, address: str, hello: Hello | None = None) -> Welcome | Refusal:
        """Introduce itself; what it is told."""
        hello = hello or Hello(PROTOCOL_VERSION, self.run_id, self.chain)
        self.introduction.dial(address, hello)
        answered = await self.wait(IntroductionAnswered)
        assert isinstance(answered, IntroductionAnswered)
        return answered.answer

    async def enter(self, address: str) -> None:
        """Be admitted by the node at `address`, and linked with it."""
        welcome = await self.knock(address)
        assert isinstance(welcome, Welcome), welcome
        node = self._gate.admit(welcome.chain, WallTime(time.time()), vouched=True)
        self.victim, self.victim_curve = node.peer_id, node.curve_pk
        self.victim_control, self.victim_bulk = welcome.control_port, welcome.bulk_port
        self.links.admit(node.peer_id, node.curve_pk)
        self.links.open(node.peer_id, "127.0.0.1", welcome.control_port, node.curve_pk)
        await self.wait(LinkUp)

    def take(self, event: Event) -> None:
        """Answer probes, as a member must; remember the rest."""
        match event:
            case Received(message=Ping(seq=seq)):
                self.say(Ack(seq, self.keys.peer_id, ()))
                self.say(Gossip((self.pulse(),)))
            case _:
                self.heard.append(event)
                self._came.set()

    async def wait(
        self, kind: type[Event], matches: Callable[[Event], bool] = lambda _: True
    ) -> Event:
        """The first such event, which is then forgotten."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for event in self.heard:
                    if isinstance(event, kind) and matches(event):
                        self.heard.remove(event)
                        return event
                self._came.clear()
                await self._came.wait()

    async def wait_message(self, kind: type[M], matches: Callable[[M], bool] = lambda _: True) -> M:
        def fits(event: Event) -> bool:
            assert isinstance(event, Received)
            return isinstance(event.message, kind) and matches(event.message)

        received = await self.wait(Received, fits)
        assert isinstance(received, Received)
        assert isinstance(received.message, kind)
        return received.message

    # --------------------------------------------------------------------------------- saying

    def say(self, message: Message) -> None:
        self.links.send(self.victim, message)

    def pose_as_member(self) -> None:
        """Have itself taken for an active member that can be dialled."""
        record = NodeRecord(
            peer=self.keys.peer_id,
            epoch=self._epoch,
            counter=0,
            host="127.0.0.1",
            intro_port=self.introduction.port,
            control_port=self.links.port,
            bulk_port=self.bulk.port,
            left=False,
        )
        encoded = encode_message(record)
        alive = Alive(encoded, self.keys.sign(encoded), self.chain)
        self.say(Greeting(alive, self.plan.revision, self.plan.plan_hash, reply=False))
        self.say(Gossip((self.pulse(),)))

    def pulse(self, **changes: object) -> Pulse:
        """Its vitals, newer each time."""
        self._version += 1
        vitals = Vitals(
            peer=self.keys.peer_id,
            epoch=self._epoch,
            version=self._version,
            tokens=0,
            phase="ready",
            active=True,
            participating=True,
            settled=False,
            plan_revision=self.plan.revision,
            loss=None,
            val_loss=None,
            distance=None,
            tokens_per_s=0.0,
        )
        encoded = encode_message(replace(vitals, **changes))  # type: ignore[arg-type]
        return Pulse(encoded, self.keys.sign(encoded))

    # -------------------------------------------------------------------------------- mixing

    def request(self, fragment: int = 0, **changes: object) -> ExchangeRequest:
        """What an honest node would ask, but for the changes."""
        size = self.sizes[fragment]
        honest = ExchangeRequest(
            transfer=secrets.token_bytes(16),
            plan_hash=self.plan.plan_hash,
            fragment=fragment,
            version=1,
            codec_request="fp32",
            codec_reply="fp32",
            request_bytes=stream_bytes("fp32", size),
            ramp=1.0,
            key_up=secrets.token_bytes(32),
            key_down=secrets.token_bytes(32),
        )
        return replace(honest, **changes)  # type: ignore[arg-type]

    async def ask(self, request: ExchangeRequest) -> ExchangeAnswer:
        self.say(request)
        return await self.answer_to(request)

    async def accepted(self, fragment: int = 0) -> ExchangeRequest:
        """A request that was accepted; while an earlier one holds the fragment, another is made."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                request = self.request(fragment)
                answer = await self.ask(request)
                if answer.verdict != "busy":
                    break
                await asyncio.sleep(0.2)  # nothing tells when the fragment is free
        assert answer.verdict == "accept", answer
        return request

    async def answer_to(self, request: ExchangeRequest) -> ExchangeAnswer:
        return await self.wait_message(
            ExchangeAnswer, lambda answer: answer.transfer == request.transfer
        )

    async def send_weights(
        self, request: ExchangeRequest, values: Vector, timeout_s: float = 5.0
    ) -> bytes | PeerlmError:
        """The tensors of an accepted request, in fp32; the reply, or how it failed."""
        to_hear = chunk_sizes("fp32", self.sizes[request.fragment])
        side = Words(fp32_chunks(values), to_hear, "fp32")
        try:
            await self.bulk.exchange(
                TransferId(request.transfer),
                "127.0.0.1",
                self.victim_bulk,
                side,
                (request.key_up, request.key_down),
                timeout_s,
                timeout_s,
            )
        except PeerlmError as error:
            return error
        return b"".join(side.came)


@contextlib.asynccontextmanager
async def entered(founder: Path, address: str) -> AsyncIterator[Hostile]:
    """A hostile peer that is admitted and linked, until the scene ends."""
    peer = Hostile(founder)
    peer.introduction = await Introduction.listen(peer.take, "127.0.0.1", 0)
    peer.links = Links(
        peer.take,
        "127.0.0.1",
        0,
        peer.keys.curve_public,
        peer.keys.curve_secret,
        peer.keys.peer_id,
    )
    peer.bulk = Bulk("127.0.0.1", 0)
    try:
        await peer.enter(address)
        yield peer
    finally:
        await peer.bulk.close()
        await peer.introduction.close()
        await peer.links.close()
