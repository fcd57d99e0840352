"""`peerlm join`: enter a run through any of its members."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from peerlm.cli.settings_text import (
    advertise_option,
    enter_with,
    host_option,
    node_settings,
    parse_changes,
)
from peerlm.cli.state import has_node, read_run, state_option
from peerlm.daemon.control import ask, is_served
from peerlm.errors import ConfigError, StateError
from peerlm.store.layout import Layout, require_own
from peerlm.types import printable, short

TOKEN_CHARS_MAX = 16_384

ATTEMPT_S = 60.0
WAIT_S = 86_400.0
"""For how long a service that enters a run is awaited: one attempt, or with --wait."""


@click.command(short_help="Enter a run through any of its members, and train.")
@click.argument("address", metavar="ADDRESS")
@click.option("--token", envvar="PEERLM_TOKEN", help="The invite.  [env: PEERLM_TOKEN]")
@click.option(
    "--token-file",
    metavar="FILE",
    help="Read the token from a file, or from standard input with `-`.",
)
@click.option(
    "--wait", is_flag=True, help="Keep trying, with longer and longer pauses, until a peer answers."
)
@click.option("--enrol-only", is_flag=True, help="Enrol and end; `peerlm up` trains later.")
@click.option(
    "--optimizer",
    "checkpoint",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Begin with the optimizer's state of this checkpoint, a folder of `peerlm checkpoint get`: the one that the run "
    "began with.",
)
@click.option(
    "--set-node",
    "node_pairs",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Change a field of this machine's node.toml.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_533),
    metavar="N",
    help="Base port of this node; 0 picks free ones.",
)
@host_option
@advertise_option
@state_option
@click.pass_context
def join(
    ctx: click.Context,
    layout: Layout,
    address: str,
    token: str | None,
    token_file: str | None,
    wait: bool,
    enrol_only: bool,
    checkpoint: Path | None,
    node_pairs: tuple[str, ...],
    port: int | None,
    hosted: dict[str, str],
    advertised: dict[str, str],
) -> None:
    """Enter a run through any of its members, and train until stopped.

    Makes this machine's keys, proves the invite to the peer at ADDRESS (tcp://HOST:PORT; the port is
    7700 if it is left out), and fetches plan, weights and text from the swarm. Afterwards `peerlm up`
    is all this machine needs: it finds the swarm through any address it ever knew. Where the service
    runs and is in no run yet, it is the service that enters.

    A token on the command line can be seen in the list of processes; --token-file, standard input or
    PEERLM_TOKEN keep it out of there.

    \b
    Examples:
      peerlm join tcp://192.168.1.20:7700 --token peerlm1-...
      peerlm join ada.example.org --token-file /run/secrets/peerlm --wait
      ssh ada peerlm invite | awk '{print $5}' | peerlm join ada --token-file -
      peerlm join ada --token T --enrol-only && systemctl start peerlm
      peerlm join ada --token T --host 1-2
      peerlm join ada --token T --optimizer model/
      peerlm join ada --token T --set-node train.device=cuda:1 --set-node limits.threads=4
    """
    changes = parse_changes(node_pairs, "--set-node") | hosted | advertised
    node_settings(changes, "--set-node")
    secret = _token(token, token_file, ctx)
    if _is_service_that_waits(layout):
        if checkpoint is not None:
            raise click.UsageError(
                "--optimizer: the service runs here, and its folder is its own; leave it out, or stop the service"
            )
        if enrol_only:
            raise click.UsageError(
                "--enrol-only: the service runs here and trains once it is enrolled; leave it out, or stop the service"
            )
        if port is not None:
            changes = {**changes, "network.port": str(port)}
        _let_service_join(layout, address, secret, wait, changes)
        return
    if has_node(layout):
        raise StateError(
            f"{layout.root} already holds a node of run {short(read_run(layout).run_id)}: "
            "`peerlm up` starts it; to enter another run use another --state"
        )
    if not enrol_only:
        require_own(layout.root)
    _enrol(layout, address, secret, wait, changes)
    if checkpoint is not None:
        _adopt(layout, checkpoint)
    if enrol_only:
        click.echo(f"enrolled: node in {layout.root}; `peerlm up` trains")
        return
    from peerlm.daemon.main import run

    os.environ.pop("PEERLM_TOKEN", None)  # nothing started from here need see it
    ctx.exit(run(layout.root, seeds=(address,), port=port))


def _is_service_that_waits(layout: Layout) -> bool:
    """As far as we may look: who only may use the control socket leaves it to the daemon to refuse."""
    try:
        return not has_node(layout) and is_served(layout)
    except StateError:
        return is_served(layout)


def _let_service_join(
    layout: Layout, address: str, token: str, wait: bool, changes: Mapping[str, str]
) -> None:
    """A daemon is there, in no run yet: it enrols, in its own folder."""
    timeout_s = WAIT_S if wait else ATTEMPT_S
    ask(layout, "join", timeout_s, address=address, token=token, wait=wait, node=dict(changes))
    click.echo("enrolled; the service trains from here on: `peerlm status` shows how it goes")


def _enrol(
    layout: Layout, address: str, token: str, wait: bool, changes: Mapping[str, str]
) -> None:
    """A folder that was made for an attempt which failed goes again. node.toml is there before the
    keys are, so that no node ever runs without the limits it was given."""
    from peerlm.daemon.enrol import enrol

    is_new = not layout.root.exists()
    try:
        enrol(
            layout.root,
            address,
            token,
            wait=wait,
            report=lambda line: click.echo(line, err=True),
            before_keys=lambda plan: enter_with(layout, plan, changes),
        )
    except BaseException:
        if is_new and not has_node(layout):
            shutil.rmtree(layout.root, ignore_errors=True)
        raise


def _adopt(layout: Layout, checkpoint: Path) -> None:
    """Without it the node trains all the same, so nothing of this ends the command."""
    from peerlm.cli.plan import current_plan
    from peerlm.model.moments import adopted

    plan = current_plan(layout).plan
    click.echo(printable(adopted(checkpoint, layout.moments, plan)), err=True)


def _token(token: str | None, token_file: str | None, ctx: click.Context) -> str:
    """The invite from where it was put: an explicit option counts before the environment."""
    if token_file is not None:
        source = ctx.get_parameter_source("token")
        if source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("give --token or --token-file, not both")
        token = _read(token_file)
    elif token == "-":
        token = _read("-")
    if not token or not token.strip():
        raise click.UsageError(
            "a token is needed: --token, --token-file or PEERLM_TOKEN; a member prints one with "
            "`peerlm invite`"
        )
    return token.strip()


def _read(name: str) -> str:
    """Raises `ConfigError`."""
    try:
        if name == "-":
            return sys.stdin.read(TOKEN_CHARS_MAX)
        with Path(name).expanduser().open(encoding="ascii") as file:
            return file.read(TOKEN_CHARS_MAX)
    except UnicodeDecodeError:
        raise ConfigError(f"--token-file {name}: not a token") from None
    except OSError as error:
        raise ConfigError(f"--token-file {name}: {error.strerror}") from None
