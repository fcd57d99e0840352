"""`peerlm version`."""

from __future__ import annotations

import platform

import click

from peerlm import __version__


@click.command(short_help="Print the version.")
def version() -> None:
    """Print the version of peerlm and of the Python it runs on.

    \b
    Example:
      peerlm version
    """
    click.echo(f"peerlm {__version__} (Python {platform.python_version()}, {platform.system()})")
