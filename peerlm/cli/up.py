"""`peerlm up`: this machine's node, in the foreground."""

from __future__ import annotations

import os
from functools import partial

import click

from peerlm.cli.settings_text import (
    advertise_option,
    enter_with,
    node_settings,
    parse_changes,
)
from peerlm.cli.state import has_node, require_node, state_option
from peerlm.cli.surroundings import surroundings
from peerlm.daemon.notify import Notifier
from peerlm.daemon.resolve import parse_address
from peerlm.errors import Unreachable
from peerlm.membership.address_book import address_of
from peerlm.store.layout import Layout


@click.command(short_help="Run this machine's node, until stopped.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_533),
    metavar="N",
    help="Base port: N, N+1 and N+2 are used; 0 picks free ones.  [default: network.port of node.toml]",
)
@click.option(
    "--local-workers",
    type=int,
    metavar="N",
    help="Processes that train together as this node, a CUDA device each.  "
    "[default: train.local_workers of node.toml]",
)
@click.option(
    "--peer",
    "peers",
    metavar="ADDRESS",
    multiple=True,
    help="Try this address of a member too: for a node to whom everybody it knew is gone.",
)
@advertise_option
@click.option(
    "--control-group",
    metavar="GROUP",
    default="",
    help="Unix group that may use status, pause and stop.  [default: control.group of node.toml]",
)
@click.option(
    "--wait",
    is_flag=True,
    help="Where the folder holds no node yet, wait for `peerlm join` instead of failing.",
)
@click.option(
    "--set-node",
    "node_pairs",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Use another value than node.toml's while it runs; several times for several fields.",
)
@state_option
@click.pass_context
def up(
    ctx: click.Context,
    layout: Layout,
    port: int | None,
    local_workers: int | None,
    peers: tuple[str, ...],
    advertised: dict[str, str],
    control_group: str,
    wait: bool,
    node_pairs: tuple[str, ...],
) -> None:
    """Run this machine's node in the foreground, until Ctrl-C, SIGTERM or `peerlm stop`.

    It finds the swarm through any address it ever knew, takes newer weights from its peers if they
    have them, and trains. Its worker is a process of its own which is started again when it dies.
    Kill it at any moment: the next `peerlm up` goes on from the last snapshot, or from its peers.

    As a service (`peerlm service install`) it tells systemd when it is ready and how it goes, logs to the
    journal, and enters a run by itself with an invite from the credential `invite`.

    \b
    Examples:
      peerlm up
      peerlm up --port 7800
      peerlm up --local-workers 4
      peerlm up --set-node page.host=0.0.0.0
      peerlm up --peer ada.example.org
      peerlm up --advertise gate.example.org
      peerlm up --state /srv/second-node --port 0
    """
    changes = parse_changes(node_pairs, "--set-node") | advertised
    node_settings(changes, "--set-node")  # a bad one is told before anything is begun
    seeds = tuple(map(_address, peers))
    if not wait:
        require_node(layout)
    from peerlm.daemon.main import run

    around = surroundings(os.environ)
    notifier = Notifier(around.notify_address, around.watchdog_s)
    try:
        if wait and not has_node(layout):
            from peerlm.daemon.lobby import wait_until_enrolled

            entered = wait_until_enrolled(
                layout.root,
                partial(enter_with, layout),
                notifier=notifier,
                journal=around.journal,
                group=control_group,
                invite=around.invite,
            )
            if not entered:
                return
        code = run(
            layout.root,
            seeds=seeds,
            port=port,
            local_workers=local_workers,
            changes=changes,
            control_group=control_group,
            notifier=notifier,
            journal=around.journal,
        )
    finally:
        notifier.close()
    ctx.exit(code)


def _address(text: str) -> str:
    """Raises `click.BadParameter` where this is no address at all."""
    try:
        return address_of(*parse_address(text))
    except Unreachable as error:
        raise click.BadParameter(str(error), param_hint="'--peer'") from None
