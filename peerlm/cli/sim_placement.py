"""`peerlm sim placement`: who hosts which stages of a model that nobody can hold whole."""

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
    from peerlm.sim.placing import Compared, Outcome

NODES_MAX = 1000
SMALL = {"nodes": 6, "stages": 3}
"""What `--against-best` can try every placement of."""


@click.command(short_help="Who hosts which stages of a model that nobody can hold whole.")
@click.option("--nodes", default=100, show_default=True, help="Machines in the swarm.")
@click.option(
    "--stages", default=0, help="Stages of the model; 0: as many as the smallest machine needs."
)
@click.option("--replicas", default=2, show_default=True, help="Hosts a stage should have.")
@click.option(
    "--hours", default=1.0, show_default=True, help="Counted, after two hours of warm-up."
)
@click.option(
    "--churn",
    default=0.1,
    show_default=True,
    help="Part of the machines that goes in a minute: half die, half leave. As many come.",
)
@click.option(
    "--over",
    is_flag=True,
    help="The run is over when counting begins: stages are only kept hosted.",
)
@click.option(
    "--against-best",
    is_flag=True,
    help="Instead: small swarms at rest, each beside the best of all its placements; up to 6 nodes, 3 stages.",
)
@click.option("--runs", default=1, show_default=True, help="Independent runs; run i has seed + i.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same figures.")
@click.option("--jobs", default=0, help="Processes at once; 0: as many as processors.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def placement(
    nodes: int,
    stages: int,
    replicas: int,
    hours: float,
    churn: float,
    over: bool,
    against_best: bool,
    runs: int,
    seed: int,
    jobs: int,
    as_json: bool,
) -> None:
    """Nodes decide by themselves which stages they host, from news that is late and lost.

    Machines are laptops to servers, with lines of 10 Mbit/s to 1 Gbit/s; the model has 6.6e9 parameters and no
    machine holds it. The rule is in docs/placement.md, figures are explained in docs/simulator.md.

    \b
    Examples:
      peerlm sim placement
      peerlm sim placement --hours 24 --churn 0
      peerlm sim placement --over
      peerlm sim placement --nodes 6 --stages 3 --against-best --runs 200
    """
    for name, least, most in (("nodes", 1, NODES_MAX), ("stages", 0, 66)):
        top = SMALL[name] if against_best else most
        check_between(f"--{name}", {"nodes": nodes, "stages": stages}[name], least, top)
    if against_best:
        check_between("--stages", stages, 1, SMALL["stages"])
    check_between("--replicas", replicas, 1, 100)
    check_between("--hours", hours, 0.01, 10_000)
    check_between("--churn", churn, 0, 10)
    check_between("--runs", runs, 1, RUNS_MAX)
    check_seed(seed)
    check_jobs(jobs)
    calls: list[tuple[Any, ...]]
    if against_best:
        call: Any = one_comparison
        calls = [(nodes, stages, seed + i, replicas) for i in range(runs)]
        options = options_text(nodes=nodes, stages=stages, replicas=replicas) + " --against-best"
    else:
        call = one_run
        calls = [(nodes, stages, hours, churn, seed + i, replicas, over) for i in range(runs)]
        options = options_text(
            nodes=nodes, stages=stages, replicas=replicas, hours=hours, churn=churn
        )
        options += " --over" * over
    played = []
    for run in all_runs(call, calls, jobs or processors(), f"placement, {nodes} nodes"):
        played.append(run)
        if isinstance(run, Broken):
            click.echo(f"seed {run.seed}: {run.story}", err=True)
            click.echo(f"see it again: peerlm sim placement --seed {run.seed}{options}", err=True)
    ended = [run for run in played if not isinstance(run, Broken)]
    failed = [run.seed for run in played if isinstance(run, Broken)]
    found = head("placement", nodes, runs, seed, (run.digest for run in ended)) | {"failed": failed}
    found |= compared(ended) if against_best else lived(ended)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show(found)
    if failed:
        raise PeerlmError(f"{len(failed)} of {runs} runs failed; the figures lack them")


def one_run(
    nodes: int, stages: int, hours: float, churn: float, seed: int, replicas: int, over: bool
) -> Outcome | Broken:
    """`play`; whatever goes wrong in one run must not cost the others."""
    from peerlm.sim.placing import Setting, play

    try:
        return play(Setting(nodes, stages, hours, churn, seed, replicas, over))
    except Exception as broken:
        return Broken(seed, how(broken))


def one_comparison(nodes: int, stages: int, seed: int, replicas: int) -> Compared | Broken:
    """`compare`, likewise."""
    from peerlm.sim.placing import compare

    try:
        return compare(nodes, stages, seed, replicas)
    except Exception as broken:
        return Broken(seed, how(broken))


def lived(ended: Sequence[Outcome]) -> dict[str, Any]:
    from peerlm.sim.placing import figures

    return figures(ended)


def compared(ended: Sequence[Compared]) -> dict[str, Any]:
    """Shares of the best rate, as what is lost of it, so that the worst is the largest."""
    from peerlm.sim.figures import quantiles

    lost = [1 - run.share() for run in ended]
    return {
        "less_hosted": sum(run.reached[:2] > run.best[:2] for run in ended),
        "below_0.9": sum(share > 0.1 for share in lost),
        "rate_lost": quantiles(lost),
        "switches": sum(run.switches for run in ended),
    }
