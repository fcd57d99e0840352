"""`peerlm sim`: a swarm in one process, on a virtual clock, by a seed. Its commands live beside it."""

from __future__ import annotations

import click

from peerlm.cli.commands import Commands

COMMANDS = {
    "membership": "sim_membership:membership",
    "mixing": "sim_mixing:mixing",
    "placement": "sim_placement:placement",
    "store": "sim_store:store",
    "train": "sim_train:sim_train",
    "faults": "sim_faults:faults",
    "replay": "sim_replay:replay",
}


@click.group(cls=Commands, commands_at=COMMANDS, no_args_is_help=True)
def sim() -> None:
    """Try a swarm before you buy the machines: the real node, many times, in one process.

    Time, network, disks and learners are simulated; everything a node decides is the code that the
    daemon runs. The same seed always gives the same run.

    \b
    Examples:
      peerlm sim train --nodes 12 --plan small --link 100mbit,50ms,1% --plot run.png
      peerlm sim membership --nodes 64 --scenario crash --runs 200
      peerlm sim mixing --nodes 16 --sampler matching
      peerlm sim placement --nodes 100 --churn 0.1
      peerlm sim store --days 30
      peerlm sim faults --seeds 1-500
    """
