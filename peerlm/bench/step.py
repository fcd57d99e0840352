"""What mixing costs a worker's device: inner steps with boundaries and corrections, and without.

One learner on one device takes the plan's inner steps on tokens that mean nothing. *On*, it does what a worker does for
its daemon besides: every H steps each fragment is copied out to memory that the daemon would read, and two
corrections are added to it, one for the outer step and one for what exchanges have brought. Nobody computes
them, so this is the device's part alone; the network's and the processor's are `bench overlap`'s. Windows of
both kinds take turns, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peerlm.config import Plan
from peerlm.model.plan import fragments, parameter_shapes
from peerlm.train import shared
from peerlm.train.cadence import Cadence
from peerlm.train.hands import Hands
from peerlm.train.inner_loop import AHEAD
from peerlm.train.learner import Begun, Learner, choose_device
from peerlm.train.occupancy import idle_share, synchronise
from peerlm.train.staging import Way

CORRECTIONS = 2
PROFILED_STEPS = 10
WARM_UP_STEPS = 3
"""Beyond a whole turn of the cadence, so that all memory has been touched."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`pairs` of windows of so many `steps`; `peak_tflops` of the device, 0: not known."""

    plan: Plan
    device: str
    compiled: bool
    pairs: int
    steps: int
    peak_tflops: float


def measure(asked: Asked, tell: Callable[[str], None]) -> dict[str, Any]:
    """What `--json` prints. Raises `DeviceLost`, `ConfigError`."""
    bench = Bench(asked)
    for _ in range(asked.plan.mix.inner_steps + WARM_UP_STEPS):
        bench.step(mixing=True)
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(asked.pairs):
        for mixing in (number % 2 == 0, number % 2 == 1):
            rates[mixing].append(bench.rate(mixing))
        on, off = rates[True][-1], rates[False][-1]
        tell(f"{number + 1} of {asked.pairs}: {on:,.0f} tokens/s with mixing, {off:,.0f} without")
    ratios = sorted(a / b for a, b in zip(rates[True], rates[False], strict=True))
    return {
        "device": str(bench.learner.device),
        "parameters": sum(spec.size for spec in bench.specs),
        "tokens_per_step": bench.tokens_per_step,
        "inner_steps": asked.plan.mix.inner_steps,
        "flops_per_token": flops_per_token(asked.plan),
        "rows": [bench.row("mixing off", rates[False]), bench.row("mixing on", rates[True])],
        "on_off": fmean(rates[True]) / fmean(rates[False]),
        "on_off_min": ratios[0],
        "on_off_max": ratios[-1],
    }


class Bench:
    def __init__(self, asked: Asked) -> None:
        self._asked, plan = asked, asked.plan
        self.specs = fragments(plan)
        self.learner = Learner(plan, choose_device(asked.device), compiled=asked.compiled)
        self._cadence = Cadence([spec.id for spec in self.specs], plan.mix.inner_steps)
        descriptor = shared.allocate(self.specs)
        self._memory = shared.SharedMemory(descriptor, self.specs)
        os.close(descriptor)
        self._hands = Hands(self.learner, self.specs, self._memory)
        self._corrections = [0] * len(self.specs)
        """Still to come to each fragment."""
        self._begun: deque[Begun] = deque()
        self._rng = np.random.default_rng(1)
        self.tokens_per_step = plan.train.batch * plan.model.context

    def rate(self, mixing: bool) -> float:
        """Tokens/s of a window."""
        began = time.perf_counter()
        for _ in range(self._asked.steps):
            self.step(mixing=mixing)
        synchronise(self.learner.device)
        return self._asked.steps * self.tokens_per_step / (time.perf_counter() - began)

    def step(self, *, mixing: bool) -> None:
        self._begun.append(self.learner.begin(self._batch()))
        while len(self._begun) > AHEAD:
            self._begun.popleft().result()
        if not mixing:
            return
        self._cadence.stepped()
        for fragment in self._cadence.ready():
            self._hands.take_out(fragment, self._memory.boundary[fragment])
            self._cadence.handed_in(fragment)
        for landed in self._hands.landed():
            fragment = landed.fragment
            if landed.way is Way.OUT:
                self._cadence.taken(fragment)
                self._corrections[fragment] += CORRECTIONS
            if self._corrections[fragment]:
                self._corrections[fragment] -= 1
                self._hands.bring_in(fragment, self._memory.correction[fragment])

    def row(self, name: str, rates: list[float]) -> dict[str, Any]:
        tokens_s, peak = fmean(rates), self._asked.peak_tflops * 1e12

        def some_steps() -> None:
            for _ in range(PROFILED_STEPS):
                self.step(mixing=name == "mixing on")

        return {
            "name": name,
            "tokens_s": tokens_s,
            "step_ms": 1e3 * self.tokens_per_step / tokens_s,
            "mfu": tokens_s * flops_per_token(self._asked.plan) / peak if peak else None,
            "idle": idle_share(self.learner.device, some_steps),
        }

    def _batch(self) -> NDArray[np.int64]:
        shape = self._asked.plan.train.batch, self._asked.plan.model.context + 1
        return self._rng.integers(0, self._asked.plan.data.vocab, shape)


def flops_per_token(plan: Plan) -> int:
    """Of forward and backward pass: 6 a weight of each matrix that multiplies, and 12 · width · context for
    each attention block (Chowdhery et al., arXiv 2204.02311, appendix B)."""
    shapes = parameter_shapes(plan.model, plan.data.vocab)
    matrices = [shape for name, (_, shape) in shapes.items() if len(shape) == 2]
    weights = sum(rows * columns for rows, columns in matrices)
    if not plan.model.tied:  # the embedding is looked up; tied, it multiplies as the head
        weights -= plan.data.vocab * plan.model.dim
    attention = plan.model.blocks.count("attention") * plan.model.dim * plan.model.context
    return 6 * weights + 12 * attention
