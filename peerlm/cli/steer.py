"""`peerlm pause | resume | stop | leave`: commands that the running daemon carries out."""

from __future__ import annotations

import fcntl
import os
import time

import click

from peerlm.cli.state import require_daemon, state_option
from peerlm.daemon.control import ask, is_served
from peerlm.errors import StateError, Unsaved
from peerlm.store.layout import Layout

END_S = 60.0
"""How long a daemon may take to end: it writes a snapshot first."""


@click.command(short_help="Take no inner steps until `resume`.")
@state_option
def pause(layout: Layout) -> None:
    """Take no inner steps until `peerlm resume`.

    The node stays a member: it mixes, keeps and gives state. `status` shows it as ready.

    \b
    Example:
      peerlm pause
    """
    require_daemon(layout)
    ask(layout, "pause")
    click.echo("paused: this node mixes but does not train; `peerlm resume` goes on")


@click.command(short_help="Train again after `pause`.")
@state_option
def resume(layout: Layout) -> None:
    """Train again after `peerlm pause`.

    \b
    Example:
      peerlm resume
    """
    require_daemon(layout)
    ask(layout, "resume")
    click.echo("resumed")


@click.command(short_help="End the daemon cleanly.")
@state_option
def stop(layout: Layout) -> None:
    """Have the daemon hand in the worker's progress, write a snapshot, say goodbye and end.

    Returns when it has ended. `peerlm up` goes on from there; SIGTERM and Ctrl-C do the same.

    \b
    Example:
      peerlm stop
    """
    _end(layout, "stop")
    click.echo("stopped")


@click.command(short_help="Leave the swarm and end the daemon.")
@state_option
def leave(layout: Layout) -> None:
    """Leave the swarm: as `peerlm stop`, for a machine that is not meant to come back.

    The others stop looking for it at once. Its folder stays until `peerlm rm`; `peerlm up` would
    bring the node back. If only this node holds some stage of the model, it waits up to two minutes until another has
    taken it over; `peerlm stop` in the meantime ends it at once.

    \b
    Example:
      peerlm leave
    """
    from peerlm.node.handing_over import HAND_OVER_S

    _end(layout, "leave", END_S + HAND_OVER_S)
    click.echo("left the swarm")


def _end(layout: Layout, command: str, within_s: float = END_S) -> None:
    """Ask, then wait until the daemon is gone. Raises `StateError`; `Unsaved` when its last snapshot failed."""
    require_daemon(layout)
    result = ask(layout, command, timeout_s=within_s)
    deadline = time.monotonic() + END_S
    while is_served(layout) or is_held(layout):
        if time.monotonic() > deadline:
            raise StateError(f"the daemon on {layout.root} has not ended within {END_S:g} s")
        time.sleep(0.05)
    if result.get("unsaved"):
        raise Unsaved(str(result["unsaved"]))


def is_held(layout: Layout) -> bool:
    """Whether some process has the state directory, as far as we may know: those who only may use
    the control socket cannot look at the lock, and that the socket is gone is enough for them."""
    try:
        lock = os.open(layout.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
