"""`peerlm ray up | status | down`: a node on each of N nodes of a Ray cluster."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from peerlm.cli.commands import Commands
from peerlm.cli.invite import lifetime
from peerlm.cli.settings_text import node_settings, parse_changes
from peerlm.cli.words import ABSENT, count
from peerlm.errors import AuthError, ConfigError, PeerlmError
from peerlm.types import printable

INVITE_CHARS_MAX = 16_384

ADDRESS = click.option(
    "--address",
    metavar="HOST:PORT",
    default="auto",
    show_default=True,
    help="Of the Ray cluster's head; `auto` is RAY_ADDRESS, or the cluster this machine is in.",
)

COLUMNS = ("", "machine", "ray node", "node", "state", "mixes", "tokens")


def _lifetime(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    lifetime(ctx, parameter, value)  # told now, not by a keeper
    return value


@click.group(
    cls=Commands,
    commands_at={"up": "ray:up", "status": "ray:status", "down": "ray:down"},
    short_help="Run nodes on the machines of a Ray cluster.",
)
def ray() -> None:
    """Run nodes on the machines of a Ray cluster. Ray starts them, and starts them again; it takes no part in
    training, and they go on when it is gone.

    \b
    Examples:
      peerlm init && peerlm ray up --nodes 4
      peerlm ray status
      peerlm ray down
    """


@click.command(short_help="Start a node on each of N Ray nodes.")
@click.option("--nodes", type=click.IntRange(1), metavar="N", required=True)
@ADDRESS
@click.option(
    "--invite",
    "invite_file",
    metavar="FILE",
    help="File with what `peerlm invite` printed (`-`: standard input), for a run made elsewhere.  [default: the run "
    "of this machine's state folder]",
)
@click.option(
    "--state",
    envvar="PEERLM_STATE",
    default="",
    metavar="DIR",
    help="State folder on each machine; not one that machines share.  [env: PEERLM_STATE; default: each machine's own]",
)
@click.option(
    "--set-node",
    "node_pairs",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Use another value than node.toml's, on each machine.",
)
@click.option(
    "--gpus",
    type=click.IntRange(0),
    metavar="G",
    help="GPUs for each node, which train as one.  [default: as many as the machines have]",
)
@click.option(
    "--enrol-until",
    callback=_lifetime,
    metavar="TIME",
    default="7d",
    show_default=True,
    help="For how long a spare machine may take the place of one that died.",
)
def up(
    nodes: int,
    address: str,
    invite_file: str | None,
    state: str,
    node_pairs: tuple[str, ...],
    gpus: int | None,
    enrol_until: str,
) -> None:
    """Start a node on each of N machines of a Ray cluster, and see that each answers.

    One of them is this machine, whose state folder holds the run (`peerlm init`); it lets the others in. With
    --invite all are newcomers to a run made elsewhere. peerlm must be installed for the Python that Ray runs on each
    machine. Daemons that run already, from before or by other means, are kept.

    Ray sees to it that a daemon which dies is started again, and that the node of a machine which dies is moved to
    a spare one. Nothing else goes through Ray: stop it, and training goes on.

    \b
    Examples:
      peerlm init --preset small && peerlm ray up --nodes 4
      peerlm ray up --nodes 8 --gpus 4 --state /scratch/peerlm
      ssh ada peerlm invite | peerlm ray up --nodes 4 --invite -
    """
    node_settings(parse_changes(node_pairs, "--set-node"), "--set-node")
    invite = "" if invite_file is None else _read_invite(invite_file)
    launcher = _launcher()
    wanted = launcher.Wanted(nodes, invite, state, node_pairs, gpus, enrol_until)
    with _connected(launcher, address):
        rows = launcher.up(wanted)
    _show(rows)


@click.command(short_help="Show which Ray node has which node.")
@ADDRESS
@click.option("--json", "as_json", is_flag=True, help="A list of objects.")
def status(address: str, as_json: bool) -> None:
    """Show which Ray node has which node of the swarm, and what each says of itself.

    \b
    Examples:
      peerlm ray status
      peerlm ray status --json | jq -r '.[] | select(.state != "training") | .trouble'
    """
    launcher = _launcher()
    with _connected(launcher, address):
        rows = launcher.status()
    if as_json:
        click.echo(json.dumps([{"number": number} | row for number, row in rows.items()], indent=2))
    else:
        _show(rows)


@click.command(short_help="Have all of them leave the swarm.")
@ADDRESS
def down(address: str) -> None:
    """Have all nodes leave the swarm and end, and let Ray keep them no longer. Their state folders stay, and `peerlm
    ray up` brings them back.

    \b
    Example:
      peerlm ray down
    """
    launcher = _launcher()
    with _connected(launcher, address):
        rows = launcher.down()
    troubled = [
        f"{row.get('machine', number)}: {row['trouble']}"
        for number, row in rows.items()
        if row.get("trouble")
    ]
    click.echo(f"nodes that have left the swarm: {len(rows) - len(troubled)} of {len(rows)}")
    if troubled:
        raise PeerlmError(f"not ended: {'; '.join(troubled)}")


def _launcher() -> Any:
    """peerlm.launch.on_ray. Raises `ConfigError` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"Ray is not installed here: {sys.executable} -m pip install 'ray>=2.40'")
    from peerlm.launch import on_ray

    return on_ray


def _connected(launcher: Any, address: str) -> AbstractContextManager[None]:
    connected: AbstractContextManager[None] = launcher.cluster(address)
    return connected


def _read_invite(name: str) -> str:
    """Raises `ConfigError`, or `AuthError` when it is none or no longer lets anybody in."""
    from peerlm.daemon.lobby import read_invite
    from peerlm.identity.chain import date
    from peerlm.identity.invite import parse_token

    try:
        if name == "-":
            text = sys.stdin.read(INVITE_CHARS_MAX)
        else:
            with Path(name).expanduser().open(encoding="ascii") as file:
                text = file.read(INVITE_CHARS_MAX)
    except UnicodeDecodeError:
        raise ConfigError(f"--invite {name}: not an invite") from None
    except OSError as error:
        raise ConfigError(f"--invite {name}: {error.strerror}") from None
    until = parse_token(read_invite(text)[1]).inviter.authority().enrol_until
    if time.time() > until:
        raise AuthError(
            "expired", f"the invite let machines in until {date(until)}; ask for a new one"
        )
    return text.strip()


def _show(rows: dict[int, dict[str, Any]]) -> None:
    table = [COLUMNS, *(_cells(number, row) for number, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        click.echo("  ".join(map(str.ljust, line, widths)).rstrip())
    for number, row in rows.items():
        if row.get("trouble"):
            click.echo(printable(f"{number}: {row['trouble']}"))


def _cells(number: int, row: dict[str, Any]) -> tuple[str, ...]:
    place = (str(number), row.get("machine", ABSENT), row.get("ray_node", ABSENT)[:8])
    if not row.get("state"):
        return (*place, ABSENT, "missing", ABSENT, ABSENT)
    mixes = "yes" if row["participating"] else "no"
    return (*place, row["node_id"][:8], row["state"], mixes, count(row["tokens"]))
