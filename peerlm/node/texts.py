"""Texts that go through the stages of several nodes: who can advance them, and the channels for it.

Everybody who may serve and has weights advances texts of any member through the stages that it holds. Which hosts a text
goes through is decided where it is asked for (`serve.gateway`); here is known who they are. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from peerlm.effects import Effect, Send, TellHosts
from peerlm.node.channels import Channels
from peerlm.node.seen import Seen
from peerlm.types import Instant, PeerId
from peerlm.wire.message import ChannelAnswer, ChannelRequest

Host = tuple[PeerId, int, int]


class Texts:
    """Of one node. `endpoint`: where a peer's bulk port can be dialled, or None."""

    def __init__(
        self,
        me: PeerId,
        endpoint: Callable[[PeerId], tuple[str, int] | None],
        rng: random.Random,
    ) -> None:
        self.channels = Channels(me, endpoint, rng, for_texts=True)
        self.hosts: tuple[Host, ...] = ()
        """Sorted; with this node, if it is one."""

    def see(self, seen: Seen, own: Host | None, now: Instant) -> list[Effect]:
        """`own`: this node's stages, if it has their weights and advances texts."""
        hosts = [(peer, *seen.runs[peer]) for peer in seen.servers]
        if own is not None:
            hosts.append(own)
        before, self.hosts = self.hosts, tuple(sorted(hosts))
        effects = self.channels.keep_to(seen.runs)
        effects += self.channels.see((), now)
        if self.hosts != before:
            effects.append(TellHosts(self.hosts))
        return effects

    def on_request(
        self, peer: PeerId, request: ChannelRequest, seen: Seen, now: Instant
    ) -> list[Effect]:
        if peer not in seen.runs:
            return [Send(peer, ChannelAnswer(request.transfer, "refuse", "not known here"))]
        return self.channels.on_request(peer, request, now)

    def want(self, peer: PeerId, seen: Seen, now: Instant) -> list[Effect]:
        """Something is to be said to `peer`, or has been."""
        return self.channels.want(peer, now) if peer in seen.runs else []
