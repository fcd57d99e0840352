"""Revocations: a set of signed statements that only grows, so nodes agree however gossip reaches them.

A revocation names serials: of an invite, of a node (its id) or of a single certificate. A chain is
revoked if any of its links is, so revoking an invite revokes every node and every invite that came by
it. The root may revoke anything. A delegate (a holder of an invite with role `invite`) may revoke its
own invite and what is below it: the statement of a delegate counts only in chains that pass through
that delegate's invite, which is decided when a chain is looked at, so serials need not be known in
advance. A delegate's word stands when its invite has expired or is revoked itself; it could only ever
take away.

A node that was revoked by its id can return under a new id while it holds a token that still enrols:
if it is not to be trusted, revoke its invite.

Nothing is ever taken out. The statements under one invite of the root are bounded, so a rogue delegate
cannot fill memories; the root's own are bounded by a person's patience.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from peerlm.errors import AuthError, ConfigError
from peerlm.identity import canonical
from peerlm.identity.chain import ID_BYTES, Serial, is_bytes, is_time, read_invites
from peerlm.identity.invite import Inviter
from peerlm.identity.keys import KEY_BYTES, SIGNATURE_BYTES, Purpose, is_signed
from peerlm.types import Role, RunId, WallTime, short

REVOCATION_BYTES_MAX = 4096
SERIALS_MAX = 64
DELEGATED_MAX = 256
"""Revocations kept under one invite of the root."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """A verified statement. `issuers` are the serials of the signer's invites; none means the root."""

    revocation_id: bytes
    serials: tuple[Serial, ...]
    issuers: tuple[Serial, ...]
    revoked_at: int


def sign_revocation(signer: Inviter, serials: Collection[bytes], wall: WallTime) -> bytes:
    """A statement that these serials (of invites or certificates, or ids of nodes) no longer count.

    Raises:
        ConfigError: none or too many serials, or the signer holds no role invite.
    """
    if not 1 <= len(set(serials)) <= SERIALS_MAX or any(len(s) != ID_BYTES for s in serials):
        raise ConfigError(f"a revocation takes 1 to {SERIALS_MAX} serials of {ID_BYTES} bytes")
    if Role.INVITE not in signer.authority().roles:
        raise ConfigError("this node may not revoke: it came by an invite without role invite")
    body = canonical.encode(
        ["revocation", signer.run_id, signer.key.public, sorted(set(serials)), int(wall)]
    )
    return canonical.encode([body, list(signer.invites), signer.key.sign(Purpose.REVOCATION, body)])


@lru_cache(maxsize=256)
def verify_revocation(blob: bytes, root_public_key: bytes, run_id: RunId) -> Revocation:
    """Check one statement. One that holds is read once, though it is heard from many.

    Raises:
        AuthError: `malformed`, `too_long`, `wrong_run`, `wrong_root`, `bad_signature`, `roles_exceed`.
    """
    match canonical.decode(blob, REVOCATION_BYTES_MAX, "revocation"):
        case [bytes() as body, list() as invites, signature] if is_bytes(
            signature, SIGNATURE_BYTES
        ) and all(isinstance(i, bytes) for i in invites):
            parts = canonical.decode(body, REVOCATION_BYTES_MAX, "revocation")
        case _:
            raise AuthError("malformed", "revocation: not a signed statement")
    match parts:
        case ["revocation", run, issuer, list() as serials, revoked_at] if (
            is_bytes(run, ID_BYTES)
            and is_bytes(issuer, KEY_BYTES)
            and 1 <= len(serials) <= SERIALS_MAX
            and all(is_bytes(serial, ID_BYTES) for serial in serials)
            and serials == sorted(set(serials))
            and is_time(revoked_at)
        ):
            pass
        case _:
            raise AuthError("malformed", "revocation: not a well-formed statement")
    if run != run_id:
        raise AuthError(
            "wrong_run", f"revocation: of run {short(run)}, this is run {short(run_id)}"
        )
    authority = read_invites(invites, root_public_key, run_id)
    if issuer != authority.key:
        code = "bad_signature" if invites else "wrong_root"
        raise AuthError(code, "revocation: its signer is not the one its chain names")
    if Role.INVITE not in authority.roles:
        raise AuthError("roles_exceed", "revocation: its signer has no role invite")
    if not is_signed(issuer, Purpose.REVOCATION, body, signature):
        raise AuthError("bad_signature", "revocation: the signature does not match")
    return Revocation(canonical.hash16(body), tuple(serials), authority.serials, revoked_at)


class Revocations:
    """Every revocation seen of one run. The order in which they come makes no difference."""

    def __init__(self, root_public_key: bytes, run_id: RunId) -> None:
        self._root_public_key = root_public_key
        self._run_id = run_id
        self._blobs: dict[bytes, bytes] = {}
        self._issuers: dict[Serial, list[Serial | None]] = {}
        """Who revoked a serial: the serial of a delegate's invite, `None` for the root."""
        self._delegated: dict[Serial, int] = {}
        """Statements kept, by the root's invite they came under."""

    def add(self, blob: bytes) -> bool:
        """Take in one statement; false if it was known. Raises `AuthError` as `verify_revocation`."""
        revocation = verify_revocation(blob, self._root_public_key, self._run_id)
        if revocation.revocation_id in self._blobs:
            return False
        if revocation.issuers:
            top = revocation.issuers[0]
            if self._delegated.get(top, 0) >= DELEGATED_MAX:
                raise AuthError(
                    "too_long",
                    f"revocation: more than {DELEGATED_MAX} came under invite {top.hex()}; revoke that invite",
                )
            self._delegated[top] = self._delegated.get(top, 0) + 1
        self._blobs[revocation.revocation_id] = blob
        for serial in revocation.serials:
            issuer = revocation.issuers[-1] if revocation.issuers else None
            self._issuers.setdefault(serial, []).append(issuer)
        return True

    def merge(self, blobs: Iterable[bytes]) -> int:
        """Take in several; how many were new. Raises at the first bad one, those before it are kept."""
        return sum([self.add(blob) for blob in blobs])

    def first_revoked(self, serials: Sequence[Serial]) -> Serial | None:
        """The first revoked serial of a chain, given its serials in order from the root."""
        if not self._issuers:
            return None
        for depth, serial in enumerate(serials, start=1):
            for issuer in self._issuers.get(serial, ()):
                if issuer is None or issuer in serials[:depth]:
                    return serial
        return None

    def is_revoked(self, serials: Sequence[Serial]) -> bool:
        """Whether a chain with these serials, in order from the root, is revoked."""
        return self.first_revoked(serials) is not None

    def blobs(self) -> tuple[bytes, ...]:
        """All statements, in the order of their names; to keep on disk."""
        return tuple(self._blobs[revocation_id] for revocation_id in sorted(self._blobs))

    def __len__(self) -> int:
        return len(self._blobs)
