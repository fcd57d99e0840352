"""What mixing costs and does, in windows of time with exchanges and without that follow one another.

Exchanges are turned on and off by a new revision of the plan, which does not touch the workers; outer steps are
taken in both cases. Tokens are counted between the first and the last report within a window, so that the
second between two reports does not blur the rate.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from peerlm.bench.child import cpu_seconds
from peerlm.bench.nodes import Swarm, processes
from peerlm.bench.rows import Missed
from peerlm.cli.demo_nodes import peerlm

SETTLE_S = 5.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of time.

    tokens_s: of a worker, mean of the nodes. cpu_share: of all cores, by all processes of the swarm.
    exchanges: of all nodes, by how they ended. sent_bytes_s: of a node, the most of all. inner_steps: H at its
    end, of each node.
    """

    tokens_s: float
    cpu_share: float
    exchanges: Counter[str]
    sent_bytes_s: float
    inner_steps: tuple[int, ...]


def window(swarm: Swarm, exchanges: int, seconds: float, settle_s: float = SETTLE_S) -> Window:
    """Turn exchanges on (as many a round) or off (0), let it settle, measure. Raises `Missed`."""
    use_exchanges(swarm, exchanges)
    swarm.let_pass(settle_s)
    before = swarm.statuses()
    of = processes(swarm)
    began, busy = time.monotonic(), cpu_seconds(of)
    tokens_s = statistics.mean(rates(swarm, seconds))
    took_s = time.monotonic() - began
    share = (cpu_seconds(of) - busy) / took_s / (psutil.cpu_count() or 1)
    after = swarm.statuses()
    if _restarts(before) != _restarts(after):
        raise Missed("a worker was started again within a window")
    return Window(
        tokens_s=tokens_s,
        cpu_share=share,
        exchanges=sum(map(_exchanges, after), Counter()) - sum(map(_exchanges, before), Counter()),
        sent_bytes_s=_most_sent(before, after) / took_s,
        inner_steps=tuple(s["tempo"]["inner_steps"] for s in after),
    )


def rates(swarm: Swarm, seconds: float) -> list[float]:
    """Tokens/s of each node's worker in so much time from now. Raises `Missed`."""
    seen: list[list[tuple[float, int]]] = [[] for _ in swarm.nodes]
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        swarm.look()
        for reports, node in zip(seen, swarm.nodes, strict=True):
            node.check_up()
            if node.status is None:
                continue
            tokens = node.status["tokens"]
            if reports and tokens == reports[-1][1]:
                continue
            reports.append((time.monotonic(), tokens))
        time.sleep(POLL_S)
    return [rate(reports) for reports in seen]


def alternate(
    swarm: Swarm, pairs: int, seconds: float, settle_s: float = SETTLE_S, exchanges: int = 1
) -> list[tuple[Window, Window]]:
    """Windows (with exchanges, without), so many of each; a drift of the machine's speed cancels."""
    found = []
    for number in range(pairs):
        order = (exchanges, 0) if number % 2 == 0 else (0, exchanges)
        windows = {each: window(swarm, each, seconds, settle_s) for each in order}
        found.append((windows[exchanges], windows[0]))
    return found


def rate(reports: Sequence[tuple[float, int]]) -> float:
    """Tokens/s between reports; the first look saw none arrive. Raises `Missed`: there are too few."""
    if len(reports) < 3:
        raise Missed("a worker has hardly reported: the window is too short for its rate")
    (began, first), (ended, last) = reports[1], reports[-1]
    return (last - first) / (ended - began)


def use_exchanges(swarm: Swarm, exchanges: int) -> None:
    """A revision of the plan that holds on every node. Nothing if it says so already."""
    state = str(swarm.nodes[0].layout.root)
    if f"\nexchanges = {exchanges}\n" in peerlm("plan", "show", "--state", state):
        return
    revision = max(status["plan_revision"] for status in swarm.statuses())
    peerlm("plan", "set", f"mix.exchanges={exchanges}", "--state", state)
    swarm.wait(
        "every node has the new plan",
        lambda: all(s["plan_revision"] > revision for s in swarm.statuses()),
    )


def all_work(swarm: Swarm) -> bool:
    """Every worker takes steps and has mixed."""
    return len(swarm.statuses()) == len(swarm.nodes) and all(
        s["worker"]["tokens_per_s"] > 0 and s["participating"] for s in swarm.statuses()
    )


def _restarts(statuses: Sequence[dict[str, Any]]) -> list[int]:
    return [status["worker"]["restarts"] for status in statuses]


def _exchanges(status: dict[str, Any]) -> Counter[str]:
    return Counter(status["exchanges"])


def _most_sent(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> float:
    pairs = zip(before, after, strict=True)
    return float(max(late["bytes_sent"] - early["bytes_sent"] for early, late in pairs))
