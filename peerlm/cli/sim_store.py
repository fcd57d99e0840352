"""`peerlm sim store`: what the swarm's store loses and moves while nodes die, reboot and come new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli.sim_membership import Broken
from peerlm.cli.sim_options import (
    RUNS_MAX,
    check_between,
    check_jobs,
    check_seed,
    how,
    options_text,
)
from peerlm.cli.sim_pool import all_runs
from peerlm.cli.sim_table import head, show
from peerlm.data.processes import processors
from peerlm.errors import PeerlmError

if TYPE_CHECKING:
    from peerlm.sim.storing import Outcome


@click.command(short_help="What the swarm's store loses and moves while nodes die and come.")
@click.option("--nodes", default=200, show_default=True, help="Nodes that store.")
@click.option("--chunks", default=10_000, show_default=True, help="Chunks of 4 MiB.")
@click.option("--replicas", default=3, show_default=True, help="Copies of each.")
@click.option("--days", default=30.0, show_default=True, help="After them, eight hours of peace.")
@click.option(
    "--deaths",
    default=0.01,
    show_default=True,
    help="Part of the nodes that dies for good in an hour; a new and empty one comes for each.",
)
@click.option(
    "--liars",
    default=0,
    show_default=True,
    help="So many come after an hour with much room, keep nothing and say that they keep it all.",
)
@click.option("--runs", default=1, show_default=True, help="Independent runs; run i has seed + i.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same figures.")
@click.option("--jobs", default=0, help="Processes at once; 0: as many as processors.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def store(
    nodes: int,
    chunks: int,
    replicas: int,
    days: float,
    deaths: float,
    liars: int,
    runs: int,
    seed: int,
    jobs: int,
    as_json: bool,
) -> None:
    """Nodes decide by themselves which chunks they keep, from what they hear of each other.

    Nodes offer 100 GB to 1 TB, four in ten stand in racks of about six, lines carry 1 Gbit/s and repair at
    most 20 MB/s a node. Besides those who die, nodes and racks reboot for minutes. Figures are explained in
    docs/simulator.md. A run that loses a chunk says which seed shows it again.

    \b
    Examples:
      peerlm sim store
      peerlm sim store --nodes 20 --chunks 500 --days 1 --deaths 0.05 --runs 100
      peerlm sim store --nodes 20 --chunks 500 --days 3 --deaths 0 --liars 10
    """
    check_between("--nodes", nodes, 1, 1000)
    check_between("--chunks", chunks, 1, 1_000_000)
    check_between("--replicas", replicas, 1, 64)
    check_between("--days", days, 0.01, 10_000)
    check_between("--deaths", deaths, 0, 1)
    check_between("--liars", liars, 0, 1000)
    check_between("--runs", runs, 1, RUNS_MAX)
    check_seed(seed)
    check_jobs(jobs)
    options = options_text(nodes=nodes, chunks=chunks, replicas=replicas, days=days, deaths=deaths)
    options += options_text(liars=liars) if liars else ""
    calls = [(nodes, chunks, replicas, days, deaths, seed + i, liars) for i in range(runs)]
    ended, failed = [], []
    for run in all_runs(one_run, calls, jobs or processors(), f"store, {nodes} nodes"):
        if story := told(run):
            of_seed = run.seed if isinstance(run, Broken) else run.setting.seed
            failed.append(of_seed)
            click.echo(f"seed {of_seed}: {story}", err=True)
            click.echo(f"see it again: peerlm sim store --seed {of_seed}{options}", err=True)
        if not isinstance(run, Broken):
            ended.append(run)
    found = (
        head("store", nodes, runs, seed, (run.digest for run in ended))
        | {"failed": failed}
        | lived(ended)
    )
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show(found)
    if failed:
        raise PeerlmError(f"{len(failed)} of {runs} runs failed or lost chunks")


def one_run(
    nodes: int,
    chunks: int,
    replicas: int,
    days: float,
    deaths: float,
    seed: int,
    liars: int = 0,
) -> Outcome | Broken:
    """`play`; whatever goes wrong in one run must not cost the others."""
    from peerlm.sim.storing import Setting, play

    try:
        return play(Setting(nodes, chunks, replicas, days, deaths, seed, liars))
    except Exception as broken:
        return Broken(seed, how(broken))


def told(run: Outcome | Broken) -> str:
    """What is wrong with a run; empty: nothing."""
    if isinstance(run, Broken):
        return run.story
    if run.lost:
        when, chunk = run.lost[0]
        return f"{len(run.lost)} chunks lost, the first, number {chunk}, after {when:.1f} s"
    return f"{run.lacking} copies were still missing after hours of peace" if run.lacking else ""


def lived(ended: Sequence[Outcome]) -> dict[str, Any]:
    from peerlm.sim.storing import figures

    return figures(ended)
