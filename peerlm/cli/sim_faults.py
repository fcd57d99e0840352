"""`peerlm sim faults`: random trouble by the seed, and whether the swarm comes out of it well."""

from __future__ import annotations

import hashlib
import json
import re

import click

from peerlm.cli.sim_options import RUNS_MAX, SEED_MAX, check_between, check_jobs
from peerlm.cli.sim_pool import all_runs
from peerlm.data.processes import processors
from peerlm.errors import ConfigError, PeerlmError
from peerlm.sim.figures import quantiles
from peerlm.sim.menus import NODES, RECOVERY_S, Lived, live_through
from peerlm.sim.world import PLAN


@click.command()
@click.option(
    "--seeds",
    default="1-20",
    show_default=True,
    metavar="FIRST-LAST",
    help="Each is a run of its own.",
)
@click.option("--nodes", default=NODES, show_default=True, help="Machines in the swarm, 5 to 64.")
@click.option("--jobs", default=0, help="Processes at once; 0: as many as processors.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def faults(seeds: str, nodes: int, jobs: int, as_json: bool) -> None:
    """A minute of random faults for each seed, then peace: is everything well again?

    Kills, power cuts with disks that lied, freezes, slow nodes, partitions of every shape, lost and
    doubled messages, dead and poisoned workers, new plans, revocations. Promises are checked after
    every event; a seed that breaks one is shown with the command that plays it again.

    \b
    Examples:
      peerlm sim faults
      peerlm sim faults --seeds 1-500 --json
    """
    first, last = _range(seeds)
    check_menu_nodes(nodes)
    check_jobs(jobs)
    calls = [(seed, nodes) for seed in range(first, last + 1)]
    seeds_told = f"{len(calls)} seed{'s' * (len(calls) != 1)}"
    failed: list[Lived] = []
    recoveries: list[float] = []
    digest = hashlib.blake2b(digest_size=16)
    for lived in all_runs(live_through, calls, jobs or processors(), "random faults"):
        digest.update(lived.digest.encode())
        if lived.story:
            failed.append(lived)
            click.echo(
                f"seed {lived.seed} ({', '.join(lived.menu)}): {lived.story}\n"
                f"see it again: peerlm sim replay {lived.seed} --nodes {nodes}",
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
            f"everything was mended (bound {RECOVERY_S:g} s); digest {digest.hexdigest()}"
        )
    if failed:
        raise PeerlmError(f"{len(failed)} of {seeds_told} broke a promise")


def check_menu_nodes(nodes: int) -> None:
    """Raises `ConfigError`: of so few, too few are left once two are revoked; so many take too long."""
    check_between("--nodes", nodes, 5, 64)


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
