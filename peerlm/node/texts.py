"""Texts that go through the stages of several nodes: who can advance them, and the channels for it.

Everybody who may serve and has weights advances texts of any member through the stages that it holds. Which hosts a text
goes through is decided where it is asked for (`serve.gateway`); here is known who they are. Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from peerlm.effects import Effect, Send, TellHosts
from peerlm.node.channels import Channels
from peerlm.node.seen import Seen
from peerlm.swarm.ways import UNKNOWN, Way
from peerlm.types import Instant, PeerId
from peerlm.wire.message import ChannelAnswer, ChannelRequest

Host = tuple[PeerId, int, int]

LEAST_S = 1e-3
"""Ways shorter than this are the same: no processor is as quick."""


class Texts:
    """Of one node. `endpoint`: where a peer's bulk port can be dialled, or None. `way_to`: how far it is. `token_bytes`: of one
    between two stages; 0 where there is one."""

    def __init__(
        self,
        me: PeerId,
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        rng: random.Random,
        way_to: Callable[[PeerId], Way] = lambda peer: UNKNOWN,
        token_bytes: int = 0,
    ) -> None:
        self.channels = Channels(me, endpoint, rng, for_texts=True)
        self.hosts: tuple[Host, ...] = ()
        """Sorted; with this node, if it is one."""
        self._me, self._way_to, self._token_bytes = me, way_to, token_bytes
        self._told: tuple[object, ...] = ((), ())

    def see(self, seen: Seen, own: Host | None, now: Instant) -> list[Effect]:
        """`own`: this node's stages, if it has their weights and advances texts."""
        hosts = [(peer, *seen.runs[peer]) for peer in seen.servers]
        if own is not None:
            hosts.append(own)
        self.hosts = tuple(sorted(hosts))
        near = self.hosts if self._token_bytes else ()
        ways = tuple(self._way_s(peer) for peer, _, _ in near)
        effects = self.channels.keep_to(seen.runs)
        effects += self.channels.see((), now)
        told = (self.hosts, tuple(map(_coarse, ways)))
        if told != self._told:
            self._told = told
            effects.append(TellHosts(self.hosts, ways if any(map(any, ways)) else ()))
        return effects

    def _way_s(self, peer: PeerId) -> tuple[float, float]:
        """Seconds of a token from here to a host, and between it and a third."""
        if peer == self._me:
            return 0.0, 0.0
        way = self._way_to(peer)
        return way.hop_s(self._token_bytes), way.onward_s(self._token_bytes)

    def on_request(
        self, peer: PeerId, request: ChannelRequest, seen: Seen, now: Instant
    ) -> list[Effect]:
        if peer not in seen.runs:
            return [Send(peer, ChannelAnswer(request.transfer, "refuse", "not known here"))]
        return self.channels.on_request(peer, request, now)

    def want(self, peer: PeerId, seen: Seen, now: Instant) -> list[Effect]:
        """Something is to be said to `peer`, or has been."""
        return self.channels.want(peer, now) if peer in seen.runs else []


def _coarse(ways: tuple[float, float]) -> tuple[int, int]:
    """What is told anew is a way that is half as long or twice."""
    here, onward = (round(math.log2(max(s, LEAST_S))) for s in ways)
    return here, onward
