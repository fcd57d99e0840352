"""`peerlm sim replay`: one run again, with everything that every node heard and did."""

from __future__ import annotations

import click

from peerlm.cli.sim_faults import check_menu_nodes, stages_of, stages_option
from peerlm.cli.sim_membership import setting_of
from peerlm.cli.sim_options import SEED_MAX, check_between, how
from peerlm.errors import ConfigError, PeerlmError
from peerlm.sim.menus import NODES
from peerlm.sim.params import NODES_MAX
from peerlm.sim.scenarios import play
from peerlm.sim.stage_menus import live
from peerlm.sim.trace import Trace
from peerlm.types import Instant


@click.command()
@click.argument("seed", type=int)
@click.option("--nodes", default=NODES, show_default=True, help="Machines in the swarm.")
@click.option(
    "--scenario", default="", help="A scenario of `sim membership` instead of random faults."
)
@stages_option
@click.option("--profile", default="lan", show_default=True, help="Timers of a scenario's nodes.")
@click.option("--link", default=None, help="Lines between the machines of a scenario.")
@click.option(
    "--param", "given", multiple=True, metavar="KEY=VALUE", help="A parameter of the scenario."
)
@click.option(
    "--story", default=None, type=int, metavar="NODE", help="Only what this node heard and did."
)
@click.option("--digest", "only_digest", is_flag=True, help="Only the digest of the trace.")
def replay(
    seed: int,
    nodes: int,
    scenario: str,
    changes: tuple[str, ...],
    profile: str,
    link: str | None,
    given: tuple[str, ...],
    story: int | None,
    only_digest: bool,
) -> None:
    """Play a seed again and print its trace: time, node, < for what it heard, > for what it did.

    The last line is the trace's digest: equal digests, equal runs.

    \b
    Examples:
      peerlm sim replay 17
      peerlm sim replay 17 --story 3
      peerlm sim replay 17 --set model.stages=3 --nodes 8
      peerlm sim replay 1 --scenario crash --nodes 64 --digest
    """
    check_between("SEED", seed, 0, SEED_MAX)
    if story is not None:
        check_between("--story", story, 0, NODES_MAX)

    ever: set[int] = set()

    def tell(now: Instant, number: int, direction: str, what: str) -> None:
        ever.add(number)
        if story in (None, number):
            click.echo(f"{now:10.4f} {number:4d} {direction} {what}")

    trace = Trace(None if only_digest else tell)
    count = stages_of(changes)
    if scenario:
        if changes:
            raise ConfigError("--set is for random faults; a --scenario has --param")
        params, wire = setting_of(scenario, nodes, seed, given, profile, link)
        try:
            digest = play(
                scenario, nodes, seed, params=params, profile=profile, wire=wire, trace=trace
            ).digest
        except Exception as broken:
            raise PeerlmError(f"seed {seed}: {how(broken)}") from broken
    else:
        if given or link is not None or profile != "lan":
            raise ConfigError("--param, --link and --profile belong to a --scenario")
        check_menu_nodes(nodes)
        lived = live(seed, nodes, count, trace)
        digest = lived.digest
        if lived.story:
            raise PeerlmError(f"seed {seed} ({', '.join(lived.menu)}): {lived.story}")
    if story is not None and ever and story not in ever:
        raise ConfigError(f"--story {story}: there is no node {story}; 0 to {max(ever)}")
    click.echo(digest)
