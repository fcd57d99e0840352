"""`peerlm sim membership`: how fast a swarm notices what, and at what cost."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import click

from peerlm.cli.sim_pool import all_runs, processors
from peerlm.errors import ConfigError, PeerlmError
from peerlm.sim.figures import Figure, quantiles
from peerlm.sim.network import Wire, read_wire
from peerlm.sim.scenarios import SCENARIOS, Params, Run, play, read_params

NODES_MAX = 4096


@click.command()
@click.option("--nodes", default=64, show_default=True, help="Machines in the swarm.")
@click.option(
    "--scenario",
    default="crash",
    show_default=True,
    metavar="|".join(SCENARIOS),
    help="What happens to them.",
)
@click.option(
    "--param",
    "given",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the scenario; can be given more than once. A wrong key lists them.",
)
@click.option("--runs", default=20, show_default=True, help="Independent runs; run i has seed + i.")
@click.option("--seed", default=1, show_default=True)
@click.option("--profile", default="lan", show_default=True, help="Timers: lan, wan or test.")
@click.option("--link", default="", help="Lines between machines, e.g. 100mbit,50ms,1%.")
@click.option("--jobs", default=0, help="Processes at once; 0: as many as processors.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def membership(
    nodes: int,
    scenario: str,
    given: tuple[str, ...],
    runs: int,
    seed: int,
    profile: str,
    link: str,
    jobs: int,
    as_json: bool,
) -> None:
    """Detection times, false alarms and idle cost of a swarm that only knows its members.

    Nodes are whole nodes without work. Each run begins with a swarm that has met and rests for
    twenty seconds; then the scenario happens, and times are counted from there.

    \b
    Examples:
      peerlm sim membership --nodes 64 --scenario crash --runs 200
      peerlm sim membership --nodes 128 --scenario slow --param lifeguard=0
      peerlm sim membership --nodes 64 --scenario loss --param rate=0.1
    """
    _check(nodes, runs)
    params = read_params(scenario, pairs_of(given))
    wire = read_wire(link) if link else None
    calls = [(scenario, nodes, seed + i, params, profile, wire) for i in range(runs)]
    played = list(all_runs(one_run, calls, jobs or processors(), f"{scenario}, {nodes} nodes"))
    found = summarise(scenario, nodes, seed, params, profile, played)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)


def one_run(
    scenario: str, nodes: int, seed: int, params: Params, profile: str, wire: Wire | None
) -> Run:
    """`play`, with a broken promise as an error that says how to see it again."""
    try:
        return play(scenario, nodes, seed, params=params, profile=profile, wire=wire)
    except AssertionError as broken:
        raise PeerlmError(
            f"seed {seed}: {broken}\nsee it again: peerlm sim replay {seed} --scenario {scenario} "
            f"--nodes {nodes} --profile {profile}"
            + "".join(f" --param {key}={value:g}" for key, value in sorted(params.items()))
        ) from broken


def summarise(
    scenario: str, nodes: int, seed: int, params: Params, profile: str, played: list[Run]
) -> dict[str, Any]:
    """The JSON object: what was run, then each figure over all runs."""
    digest = hashlib.blake2b("".join(run.digest for run in played).encode(), digest_size=16)
    found: dict[str, Any] = {
        "scenario": scenario,
        "nodes": nodes,
        "runs": len(played),
        "seed": seed,
        "profile": profile,
        "params": dict(params),
        "digest": digest.hexdigest(),
    }
    names = dict.fromkeys(name for run in played for name in run.samples)
    for name in names:
        found[name] = _finite(quantiles(x for run in played for x in run.samples.get(name, ())))
    for name in dict.fromkeys(name for run in played for name in run.totals):
        found[name] = sum(run.totals.get(name, 0) for run in played)
    return found


def _finite(figure: Figure) -> Figure:
    """What never came is null: JSON has no infinity."""
    return {key: None if value == math.inf else value for key, value in figure.items()}


def pairs_of(given: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--param {text!r}: must be KEY=VALUE")
        pairs[key] = value
    return pairs


def _check(nodes: int, runs: int) -> None:
    if not 2 <= nodes <= NODES_MAX:
        raise ConfigError(f"--nodes {nodes}: must be between 2 and {NODES_MAX}")
    if runs < 1:
        raise ConfigError(f"--runs {runs}: must be at least 1")


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found['scenario']}, {found['nodes']} nodes, {found['runs']} runs")
    for column in ("figure", "p50", "p90", "p99", "max", "n"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, value in found.items():
        if isinstance(value, dict) and "p50" in value:
            shown = [
                "never" if value[q] is None else f"{value[q]:.4g}"
                for q in ("p50", "p90", "p99", "max")
            ]
            table.add_row(name, *shown, str(value["n"]))
        elif isinstance(value, int) and name not in ("nodes", "runs", "seed"):
            table.add_row(name, "", "", "", str(value), "")
    Console().print(table)
    click.echo(f"seed {found['seed']}, digest {found['digest']}")
