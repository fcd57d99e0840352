"""With which key this machine signs invites and revocations: the run's root, or its own delegation."""

from __future__ import annotations

from peerlm.cli.state import require_node
from peerlm.errors import ConfigError
from peerlm.identity import files
from peerlm.identity.invite import Inviter, root_inviter
from peerlm.identity.root import RunRoot
from peerlm.store.layout import Layout


def find_signer(layout: Layout, doing: str) -> Inviter:
    """The strongest key here.

    Raises:
        ConfigError: this machine has neither; `doing` is what for: "invite".
        StateError: no node here, or a key that cannot be read.
    """
    require_node(layout)
    root = files.read_root(layout.root)
    if root is not None:
        return root_inviter(root)
    inviter = files.read_inviter(layout.root)
    if inviter is None:
        raise ConfigError(
            f"this node may not {doing}: it has neither the run's root key (`peerlm root import` brings "
            "it) nor an invite with role invite"
        )
    return inviter


def require_root(layout: Layout, doing: str) -> RunRoot:
    """The run's root key, for the command `doing`. Raises `ConfigError` if it is not here."""
    require_node(layout)
    root = files.read_root(layout.root)
    if root is None:
        raise ConfigError(
            f"`peerlm {doing}` needs the run's root key, which is not on this machine: do it where "
            "`peerlm init` was run, or bring the key with `peerlm root import`"
        )
    return root
