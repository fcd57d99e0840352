"""The certificate chain: how a stranger proves, to anybody who knows the root key, that it belongs.

    root ──signs──▶ Invite ──▶ (Invite ──▶)* Enrolment ──▶ Certificate
                    one-off key              node's key     CURVE key, dates

Each link is signed by the key the link before it names, the first by the root. An *invite* gives a
one-off key the right to enrol nodes and, with role `invite`, to sign further invites. An *enrolment*,
signed by the invite's key, names a node's signing key. The *certificate* is signed by that key: it
proves that the node holds it (an inviter cannot speak for somebody else's node), and a renewal simply
takes its place, so chains do not grow. Roles can only shrink and dates only come nearer along the way.

A serial is the hash of the signed statement, never a number somebody picks, so nobody can make a link
that shares another's revocation. The serial of an enrolment is the node's id: revoking a node needs
nothing but its id.

What backdating allows: the date of an enrolment is the inviter's word, so whoever holds a token can
claim, after `enrol_until`, to have enrolled before it. Members therefore also look at their own clock
when they meet a node for the first time, and refuse; only a node that is known already (from the
address book, or because an admitted member vouches for it by gossip) gets by. A late node thus needs
a member's help to enter: to close an invite for good, revoke it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, NewType, TypeGuard, TypeVar

from peerlm.errors import AuthError
from peerlm.identity import canonical
from peerlm.identity.keys import KEY_BYTES, SIGNATURE_BYTES, Purpose, SigningKey, is_signed, peer_id
from peerlm.types import PeerId, Role, RunId, WallTime, short

Serial = NewType("Serial", bytes)
"""16 bytes naming a link, for revocation."""

Chain = tuple[bytes, ...]
"""Encoded links, the one the root signed first."""

ID_BYTES = 16
LINKS_MAX = 6
LINK_BYTES_MAX = 2048
INVITES_MAX = LINKS_MAX - 2
SKEW_S = 300.0
"""How far apart the wall clocks of two nodes may be."""
TIME_MAX = 253_402_300_799
"""The last second of the year 9999."""


@dataclass(frozen=True, slots=True)
class Invite:
    """`issuer` lets the holder of `key` enrol nodes until `enrol_until`, with certificates until `certs_until`."""

    NAME: ClassVar[str] = "invite"
    run_id: RunId
    issuer: bytes
    key: bytes
    roles: frozenset[Role]
    enrol_until: int
    certs_until: int

    def body(self) -> bytes:
        return canonical.encode(
            [
                self.NAME,
                self.run_id,
                self.issuer,
                self.key,
                sorted(self.roles),
                self.enrol_until,
                self.certs_until,
            ]
        )

    @property
    def serial(self) -> Serial:
        return Serial(canonical.hash16(self.body()))


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The holder of an invite takes in the node that signs with `key`, on `enrolled_at`."""

    NAME: ClassVar[str] = "enrolment"
    run_id: RunId
    issuer: bytes
    key: bytes
    roles: frozenset[Role]
    enrolled_at: int

    def body(self) -> bytes:
        return canonical.encode(
            [self.NAME, self.run_id, self.issuer, self.key, sorted(self.roles), self.enrolled_at]
        )

    @property
    def serial(self) -> Serial:
        return Serial(peer_id(self.key))


@dataclass(frozen=True, slots=True)
class Certificate:
    """The node `issuer` speaks through CURVE key `curve`, between the two dates."""

    NAME: ClassVar[str] = "certificate"
    run_id: RunId
    issuer: bytes
    curve: bytes
    roles: frozenset[Role]
    not_before: int
    not_after: int

    def body(self) -> bytes:
        return canonical.encode(
            [
                self.NAME,
                self.run_id,
                self.issuer,
                self.curve,
                sorted(self.roles),
                self.not_before,
                self.not_after,
            ]
        )

    @property
    def serial(self) -> Serial:
        return Serial(canonical.hash16(self.body()))


Statement = Invite | Enrolment | Certificate
S = TypeVar("S", Invite, Enrolment, Certificate)


@dataclass(frozen=True, slots=True)
class Authority:
    """What the holder of a key at the end of some invites may hand on. The root's knows no limits."""

    key: bytes
    roles: frozenset[Role]
    enrol_until: int
    certs_until: int
    serials: tuple[Serial, ...]

    @property
    def may_invite(self) -> bool:
        return Role.INVITE in self.roles and len(self.serials) < INVITES_MAX


@dataclass(frozen=True, slots=True)
class Verified:
    """A node whose chain holds. Dates are seconds since the epoch, the earliest along the chain."""

    peer_id: PeerId
    ed25519_pk: bytes
    curve_pk: bytes
    roles: frozenset[Role]
    not_before: int
    not_after: int
    enrolled_at: int
    enrol_until: int
    certs_until: int
    serials: tuple[Serial, ...]
    """Of every link, the root's side first: invites, then the node's id, then its certificate."""


FindRevoked = Callable[[tuple[Serial, ...]], Serial | None]
"""Given the serials of a chain in order, the first that is revoked, if any."""


def nothing_revoked(serials: tuple[Serial, ...]) -> Serial | None:
    return None


# ------------------------------------------------------------------------------------ making


def sign_link(statement: Statement, key: SigningKey) -> bytes:
    """The encoded link. `key` must be the statement's issuer."""
    assert key.public == statement.issuer, "a link is signed by the key it names as its issuer"
    body = statement.body()
    link = canonical.encode([body, key.sign(Purpose.LINK, body)])
    assert len(link) <= LINK_BYTES_MAX
    return link


def root_authority(root_public_key: bytes) -> Authority:
    """Where every chain starts."""
    return Authority(root_public_key, frozenset(Role), TIME_MAX, TIME_MAX, ())


# ---------------------------------------------------------------------------------- checking


def read_chain(chain: Sequence[bytes], root_public_key: bytes, run_id: RunId) -> Verified:
    """What time cannot change about a node's chain: shape, signatures, roles. Worth caching.

    Raises:
        AuthError: `malformed`, `too_long`, `wrong_run`, `wrong_root`, `bad_signature`, `roles_exceed`.
    """
    if not 3 <= len(chain) <= LINKS_MAX:
        code = "malformed" if len(chain) < 3 else "too_long"
        raise AuthError(
            code, f"certificate chain: {len(chain)} links; a node's chain has 3 to {LINKS_MAX}"
        )
    authority = read_invites(chain[:-2], root_public_key, run_id)

    enrolment = _read_link(chain[-2], Enrolment, run_id, authority.key, "enrolment")
    _check_roles(enrolment.roles, authority.roles, "enrolment")
    certificate = _read_link(chain[-1], Certificate, run_id, enrolment.key, "certificate")
    _check_roles(certificate.roles, enrolment.roles, "certificate")
    return Verified(
        peer_id=peer_id(enrolment.key),
        ed25519_pk=enrolment.key,
        curve_pk=certificate.curve,
        roles=certificate.roles,
        not_before=certificate.not_before,
        not_after=min(certificate.not_after, authority.certs_until),
        enrolled_at=enrolment.enrolled_at,
        enrol_until=authority.enrol_until,
        certs_until=authority.certs_until,
        serials=(*authority.serials, enrolment.serial, certificate.serial),
    )


def claimed_run(chain: Sequence[bytes]) -> tuple[RunId, bytes]:
    """The (run id, root public key) that a chain of our own, kept on our disk, is of.

    Raises `AuthError` if it is damaged. Of a stranger's chain this is only what it claims.
    """
    match canonical.decode(chain[0], LINK_BYTES_MAX, "chain") if chain else None:
        case [bytes() as body, bytes()]:
            fields = canonical.decode(body, LINK_BYTES_MAX, "chain")
        case _:
            raise AuthError("malformed", "the node's certificate chain is damaged")
    invite = _parse(fields)
    if not isinstance(invite, Invite):
        raise AuthError("malformed", "the node's certificate chain is damaged")
    read_chain(chain, invite.issuer, invite.run_id)
    return invite.run_id, invite.issuer


def read_invites(invites: Sequence[bytes], root_public_key: bytes, run_id: RunId) -> Authority:
    """What the holder of the last invite's key may do; with no invites, what the root may do.

    Raises:
        AuthError: as `read_chain`.
    """
    if len(invites) > INVITES_MAX:
        raise AuthError(
            "too_long", f"{len(invites)} invites in a row, at most {INVITES_MAX} are allowed"
        )
    authority = root_authority(root_public_key)
    for number, blob in enumerate(invites, start=1):
        where = f"invite {number}"
        invite = _read_link(blob, Invite, run_id, authority.key, where, by_root=number == 1)
        if Role.INVITE not in authority.roles:
            raise AuthError(
                "roles_exceed", f"{where}: signed by the key of an invite without role invite"
            )
        _check_roles(invite.roles, authority.roles, where)
        authority = Authority(
            key=invite.key,
            roles=invite.roles,
            enrol_until=min(authority.enrol_until, invite.enrol_until),
            certs_until=min(authority.certs_until, invite.certs_until),
            serials=(*authority.serials, invite.serial),
        )
    return authority


def check_now(
    verified: Verified,
    wall: WallTime,
    revoked: FindRevoked = nothing_revoked,
    *,
    known: bool = False,
    skew_s: float = SKEW_S,
) -> None:
    """What changes with time: revocations and dates. `known`: this id was met before, or is vouched for.

    Raises:
        AuthError: `revoked`, `not_yet_valid` or `expired`.
    """
    who = f"node {verified.peer_id.hex()}"
    serial = revoked(verified.serials)
    if serial is not None:
        raise AuthError("revoked", f"{who}: {_what(verified, serial)} was revoked")
    if wall < verified.not_before - skew_s:
        raise AuthError(
            "not_yet_valid",
            f"{who}: certificate starts at {date(verified.not_before)}, it is {date(wall)} here; compare the clocks",
        )
    if wall > verified.not_after + skew_s:
        raise AuthError(
            "expired",
            f"{who}: certificate ended at {date(verified.not_after)}, it is {date(wall)} here",
        )
    if verified.enrolled_at > verified.enrol_until:
        raise AuthError(
            "expired",
            f"{who}: enrolled at {date(verified.enrolled_at)}, its invite could until {date(verified.enrol_until)}",
        )
    if not known and wall > verified.enrol_until + skew_s:
        raise AuthError(
            "expired",
            f"{who}: not known here, and its invite could enrol new nodes until {date(verified.enrol_until)}",
        )


def date(wall: float) -> str:
    """Wall time as people read it: 2026-01-31 12:00:00Z."""
    return datetime.fromtimestamp(min(max(0, wall), TIME_MAX), UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _what(verified: Verified, serial: Serial) -> str:
    if serial == verified.serials[-2]:
        return "the node itself"
    return f"its {'certificate' if serial == verified.serials[-1] else 'invite'} {serial.hex()}"


def _check_roles(roles: frozenset[Role], allowed: frozenset[Role], where: str) -> None:
    if not roles <= allowed:
        raise AuthError(
            "roles_exceed",
            f"{where}: claims {', '.join(sorted(roles - allowed))}, which the link above it does not have",
        )


def _read_link(
    link: bytes, kind: type[S], run_id: RunId, issuer: bytes, where: str, *, by_root: bool = False
) -> S:
    """A link of the kind that belongs here, for this run, truly signed by `issuer`."""
    statement: Statement | None = None
    body = signature = b""
    match canonical.decode(link, LINK_BYTES_MAX, where):
        case [bytes() as body, bytes() as signature] if len(signature) == SIGNATURE_BYTES:
            statement = _parse(canonical.decode(body, LINK_BYTES_MAX, where))
    if not isinstance(statement, kind):
        raise AuthError("malformed", f"{where}: not a well-formed {kind.NAME}")
    if statement.run_id != run_id:
        raise AuthError(
            "wrong_run",
            f"{where}: is of run {short(statement.run_id)}, this is run {short(run_id)}",
        )
    if statement.issuer != issuer:
        if by_root:
            raise AuthError(
                "wrong_root",
                f"{where}: signed by root {short(statement.issuer)}, ours is {short(issuer)}",
            )
        raise AuthError("bad_signature", f"{where}: not signed by the key the link before it names")
    if not is_signed(issuer, Purpose.LINK, body, signature):
        raise AuthError("bad_signature", f"{where}: the signature does not match")
    return statement


def _parse(fields: object) -> Statement | None:
    """The statement with these fields, or `None` if any is not what it must be."""
    match fields:
        case [str() as name, run, issuer, key, names, *dates]:
            pass
        case _:
            return None
    if not (is_bytes(run, ID_BYTES) and is_bytes(issuer, KEY_BYTES) and is_bytes(key, KEY_BYTES)):
        return None
    roles, run_id = read_roles(names), RunId(run)
    if roles is None:
        return None
    match name, dates:
        case Invite.NAME, [enrol_until, certs_until] if is_time(enrol_until) and is_time(
            certs_until
        ):
            return Invite(run_id, issuer, key, roles, enrol_until, certs_until)
        case Enrolment.NAME, [enrolled_at] if is_time(enrolled_at):
            return Enrolment(run_id, issuer, key, roles, enrolled_at)
        case Certificate.NAME, [not_before, not_after] if is_time(not_before) and is_time(
            not_after
        ):
            return Certificate(run_id, issuer, key, roles, not_before, not_after)
    return None


def read_roles(names: object) -> frozenset[Role] | None:
    """Roles from their names, which must be known, sorted, distinct and at least one."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    if names != sorted(set(names)) or not set(names) <= set(Role):
        return None
    return frozenset(Role(name) for name in names)


def is_bytes(value: object, size: int) -> TypeGuard[bytes]:
    return isinstance(value, bytes) and len(value) == size


def is_time(value: object) -> TypeGuard[int]:
    """Whole seconds since the epoch, within what a calendar can show."""
    return type(value) is int and 0 <= value <= TIME_MAX
