"""Channels: the lasting connections over which the stream of a model in stages goes from node to node.

Between two nodes of which one holds the stage behind the other's last there is one channel, for both directions. The
one with the smaller id asks for it; the other does so too when nothing has come for a while, since the first may
not be able to dial it. Of two channels with one peer the newer is the one: a peer that asks again has lost the
other. What goes over a channel is the workers' business (`train.hop`).

For texts that are answered (`serve.lap`) there are channels of their own, between any two nodes where they are *wanted*: asked
for when the first lap is to go there, and let go when none has gone either way for a while. They do not say, as
those of workers do, that a worker is there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from peerlm.effects import CancelTransfer, Effect, Log, RunChannel, Send, ServeChannel
from peerlm.events import ChannelEnded, ChannelOpened
from peerlm.types import Instant, PeerId, TransferId, after, short
from peerlm.wire.message import ChannelAnswer, ChannelRequest

ASK_S = 3.0
"""A request that is not answered is asked anew after so long."""

LATER_S = 4.0
"""The peer with the larger id leaves so much time to the other."""

WANTED_S = 120.0
"""A channel is wanted for so long after it was last said to be."""

WAYS_MAX = 256

AGAIN_S, AGAIN_S_MAX = 0.5, 15.0
"""A channel that broke is asked for anew after so long, and then twice as long each time."""


@dataclass(slots=True)
class _Way:
    """To one peer. `transfer`: of the channel, or of the request for it. `wanted_until`: of one that is no neighbour."""

    due: Instant
    wanted_until: Instant | None = None
    again_s: float = AGAIN_S
    transfer: TransferId | None = None
    keys: tuple[bytes, bytes] = (b"", b"")
    is_running: bool = False
    is_open: bool = False


class Channels:
    """Of one node, for hops or `for_texts`. `endpoint`: where a peer's bulk port can be dialled, or None."""

    def __init__(
        self,
        me: PeerId,
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        rng: random.Random,
        *,
        for_texts: bool = False,
    ) -> None:
        self._me, self._endpoint, self._rng = me, endpoint, rng
        self._for_texts = for_texts
        self._ways: dict[PeerId, _Way] = {}

    # --------------------------------------------------------------------------------- who is there

    def see(self, neighbours: Sequence[PeerId], now: Instant) -> list[Effect]:
        """Keep channels with these, and with whom they are wanted; let go of all others."""
        effects: list[Effect] = []
        for peer, way in list(self._ways.items()):
            until = way.wanted_until
            if peer not in neighbours and (until is None or until <= now):
                effects += self._let_go(self._ways.pop(peer))
        for peer in neighbours:
            if peer not in self._ways:
                wait_s = 0.0 if self._me < peer else LATER_S
                self._ways[peer] = _Way(after(now, wait_s))
        return effects + self.wake(now)

    def want(self, peer: PeerId, now: Instant) -> list[Effect]:
        """Keep a channel with `peer` for a while, neighbour or not; ask for one at once if there is none."""
        way = self._ways.get(peer)
        if way is None:
            if len(self._ways) >= WAYS_MAX:
                return []
            way = self._ways[peer] = _Way(now)
        way.wanted_until = after(now, WANTED_S)
        return self.wake(now)

    def keep_to(self, known: Collection[PeerId]) -> list[Effect]:
        """Let go of whoever is not among these."""
        gone = [peer for peer in self._ways if peer not in known]
        return [effect for peer in gone for effect in self._let_go(self._ways.pop(peer))]

    def open(self) -> tuple[PeerId, ...]:
        """With whom there is a channel, sorted."""
        return tuple(sorted(peer for peer, way in self._ways.items() if way.is_open))

    def is_taken(self, transfer: TransferId) -> bool:
        return any(way.transfer == transfer for way in self._ways.values())

    # -------------------------------------------------------------------------------------- asking

    def wake(self, now: Instant) -> list[Effect]:
        effects: list[Effect] = []
        for peer, way in self._ways.items():
            if way.is_running or way.due > now or self._endpoint(peer) is None:
                continue
            way.transfer = TransferId(self._rng.randbytes(16))
            way.keys = (self._rng.randbytes(32), self._rng.randbytes(32))
            way.due = after(now, ASK_S)
            effects.append(Send(peer, ChannelRequest(way.transfer, *way.keys, self._for_texts)))
        return effects

    def deadline(self) -> Instant | None:
        dues = [
            way.due
            for peer, way in self._ways.items()
            if not way.is_running and self._endpoint(peer)
        ]
        return min(dues, default=None)

    def on_answer(self, peer: PeerId, answer: ChannelAnswer, now: Instant) -> list[Effect]:
        way = self._ways.get(peer)
        if way is None or way.is_running or way.transfer != answer.transfer:
            return []
        endpoint = self._endpoint(peer)
        if answer.verdict != "accept" or endpoint is None:
            self._later(way, now)
            return []
        way.is_running = True
        return [
            RunChannel(TransferId(answer.transfer), peer, *endpoint, *way.keys, self._for_texts)
        ]

    # ------------------------------------------------------------------------------------ answering

    def on_request(self, peer: PeerId, request: ChannelRequest, now: Instant) -> list[Effect]:
        """Answer a peer that wants a channel. Of two that ask each other, the smaller id's request counts."""
        transfer = TransferId(request.transfer)
        way = self._ways.get(peer)
        if way is None and self._for_texts and len(self._ways) < WAYS_MAX:
            way = self._ways[peer] = _Way(now, after(now, WANTED_S))
        if way is None:
            return [Send(peer, ChannelAnswer(transfer, "refuse", "no neighbour"))]
        has_just_asked = way.transfer is not None and way.due > now
        if has_just_asked and self._me < peer:
            return [Send(peer, ChannelAnswer(transfer, "busy", "crossing"))]
        effects = self._let_go(way)
        way.transfer, way.is_running = transfer, True
        serve = ServeChannel(transfer, peer, request.key_up, request.key_down, self._for_texts)
        return [*effects, serve, Send(peer, ChannelAnswer(transfer, "accept", ""))]

    # ------------------------------------------------------------------------------------- its life

    def opened(self, event: ChannelOpened) -> list[Effect]:
        way = self._of(event.transfer)
        if way is None:
            return []
        peer, found = way
        found.is_open, found.again_s = True, AGAIN_S
        return [Log("info", "channel_open", (("peer", short(peer)),))]

    def ended(self, event: ChannelEnded, now: Instant) -> list[Effect]:
        way = self._of(event.transfer)
        if way is None:
            return []
        peer, found = way
        was_open = found.is_open
        found.transfer, found.is_running, found.is_open = None, False, False
        self._later(found, now)
        if not was_open:
            return []
        return [Log("info", "channel_over", (("peer", short(peer)), ("why", event.reason)))]

    def _of(self, transfer: TransferId) -> tuple[PeerId, _Way] | None:
        ways = self._ways.items()
        return next(((peer, way) for peer, way in ways if way.transfer == transfer), None)

    def _later(self, way: _Way, now: Instant) -> None:
        way.transfer = None
        way.due = after(now, way.again_s * self._rng.uniform(0.5, 1.5))
        way.again_s = min(2 * way.again_s, AGAIN_S_MAX)

    def _let_go(self, way: _Way) -> list[Effect]:
        transfer, running = way.transfer, way.is_running
        way.transfer, way.is_running, way.is_open = None, False, False
        return [CancelTransfer(transfer)] if running and transfer is not None else []
