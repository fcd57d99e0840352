"""`peerlm rm`: forget a node."""

from __future__ import annotations

import contextlib
import shutil

import click

from peerlm.cli.state import has_node, read_run, require_node, state_option
from peerlm.errors import StateError
from peerlm.identity.files import INVITER
from peerlm.store.disk import explained
from peerlm.store.layout import Layout, StateDirectory
from peerlm.types import short


@click.command(short_help="Remove this machine's node with all it keeps.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@state_option
def rm(layout: Layout, yes: bool) -> None:
    """Remove the node's state folder: its keys, weights, text and log. What somebody else keeps there stays.

    Refused while the daemon runs. On the machine of `peerlm init` the run's root key goes too, unless
    `peerlm root export` has put a copy elsewhere: without it nobody can invite (but delegates) or
    change the plan.

    \b
    Examples:
      peerlm rm
      peerlm rm --yes --state /srv/second-node
    """
    require_node(layout)
    with StateDirectory(layout.root):
        if not yes:
            click.confirm(_question(layout), abort=True, err=True)
        if not has_node(layout):
            raise StateError(f"{layout.root} no longer holds a node")
        with explained("remove", layout.root):
            foreign = layout.foreign()
            _remove(layout, foreign)
    click.echo(f"removed {layout.root}" if not foreign else f"removed the node in {layout.root}")
    if foreign:
        click.echo(f"kept what is no node's: {', '.join(foreign)}")


def _remove(layout: Layout, foreign: list[str]) -> None:
    """The node's own files, the run's keys first and its identity last, so that after a kill on the way it can be removed
    again; then the folder, unless others keep something there or it is where a disk is mounted."""
    ours = [path for path in layout.root.iterdir() if path.name not in foreign]
    order = {layout.run_root: -2, layout.root / INVITER: -1, layout.identity: 1}
    for path in sorted(ours, key=lambda path: order.get(path, 0)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if foreign:
        return
    with contextlib.suppress(OSError):
        layout.root.resolve().rmdir()
    if layout.root.is_symlink():  # as systemd leaves a service's
        layout.root.unlink()


def _question(layout: Layout) -> str:
    try:
        who = f"the node of run {short(read_run(layout).run_id)}"
    except StateError:
        who = "a damaged node"
    root = ", with the run's root key" if layout.run_root.exists() else ""
    return f"Remove {layout.root}: {who}{root}?"
