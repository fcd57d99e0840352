"""`peerlm up`: this machine's node, in the foreground."""

from __future__ import annotations

import click

from peerlm.cli.state import require_node, state_option
from peerlm.store.disk import Layout


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
@state_option
@click.pass_context
def up(ctx: click.Context, layout: Layout, port: int | None, local_workers: int | None) -> None:
    """Run this machine's node in the foreground, until Ctrl-C, SIGTERM or `peerlm stop`.

    It finds the swarm through any address it ever knew, takes newer weights from its peers if they
    have them, and trains. Its worker is a process of its own which is started again when it dies.
    Kill it at any moment: the next `peerlm up` goes on from the last snapshot, or from its peers.

    \b
    Examples:
      peerlm up
      peerlm up --port 7800
      peerlm up --local-workers 4
      peerlm up --state /srv/second-node --port 0
    """
    require_node(layout)
    from peerlm.daemon.main import run

    ctx.exit(run(layout.root, port=port, local_workers=local_workers))
