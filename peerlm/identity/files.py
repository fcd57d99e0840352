"""The private files of a state directory: whole or not there, and readable by their owner only.

After a power cut a file is the old or the new one, never half of either (`store.disk`). Secrets that
others can read are refused, as ssh refuses them.

    identity      the node's keys                      (secret)
    chain         its certificate chain
    root          the run's root key, the founder only (secret)
    inviter       a delegate's invite key              (secret)
    revocations   every revocation seen
    plan          the highest signed plan seen

The caller holds the directory's lock; this module never waits and never deletes but by `remove_root`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from peerlm.errors import AuthError, ConfigError, StateError
from peerlm.identity import canonical
from peerlm.identity.chain import LINK_BYTES_MAX, LINKS_MAX, Chain
from peerlm.identity.invite import Inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import RunRoot
from peerlm.store import disk

IDENTITY = "identity"
CHAIN = "chain"
ROOT = "root"
INVITER = "inviter"
REVOCATIONS = "revocations"
PLAN = "plan"

FILE_BYTES_MAX = 64 * 2**20
BLOBS_MAX = 2**20
"""In one file: far more revocations than it has room for."""
T = TypeVar("T")


def write_keys(state_dir: Path, keys: NodeKeys) -> None:
    """Keep the node's keys. Raises `StateError`."""
    write_private(state_dir / IDENTITY, keys.to_bytes())


def read_keys(state_dir: Path) -> NodeKeys | None:
    """The node's keys, `None` before there are any. Raises `StateError` if they cannot be used."""
    return _read(state_dir / IDENTITY, NodeKeys.from_bytes, is_secret=True)


def write_chain(state_dir: Path, chain: Chain) -> None:
    """Keep the node's chain. Raises `StateError`."""
    write_private(state_dir / CHAIN, canonical.seal(canonical.encode(list(chain))))


def read_chain_file(state_dir: Path) -> Chain | None:
    """The node's chain, not verified. Raises `StateError` if it is damaged."""
    limit = LINKS_MAX * (LINK_BYTES_MAX + 8)
    return _read(state_dir / CHAIN, lambda raw: _blobs(raw, limit, LINKS_MAX), is_secret=False)


def write_root(state_dir: Path, root: RunRoot) -> None:
    """Keep the run's root key. Raises `StateError`."""
    write_private(state_dir / ROOT, root.to_bytes())


def read_root(state_dir: Path) -> RunRoot | None:
    """The run's root key where it is kept, else `None`. Raises `StateError`."""
    return _read(state_dir / ROOT, RunRoot.from_bytes, is_secret=True)


def remove_root(state_dir: Path) -> None:
    """Take the root key off this machine, after `export_root` has put it elsewhere. Raises `StateError`."""
    disk.remove(state_dir / ROOT)


def write_inviter(state_dir: Path, inviter: Inviter) -> None:
    """Keep the invite key of a delegate. Raises `StateError`."""
    write_private(state_dir / INVITER, inviter.to_bytes())


def read_inviter(state_dir: Path) -> Inviter | None:
    """The invite key of a delegate, else `None`. Raises `StateError`."""
    return _read(state_dir / INVITER, Inviter.from_bytes, is_secret=True)


def write_revocations(state_dir: Path, blobs: Sequence[bytes]) -> None:
    """Keep all revocations. Raises `StateError`."""
    write_private(state_dir / REVOCATIONS, canonical.seal(canonical.encode(list(blobs))))


def read_revocations(state_dir: Path) -> tuple[bytes, ...]:
    """All revocations, not verified. Raises `StateError` if the file is damaged."""
    path = state_dir / REVOCATIONS
    read = _read(path, lambda raw: _blobs(raw, FILE_BYTES_MAX, BLOBS_MAX), is_secret=False)
    return read or ()


def write_plan(state_dir: Path, blob: bytes) -> None:
    """Keep the signed plan. Raises `StateError`."""
    write_private(state_dir / PLAN, blob)


def read_plan(state_dir: Path) -> bytes | None:
    """The signed plan, not verified. Raises `StateError` if it cannot be read."""
    return _read(state_dir / PLAN, lambda raw: raw, is_secret=False)


def export_root(root: RunRoot, path: Path) -> None:
    """Write the root key where a person wants it; never over a file that is there. Raises `ConfigError`."""
    if path.exists():
        raise ConfigError(f"{path} exists already; name a new file for the root key")
    try:
        write_private(path, root.to_bytes())
    except StateError as error:
        raise ConfigError(str(error)) from None


def import_root(path: Path) -> RunRoot:
    """Read an exported root key. Raises `ConfigError`."""
    try:
        root = _read(path, RunRoot.from_bytes, is_secret=True)
    except StateError as error:
        raise ConfigError(str(error)) from None
    if root is None:
        raise ConfigError(f"{path}: no such file; it should be one that `peerlm root export` wrote")
    return root


# --------------------------------------------------------------------------- bytes on the disk


def write_private(path: Path, data: bytes) -> None:
    """Put `data` at `path`, all or nothing, readable by the owner only. Raises `StateError`."""
    disk.write_atomic(path, data)


def _read(path: Path, parse: Callable[[bytes], T], *, is_secret: bool) -> T | None:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from None
    if is_secret and mode & 0o077:
        raise StateError(
            f"{path} is a secret that others can read (mode {mode:04o}); run: chmod 600 {path}"
        )
    try:
        return parse(raw)
    except AuthError as error:
        raise StateError(f"{path}: {error}; put back a copy of it") from None


def _blobs(raw: bytes, limit_bytes: int, items_max: int) -> tuple[bytes, ...]:
    complaint = "damaged"
    blobs = canonical.decode(canonical.unseal(raw, complaint), limit_bytes, "file", items_max)
    if not isinstance(blobs, list) or not all(isinstance(blob, bytes) for blob in blobs):
        raise AuthError("malformed", complaint)
    return tuple(blobs)
