"""`peerlm logs`: what the daemon wrote about itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import click

from peerlm.cli.state import require_node, state_option
from peerlm.errors import StateError
from peerlm.store.layout import Layout
from peerlm.types import printable

BLOCK_BYTES = 1 << 16
FOLLOW_S = 0.25


@click.command(short_help="Show what the daemon wrote about itself.")
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Last lines shown."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Entries as they are kept, one object a line."
)
@state_option
def logs(layout: Layout, follow: bool, lines: int, as_json: bool) -> None:
    """Show the last lines of the node's log: what happened, when (UTC), with its figures.

    \b
    Examples:
      peerlm logs
      peerlm logs -n 500
      peerlm logs -f
      peerlm logs -n 1000 --json | jq 'select(.level != "info")'
    """
    require_node(layout)
    if not layout.log.exists() and not follow:
        raise StateError(f"{layout.log}: nothing yet; the daemon has not run here")
    tail, end = last_lines(layout.log, lines)
    show = _echo if as_json else _echo_readable
    show(tail)
    if follow:
        for more in _written_after(layout.log, end):
            show(more)


def _echo(entries: bytes) -> None:
    click.echo(entries, nl=False)


def _echo_readable(entries: bytes) -> None:
    for line in entries.decode(errors="replace").splitlines():
        click.echo(readable(line))


def readable(line: str) -> str:
    """A log entry for people; what is no entry stays as it is."""
    try:
        entry = json.loads(line)
        moment, level, event = entry.pop("time"), entry.pop("level"), entry.pop("event")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return printable(line)
    moment = str(moment)[:19].replace("T", " ")
    fields = "".join(f" {name}={value}" for name, value in entry.items() if value != "")
    return printable(f"{moment} {'' if level == 'info' else f'{level}: '}{event}{fields}")


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
    """Whole lines appended from now on; a file that was replaced or cut is read from its start."""
    while True:
        lines = b""
        if path.exists():
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                position = file.seek(position if size >= position else 0)
                lines = file.read(BLOCK_BYTES)
            lines = lines[: lines.rfind(b"\n") + 1]
            position += len(lines)
        if lines:
            yield lines
        else:
            time.sleep(FOLLOW_S)
