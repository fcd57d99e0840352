"""Where the time goes: microseconds spent on each of a few things, counted as they pass.

It is always on: it costs two looks at a clock for each chunk that is moved, and whoever wonders what
limits an exchange finds the answer in the node's counters.
"""

from __future__ import annotations

import time
from collections import Counter


class Stopwatch:
    """Counts into `counters`, as `NAME_us`. `with stopwatch("seal"): …`; one thread, not nested."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._keys: dict[str, str] = {}
        self._key, self._began = "", 0

    def __call__(self, name: str) -> Stopwatch:
        self._key = self._keys.get(name) or self._keys.setdefault(name, f"{name}_us")
        return self

    def __enter__(self) -> None:
        self._began = time.perf_counter_ns()

    def __exit__(self, *exc: object) -> None:
        self._counters[self._key] += (time.perf_counter_ns() - self._began) // 1000
