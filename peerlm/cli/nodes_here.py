"""Which nodes run on this machine, and which of them is meant by a run's name.

Every daemon listens on a socket in its state folder (`daemon.control`), and the kernel lists the names of all sockets. A
folder with a path too long for a socket's name is not in that list: it has to be named.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from peerlm.cli.state import default_folder
from peerlm.daemon.control import ask, is_served
from peerlm.errors import PeerlmError, StateError
from peerlm.store.layout import SYSTEM_RUNTIME, SYSTEM_STATE, Layout

SOCKETS = Path("/proc/net/unix")

LISTENS = 0x10000
"""A socket's flag."""

SHORT_MIN = 8
"""Digits of a run's id that may stand for its name, at least."""


def node_of(run: str, state: str | None = None) -> Layout:
    """The node to ask for what is in a run: in the folder `state`, then in PEERLM_STATE, then the default one if it is of
    that run, then any that runs here. An empty `run` is that of the first of these.

    Raises:
        StateError: there is none, or not only of one run, or it cannot be asked.
    """
    named = state or os.environ.get("PEERLM_STATE")
    first = Layout(Path(named or default_folder()).expanduser().absolute())
    if not run:
        return first
    if named:
        if not _is_of(first, run):
            raise StateError(f"the node in {first.root} is of another run than {run[:60]!r}")
        return first
    if is_served(first) and _is_of(first, run):
        return first
    found = [layout for layout in nodes_here() if _may_be_of(layout, run)]
    runs = {str(ask(layout, "status")["run_id"]) for layout in found}
    if not found:
        raise StateError(
            f"no node of a run {run[:60]!r} runs on this machine, where it could be seen: name its folder (state=, or "
            "PEERLM_STATE)"
        )
    if len(runs) > 1:
        folders = ", ".join(str(layout.root) for layout in found)
        raise StateError(f"several runs are called {run[:60]!r}: name a node's folder: {folders}")
    return found[0]


def nodes_here() -> list[Layout]:
    """Folders in which a daemon runs, as far as they can be seen, in order."""
    if sys.platform != "linux":
        return []
    with SOCKETS.open() as table:
        fields = [line.split(maxsplit=7) for line in table]
    names = {Path(f[7].strip()) for f in fields[1:] if len(f) == 8 and int(f[3], 16) & LISTENS}
    roots = {name.parent for name in names if name.name == "control.sock"}
    layouts = [
        layout
        for root in sorted(roots)
        for layout in map(Layout, _states(root))
        if is_served(layout)
    ]
    return list({layout.control_socket: layout for layout in layouts}.values())


def _states(folder: Path) -> list[Path]:
    """The state folders whose socket may lie in this one: its own, or that of a system service."""
    if folder.parent == SYSTEM_RUNTIME:
        return [parent / folder.name for parent in SYSTEM_STATE]
    return [folder]


def _is_of(layout: Layout, run: str) -> bool:
    said = ask(layout, "status")
    is_id = len(run) >= SHORT_MIN and str(said["run_id"]).startswith(run)
    return is_id or said["run_name"] == run


def _may_be_of(layout: Layout, run: str) -> bool:
    try:
        return _is_of(layout, run)
    except PeerlmError:  # another user's, or one that is starting or ending
        return False
