"""`peerlm sim membership`: how fast a swarm notices what, and at what cost."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from peerlm.cli.sim_options import (
    RUNS_MAX,
    check_between,
    check_jobs,
    check_seed,
    how,
    options_text,
)
from peerlm.cli.sim_pool import all_runs
from peerlm.data.processes import processors
from peerlm.errors import ConfigError, PeerlmError
from peerlm.membership.profile import profile_named
from peerlm.sim.figures import Figure, quantiles
from peerlm.sim.network import Wire, read_wire
from peerlm.sim.params import NODES_MAX
from peerlm.sim.scenarios import SCENARIOS, Params, Run, play, read_params


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
@click.option("--seed", default=1, show_default=True, help="The same seed, the same figures.")
@click.option("--profile", default="lan", show_default=True, help="Timers: lan, wan or test.")
@click.option("--link", default=None, help="Lines between machines, e.g. 100mbit,50ms,1%.")
@click.option("--jobs", default=0, help="Processes at once; 0: as many as processors.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def membership(
    nodes: int,
    scenario: str,
    given: tuple[str, ...],
    runs: int,
    seed: int,
    profile: str,
    link: str | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Detection times, false alarms and idle cost of a swarm that only knows its members.

    Parameters and figures are explained in docs/simulator.md.

    Nodes are whole nodes without work. Each run begins with a swarm that has met and rests for
    twenty seconds; then the scenario happens, and times are counted from there.

    \b
    Examples:
      peerlm sim membership --nodes 64 --scenario crash --runs 200
      peerlm sim membership --nodes 128 --scenario slow --param lifeguard=0
      peerlm sim membership --nodes 64 --scenario loss --param rate=0.1
    """
    params, wire = setting_of(scenario, nodes, seed, given, profile, link)
    check_between("--runs", runs, 1, RUNS_MAX)
    check_jobs(jobs)
    calls = [(scenario, nodes, seed + i, params, profile, wire) for i in range(runs)]
    played = []
    for run in all_runs(one_run, calls, jobs or processors(), f"{scenario}, {nodes} nodes"):
        played.append(run)
        if isinstance(run, Broken):
            again = replay_command(scenario, nodes, run.seed, params, profile, link)
            click.echo(f"seed {run.seed}: {run.story}\nsee it again: {again}", err=True)
    found = summarise(scenario, nodes, seed, params, profile, link, played)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)
    if found["failed"]:
        raise PeerlmError(f"{len(found['failed'])} of {runs} runs failed; the figures lack them")


def setting_of(
    scenario: str, nodes: int, seed: int, given: tuple[str, ...], profile: str, link: str | None
) -> tuple[dict[str, float], Wire | None]:
    """What a run is given, checked before any is played. Raises `ConfigError`."""
    check_between("--nodes", nodes, 2, NODES_MAX)
    check_seed(seed)
    profile_named(profile)
    return read_params(scenario, pairs_of(given), nodes), (
        None if link is None else read_wire(link)
    )


@dataclass(frozen=True, slots=True)
class Broken:
    """A run that did not come to its end, and why."""

    seed: int
    story: str


def one_run(
    scenario: str, nodes: int, seed: int, params: Params, profile: str, wire: Wire | None
) -> Run | Broken:
    """`play`; whatever goes wrong in one run must not cost the others."""
    try:
        return play(scenario, nodes, seed, params=params, profile=profile, wire=wire)
    except Exception as broken:
        return Broken(seed, how(broken))


def replay_command(
    scenario: str, nodes: int, seed: int, params: Params, profile: str, link: str | None
) -> str:
    """What shows the run of this seed again."""
    changed = [
        f" --param {key}={params[key]!r}"
        for key, usual in read_params(scenario, {}).items()
        if params[key] != usual
    ]
    options = options_text(nodes=nodes, profile=profile, **({"link": link} if link else {}))
    return f"peerlm sim replay {seed} --scenario {scenario}{options}{''.join(changed)}"


def summarise(
    scenario: str,
    nodes: int,
    seed: int,
    params: Params,
    profile: str,
    link: str | None,
    played: Sequence[Run | Broken],
) -> dict[str, Any]:
    """The JSON object: what was run, then each figure over all runs that came to their end."""
    ended = [run for run in played if isinstance(run, Run)]
    digest = hashlib.blake2b("".join(run.digest for run in ended).encode(), digest_size=16)
    found: dict[str, Any] = {
        "scenario": scenario,
        "nodes": nodes,
        "runs": len(played),
        "seed": seed,
        "profile": profile,
        "link": link,
        "params": dict(params),
        "digest": digest.hexdigest(),
        "failed": [run.seed for run in played if isinstance(run, Broken)],
    }
    for name in dict.fromkeys(name for run in ended for name in run.samples):
        found[name] = _finite(quantiles(x for run in ended for x in run.samples.get(name, ())))
    for name in dict.fromkeys(name for run in ended for name in run.totals):
        found[name] = sum(run.totals.get(name, 0) for run in ended)
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
