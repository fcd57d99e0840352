"""Texts that go through the stages of several nodes: who can advance them, and the channels for it.

Everybody who may serve and has weights advances texts of any member through the stages that it holds. Which hosts a text
goes through is decided where it is asked for (`serve.gateway`); here is known who they are, and whose weights are old
beside those of others of the same stage: each says how many tokens the swarm had trained on when they were written. Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from peerlm.effects import Effect, Send, TellHosts
from peerlm.node.channels import Channels
from peerlm.node.seen import Seen
from peerlm.swarm.ways import UNKNOWN, Way
from peerlm.types import Instant, PeerId, after
from peerlm.wire.message import ChannelAnswer, ChannelRequest

Host = tuple[PeerId, int, int]

FAR_S, FAR_SHARE = 600.0, 0.01
"""Weights are far behind those of another host of the stage if the swarm trains for so long on what is between them, at the
rate at which tokens pass the stage now, and this is also more than such a share of all. Hosts write new ones each half a
minute or so, and may hold on to older ones for as long as that."""

COMPARE_EVERY_S = 5.0


class Weights(NamedTuple):
    """What a host answers texts with. `tokens`: the swarm's when they were written; None: it does not say.
    `tokens_per_s`: that pass its stages."""

    tokens: int | None
    tokens_per_s: float = 0.0


def far_behind(hosts: Iterable[Host], weights: Mapping[PeerId, Weights]) -> tuple[PeerId, ...]:
    """Those of these hosts whose weights are old beside those of another host of one of their stages, sorted. Who does not
    say is neither old nor new."""
    told = [(*host, found) for host in hosts if (found := weights.get(host[0])) is not None]
    behind: set[PeerId] = set()
    ends = sorted({stage for _, first, last, _ in told for stage in (first, last)})
    for stage in ends:  # where two runs have stages in common, an end of one of them is among these
        here = [(peer, found) for peer, first, last, found in told if first <= stage <= last]
        known = {peer: found.tokens for peer, found in here if found.tokens is not None}
        newest = max(known.values(), default=0)
        rate = sum(found.tokens_per_s for _, found in here)
        far = max(FAR_S * rate, FAR_SHARE * newest)
        behind.update(peer for peer, tokens in known.items() if newest - tokens > far)
    return tuple(sorted(behind))


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
        self.behind: tuple[PeerId, ...] = ()
        """Those of them with old weights."""
        self.count = 0
        """Texts that go through this node now."""
        self._compared: tuple[Host, ...] = ()
        self._compare_due = Instant(0.0)
        self._me, self._way_to, self._token_bytes = me, way_to, token_bytes
        self._told: tuple[object, ...] = ((), ())
        self._ways_s: tuple[tuple[float, float], ...] = ()

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
            self._told, self._ways_s = told, ways if any(map(any, ways)) else ()
            effects.append(self._tell())
        return effects

    def _tell(self) -> TellHosts:
        return TellHosts(self.hosts, self.behind, self._ways_s)

    def compare(self, weights: Callable[[PeerId], Weights | None], now: Instant) -> list[Effect]:
        """Look whose weights are old, if that was long ago or others are hosts now."""
        if self.hosts == self._compared and now < self._compare_due:
            return []
        self._compared, self._compare_due = self.hosts, after(now, COMPARE_EVERY_S)
        said = {peer: found for peer, *_ in self.hosts if (found := weights(peer)) is not None}
        before, self.behind = self.behind, far_behind(self.hosts, said)
        return [self._tell()] if self.behind != before else []

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


def at_most(count: int) -> int:
    """What is said of how many texts there are: the next power of two, so that it is not news each time that one comes or goes."""
    return 1 << (count - 1).bit_length() if count > 0 else 0


def _coarse(ways: tuple[float, float]) -> tuple[int, int]:
    """What is told anew is a way that is half as long or twice."""
    here, onward = (round(math.log2(max(s, LEAST_S))) for s in ways)
    return here, onward
