"""Figures of many runs as one JSON value each: quantiles, never averages, and how many there were."""

from __future__ import annotations

import math
from collections.abc import Iterable

Figure = dict[str, float | int | None]


def quantiles(values: Iterable[float]) -> Figure:
    """`{"p50", "p90", "p99", "max", "n"}`; each is one of the values (nearest rank), None where that is inf,
    which means never, or if n is 0."""
    ordered = sorted(values)

    def at(share: float) -> float | None:
        if not ordered:
            return None
        value = ordered[max(0, math.ceil(share * len(ordered)) - 1)]
        return value if math.isfinite(value) else None

    return {
        "p50": at(0.5),
        "p90": at(0.9),
        "p99": at(0.99),
        "max": at(1.0),
        "n": len(ordered),
    }
