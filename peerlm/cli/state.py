"""Which state folder a command works on, and what a node's folder says about it.

`--state`, then PEERLM_STATE, then STATE_DIRECTORY (systemd sets it), then /var/lib/peerlm when this machine
has the service, then the user's own state folder (XDG_STATE_HOME on Linux).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from peerlm.errors import StateError
from peerlm.store.layout import Layout
from peerlm.types import PeerId, RunId

F = TypeVar("F", bound=Callable[..., Any])

SERVICE_STATE = Path("/var/lib/peerlm")
"""Where the system service keeps its node."""

ORIGIN = "origin"
"""Name of the file that marks the run's first node: it may make the initial weights."""


class _Folder(click.Path):
    """A path that is not empty: an unset variable of a script is not the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == "":
            self.fail("it is empty; name the node's folder", param, ctx)
        return super().convert(value, param, ctx)


def state_option(command: F) -> F:
    """Gives a command `--state DIR`, and hands it a `layout: Layout` in its place."""
    return click.option(
        "--state",
        "layout",
        metavar="DIR",
        envvar="PEERLM_STATE",
        type=_Folder(path_type=Path),
        callback=_layout,
        help="The node's state folder.  [env: PEERLM_STATE, STATE_DIRECTORY; default: /var/lib/peerlm if it is "
        "there, else the user's own]",
    )(command)


def _layout(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Layout:
    return Layout((value or default_folder()).expanduser().absolute())


def default_folder() -> Path:
    """The folder of a node for which none was named."""
    if by_systemd := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(by_systemd)
    if os.path.lexists(SERVICE_STATE):  # a link that only root can follow, once the service has run
        return SERVICE_STATE
    import platformdirs

    return Path(platformdirs.user_state_path("peerlm"))


def has_node(layout: Layout) -> bool:
    """The identity is written last: what a kill in between has left is no node, and is replaced.
    Raises `StateError` where we may not look."""
    try:
        return layout.identity.exists()
    except PermissionError:
        raise StateError(
            f"may not look into {layout.root}: be root or its owner, or name your own with --state"
        ) from None


def require_node(layout: Layout) -> None:
    """Raises `StateError` with what to do when there is no node in the folder."""
    if not has_node(layout):
        raise StateError(
            f"no node in {layout.root}: make a run with `peerlm init`, enter one with `peerlm join`, "
            "or name the node's folder with --state"
        )


def require_daemon(layout: Layout) -> None:
    """Raises `StateError` with what to do when nothing can be asked here. Who only may use the control
    socket of a service cannot look into its folder, and need not."""
    from peerlm.daemon.control import is_served

    if not is_served(layout):
        require_node(layout)


@dataclass(frozen=True, slots=True)
class RunHere:
    """The run a node's folder belongs to."""

    run_id: RunId
    root_public_key: bytes
    node_id: PeerId


def read_run(layout: Layout) -> RunHere:
    """Which run this node is of, from its own certificate chain.

    Raises:
        StateError: no node here, or its chain is damaged.
    """
    from peerlm.errors import AuthError
    from peerlm.identity import chain, files

    require_node(layout)
    links = files.read_chain_file(layout.root)
    if not links:
        raise StateError(f"{layout.chain}: missing; put back a copy of it, or join again")
    try:
        run_id, root_public_key = chain.claimed_run(links)
        verified = chain.read_chain(links, root_public_key, run_id)
    except AuthError as error:
        raise StateError(f"{layout.chain}: damaged: {error}; put back a copy of it") from None
    return RunHere(run_id, root_public_key, verified.peer_id)
