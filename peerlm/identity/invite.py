"""Invites: how a machine gets in with one line of text, while nobody who signed it needs to be up.

An invite is a one-off key with a chain of signatures that says what it may do. The token printed for
people carries that key, the chain and a few addresses. The newcomer makes its own keys on its own
disk, signs them in with the invite's key, and proves the result to any member; nothing secret ever
crosses the network. An invite is good for any number of machines until `enrol_until`, so revoke it
when it has been seen by the wrong eyes.

An invite with role `invite` makes its holder a delegate, who can sign narrower invites with the same
key (`Token.inviter`). Dates of an invite never reach past those of the one that signed it: later ones
are cut down.

Certificates last 90 days at most and are renewed by the node itself, at half life, until `certs_until`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from peerlm.errors import AuthError, ConfigError
from peerlm.identity import canonical
from peerlm.identity.chain import (
    ID_BYTES,
    INVITES_MAX,
    TIME_MAX,
    Authority,
    Certificate,
    Chain,
    Enrolment,
    Invite,
    Verified,
    date,
    is_bytes,
    read_chain,
    read_invites,
    sign_link,
)
from peerlm.identity.keys import KEY_BYTES, Entropy, NodeKeys, SigningKey
from peerlm.identity.root import RunRoot
from peerlm.types import Role, RunId, WallTime

TOKEN_PREFIX = "peerlm1-"
TOKEN_BYTES_MAX = 4096
ADDRESSES_MAX = 8
ADDRESS_CHARS_MAX = 255
CERTIFICATE_LIFE_S = 90 * 86_400

_TOKEN = re.compile(re.escape(TOKEN_PREFIX) + r"[A-Za-z0-9_-]+")
_CUT = "the token is cut short or mistyped; copy the whole of it again"


@dataclass(frozen=True, slots=True)
class Inviter:
    """A key with the proof of what it may sign: the root's own, with no invites, or an invite's."""

    run_id: RunId
    root_public_key: bytes
    invites: Chain
    key: SigningKey = field(repr=False)

    def authority(self) -> Authority:
        """What this key may hand on. Raises `AuthError` as `read_invites`."""
        authority = read_invites(self.invites, self.root_public_key, self.run_id)
        if authority.key != self.key.public:
            raise AuthError("bad_signature", "the invite's key is not the one its chain names")
        return authority

    def to_bytes(self) -> bytes:
        """Everything, the secret too, sealed: what a delegate keeps."""
        return canonical.seal(
            canonical.encode([self.run_id, self.root_public_key, list(self.invites), self.key.seed])
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> Inviter:
        """Undo `to_bytes`, verified. Raises `AuthError`."""
        complaint = "invite key: damaged, or not a peerlm invite key"
        parts = canonical.decode(canonical.unseal(raw, complaint), TOKEN_BYTES_MAX, "invite key")
        return _inviter(parts, complaint)


def root_inviter(root: RunRoot) -> Inviter:
    """The root as the first of all inviters."""
    return Inviter(root.run_id, root.public_key, (), root.key)


@dataclass(frozen=True, slots=True)
class Token:
    """What a newcomer is given: where to knock, and an inviter's key."""

    addresses: tuple[str, ...]
    inviter: Inviter

    @property
    def run_id(self) -> RunId:
        return self.inviter.run_id

    @property
    def root_public_key(self) -> bytes:
        return self.inviter.root_public_key

    def to_text(self) -> str:
        """The one line a person copies. It is a secret: whoever has it can enrol."""
        inviter = self.inviter
        raw = canonical.encode(
            [
                list(self.addresses),
                inviter.run_id,
                inviter.root_public_key,
                list(inviter.invites),
                inviter.key.seed,
            ]
        )
        return TOKEN_PREFIX + base64.urlsafe_b64encode(canonical.seal(raw)).decode().rstrip("=")


def make_invite(
    signer: Inviter,
    roles: Collection[Role],
    enrol_until: WallTime,
    certs_until: WallTime,
    addresses: Sequence[str],
    entropy: Entropy = os.urandom,
) -> Token:
    """A token that lets its holders enrol with any of `roles`.

    Raises:
        ConfigError: the signer may not invite, or not with these roles; bad addresses.
    """
    authority = signer.authority()
    if Role.INVITE not in authority.roles:
        raise ConfigError("this node may not invite: it came by an invite without role invite")
    if len(signer.invites) >= INVITES_MAX:
        raise ConfigError(
            f"this node may not invite: {INVITES_MAX} invites in a row are the most a chain may have; "
            "ask somebody nearer to the root"
        )
    missing = sorted(set(roles) - authority.roles)
    if missing or not roles:
        raise ConfigError(
            f"cannot invite with roles {', '.join(missing) or '(none)'}; this node may give "
            f"{', '.join(sorted(authority.roles))}"
        )
    if not _are_addresses(list(addresses)):
        raise ConfigError(
            f"an invite takes 0 to {ADDRESSES_MAX} addresses without spaces, not {addresses!r}"
        )
    key = SigningKey.generate(entropy)
    invite = Invite(
        run_id=signer.run_id,
        issuer=signer.key.public,
        key=key.public,
        roles=frozenset(roles),
        enrol_until=min(_second(enrol_until), authority.enrol_until),
        certs_until=min(_second(certs_until), authority.certs_until),
    )
    invites = (*signer.invites, sign_link(invite, signer.key))
    return Token(tuple(addresses), Inviter(signer.run_id, signer.root_public_key, invites, key))


def parse_token(text: str) -> Token:
    """Read a token, white space and line breaks within it forgiven, and the line of `peerlm invite` around it.
    Everything but its dates is checked.

    Raises:
        AuthError: `malformed` if it is no token or damaged, else as `read_invites`.
    """
    text = "".join(text.rpartition("--token")[2].split())
    if not text.startswith(TOKEN_PREFIX):
        raise AuthError("malformed", f"not a token: a token starts with {TOKEN_PREFIX}")
    digits = text.removeprefix(TOKEN_PREFIX)
    try:
        sealed = base64.b64decode(digits + "=" * (-len(digits) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise AuthError("malformed", _CUT) from None
    match canonical.decode(canonical.unseal(sealed, _CUT), TOKEN_BYTES_MAX, "token"):
        case [addresses, *rest] if _are_addresses(addresses):
            token = Token(tuple(addresses), _inviter(rest, "not a well-formed token"))
        case _:
            raise AuthError("malformed", "not a well-formed token")
    if token.to_text() != text:
        raise AuthError("malformed", _CUT)
    if not token.inviter.invites:
        raise AuthError("malformed", "token: holds no invite")
    return token


def redact(text: str) -> str:
    """`text` without the secrets of any token in it, fit for a log."""
    return _TOKEN.sub(TOKEN_PREFIX + "[removed]", text)


# -------------------------------------------------------------------------- enrolling, renewing


def enrol(
    inviter: Inviter, keys: NodeKeys, wall: WallTime, roles: Collection[Role] | None = None
) -> Chain:
    """The node's chain: taken in by the invite's key, certified by its own. All roles unless fewer are asked.

    Raises:
        AuthError: `expired` if the invite can no longer enrol, `roles_exceed`, or as `read_invites`.
    """
    authority = inviter.authority()
    assert inviter.invites, "a node enrols by an invite, the founder's too"
    for until, what in ((authority.enrol_until, "enrol"), (authority.certs_until, "certify")):
        if wall > until:
            raise AuthError(
                "expired", f"the invite could {what} nodes until {date(until)}; ask for a new one"
            )
    taken = frozenset(roles) if roles is not None else authority.roles
    if not taken or not taken <= authority.roles:
        raise AuthError(
            "roles_exceed",
            f"asked for roles {', '.join(sorted(taken)) or '(none)'}; the invite gives "
            f"{', '.join(sorted(authority.roles))}",
        )
    enrolment = Enrolment(inviter.run_id, authority.key, keys.public, taken, _second(wall))
    certificate = _certify(inviter.run_id, keys, taken, wall, authority.certs_until)
    return (*inviter.invites, sign_link(enrolment, inviter.key), certificate)


def renewal_due_at(verified: Verified) -> WallTime | None:
    """When half of a certificate's life is over; `None` if renewing could not make it last longer."""
    if verified.not_after >= verified.certs_until:
        return None
    return WallTime(verified.not_before + (verified.not_after - verified.not_before) / 2)


def renew(
    chain: Chain, keys: NodeKeys, root_public_key: bytes, run_id: RunId, wall: WallTime
) -> Chain:
    """The same chain with a fresh certificate in the place of the last, even if that had expired.

    The new certificate names the CURVE key of `keys`, which may be a new one.

    Raises:
        AuthError: `expired` past `certs_until`; as `read_chain` if the chain does not hold.
    """
    verified = read_chain(chain, root_public_key, run_id)
    assert verified.ed25519_pk == keys.public, "a node renews its own certificate only"
    if wall > verified.certs_until:
        raise AuthError(
            "expired",
            f"this node's certificates ended at {date(verified.certs_until)}, it is {date(wall)} here; "
            "if the clock is right, join again with a new token",
        )
    return (*chain[:-1], _certify(run_id, keys, verified.roles, wall, verified.certs_until))


def _certify(
    run_id: RunId, keys: NodeKeys, roles: frozenset[Role], wall: WallTime, certs_until: int
) -> bytes:
    start = _second(wall)
    end = min(start + CERTIFICATE_LIFE_S, certs_until)
    return sign_link(
        Certificate(run_id, keys.public, keys.curve_public, roles, start, end), keys.signing
    )


def _inviter(parts: object, complaint: str) -> Inviter:
    match parts:
        case [run, root, list() as invites, seed] if (
            is_bytes(run, ID_BYTES)
            and is_bytes(root, KEY_BYTES)
            and is_bytes(seed, KEY_BYTES)
            and all(isinstance(link, bytes) for link in invites)
        ):
            inviter = Inviter(RunId(run), root, tuple(invites), SigningKey(seed))
        case _:
            raise AuthError("malformed", complaint)
    inviter.authority()
    return inviter


def _are_addresses(addresses: object) -> bool:
    return (
        isinstance(addresses, list)
        and len(addresses) <= ADDRESSES_MAX
        and all(
            isinstance(a, str)
            and 1 <= len(a) <= ADDRESS_CHARS_MAX
            and a.isprintable()
            and " " not in a
            for a in addresses
        )
    )


def _second(wall: float) -> int:
    return int(min(max(0, wall), TIME_MAX))
