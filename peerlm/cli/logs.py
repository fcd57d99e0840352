"""`peerlm logs`: what the daemon wrote about itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import click

from peerlm.cli.state import require_node, state_option
from peerlm.errors import StateError
from peerlm.store.disk import Layout

BLOCK_BYTES = 1 << 16
FOLLOW_S = 0.25


@click.command(short_help="Show what the daemon wrote about itself.")
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Last lines shown."
)
@state_option
def logs(layout: Layout, follow: bool, lines: int) -> None:
    """Show the last lines of the node's log.

    \b
    Examples:
      peerlm logs
      peerlm logs -n 500
      peerlm logs -f
    """
    require_node(layout)
    if not layout.log.exists() and not follow:
        raise StateError(f"{layout.log}: nothing yet; the daemon has not run here")
    tail, end = last_lines(layout.log, lines)
    click.echo(tail, nl=False)
    if follow:
        for more in _written_after(layout.log, end):
            click.echo(more, nl=False)


def last_lines(path: Path, count: int) -> tuple[bytes, int]:
    """The last `count` lines of a file that may be long, and where it ends."""
    if not path.exists():
        return b"", 0
    with path.open("rb") as file:
        end = start = file.seek(0, os.SEEK_END)
        tail = b""
        while start > 0 and tail.count(b"\n") <= count:
            length = min(BLOCK_BYTES, start)
            start = file.seek(start - length)
            tail = file.read(length) + tail
    lines = tail.splitlines(keepends=True)
    return b"".join(lines[len(lines) - count :] if count < len(lines) else lines), end


def _written_after(path: Path, position: int) -> Iterator[bytes]:
    """What is appended from now on; a file that was replaced or cut is read from its start."""
    while True:
        if path.exists():
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(position if size >= position else 0)
                if more := file.read(BLOCK_BYTES):
                    yield more
                position = file.tell()
            if len(more) == BLOCK_BYTES:
                continue
        time.sleep(FOLLOW_S)
