"""`peerlm sim faults`: random trouble by the seed, and whether the swarm comes out of it well."""

from __future__ import annotations

import hashlib
import json
import re

import click

from peerlm.cli.settings_text import parse_changes
from peerlm.cli.sim_options import RUNS_MAX, SEED_MAX, check_between, check_jobs
from peerlm.cli.sim_pool import all_runs
from peerlm.data.processes import processors
from peerlm.errors import ConfigError, PeerlmError
from peerlm.sim import stage_menus
from peerlm.sim.figures import quantiles
from peerlm.sim.menus import NODES, RECOVERY_S, Lived
from peerlm.sim.world import PLAN

STAGES = "model.stages"

stages_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="model.stages=N: a model in 2 to 4 stages, on nodes that hold some of them each.",
)


@click.command()
@click.option(
    "--seeds",
    default="1-20",
    show_default=True,
    metavar="FIRST-LAST",
    help="Each is a run of its own.",
)
@click.option("--nodes", default=NODES, show_default=True, help="Machines in the swarm, 5 to 64.")
@stages_option
@click.option("--jobs", default=0, help="Processes at once; 0: as many as processors.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def faults(seeds: str, nodes: int, changes: tuple[str, ...], jobs: int, as_json: bool) -> None:
    """A minute of random faults for each seed, then peace: is everything well again?

    Kills, power cuts with disks that lied, freezes, slow nodes, partitions of every shape, lost and
    doubled messages, dead and poisoned workers, new plans, revocations. Promises are checked after
    every event; a seed that breaks one is shown with the command that plays it again.

    \b
    Examples:
      peerlm sim faults
      peerlm sim faults --seeds 1-500 --json
      peerlm sim faults --set model.stages=3 --nodes 8
    """
    first, last = _range(seeds)
    check_menu_nodes(nodes)
    check_jobs(jobs)
    count = stages_of(changes)
    again = f" --set {STAGES}={count}" * (count > 1)
    bound_s = RECOVERY_S if count == 1 else stage_menus.RECOVERY_S
    calls = [(seed, nodes, count) for seed in range(first, last + 1)]
    seeds_told = f"{len(calls)} seed{'s' * (len(calls) != 1)}"
    failed: list[Lived] = []
    recoveries: list[float] = []
    digest = hashlib.blake2b(digest_size=16)
    for lived in all_runs(stage_menus.live, calls, jobs or processors(), "random faults"):
        digest.update(lived.digest.encode())
        if lived.story:
            failed.append(lived)
            click.echo(
                f"seed {lived.seed} ({', '.join(lived.menu)}): {lived.story}\n"
                f"see it again: peerlm sim replay {lived.seed} --nodes {nodes}{again}",
                err=True,
            )
        else:
            recoveries.append(lived.recovery_s)
    found = {
        "scenario": "faults",
        "nodes": nodes,
        "runs": len(calls),
        "seed": first,
        "profile": PLAN["swarm.profile"],
        "stages": count,
        "seeds": [first, last],
        "failed": [lived.seed for lived in failed],
        "recovery_s": quantiles(recoveries),
        "digest": digest.hexdigest(),
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        worst = max(recoveries, default=0.0)
        click.echo(
            f"{seeds_told}, {len(failed)} failed; all was well at most {worst:.1f} s after "
            f"everything was mended (bound {bound_s:g} s); digest {digest.hexdigest()}"
        )
    if failed:
        raise PeerlmError(f"{len(failed)} of {seeds_told} broke a promise")


def check_menu_nodes(nodes: int) -> None:
    """Raises `ConfigError`: of so few, too few are left once two are revoked; so many take too long."""
    check_between("--nodes", nodes, 5, 64)


def stages_of(changes: tuple[str, ...]) -> int:
    """Of the model, by `--set`. Raises `ConfigError`: of the plan nothing else is a person's to set here."""
    given = parse_changes(changes, "--set")
    if other := sorted(set(given) - {STAGES}):
        raise ConfigError(f"--set {other[0]}: the seed draws the plan; {STAGES} alone can be set")
    text = given.get(STAGES, "1")
    if text not in map(str, range(1, stage_menus.STAGES_MOST + 1)):
        raise ConfigError(f"--set {STAGES}={text}: must be from 1 to {stage_menus.STAGES_MOST}")
    return int(text)


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", text.strip())
    if match is None:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise ConfigError(f"--seeds {shown!r}: must be FIRST-LAST, e.g. 1-500, or one number")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < first + RUNS_MAX:
        raise ConfigError(
            f"--seeds {text!r}: the last must not be before the first, nor {RUNS_MAX:,} or more after"
        )
    check_between("--seeds", last, 0, SEED_MAX)
    return first, last
