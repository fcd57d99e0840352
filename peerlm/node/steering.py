"""What a worker is told to go by, and what weight others should give to this node.

Twice a second the worker hears whether to learn, what the swarm's token count is, who shares the text, over which channels
the stream goes, and how many inner steps lie between two outer ones: so the learning rate and the share of the text
follow without a coordinator. The number of steps is `mix.tempo`'s.

A node that is new is given less weight in exchanges, and, with `mix.by_tokens`, one that is slower than the fastest as much
less: pairs then conserve the sum weighted by tokens a second.
"""

from __future__ import annotations

from collections.abc import Callable

from peerlm.config import NodeSettings, Plan
from peerlm.effects import Effect
from peerlm.mix.algorithms import ramp
from peerlm.mix.exchange import Exchanges
from peerlm.mix.tempo import Tempo
from peerlm.model.stages import stream_bytes
from peerlm.node.channels import Channels
from peerlm.node.coverage import Coverage
from peerlm.node.seen import Seen
from peerlm.node.worker import Worker
from peerlm.swarm.hosting import Hosting
from peerlm.swarm.ways import Way
from peerlm.types import Instant, PeerId, after

STEER_S = 0.5

SLOWEST_SHARE = 0.1
"""Of the usual weight, with `mix.by_tokens`: whatever the fastest says of itself, exchanges go on."""


class Steering:
    """Of one node's work. `rate_of`: tokens a second of a peer; `way_to`: how far it is. `due`: when to `steer` next."""

    def __init__(
        self,
        me: PeerId,
        plan: Plan,
        settings: NodeSettings,
        hosting: Hosting,
        worker: Worker,
        exchanges: Exchanges,
        channels: Channels,
        coverage: Coverage,
        rate_of: Callable[[PeerId], float],
        way_to: Callable[[PeerId], Way],
        now: Instant,
    ) -> None:
        self._me, self._plan, self._settings, self._hosting = me, plan, settings, hosting
        self._worker, self._exchanges = worker, exchanges
        self._channels, self._coverage = channels, coverage
        self._rate_of, self._way_to = rate_of, way_to
        self.tempo = Tempo(plan.mix, now)
        self.outer_steps = 0
        """Of the fragment 0, since there are these weights."""
        self.due = now

    def use_plan(self, plan: Plan, now: Instant) -> None:
        self._plan = plan
        self.tempo.follow(plan.mix, now)

    def tokens_per_step(self) -> int:
        return (
            self._plan.train.batch * self._settings.train.local_workers * self._plan.model.context
        )

    def tokens_per_round(self) -> int:
        """What this node trains on between two outer steps."""
        return self.tempo.inner_steps * self.tokens_per_step()

    def steer(self, seen: Seen, now: Instant, *, training: bool) -> list[Effect]:
        """Tell the worker. `training`: it is to learn."""
        self.due = after(now, STEER_S)
        self.weigh(seen)
        if not training or not self._worker.tokens_per_s:
            self.tempo.begin(now)
        else:
            step_s = self.tokens_per_step() / self._worker.tokens_per_s
            on_cpu = self._worker.supervision.device.endswith("cpu")
            self.tempo.look(step_s, now, trains_on_cpu=on_cpu)
        size = stream_bytes(self._plan)
        hosts = tuple((peer, *seen.runs[peer]) for peer in self._channels.open())
        ways_s = tuple(2 * self._way_to(peer).hop_s(size) for peer, _, _ in hosts)
        return self._worker.steer(
            training,
            seen.swarm_tokens,
            self.readers(seen),
            self.tempo.inner_steps,
            hosts,
            ways_s,
            self._coverage.for_steering(),
        )

    def readers(self, seen: Seen) -> tuple[PeerId, ...]:
        """Who shares the text, sorted."""
        readers = [peer for peer in seen.trainers if not seen.runs[peer][0]]
        return tuple(sorted((*readers, self._me) if self._hosting.has_ends else readers))

    def weigh(self, seen: Seen) -> None:
        """What weight others should give to this node, from now on."""
        standing = self._exchanges.standing
        share, own = 1.0, self._worker.tokens_per_s
        if self._plan.mix.by_tokens and own and not standing.settling:
            fastest = max(map(self._rate_of, seen.trainers), default=own)
            share = max(SLOWEST_SHARE, own / max(own, fastest))
        standing.ramp = ramp(self.outer_steps) * share
