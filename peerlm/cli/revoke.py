"""`peerlm revoke`: a node or an invite that no longer counts."""

from __future__ import annotations

import re
import time

import click

from peerlm.cli.state import state_option
from peerlm.errors import ConfigError
from peerlm.store.layout import Layout, StateDirectory
from peerlm.types import WallTime


@click.command(short_help="Shut out a node, or an invite with all who came by it.")
@click.argument("serials", metavar="ID...", nargs=-1, required=True)
@state_option
def revoke(layout: Layout, serials: tuple[str, ...]) -> None:
    """Shut out nodes (by node id), or invites with everybody who came by them (by serial).

    `peerlm peers` shows node ids, of which a beginning is enough while the daemon runs; `peerlm invite`
    says the serial of what it prints. The swarm learns of it by gossip, within seconds, and it
    cannot be undone. Signed with the run's root key, or by a delegate for those it brought in.

    A node that was shut out by its id can come back under another while it holds a token that still
    lets machines in: revoke its invite too.

    \b
    Examples:
      peerlm revoke 3fa94c21
      peerlm revoke 9b1d0c5e2f7a4488a1b2c3d4e5f60718
    """
    from peerlm.cli.signer import find_signer
    from peerlm.daemon.control import NoDaemon, ask
    from peerlm.identity.revocation import sign_revocation

    signer = find_signer(layout, "revoke")
    wanted = [_serial(layout, text) for text in serials]
    blob = sign_revocation(signer, wanted, WallTime(time.time()))
    try:
        ask(layout, "revoke", revocation=blob.hex())
        how = "the swarm will know within seconds"
    except NoDaemon:
        _keep(layout, blob)
        how = "the swarm will know once `peerlm up` runs here"
    click.echo(f"revoked {', '.join(serial.hex() for serial in wanted)}: {how}")


def _serial(layout: Layout, text: str) -> bytes:
    """16 bytes in hex; or the beginning of exactly one member's id. Raises `ConfigError`."""
    text = text.lower()
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return bytes.fromhex(text)
    if not re.fullmatch(r"[0-9a-f]{4,31}", text):
        raise ConfigError(
            f"{text!r} is no id: 32 hex digits, or the first 4 or more of a node's id"
        )
    from peerlm.daemon.control import ask

    ids = [m["id"] for m in ask(layout, "status")["members"] if m["id"].startswith(text)]
    if len(ids) != 1:
        raise ConfigError(
            f"{text}: {len(ids) or 'no'} member ids start with it; `peerlm peers` shows them; "
            "an invite's serial must be given whole"
        )
    return bytes.fromhex(ids[0])


def _keep(layout: Layout, blob: bytes) -> None:
    from peerlm.identity import files

    with StateDirectory(layout.root):
        known = files.read_revocations(layout.root)
        files.write_revocations(layout.root, (*known, blob))
