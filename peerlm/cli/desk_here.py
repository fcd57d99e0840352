"""This node's desk of the swarm's store, for commands; and how far long work at it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from peerlm.cli.state import require_daemon
from peerlm.store.layout import Layout

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client

READ_S = 180.0
"""For a chunk that has to be fetched from others first."""

Tell = Callable[[int, int | None, str], None]
"""(done, of how many or None, a word on what is being done)."""


def open_desk(layout: Layout) -> Client:
    """Raises: NoDaemon, StateError: none runs there, there is no node, or it may not be used."""
    from peerlm.daemon.desk_client import Client

    require_daemon(layout)
    return Client(layout)


@contextmanager
def progress(what: str, *, in_bytes: bool = False) -> Iterator[Tell]:
    """A bar with the time left on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, of, word: None
        return
    from rich import progress as bars
    from rich.console import Console

    counted: tuple[bars.ProgressColumn, ...] = (bars.MofNCompleteColumn(),)
    if in_bytes:
        counted = (bars.DownloadColumn(), bars.TransferSpeedColumn())
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        *counted,
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)

        def tell(done: int, of: int | None, word: str) -> None:
            text = f"{what} {word}".replace("[", "\\[").rstrip()
            shown.update(task, completed=done, total=of, description=text)

        yield tell
