"""Whether training waits for the network: real nodes on machines with lines of a given kind.

Two or more daemons with their workers train the plan's model, each in a network namespace, at a pace at which
processors are not what limits them. Windows of time with exchanges and without follow one another; the ratio
of the workers' rates is what mixing costs training. Meanwhile every daemon tells when its probes were answered and
whom it suspects (telling.py).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import executable
from typing import Any

from peerlm.bench.founding import Values
from peerlm.bench.lines import place_of
from peerlm.bench.nodes import Swarm, running
from peerlm.bench.rows import Missed
from peerlm.bench.telling import told_since
from peerlm.bench.windows import Window, all_work, alternate, use_exchanges
from peerlm.cli.demo_nodes import end_all
from peerlm.cli.plan import current_plan
from peerlm.cli.settings_text import change_node_settings
from peerlm.sim.figures import quantiles
from peerlm.sim.network import read_wire

PROGRAM = (executable, "-m", "peerlm.bench.telling")

PLAN: Values = {
    "run.token_budget": 1_000_000_000_000,
    "train.warmup": 0,
    "train.val_every_s": 1_000_000,
}
"""A budget that is not reached, rates at their peak, lest nodes be as near each other as they never are, and no
evaluation, which would tell of itself in one window and not in the next."""

PACE_SHARE = 0.5
"""Of all cores, by workers that go at the pace."""

SETTLE_S = 20.0
"""From turning exchanges on or off to the window: H comes to where it belongs."""

FIRST_S = 20.0
"""How long workers go as fast as they can, to find the pace."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`preset` with `plan` changed; `pace`: tokens/s of each node, 0: found out."""

    preset: str
    plan: Values
    link: str
    nodes: int
    pairs: int
    seconds: float
    pace: float


Tell = Callable[[str], None]
"""Takes a line of progress for whoever watches."""


def measure(asked: Asked, folder: Path, tell: Tell) -> dict[str, Any]:
    """What `--json` prints. Raises `PeerlmError`."""
    with place_of(asked.link, asked.nodes) as place:
        plan = {**PLAN, **asked.plan}
        swarm = Swarm(folder, asked.nodes, plan, preset=asked.preset, place=place, program=PROGRAM)
        with running(swarm):
            tell(f"starting {asked.nodes} nodes, {asked.link or 'loopback'}")
            swarm.start()
            swarm.wait("all workers run", lambda: all_work(swarm), limit_s=600.0)
            pace = asked.pace or _pace(swarm, tell)
            _go_at(swarm, pace)
            began = _last_told(swarm)
            pairs = []
            for number in range(asked.pairs):
                pairs += alternate(swarm, 1, asked.seconds, SETTLE_S)
                on, off = pairs[-1]
                tell(
                    f"{number + 1} of {asked.pairs}: {on.tokens_s:.0f} tokens/s with exchanges, "
                    f"{off.tokens_s:.0f} without"
                )
            told = list(_told(swarm, began))
            share = current_plan(swarm.nodes[0].layout).plan.mix.bandwidth_share
    return _found(asked, pace, pairs, told, share)


def _pace(swarm: Swarm, tell: Tell) -> float:
    """At which workers use `PACE_SHARE` of the cores."""
    ((on, off),) = alternate(swarm, 1, FIRST_S)
    fastest, share = (on.tokens_s + off.tokens_s) / 2, (on.cpu_share + off.cpu_share) / 2
    pace = fastest * min(PACE_SHARE / share, 0.9)
    tell(f"{fastest:.0f} tokens/s a node take {share:.0%} of the cores; pace {pace:.0f}")
    use_exchanges(swarm, 1)
    return pace


def _go_at(swarm: Swarm, pace: float) -> None:
    """Stop all nodes, change node.toml, start them again."""
    end_all(swarm.nodes)
    for node in swarm.nodes:
        change_node_settings(node.layout, {"train.pace_tokens_s": f"{pace:.1f}"}, "pace")
        swarm.start_again(node)
    swarm.wait("all workers run again", lambda: all_work(swarm), limit_s=600.0)


def _told(swarm: Swarm, since: float) -> Iterator[dict[str, Any]]:
    """What daemons have told since then."""
    for node in swarm.nodes:
        yield from told_since(node.layout.root, since)


def _last_told(swarm: Swarm) -> float:
    return max(float(told["at"]) for told in _told(swarm, 0.0))


def _found(
    asked: Asked,
    pace: float,
    pairs: Sequence[tuple[Window, Window]],
    told: Sequence[dict[str, Any]],
    share: float,
) -> dict[str, Any]:
    on, off = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ratios = sorted(a.tokens_s / b.tokens_s for a, b in pairs)
    exchanges = sum((window.exchanges for window in on), Counter[str]())
    failed = exchanges["refused"] + exchanges["timed_out"]
    if not exchanges["ok"] + failed:
        raise Missed("no exchange was begun in any window: they are too short for this line")
    rate = read_wire(asked.link).rate_bytes_s if asked.link else None
    sent = statistics.mean(window.sent_bytes_s for window in on)
    return {
        "link": asked.link or "loopback",
        "nodes": asked.nodes,
        "preset": asked.preset,
        "pace": pace,
        "rows": [
            {
                "name": name,
                "tokens_s": statistics.mean(w.tokens_s for w in windows),
                "cpu_share": statistics.mean(w.cpu_share for w in windows),
            }
            for name, windows in (("exchanges on", on), ("exchanges off", off))
        ],
        "on_off": sum(w.tokens_s for w in on) / sum(w.tokens_s for w in off),
        "on_off_min": ratios[0],
        "on_off_max": ratios[-1],
        "exchanges": dict(exchanges),
        "finished": exchanges["ok"] / (exchanges["ok"] + failed),
        "inner_steps": sorted({steps for window in on for steps in window.inner_steps}),
        "sent_bytes_s": sent,
        "bandwidth_share": share,
        "of_allowed": None if rate is None or not share else sent / (share * rate),
        "probe_s": quantiles(t["took_s"] for t in told if t["what"] == "answered"),
        "suspicions": sum(t["what"] == "member" and t["state"] == "suspect" for t in told),
        "seconds": len(pairs) * 2 * (asked.seconds + SETTLE_S),
    }
