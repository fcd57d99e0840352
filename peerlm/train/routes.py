"""Where the stream goes next: one of the hosts of the next stage, drawn at random by how fast each was lately.

Which host a microbatch meets is drawn anew for each, so that hosts of a stage see each other's text, and mix by it
(SWARM, arXiv 2301.11913; NoLoCo, 2506.10911). A host counts by the time that it took to send a gradient back, longer
by what it has to do already, and by what it has lost lately; one that was never tried counts as the fastest but for the way there and
back, as far as that is known, so it is tried where it may be worth it.
A loss is soon forgiven, and at once by a gradient: where a later stage is missing for a moment, hosts that are well lose all that
they get.

A node that holds the next stage too may hand the stream over all the same: to a host whose run begins there, for such a one gets nothing
where everybody before it goes on by himself. It draws between them and itself by the same rule. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from peerlm.types import Instant, PeerId

Run = tuple[int, int]

Key = tuple[PeerId, int, int]
"""A pass: its microbatch, by who reads its text and by number, and the stage that it is sent on to. A microbatch may come
by the same host again for a later stage."""

NO_WAYS: Mapping[PeerId, float] = MappingProxyType({})

SMOOTHING = 0.2
"""Share of the newest time in what is known of a host."""

UNTRIED_S = 1.0
"""What is taken for a host's work while none was tried: ways that are short beside it make no difference then."""

PATIENCE_TIMES = 8.0
PATIENCE_S_MIN, PATIENCE_S_MAX = 5.0, 30.0
"""A microbatch is taken for lost after so many times what its way usually takes, within these bounds."""

SLOWEST_S = 60.0
"""However much a host has lost, it is tried now and then."""

FORGIVE_S, FORGIVE_TIMES = 5.0, 10.0
LOSSES_MAX = 16
"""A loss makes a host count as twice as slow. One is forgiven after each so many seconds without any, or so many times what the last
one took to be seen, if that is longer: who says nothing costs more than who says no. No more than so many are remembered."""


def is_past(stage: int, origin: PeerId, number: int, passes: Iterable[Key], stages: int) -> bool:
    """Whether a microbatch is past a stage already, by the `passes` of a node through which it goes."""
    return any(stage < (key[2] or stages) for key in passes if key[:2] == (origin, number))


class Routes:
    """Of one node. `rng` draws the hosts."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._runs: Mapping[PeerId, Run] = {}
        self._ways_s: Mapping[PeerId, float] = {}
        self._took_s: dict[PeerId, float] = {}
        self._losses: dict[PeerId, tuple[int, Instant, float]] = {}
        """In a row, when the last one was, and how long it takes until one is forgiven."""
        self._now = Instant(0.0)
        """As it was last told."""
        self._sent: dict[Key, tuple[PeerId, Instant]] = {}
        """Host, and since when, of each pass under way."""
        self._own_s: float | None = None
        """What it took where this node went on by itself."""

    def hosts_are(
        self, runs: Mapping[PeerId, Run], ways_s: Mapping[PeerId, float] = NO_WAYS
    ) -> list[Key]:
        """The hosts that can be sent to, and their stages; seconds that the way to each takes there and back, where that is
        known. Returns the passes whose host is gone."""
        self._runs, self._ways_s = dict(runs), ways_s
        self._took_s = {peer: took for peer, took in self._took_s.items() if peer in runs}
        self._losses = {peer: lost for peer, lost in self._losses.items() if peer in runs}
        return [key for key, (host, _) in self._sent.items() if host not in runs]

    def knows(self, peer: PeerId) -> bool:
        return peer in self._runs

    def has(self, stage: int) -> bool:
        return bool(self._able(stage))

    def choose(self, stage: int) -> PeerId | None:
        """A host of `stage`; None: there is none."""
        able = self._able(stage)
        if not able:
            return None
        return self._rng.choices(able, self._weights(able))[0]

    def hand_over(self, stage: int, passes: int) -> PeerId | None:
        """The host that takes over before `stage`, which this node holds and could go on with; None: it goes on by itself.
        `passes`: what it has under way."""
        able = [peer for peer in self._able(stage) if self._runs[peer][0] == stage]
        if not able:
            return None
        own_s = self._usual_s(able) if self._own_s is None else self._own_s
        ours = 1.0 / (max(own_s, 1e-6) * (1 + passes))
        return self._rng.choices([None, *able], [ours, *self._weights(able)])[0]

    def went_on(self, took_s: float) -> None:
        """A gradient is back of what this node took through several stages by itself."""
        self._own_s = _smoothed(self._own_s, took_s)

    def sent(self, key: Key, host: PeerId, now: Instant) -> None:
        self._sent[key], self._now = (host, now), now

    def host_of(self, key: Key) -> PeerId | None:
        """Who has this from us."""
        return self._sent[key][0] if key in self._sent else None

    def sent_to(self, peer: PeerId, key: Key) -> Key | None:
        """The pass that `peer` speaks of; None: it has none such from us. A node of before says no stage, and has a
        microbatch from us once only."""
        if self.host_of(key) == peer:
            return key
        found = [
            sent for sent, (host, _) in self._sent.items() if (*sent[:2], host) == (*key[:2], peer)
        ]
        return found[0] if key[2] == 0 and len(found) == 1 else None

    def came_back(self, key: Key, now: Instant) -> float:
        """Its gradient is here; how long it took."""
        host, since = self._sent.pop(key)
        self._now = now
        self._losses.pop(host, None)
        took_s = now - since
        self._took_s[host] = _smoothed(self._took_s.get(host), took_s)
        return took_s

    def forget(self, key: Key) -> None:
        self._sent.pop(key, None)

    def lost(self, key: Key) -> None:
        """It comes to nothing: its host counts as twice as slow for a while."""
        host, since = self._sent.pop(key, (None, self._now))
        if host is not None and host in self._runs:
            lost = min(self._lately_lost(host) + 1, LOSSES_MAX)
            forgive_s = max(FORGIVE_S, FORGIVE_TIMES * (self._now - since))
            self._losses[host] = (lost, self._now, forgive_s)

    def overdue(self, now: Instant) -> list[Key]:
        """What has been under way for too long."""
        self._now = now
        patience_s = self.patience_s
        return [key for key, (_, since) in self._sent.items() if now - since > patience_s]

    @property
    def patience_s(self) -> float:
        """Many times what the slowest host usually takes."""
        if not self._took_s:
            return PATIENCE_S_MAX
        usual = self._usual_s(list(self._runs))
        known = {*self._took_s, *self._losses}
        slowest_s = max(self._counts_s(peer, usual) for peer in known)
        return min(max(PATIENCE_TIMES * slowest_s, PATIENCE_S_MIN), PATIENCE_S_MAX)

    def _weights(self, hosts: Sequence[PeerId]) -> list[float]:
        usual = self._usual_s(hosts)
        load = dict.fromkeys(hosts, 1)
        for host, _ in self._sent.values():
            if host in load:
                load[host] += 1
        return [1.0 / (max(self._counts_s(peer, usual), 1e-6) * load[peer]) for peer in hosts]

    def _counts_s(self, host: PeerId, usual: float) -> float:
        """The time that a host counts with: what it took, or what is usual, and longer by what it has lost."""
        took_s = self._took_s.get(host, usual + self._way_s(host))
        lost = self._lately_lost(host)
        return max(took_s, min(took_s * 2**lost, SLOWEST_S)) if lost else took_s

    def _lately_lost(self, host: PeerId) -> int:
        """Losses that are not forgiven yet."""
        lost, at, forgive_s = self._losses.get(host, (0, self._now, FORGIVE_S))
        return max(0, lost - int((self._now - at) / forgive_s))

    def _usual_s(self, hosts: Sequence[PeerId]) -> float:
        """What is taken for the time of a host that was never tried, the way to it left out."""
        known = (self._took_s[p] - self._way_s(p) for p in hosts if p in self._took_s)
        return max(0.0, min(known, default=UNTRIED_S))

    def _way_s(self, host: PeerId) -> float:
        return self._ways_s.get(host, 0.0)

    def _able(self, stage: int) -> list[PeerId]:
        return sorted(p for p, (first, last) in self._runs.items() if first <= stage <= last)


def _smoothed(known_s: float | None, took_s: float) -> float:
    return took_s if known_s is None else known_s + SMOOTHING * (took_s - known_s)
