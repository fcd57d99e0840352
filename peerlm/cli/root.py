"""`peerlm root export | import`: where the run's root key is kept."""

from __future__ import annotations

from pathlib import Path

import click

from peerlm.cli.state import read_run, state_option
from peerlm.errors import ConfigError
from peerlm.store.layout import Layout
from peerlm.types import short

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(short_help="Move the run's root key to a safe place and back.")
def root() -> None:
    """Move the run's root key to a safe place and back.

    The root key signs invites and new revisions of the plan. No running node needs it, so it may well
    lie offline. Whoever has it owns the run.

    \b
    Examples:
      peerlm root export /media/stick/plays.root --remove
      peerlm root import /media/stick/plays.root
    """


@root.command("export", short_help="Write the root key to a file.")
@click.argument("file", type=FILE)
@click.option("--remove", is_flag=True, help="Then take the key off this machine.")
@state_option
def export_(layout: Layout, file: Path, remove: bool) -> None:
    """Write the root key to FILE, which must not exist yet; only its owner can read it.

    \b
    Example:
      peerlm root export /media/stick/plays.root --remove
    """
    from peerlm.cli.signer import require_root
    from peerlm.identity import files

    files.export_root(require_root(layout, "root export"), file)
    click.echo(f"the root key is in {file}")
    if remove:
        files.remove_root(layout.root)
        click.echo("and no longer on this machine")


@root.command("import", short_help="Bring the root key to this machine.")
@click.argument("file", type=FILE)
@state_option
def import_(layout: Layout, file: Path) -> None:
    """Bring the root key in FILE to this machine, whose node must be of the same run.

    \b
    Example:
      peerlm root import /media/stick/plays.root
    """
    from peerlm.identity import files

    here, key = read_run(layout), files.import_root(file)
    if key.run_id != here.run_id:
        raise ConfigError(
            f"{file} is the root key of run {short(key.run_id)}; this node is of run {short(here.run_id)}"
        )
    files.write_root(layout.root, key)
    click.echo(f"this machine can sign for run {key.name} ({short(key.run_id)})")
