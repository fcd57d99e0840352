"""What the figures of a course are worth: growth, a split and its heal, one run beside another, and the bars.

Everything here is arithmetic on what was seen; course.py does the seeing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EFFICIENCY_MIN = 0.92
RETURN_S_MAX = 30.0
HEAL_S_MAX = 60.0
"""Longest time from the end of a split until everybody holds everybody alive."""

CORES_MAX = 0.6
"""Largest share of all processors' time that the nodes of a run may use together: more, and what is measured is their
waiting for one another."""

GROWTH_MAX = 1.05
LOSS_MAX = 1.01
"""Highest loss, as a multiple of that of the run beside which a run is held."""

SPREAD_MAX = 1e-3
"""Largest relative distance of a finished model from the mean of all."""

LAST_TOKENS = 0.05
"""Losses are compared over this last share of the tokens that both runs have: single evaluations differ."""

LEAK_S = 60.0
"""A life is looked at for leaks from this age on: by then everything has come up."""

LEAK_LIFE_S = 300.0
"""Lives shorter than this say nothing about leaks."""

LEAK_RUN_S = 900.0
"""In a run as long as this some life must be long enough to tell."""

LEAKERS = ("daemon", "worker")
"""Kinds of process that are looked at for leaks, each apart."""

Losses = Mapping[int, float]
"""Node number → its newest validation loss."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a process, when it was `age_s` old."""

    age_s: float
    rss: int
    files: int
    """Connections that are kept for a next transfer left out."""
    threads: int


def growth(lives: Iterable[Sequence[Size]]) -> dict[str, float | None]:
    """Of the longest life: the median of its last third ÷ that of its first after `LEAK_S`; None: no life was long
    enough."""
    longest: list[Size] = []
    for sizes in lives:
        grown = [size for size in sizes if size.age_s >= LEAK_S]
        if len(grown) > len(longest) and grown[-1].age_s >= LEAK_LIFE_S:
            longest = grown
    found: dict[str, float | None] = {"life_s": longest[-1].age_s if longest else None}
    third = len(longest) // 3
    for name in ("rss", "files", "threads"):
        values = [getattr(size, name) for size in longest]
        found[name] = (
            statistics.median(values[-third:]) / statistics.median(values[:third])
            if third
            else None
        )
    return found


def growth_by_kind(
    lives: Mapping[str, Iterable[Sequence[Size]]],
) -> dict[str, dict[str, float | None]]:
    """`growth` of each kind of process that nodes have."""
    return {kind: growth(lives.get(kind, ())) for kind in LEAKERS}


@dataclass(slots=True)
class Unshared:
    """What a node has learnt that may be nowhere else, by its own words (`see`, in the order in which they came)."""

    tokens: int = 0
    """About so many: what it has trained on since its last exchange, and H inner steps, for an exchange carries
    weights as they were at the end of a round. Of one fragment, at that: what another lacks whose exchanges all failed meanwhile
    is not seen, nor that all whom it has exchanged with may die before they meet somebody else."""

    _epoch: int = -1
    _exchanges: int = 0
    _then: int = 0
    _now: int = 0

    def see(self, status: Mapping[str, Any]) -> None:
        """`status`: as `peerlm status --json`."""
        if status["epoch"] != self._epoch:
            # What it comes back with others have, or it was booked when it died.
            self._epoch, self._exchanges, self._then = status["epoch"], 0, status["tokens"]
        self._now = status["tokens"]
        if status["exchanges"]["ok"] > self._exchanges:
            self._exchanges, self._then = status["exchanges"]["ok"], self._now
        round_tokens = status["tempo"]["inner_steps"] * status["batch"]["tokens"]
        self.tokens = min(self._now, self._now - self._then + round_tokens)

    def lose(self) -> int:
        """It has died, or its worker has: how much went with it, at most."""
        lost, self.tokens, self._then = self.tokens, 0, self._now
        return lost


Process = tuple[int, float]
"""Process id and when it began: ids are used again."""


@dataclass(slots=True)
class Usage:
    """Processor time of processes that come and go, from the first look on. What one uses after the last look at it is not
    counted."""

    seconds: float = 0.0
    _last: Mapping[Process, float] | None = None

    def see(self, used: Mapping[Process, float]) -> None:
        """`used`: seconds of processor time that each has taken in its life."""
        if self._last is not None:
            self.seconds += sum(now - self._last.get(who, 0.0) for who, now in used.items())
        self._last = dict(used)


@dataclass(slots=True)
class Split:
    """A swarm that was in two halves, from the moment at which they reach each other again."""

    ended_s: float
    better_half: float | None
    """Median loss of the half that had learnt more; None: not known of both."""

    heal_s: float = math.inf
    merged: float | None = None
    """Median loss of all, the newest."""
    worse_s: float = 0.0
    """Seconds from the end until that was no more than the better half's for good: weights that have grown apart are at
    first worth less together."""

    @classmethod
    def over(cls, at_s: float, half: Iterable[int], losses: Losses) -> Split:
        ours = frozenset(half)
        halves = (
            [loss for number, loss in losses.items() if number in ours],
            [loss for number, loss in losses.items() if number not in ours],
        )
        known = all(halves)
        return cls(at_s, min(map(statistics.median, halves)) if known else None)

    def see(self, at_s: float, whole: bool, losses: Losses) -> None:
        """`whole`: everybody holds everybody alive."""
        if whole and math.isinf(self.heal_s):
            self.heal_s = at_s - self.ended_s
        if not losses:
            return
        self.merged = statistics.median(losses.values())
        if self.better_half is not None and self.merged > self.better_half:
            self.worse_s = at_s - self.ended_s


def is_whole(statuses: Sequence[Mapping[str, Any]]) -> bool:
    """Everybody who answers holds everybody who does alive. `statuses`: as `peerlm status --json`."""
    ids = {s["node_id"] for s in statuses}
    return all(
        {m["id"] for m in s["members"] if m["state"] == "alive"} | {s["node_id"]} >= ids
        for s in statuses
    )


def loss_beside(report: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """A run's loss ÷ the other's: of the finished models where both have finished, which is after as many tokens; else at
    the most tokens that both have. None where one has no loss there."""
    if (finals := (report.get("final"), other.get("final"))) and all(finals):
        return float(finals[0]["loss"] / finals[1]["loss"])  # type: ignore[index]
    return curves_beside(report["curve"], other["curve"])


def curves_beside(
    curve: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> float | None:
    """A curve's loss ÷ the other's, over the last twentieth of the tokens that both have: nodes are apart there, so it tells
    less than finished models. None where one has no loss there."""
    tokens = min((c[-1]["tokens"] for c in (curve, other) if c), default=0)

    def loss(points: Sequence[Mapping[str, Any]]) -> float | None:
        found = [
            p["val_loss"]
            for p in points
            if p["val_loss"] is not None and (1 - LAST_TOKENS) * tokens <= p["tokens"] <= tokens
        ]
        return statistics.fmean(found) if found else None

    ours, theirs = loss(curve), loss(other)
    return ours / theirs if ours is not None and theirs else None


def missed_bars(report: Mapping[str, Any]) -> list[str]:
    """What a report does not keep of what peerlm promises."""
    missed = []
    if (efficiency := report["efficiency"]) is None or efficiency < EFFICIENCY_MIN:
        missed.append(f"efficiency {efficiency or 0:.3f}, at least {EFFICIENCY_MIN}")
    returns = report["return_s"]
    if returns["n"] and (returns["max"] is None or returns["max"] > RETURN_S_MAX):
        took = "more" if returns["max"] is None else f"{returns['max']:.0f} s"
        missed.append(f"a node took {took} to take part again, at most {RETURN_S_MAX:.0f} s")
    if report["not_returned"] or math.isinf(report["well_s"]):
        missed.append("not everybody takes part again at the end")
    if report["breadth_min"] < report["nodes"] - 1:
        missed.append(f"a node mixed with {report['breadth_min']} of {report['nodes'] - 1} others")
    if report["cores_share"] > CORES_MAX:
        missed.append(
            f"nodes used {report['cores_share']:.3f} of all processors' time, at most {CORES_MAX}: a lower pace"
        )
    for kind, grown in report["growth"].items():
        missed += _leaks(kind, grown, report["seconds"])
    for split in report["splits"]:
        missed += _missed_by(split)
    beside = report.get("loss_beside", 0.0)
    if beside is None:
        missed.append(
            "the loss could not be held beside that of the other run: one of them has none"
        )
    elif beside > LOSS_MAX:
        missed.append(f"loss {beside:.4f} times that of the run beside, at most {LOSS_MAX}")
    if report.get("finish") and not report.get("final"):
        missed.append("the run did not come to its end: there are no finished models")
    elif report.get("final") and report["final"]["spread"] > SPREAD_MAX:
        missed.append(
            f"finished models differ by {report['final']['spread']:.1e}, at most {SPREAD_MAX}"
        )
    if report["tracebacks"]:
        missed.append(f"{report['tracebacks']} tracebacks in the logs")
    if report["tokens_that_fell"]:
        missed.append(f"the count of tokens fell {report['tokens_that_fell']} times")
    return missed


def _leaks(kind: str, grown: Mapping[str, float | None], seconds: float) -> list[str]:
    names = ("rss", "files", "threads")
    if seconds >= LEAK_RUN_S and any(grown[name] is None for name in names):
        return [
            f"no {kind} was seen for long enough to tell whether it leaks: {LEAK_LIFE_S:.0f} s, and calm moments in them"
        ]
    return [
        f"{name} of a {kind} grew to {by:.3f} times, at most {GROWTH_MAX}"
        for name in names
        if (by := grown[name]) is not None and by > GROWTH_MAX
    ]


def _missed_by(split: Mapping[str, Any]) -> list[str]:
    missed = []
    if split["heal_s"] > HEAL_S_MAX:
        missed.append(
            f"halves were one swarm again after {split['heal_s']:.0f} s, at most {HEAL_S_MAX:.0f} s"
        )
    merged, best = split["merged"], split["better_half"]
    if merged is None or best is None:
        whose = "of both halves" if best is None else "after the heal"
        missed.append(f"whether the merged loss is no more than the better half's: no loss {whose}")
    elif merged > best:
        missed.append(f"merged loss {merged:.4f}, of the better half {best:.4f}")
    return missed
