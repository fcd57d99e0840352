"""`peerlm key`: who may use `peerlm serve`, and how much."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from peerlm.cli.commands import Commands
from peerlm.cli.serve import keys_option
from peerlm.cli.state import state_option
from peerlm.errors import ConfigError
from peerlm.store.layout import Layout

COMMANDS = {"add": "key:add", "ls": "key:ls", "rm": "key:rm"}


@click.group(cls=Commands, commands_at=COMMANDS, no_args_is_help=True)
def key() -> None:
    """API keys for `peerlm serve`. Once there is one, nobody is answered without.

    A server that runs takes changes within seconds.

    \b
    Examples:
      peerlm key add alice --tokens-a-minute 20000
      peerlm key ls
    """


@click.command(short_help="Make an API key, and print it this once.")
@click.argument("name")
@click.option(
    "--tokens-a-minute",
    type=click.IntRange(0, 1_000_000_000),
    default=0,
    help="Of prompts and answers; 0: as many as it likes.",
)
@click.option(
    "--requests-a-minute", type=click.IntRange(0, 1_000_000), default=0, help="0: as many."
)
@keys_option
@state_option
def add(
    layout: Layout, name: str, tokens_a_minute: int, requests_a_minute: int, keys_path: Path | None
) -> None:
    """Make a key for NAME and print it. Only its hash is kept, so it cannot be shown again.

    \b
    Examples:
      peerlm key add alice
      peerlm key add batch-jobs --tokens-a-minute 20000 --requests-a-minute 60
    """
    from peerlm.serve import keys

    path = _path(layout, keys_path)
    known = keys.read(path)
    keys.check_name(name)
    if any(one.name == name for one in known):
        raise ConfigError(f"{path} has a key of {name!r} already: `peerlm key rm {name}` first")
    if len(known) >= keys.KEYS_MAX:
        raise ConfigError(f"{path} holds {len(known)} keys, and more are not allowed")
    secret = keys.secret_of(os.urandom(keys.SECRET_BYTES))
    hash_, now = keys.hash_of(secret), int(time.time())
    made = keys.Key(name, hash_, tokens_a_minute, requests_a_minute, now)
    keys.write(path, [*known, made])
    click.echo(secret)


@click.command(short_help="List API keys and their quotas.")
@keys_option
@state_option
def ls(layout: Layout, keys_path: Path | None) -> None:
    """Names and quotas; the keys themselves are not known here.

    \b
    Examples:
      peerlm key ls
    """
    from peerlm.serve import keys

    known = keys.read(_path(layout, keys_path))
    if not known:
        click.echo("no keys")
        return
    click.echo(f"{'name':<20} {'tokens/min':>12} {'requests/min':>12}  made")
    for one in known:
        day = datetime.fromtimestamp(one.made, UTC).strftime("%Y-%m-%d")
        tokens, requests = one.tokens_a_minute or "any", one.requests_a_minute or "any"
        click.echo(f"{one.name:<20} {tokens:>12} {requests:>12}  {day}")


@click.command(short_help="Remove an API key.")
@click.argument("name")
@keys_option
@state_option
def rm(layout: Layout, name: str, keys_path: Path | None) -> None:
    """Nobody is answered with NAME's key any more.

    \b
    Examples:
      peerlm key rm alice
    """
    from peerlm.serve import keys

    path = _path(layout, keys_path)
    known = keys.read(path)
    left = [one for one in known if one.name != name]
    if len(left) == len(known):
        raise ConfigError(f"{path} has no key of that name; `peerlm key ls` shows them")
    keys.write(path, left)


def _path(layout: Layout, keys_path: Path | None) -> Path:
    """Raises `ConfigError` where its folder is not there."""
    path = keys_path or layout.api_keys
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder; name a file with --keys")
    return path
