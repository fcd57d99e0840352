"""`peerlm top`: the page of a node, in a terminal.

The command looks whether there is a daemon to show and a terminal to show it on; the screen itself, and the
library that draws it, are loaded only then.
"""

from __future__ import annotations

import os
import signal
import sys

import click

from peerlm.cli.state import require_daemon, state_option
from peerlm.errors import PeerlmError
from peerlm.store.layout import Layout


@click.command(short_help="Watch this node and the swarm on the whole terminal.")
@state_option
def top(layout: Layout) -> None:
    """Watch this node and the swarm as it sees them: figures, members, curves and events, on the whole
    terminal. It changes nothing, stays when the daemon goes away, and goes on when that is back.

    Keys: Tab moves between the panes, arrows within one; s sorts the members by the next column, c shows the
    next curve, ? explains, q quits.

    \b
    Examples:
      peerlm top
      from elsewhere: ssh -t ada peerlm top
    """
    from peerlm.cli.top_asking import Asking

    require_daemon(layout)
    asking = Asking(layout)
    first = asking.first()
    if not _is_terminal():
        raise PeerlmError("top needs a terminal; in a pipe or a script use `peerlm status --watch`")
    from peerlm.cli.top_screen import Top

    screen = Top(asking, first)
    signal.signal(signal.SIGTERM, lambda *_: screen.exit())  # the terminal is left as it was found
    screen.run()
    if screen.fault is not None:
        raise screen.fault


def _is_terminal() -> bool:
    """All three streams: keys come from one, the screen is drawn on another."""
    return os.environ.get("TERM", "dumb") != "dumb" and all(
        stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)
    )
