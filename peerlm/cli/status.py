"""`peerlm status | peers | why`: what the running daemon says of itself and of the swarm."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from peerlm.cli.state import require_daemon, state_option
from peerlm.daemon.control import ask
from peerlm.errors import StateError
from peerlm.store.layout import Layout
from peerlm.types import printable

WATCH_S = 1.0


@click.command(short_help="Show this node and the swarm.")
@click.option("--watch", is_flag=True, help="Go on showing it, each second, until Ctrl-C.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object; docs/status.md explains it."
)
@state_option
def status(layout: Layout, watch: bool, as_json: bool) -> None:
    """Show this node and the swarm as it sees it. Exit code 3 when no daemon runs.

    Loss is in nats per token. The distance is how far weights are from those of the partners they
    mix with, relative to their norm. The time left follows from the swarm's present rate.

    \b
    Examples:
      peerlm status
      peerlm status --watch
      peerlm status --json | jq .val_loss
      peerlm status --json --watch    # an object per line, for scripts
    """
    require_daemon(layout)
    if as_json:
        _repeat(layout, watch, lambda s: click.echo(json.dumps(s, indent=None if watch else 2)))
        return
    from peerlm.cli import views

    if not sys.stdout.isatty():
        _repeat(layout, watch, lambda s: click.echo("\n".join(views.plain_status(s))))
    elif watch:
        _watch_screen(layout)
    else:
        views.console().print(views.status_view(ask(layout, "status")))


@click.command(short_help="List the members of the swarm.")
@click.option("--json", "as_json", is_flag=True, help="The list `members` of `status --json`.")
@state_option
def peers(layout: Layout, as_json: bool) -> None:
    """List the members of the swarm as this node knows them, itself included.

    \b
    Examples:
      peerlm peers
      peerlm peers --json | jq -r '.[] | select(.state != "alive") | .address'
    """
    require_daemon(layout)
    answer = ask(layout, "status")
    if as_json:
        click.echo(json.dumps(answer["members"], indent=2))
        return
    from peerlm.cli import views

    click.echo("\n".join(views.plain_peers(answer)))


@click.command(short_help="Say why this node is not mixing, or that it is.")
@state_option
def why(layout: Layout) -> None:
    """Say in a line or a few why this node is not mixing, or that it is; and what is wrong with its part of the store.

    \b
    Example:
      peerlm why
    """
    require_daemon(layout)
    for line in ask(layout, "status")["why"]:
        click.echo(printable(line))


def _repeat(layout: Layout, watch: bool, show: Any) -> None:
    while True:
        show(ask(layout, "status"))
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(WATCH_S)


def _watch_screen(layout: Layout) -> None:
    """Redraw in place. A daemon that goes away is shown as such, and awaited."""
    from rich.live import Live

    from peerlm.cli import views

    console = views.console()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        live.update(views.status_view(ask(layout, "status")), refresh=True)
        while True:
            time.sleep(WATCH_S)
            try:
                live.update(views.status_view(ask(layout, "status")), refresh=True)
            except StateError as error:
                live.update(views.trouble(str(error)), refresh=True)
