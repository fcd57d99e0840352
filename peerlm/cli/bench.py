"""`peerlm bench`: what peerlm costs on this machine, beside others. Its commands live beside it."""

from __future__ import annotations

import sys

import click

from peerlm.cli.commands import Commands

COMMANDS = {
    "exchange": "bench_exchange:exchange",
    "codec": "bench_codec:codec",
    "step": "bench_step:step",
    "overlap": "bench_overlap:overlap",
    "quality": "bench_quality:quality",
    "serve": "bench_serve:serve",
}


@click.group(cls=Commands, commands_at=COMMANDS, no_args_is_help=True)
def bench() -> None:
    """Measure what peerlm costs on this machine, beside others that do the same.

    Real node processes over real sockets on loopback, in folders of their own that are gone afterwards.

    \b
    Examples:
      peerlm bench exchange --mb 100 --vs gloo
      peerlm bench codec --json
    """


def progress(line: str) -> None:
    """A line for whoever watches, if a terminal does."""
    if sys.stderr.isatty():
        click.echo(line, err=True)
