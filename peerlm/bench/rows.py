"""From rounds to rows: what a benchmark says of each who took part, as plain values for JSON.

Pure arithmetic. A rate is the fp32 bytes of one model ÷ the seconds in which all have exchanged it, so that
it means the same for every codec and every rival. Ratios are of median rates within one run, where rounds
of all who take part follow one another and load hits all alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from peerlm.errors import PeerlmError
from peerlm.sim.figures import quantiles

FP32_BYTES = 4

STAGES = ("receive", "open", "hear", "say", "seal", "send", "apply")
"""What the daemon's bulk thread, and for the last the pool, spends time on: see docs/benchmarks.md."""

SPENT = "_us"

Row = dict[str, Any]


class Missed(PeerlmError):
    """What a figure needs did not happen, so there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round: every fragment of the model exchanged.

    seconds: from the first start to the last end, of all processes.
    meeting_s: what had to be waited for before, to know with whom; 0 where nothing is.
    counts: of all; `wire_bytes` that were sent, and what else a party counts; what ends with `_us` is
        microseconds that were spent on something.
    cpu_s: processor time of all.
    rss_mb: the most that one process has had.
    grown_mb: how much more than before its first round one process has had, the most of all.
    """

    seconds: float
    meeting_s: float
    counts: Mapping[str, int]
    cpu_s: float
    rss_mb: float
    grown_mb: float


def exchange_row(name: str, rounds: Sequence[Round], parameters: int, *, met: bool = False) -> Row:
    """What `rounds` of one party come to. `met`: with the time to find each other in every round.

    Raises:
        Missed: there are no `rounds`.
    """
    seconds = [r.seconds + (r.meeting_s if met else 0.0) for r in rounds]
    spread = quantiles(seconds)
    median_s = _known(spread["p50"])
    means = {count: _mean(r.counts[count] for r in rounds) for count in rounds[0].counts}
    return {
        "name": name,
        "seconds_p50": median_s,
        "seconds_p90": spread["p90"],
        "seconds_max": spread["max"],
        "param_gb_s": FP32_BYTES * parameters / median_s / 1e9,
        "cpu_s": fmean(r.cpu_s for r in rounds),
        "rss_mb": max(r.rss_mb for r in rounds),
        "rss_grown_mb": max(r.grown_mb for r in rounds),
        **{name: mean for name, mean in means.items() if not name.endswith(SPENT)},
        "spent_ms": {n.removesuffix(SPENT): m / 1e3 for n, m in means.items() if n.endswith(SPENT)},
    }


def with_ratios(rows: Sequence[Row], rivals: Sequence[str]) -> list[Row]:
    """The rows, each with `ratio`: its rate ÷ that of each rival named, itself left out."""
    rates = {row["name"]: row["param_gb_s"] for row in rows}
    return [
        row | {"ratio": {r: row["param_gb_s"] / rates[r] for r in rivals if r != row["name"]}}
        for row in rows
    ]


def codec_row(name: str, seconds: Sequence[float], parameters: int, **facts: float | None) -> Row:
    """What one operation over `parameters` costs. `facts` follow as they are.

    Raises:
        Missed: there are no `seconds`.
    """
    median_s = _known(quantiles(seconds)["p50"])
    return {
        "name": name,
        "ns_per_parameter": 1e9 * median_s / parameters,
        "gb_s": FP32_BYTES * parameters / median_s / 1e9,
        **facts,
    }


def _mean(counts: Iterable[int]) -> float:
    """A whole number where it is one: bytes are read better so."""
    mean = round(fmean(counts), 1)
    return int(mean) if mean.is_integer() else mean


def _known(value: float | None) -> float:
    if value is None:
        raise Missed("nothing was measured")
    return value


def codecs_of(text: str) -> tuple[str, str]:
    """`int8:int4` as (of the request, of the reply); `fp16` is both."""
    request, colon, reply = text.partition(":")
    return request, reply if colon else request


def grown(counts: Mapping[str, int], since: Mapping[str, int]) -> dict[str, int]:
    """By how much each count is more than it was."""
    return {name: count - since[name] for name, count in counts.items()}
