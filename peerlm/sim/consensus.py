"""Mixing alone: how fast vectors that nobody trains come to agree, in rounds that all take at once.

Nodes here hold one fragment of random numbers and take no inner steps, so what is seen is the algorithm,
the codec and the sampler of a plan and nothing else. These are the node's own. So is the flow form, only in
fp64 and for many swarms side by side (tests hold it against `mix.flow`), so that closed forms can be
checked to more digits than fp32 has. There is no clipping: it belongs to a history that these nodes lack.

A *round* is: everybody compares, everybody moves, everybody takes an outer step without progress.

- A sampler that draws: in a random order, each node not in an exchange yet draws from those who are not
  either. So a node is in at most one exchange, as the lock on a fragment demands.
- A sampler with a schedule: each asks whom it names, all at the same moment; where two name each
  other it is one exchange. On a ring, and with one-peer exponential, each is in two.

Who asks and who answers is drawn too. With `drop_reply` a reply is lost with that probability, after the
answering side has moved. A node on its own clock takes part in some 2 × `mix.exchanges` exchanges
between two outer steps, so two rounds here are about one outer step there.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peerlm.config import MixSection
from peerlm.errors import ConfigError
from peerlm.mix import algorithms
from peerlm.mix.codec import CODECS, WEIGHT_CODECS, decode, encode, encoded_size
from peerlm.mix.vector import BLOCK
from peerlm.sim.figures import Figure, quantiles
from peerlm.swarm.sampler import Sampler, sampler_named
from peerlm.swarm.samplers.scheduled import Scheduled
from peerlm.types import FragmentId, PeerId

DIMENSION = 100
"""Numbers in each node's vector."""

AGREED = 1e-20
"""Share of the first variance below which a ratio of variances would be one of rounding errors. Must be
below `CLOSE`²."""

CLOSE = 1e-3
"""`rounds_to_1e-3` counts until the spread, the root of the variance, has fallen by this."""

NEVER = float("inf")

SITES_S = (0.001, 0.05)
"""Round trips for `latency_biased`: nodes are at two sites in turn; within one, and between them."""

NODES_MAX = 1000
RUNS_MAX = 100_000
TOGETHER = 20_000
"""Nodes, counted over all swarms, that are held at a time."""

Array = NDArray[Any]
Codecs = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Setting:
    """What to simulate. `codecs`: of request and reply; None for numbers as they are.

    Raises:
        ConfigError: a number out of range, or an algorithm that mixes nothing.
    """

    mix: MixSection = field(default_factory=MixSection)
    nodes: int = 16
    rounds: int = 60
    runs: int = 100
    seed: int = 1
    codecs: Codecs | None = None
    drop_reply: float = 0.0

    def __post_init__(self) -> None:
        _within("nodes", self.nodes, 2, NODES_MAX)
        _within("rounds", self.rounds, 1, 100_000)
        _within("runs", self.runs, 1, RUNS_MAX)
        _within("seed", self.seed, 0, 2**62)
        _within("drop-reply", self.drop_reply, 0, 1)
        if not algorithms.get(self.mix.algorithm).mixes:
            raise ConfigError(f"mix.algorithm = {self.mix.algorithm!r}: its nodes mix with nobody")


def codecs_named(text: str) -> Codecs:
    """`int8:int4`, or one name for both ways. Raises `ConfigError`."""
    request, colon, reply = text.partition(":")
    reply = reply if colon else request
    if request not in WEIGHT_CODECS or reply not in CODECS:
        raise ConfigError(
            f"codec = {text!r}: must be REQUEST:REPLY, with a request of {', '.join(WEIGHT_CODECS)} "
            f"and a reply of {', '.join(CODECS)}"
        )
    return request, reply


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value!r}: must be {low} to {high:,}")


# ------------------------------------------------------------------------------------ one round


@dataclass(frozen=True, slots=True)
class Meetings:
    """Exchanges of one round, [k] each: in which run, who asks, who answers, the sampler's share, and
    whether the reply arrives. In one run nobody asks twice, and nobody answers twice."""

    run: Array
    asks: Array
    answers: Array
    share: Array
    arrives: Array


class LockStep:
    """Swarms side by side: `phi` and `momentum`, both [runs, nodes, dimension], fp64."""

    def __init__(self, phi: Array, mix: MixSection, codecs: Codecs | None, seed: int = 1) -> None:
        self.phi = phi
        self.momentum = np.zeros_like(phi)
        self._mix = mix
        self._algorithm = algorithms.get(mix.algorithm)
        self._codecs = codecs
        self._noise = np.random.default_rng([seed, 2])

    def exchange(self, met: Meetings) -> None:
        """Every pair compares, then every side moves: c·d̂ here, −c·d̂ there."""
        asks, answers = (met.run, met.asks), (met.run, met.answers)
        request, reply = self._codecs or (None, None)
        difference = self.phi[answers] - self._coded(self.phi[asks], request)
        coefficient = [self._algorithm.coefficient(self._mix, s, 1.0) for s in met.share.tolist()]
        flow = np.array(coefficient)[:, None] * self._coded(difference, reply)
        moving = self.momentum if self._algorithm.through_momentum else self.phi
        moving[answers] -= flow
        moving[asks] += flow * met.arrives[:, None]

    def outer(self, progress: Array | None = None) -> None:
        """An outer step of everybody, with `progress` [runs, nodes, dimension] or without any."""
        progress = np.zeros_like(self.phi) if progress is None else progress.copy()
        self._algorithm.outer(self.phi, self.momentum, progress, self._mix)

    def mean(self) -> Array:
        """[runs, dimension]"""
        return np.asarray(self.phi.mean(axis=1))

    def variance(self) -> Array:
        """Mean square distance from the mean, per element, [runs]."""
        return np.asarray(self.phi.var(axis=1).mean(axis=1))

    def _coded(self, values: Array, codec: str | None) -> Array:
        """What arrives of `values` [k, dimension]: each row by itself, for blocks have one scale."""
        if codec is None or not values.size:
            return values
        k, dimension = values.shape
        rows = np.zeros((k, -(-dimension // BLOCK) * BLOCK), np.float32)
        rows[:, :dimension] = values
        coded = encode(rows.ravel(), codec, self._noise)
        return decode(coded, rows.size, codec).reshape(rows.shape)[:, :dimension].astype(float)


class Rounds:
    """Who meets whom in one swarm."""

    def __init__(self, name: str, nodes: int, rng: random.Random) -> None:
        self._peers = tuple(PeerId(place.to_bytes(16, "big")) for place in range(nodes))
        self._places = {peer: place for place, peer in enumerate(self._peers)}
        self._rng = rng
        sampler = sampler_named(name, rng.getrandbits(62))
        self._graph = sampler.graph if isinstance(sampler, Scheduled) else None
        self._samplers = [sampler_named(name, 0) for _ in range(nodes)]
        for place, one in enumerate(self._samplers):
            self._tell_round_trips(place, one)

    def _tell_round_trips(self, place: int, sampler: Sampler) -> None:
        for other, peer in enumerate(self._peers):
            sampler.answered(peer, SITES_S[(place + other) % 2])

    def pairs(self, round: int) -> list[tuple[int, int, float]]:
        """(who asks, who answers, share) of each exchange of this round."""
        if self._graph is not None:
            return list(self._as_named(round))
        return list(self._as_drawn(round))

    def _as_named(self, round: int) -> Iterator[tuple[int, int, float]]:
        assert self._graph is not None
        named = self._graph.named(self._peers, FragmentId(0), round)
        for place, choice in enumerate(named):
            if choice is None:
                continue
            partner, share = choice
            back = named[partner]
            is_mutual = back is not None and back[0] == place
            if is_mutual and partner < place:
                continue
            if is_mutual and self._rng.random() < 0.5:
                yield partner, place, share
            else:
                yield place, partner, share

    def _as_drawn(self, round: int) -> Iterator[tuple[int, int, float]]:
        taken: set[PeerId] = set()
        for me in self._rng.sample(self._peers, len(self._peers)):
            if me in taken:
                continue
            place = self._places[me]
            taken.add(me)
            choice = self._samplers[place].choose(
                self._peers, me, FragmentId(0), round, self._rng, taken
            )
            if choice is not None:
                taken.add(choice.peer)
                yield place, self._places[choice.peer], choice.share


def meetings(
    pairs: Sequence[Sequence[tuple[int, int, float]]], drop_reply: float, rng: np.random.Generator
) -> Meetings:
    """`pairs`: those of each run."""
    flat = [(run, *pair) for run, of_run in enumerate(pairs) for pair in of_run]
    columns = np.array(flat, float).reshape(-1, 4).T
    run, asks, answers = columns[:3].astype(int)
    return Meetings(run, asks, answers, columns[3], rng.random(run.size) >= drop_reply)


# ------------------------------------------------------------------------------------- all runs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of all runs.

    ratios: V'/V of every round, [runs, rounds]. drift: how far each swarm's mean has moved, [runs,
    dimension]. rounds_to_close: [runs], 0 where the rounds did not suffice. exchanges: of all runs.
    """

    setting: Setting
    ratios: Array
    drift: Array
    rounds_to_close: Array
    exchanges: int
    digest: str

    def drift_rms(self) -> float:
        return float(np.sqrt(np.mean(self.drift**2)))

    def drift_se(self) -> float:
        """Standard error of `drift_rms`; runs are independent, the numbers of one run are not."""
        squares, rms = np.mean(self.drift**2, axis=1), self.drift_rms()
        return float(squares.std() / np.sqrt(squares.size) / (2 * rms)) if rms else 0.0

    def bytes_per_node(self) -> float:
        """Sent, over all rounds. Numbers as they are count as fp32, the most that nodes send."""
        request, reply = self.setting.codecs or ("fp32", "fp32")
        each = encoded_size(request, DIMENSION) + encoded_size(reply, DIMENSION)
        return self.exchanges * each / (self.setting.runs * self.setting.nodes)

    def figures(self) -> dict[str, float | Figure]:
        return {
            "variance_ratio_per_round": float(self.ratios.mean()),
            "variance_ratio_se": float(self.ratios.std() / np.sqrt(self.ratios.size)),
            "rounds_to_1e-3": quantiles(n or NEVER for n in self.rounds_to_close.tolist()),
            "mean_drift_rms": self.drift_rms(),
            "mean_drift_se": self.drift_se(),
            "bytes_per_node": self.bytes_per_node(),
        }


class Batch:
    """Some of the runs, side by side. Each starts from independent normal numbers of variance one.

    A swarm that has agreed to the last digit has nothing more to tell, so it begins anew, with the
    schedule where it is: for the ratios alone, what it has drifted until then stays.
    """

    def __init__(self, setting: Setting, number: int, runs: range) -> None:
        self._draws = np.random.default_rng([setting.seed, number])
        self._setting = setting
        shape = len(runs), setting.nodes, DIMENSION
        phi = self._draws.standard_normal(shape)
        self.swarms = LockStep(phi, setting.mix, setting.codecs, setting.seed + number)
        self._rounds = [
            Rounds(setting.mix.sampler, setting.nodes, random.Random(f"{setting.seed} {run}"))
            for run in runs
        ]
        self._start = self.swarms.mean()
        self._first, self._last = self.swarms.variance(), self.swarms.variance()
        self._ended = np.zeros(len(runs), bool)
        self._drift = np.zeros_like(self._start)
        self.rounds_to_close = np.zeros(len(runs), int)
        self.ratios: list[Array] = []

    def step(self, round: int) -> Meetings:
        pairs = [rounds.pairs(round) for rounds in self._rounds]
        met = meetings(pairs, self._setting.drop_reply, self._draws)
        self.swarms.exchange(met)
        self.swarms.outer()
        variance = self.swarms.variance()
        self.ratios.append(variance / self._last)
        is_close = (variance <= CLOSE**2 * self._first) & (self.rounds_to_close == 0)
        self.rounds_to_close[is_close & ~self._ended] = round + 1
        self._begin_anew(variance <= AGREED * self._first)
        self._last = self.swarms.variance()
        return met

    def drift(self) -> Array:
        return np.where(self._ended[:, None], self._drift, self.swarms.mean() - self._start)

    def _begin_anew(self, agreed: Array) -> None:
        if not agreed.any():
            return
        self._drift = self.drift()
        self._ended |= agreed
        shape = int(agreed.sum()), *self.swarms.phi.shape[1:]
        self.swarms.phi[agreed] = self._draws.standard_normal(shape)
        self.swarms.momentum[agreed] = 0
        self._first[agreed] = self.swarms.variance()[agreed]


def simulate(setting: Setting, after_round: Callable[[], None] = lambda: None) -> Outcome:
    """All runs. `after_round` is called `batches(setting) × setting.rounds` times."""
    done, exchanges = [], 0
    digest = hashlib.blake2b(repr(setting).encode(), digest_size=16)
    for number, runs in enumerate(_batches(setting)):
        batch = Batch(setting, number, runs)
        for round in range(setting.rounds):
            met = batch.step(round)
            exchanges += met.run.size
            digest.update(np.stack([met.run, met.asks, met.answers, met.arrives]).tobytes())
            after_round()
        digest.update(batch.swarms.phi.tobytes())
        done.append(batch)
    return Outcome(
        setting,
        ratios=np.concatenate([np.stack(batch.ratios, axis=1) for batch in done]),
        drift=np.concatenate([batch.drift() for batch in done]),
        rounds_to_close=np.concatenate([batch.rounds_to_close for batch in done]),
        exchanges=exchanges,
        digest=digest.hexdigest(),
    )


def batches(setting: Setting) -> int:
    """How many times all rounds are gone through."""
    return len(_batches(setting))


def _batches(setting: Setting) -> list[range]:
    """Runs that are held side by side."""
    most, runs = max(1, TOGETHER // setting.nodes), setting.runs
    return [range(start, min(start + most, runs)) for start in range(0, runs, most)]
