"""What answering many at once gains: texts written together, beside the plain loop that writes one at a time.

The model is the plan's with initial weights, which cost what any others do. Three ways write the same texts, greedily:
the loop of `model.generate`, one after the other; the service with one session; and with all together. They take
turns, so that whatever else the machine does hits all alike. Then requests with prompts of mixed lengths come at even
distances while others write, and each one's time to its first token is taken. No sockets are involved.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import Any

import numpy as np

from peerlm.config import Plan
from peerlm.data.tokenizer import ByteTokenizer
from peerlm.model.generate import generate
from peerlm.model.model import LanguageModel
from peerlm.model.plan import fragments
from peerlm.model.weights import copy_out
from peerlm.serve.engine import Slots, TorchSampler, Whole, use_threads
from peerlm.serve.route import Version
from peerlm.serve.scheduler import Scheduler
from peerlm.serve.service import Job, Service
from peerlm.serve.session import Sampling

GREEDY = Sampling(temperature=0.0)
CHUNK = 256
LOAD = 0.3
"""Requests come at this share of the rate at which all sessions together could write them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`sessions` texts of `tokens` each in every way, `pairs` times; then `requests` one after the other, on `device`."""

    plan: Plan
    sessions: int
    tokens: int
    pairs: int
    requests: int
    threads: int
    device: str = "cpu"


def measure(asked: Asked, tell: Callable[[str], None]) -> dict[str, Any]:
    """What `--json` prints."""
    use_threads(asked.threads)
    bench = Bench(asked)
    ways = {"plain": bench.plain, "one session": bench.one, "together": bench.together}
    for way in ways.values():
        way()  # all memory has been touched
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(asked.pairs):
        for name, way in ways.items():
            rates[name].append(way())
        now = ", ".join(f"{name} {rates[name][-1]:,.0f}" for name in ways)
        tell(f"{number + 1} of {asked.pairs}: tokens/s {now}")
    mean = {name: fmean(found) for name, found in rates.items()}
    waits = bench.first_tokens(LOAD * mean["together"] / asked.tokens)
    cuts = quantiles(waits, n=100, method="inclusive")
    return {
        "parameters": sum(p.numel() for p in bench.model.parameters()),
        "sessions": asked.sessions,
        "tokens": asked.tokens,
        "rows": [
            {"name": name, "tokens_s": rate, "ratio": rate / mean["plain"]}
            for name, rate in mean.items()
        ],
        "same_text": bench.texts_are_equal(),
        "first_token_ms": {"requests": len(waits), "p50": 1e3 * cuts[49], "p99": 1e3 * cuts[98]},
    }


class Bench:
    def __init__(self, asked: Asked) -> None:
        self._asked, plan = asked, asked.plan
        self.model = LanguageModel(plan.model, plan.data.vocab)
        self.model.initialise(1)
        self.model.eval()
        values = []
        for spec in fragments(plan):
            values.append(np.empty(spec.size, np.float32))
            copy_out(self.model, spec, values[-1])
        self.model.to(asked.device)
        slots = Slots(plan, asked.sessions, 1 << 40, asked.device)
        self._version = Version("initial", 0, Whole(slots, values))
        self._rng = random.Random(1)
        self._prompts = [self._prompt(plan.model.context // 8) for _ in range(asked.sessions)]

    def _prompt(self, length: int) -> tuple[int, ...]:
        return tuple(
            self._rng.randrange(self._asked.plan.data.vocab) for _ in range(max(length, 1))
        )

    def plain(self) -> float:
        """Tokens/s."""
        began = time.perf_counter()
        for prompt in self._prompts:
            self._alone(prompt)
        return self._rate(began)

    def one(self) -> float:
        began = time.perf_counter()
        for prompt in self._prompts:
            self._written([prompt])
        return self._rate(began)

    def together(self) -> float:
        began = time.perf_counter()
        self._written(self._prompts)
        return self._rate(began)

    def _rate(self, began: float) -> float:
        return self._asked.tokens * len(self._prompts) / (time.perf_counter() - began)

    def _alone(self, prompt: tuple[int, ...]) -> list[int]:
        return list(generate(self.model, prompt, self._asked.tokens, temperature=0.0))

    def _service(self) -> Service:
        scheduler = Scheduler(self._asked.sessions, self._asked.requests, CHUNK)
        return Service(scheduler, TorchSampler(), ByteTokenizer(), self._version)

    def _written(self, prompts: list[tuple[int, ...]]) -> dict[Job, list[int]]:
        service = self._service()
        ids: dict[Job, list[int]] = {}
        for prompt in prompts:
            service.submit(Job((prompt,), (0,), GREEDY, self._asked.tokens))
        while not service.is_idle:
            for told in service.step():
                assert told.piece is not None, told.error
                ids.setdefault(told.job, []).extend(pick.token for pick in told.piece.picks)
        return ids

    def texts_are_equal(self) -> bool:
        """Whether those written together are what the plain loop writes."""
        found = self._written(self._prompts)
        return all(ids == self._alone(job.prompts[0]) for job, ids in found.items())

    def first_tokens(self, rate: float) -> list[float]:
        """Seconds to the first token of requests that come `rate` a second, with prompts up to the whole context."""
        service, context = self._service(), self._asked.plan.model.context
        began = time.perf_counter()
        due = [began + number / rate for number in range(self._asked.requests)]
        came: dict[Job, float] = {}
        waits: list[float] = []
        while due or not service.is_idle:
            now = time.perf_counter()
            if due and service.is_idle and now < due[0]:
                time.sleep(due[0] - now)
            while due and due[0] <= time.perf_counter():
                prompt = self._prompt(self._rng.randint(1, context))
                job = Job((prompt,), (0,), GREEDY, self._asked.tokens)
                came[job] = due.pop(0)
                service.submit(job)
            told = service.step()
            now = time.perf_counter()
            waits += [now - came.pop(news.job) for news in told if news.job in came]
        return waits
