"""The learning rate as a pure function of what the swarm has done.

Nobody counts rounds: the rate follows the tokens the whole swarm has trained on, as far as this
node knows, so nodes that start late or come back are at once where the others are. A worker that
starts cold (no optimizer state) rises to that rate over a few inner steps of its own.
"""

from __future__ import annotations

import math


def rate(swarm_tokens: int, budget: int, warmup: float, final: float) -> float:
    """Share of the peak rate, 0 to 1.

    Rises linearly over the first `warmup` share of the budget, then falls along a half cosine to
    `final` at the budget, and stays there.
    """
    done = min(swarm_tokens / budget, 1.0)
    if done < warmup:
        return done / warmup
    fall = (done - warmup) / (1.0 - warmup)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * fall))


def rewarm(steps_since_start: int, rewarm_steps: int) -> float:
    """Factor on the rate for inner step number `steps_since_start` (from 0) of a cold worker."""
    return min((steps_since_start + 1) / rewarm_steps, 1.0) if rewarm_steps else 1.0
