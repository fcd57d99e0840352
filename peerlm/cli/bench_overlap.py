"""`peerlm bench overlap`: whether training waits for the network."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from peerlm import config
from peerlm.bench.overlap import PLAN, Asked, measure
from peerlm.cli.bench import progress
from peerlm.cli.leash import interrupt_on_terminate
from peerlm.cli.settings_text import parse_changes
from peerlm.cli.sim_options import check_between
from peerlm.cli.sim_train import read_plan
from peerlm.config import Plan, to_dict
from peerlm.sim.network import read_wire

NOT_ITS = ("run.name", "run.initial", *PLAN)
"""Fields that belong to the run that the plan was of, or to this figure."""


@click.command(short_help="Time training beside mixing on slow, long or lossy lines.")
@click.option(
    "--plan",
    "source",
    default="tiny",
    show_default=True,
    help="A plan.toml or a preset. Its text is not asked for: nodes read the one that ships.",
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a field of the plan."
)
@click.option(
    "--link",
    default="",
    metavar="RATE,DELAY,LOSS",
    help="Lines between machines: 100mbit,25ms,1%, the delay one way. Needs root.  [default: loopback]",
)
@click.option("--nodes", default=2, show_default=True, help="How many train.")
@click.option("--pairs", default=3, show_default=True, help="Windows with exchanges, and without.")
@click.option("--seconds", default=60.0, show_default=True, help="Of a window.")
@click.option(
    "--pace", default=0.0, help="Tokens/s of each node; 0: such that half of the cores are used."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def overlap(
    source: str,
    changes: tuple[str, ...],
    link: str,
    nodes: int,
    pairs: int,
    seconds: float,
    pace: float,
    as_json: bool,
) -> None:
    """Train with exchanges and without, in turns, on real nodes with such lines between them.

    Each node is on a machine of its own as far as the network goes: a namespace, and a switch in user
    space that gives its line a rate, a delay and a loss. Workers keep a pace, so that processors are not
    what limits them. docs/benchmarks.md says what each figure is.

    \b
    Examples:
      peerlm bench overlap --plan small --link 100mbit,25ms,1%
      peerlm bench overlap --link 10mbit,25ms --set mix.bandwidth_share=0.3 --json
    """
    check_between("--nodes", nodes, 2, 16)
    check_between("--pairs", pairs, 1, 1000)
    check_between("--seconds", seconds, 5, 86_400)
    check_between("--pace", pace, 0, 1e9)
    if link:
        read_wire(link)
    read_plan(source, changes)  # what is wrong with it is said before anything is started
    preset, plan = as_changes(read_plan(source, ()), source)
    plan |= parse_changes(changes, "--set")
    interrupt_on_terminate()
    asked = Asked(preset, plan, link, nodes, pairs, seconds, pace)
    with tempfile.TemporaryDirectory(prefix="peerlm-bench-", ignore_cleanup_errors=True) as folder:
        found = measure(asked, Path(folder), progress)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)


def as_changes(plan: Plan, source: str) -> tuple[str, dict[str, str]]:
    """A preset and what makes it `plan`, as `peerlm init` takes them, but for its text and `NOT_ITS`."""
    preset = source if source in config.PRESETS else "tiny"
    ours, theirs = to_dict(plan), to_dict(config.preset(preset))
    return preset, {
        f"{section}.{name}": _as_typed(value)
        for section, values in ours.items()
        for name, value in values.items()
        if section != "data"
        and f"{section}.{name}" not in NOT_ITS
        and value != theirs[section][name]
    }


def _as_typed(value: object) -> str:
    """As a person gives it after the sign of equality."""
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(map(str, value))
    return str(value)


def _show(found: dict[str, Any]) -> None:
    used, probes = found["of_allowed"], found["probe_s"]
    lines = {
        "swarm": f"{found['nodes']} nodes, {found['preset']}, {found['link']}, {found['seconds']:.0f} s",
        **{
            row[
                "name"
            ]: f"{row['tokens_s']:,.0f} tokens/s a node, {row['cpu_share']:.0%} of the cores"
            for row in found["rows"]
        },
        "on ÷ off": f"{found['on_off']:.4f} ({found['on_off_min']:.3f} to {found['on_off_max']:.3f})",
        "exchanges": ", ".join(f"{count} {name}" for name, count in found["exchanges"].items()),
        "finished": f"{found['finished']:.1%} of those that were begun",
        "inner steps": f"{found['inner_steps'][0]} to {found['inner_steps'][-1]} between outer steps",
        "sent": f"{found['sent_bytes_s'] / 1e3:,.0f} kB/s by a node"
        + ("" if used is None else f", {used:.0%} of what it may"),
        "probes": f"{1e3 * (probes['p50'] or 0):.1f} ms p50, {1e3 * (probes['p99'] or 0):.1f} p99, "
        f"{1e3 * (probes['max'] or 0):.1f} max, of {probes['n']}",
        "suspicions": str(found["suspicions"]),
    }
    for name, line in lines.items():
        click.echo(f"{name:>14}  {line}")
