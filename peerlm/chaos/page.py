"""A report as a page: what was measured, the curves, and what happened when. One file, no scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, FOOT = 900, 240, 60, 24

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c636b; --line: #dcdfe3; --back: #fff; --mark: #2563a8; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a2a9b3; --line: #343a43; --back: #16181c; --mark: #79b8ff; --bad: #ff8a80 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 60rem; margin: auto; padding: 1rem }
table { border-collapse: collapse } th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line) }
svg { width: 100%; height: auto } svg text { fill: var(--soft); font-size: 13px } .bad { color: var(--bad) }
pre { overflow-x: auto }
"""


def page_of(report: dict[str, Any]) -> str:
    """The report that `Course.run` gives, with `missed`, as HTML."""
    missed = "".join(f"<li class=bad>{escape(line)}</li>" for line in report["missed"])
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}<td>{escape(_shown(report.get(name)))}"
        for name in (
            *(
                "seed",
                "nodes",
                "seconds",
                "pace",
                "link",
                "trouble_s",
                "faults",
                "skipped",
                "efficiency",
                "tokens_lost",
                "return_s",
            ),
            *(
                "well_s",
                "breadth_min",
                "val_loss",
                "swarm_tokens",
                "final",
                "loss_beside",
                "curves_beside",
                "splits",
                "growth",
                "cores_share",
                "tracebacks",
                "tokens_that_fell",
            ),
        )
    )
    curve, seconds = report["curve"], report["seconds"]
    events = "".join(
        f"<tr><td>{event['at_s']:.1f} s<td>{escape(event['text'])}" for event in report["events"]
    )
    kills = [event["at_s"] for event in report["events"] if event["text"].startswith("killed")]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(report['scenario'])} – peerlm chaos</title>"
        f"<meta name=viewport content='width=device-width, initial-scale=1'><style>{STYLE}</style>"
        f"<h1>{escape(report['scenario'])}</h1>"
        + (f"<p>Missed:</p><ul>{missed}</ul>" if missed else "<p>All bars kept.</p>")
        + f"<table>{rows}</table><h2>Validation loss</h2>"
        + _chart([(p["at_s"], p["val_loss"]) for p in curve], seconds, kills, "validation loss")
        + "<h2>Tokens of the swarm</h2>"
        + _chart([(p["at_s"], p["tokens"]) for p in curve], seconds, kills, "tokens")
        + "<p>A line down is a kill.</p><h2>What happened</h2>"
        + f"<table>{events}</table></html>\n"
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "never"
    if value is None:
        return "not measured"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _chart(
    points: Sequence[tuple[float, float | None]], seconds: float, kills: Sequence[float], what: str
) -> str:
    known = [(at, value) for at, value in points if value is not None]
    if len(known) < 2:
        return "<p>not measured</p>"
    low, high = min(v for _, v in known), max(v for _, v in known)
    room = (high - low) or 1.0

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - 8) * at / seconds

    def y(value: float) -> float:
        return 8 + (HEIGHT - FOOT - 8) * (1 - (value - low) / room)

    path = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in known)
    down = "".join(
        f"<line x1={x(at):.1f} x2={x(at):.1f} y1=8 y2={HEIGHT - FOOT} stroke='var(--bad)' stroke-opacity=.4 />"
        for at in kills
    )
    labels = "".join(
        f"<text x={LEFT - 6} y={y(value) + 4:.1f} text-anchor=end>{value:.4g}</text>"
        for value in (low, low + room / 2, high)
    ) + "".join(
        f"<text x={x(part * seconds):.1f} y={HEIGHT - 6} text-anchor=middle>{part * seconds / 60:.0f} min</text>"
        for part in (0.25, 0.5, 0.75)
    )
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img><title>{escape(what)} over time</title>{down}"
        f"<path d='M{path}' fill=none stroke='var(--mark)' stroke-width=2 />{labels}</svg>"
    )
