"""`peerlm placement`: who holds which stages of the model, and why."""

from __future__ import annotations

import json
from typing import Any

import click

from peerlm.cli import words
from peerlm.cli.state import require_daemon, state_option
from peerlm.daemon.control import ask
from peerlm.observe.placement import placement_of
from peerlm.store.layout import Layout
from peerlm.types import printable


@click.command(short_help="Show who holds which stages of the model, and why.")
@click.option("--explain", is_flag=True, help="Say of each node why it holds what it holds.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object; docs/placement.md explains it."
)
@state_option
def placement(layout: Layout, explain: bool, as_json: bool) -> None:
    """Show who holds which stages of the model, as this node sees it.

    A row for each node, a column for each stage: what it holds (ready), fetches (loading), or will hold no longer
    (draining); whole: it has all stages, and trains for itself. Busy: the share of the time in which it works and
    does not wait for others; texts: how many go through it, at most. Below that, what passes a stage a second, how
    busy its hosts are, and how many nodes that decide by themselves have room for it besides.

    \b
    Examples:
      peerlm placement
      peerlm placement --explain
      peerlm placement --json | jq .lacking
    """
    require_daemon(layout)
    found = placement_of(ask(layout, "status"))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for line in shown(found, explain=explain):
        click.echo(printable(line))


def shown(found: dict[str, Any], *, explain: bool) -> list[str]:
    """A table, and what is to be known of it."""
    stages = found["stages"]
    head = ["decides", "tok/s", "busy", "texts"]
    rows = [["node", *(f"stage {e['stage']}" for e in stages), *head]]
    rows += [_row(node, len(stages), found["node"]) for node in found["nodes"]]
    below = {
        "hosts": [str(len(e["ready"])) for e in stages],
        "tok/s": [_rate(e["tokens_per_s"]) for e in stages],
        "busy": [_share(e["busy"]) for e in stages],
        "room": [str(len(e["spare"])) for e in stages],
    }
    rows += [[name, *cells, *("" for _ in head)] for name, cells in below.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if found["lacking"]:
        without = "no text is answered" if found["is_over"] else "nothing is learnt"
        lines.append(f"without a host: {_stages(found['lacking'])}; {without} until it has one")
    if found["single"]:
        lines.append(f"single points of failure: {_stages(found['single'])}")
    if explain:
        lines.append("")
        for node in found["nodes"]:
            lines.append(f"{node['id'][:8]}  {node['why']}")
            lines += [f"          {line}" for line in _able(node)]
    return lines


def _able(node: dict[str, Any]) -> list[str]:
    """What it says that it can do, and how far it is, as far as that is known."""
    offers, facts = node["offers"], list[str]()
    if node["auto"]:
        room = [words.size(offers["host_bytes"])]
        if offers["device_bytes"] is not None:
            room.append(f"{words.size(offers['device_bytes'])} on its device")
        facts.append(f"offers {' and '.join(room)}")
    if node["busy"] is not None:
        facts.append(f"works {_share(node['busy'])} of the time")
    if node["texts"]:
        facts.append(f"has up to {words.some(node['texts'], 'text')} going through it")
    if node["flops_s"]:
        facts.append(f"computes {node['flops_s'] / 1e9:,.3g} GFLOP/s")
    if node["line_bytes_s"]:
        facts.append(f"its line carries {words.size(node['line_bytes_s'])}/s")
    if node["delay_s"]:
        facts.append(f"{1e3 * node['delay_s']:.3g} ms from its neighbours")
    if node["away_s"] is not None:
        facts.append(f"{1e3 * node['away_s']:.3g} ms from here")
    paces = [f"{kind} {words.count(pace)}" for kind, pace in node["paces"].items()]
    lines = ["; ".join(facts)] if facts else []
    return [*lines, f"tok/s of one module: {', '.join(paces)}"] if paces else lines


def _row(node: dict[str, Any], count: int, own: str) -> list[str]:
    mark = "*" if node["id"] == own else ""
    states = [node["states"].get(str(stage), words.ABSENT) for stage in range(count)]
    decides = "by itself" if node["auto"] else "fixed"
    load = [_rate(node["tokens_per_s"]), _share(node["busy"]), _count(node["texts"])]
    return [node["id"][:8] + mark, *states, decides, *load]


def _share(share: float | None) -> str:
    return words.ABSENT if share is None else f"{100 * share:.0f} %"


def _count(texts: int) -> str:
    return f"≤ {texts}" if texts else words.ABSENT


def _rate(tokens_per_s: float) -> str:
    return words.count(tokens_per_s) if tokens_per_s else words.ABSENT


def _stages(numbers: list[int]) -> str:
    return f"stage{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
