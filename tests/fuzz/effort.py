"""How much to try. `FUZZ=20` (that is `make fuzz`) tries twenty times as much, and something else each time;
without it the same few things are tried every time, in seconds."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EFFORT = max(1, int(os.environ.get("FUZZ", "1")))
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def some(examples: int, steps: int = 50) -> settings:
    """Settings for so many runs of so many steps each."""
    return settings(
        max_examples=examples * EFFORT,
        stateful_step_count=steps,
        deadline=None,
        derandomize=EFFORT == 1,
        suppress_health_check=SLOW,
    )
