"""The gate: who is admitted at this moment, and by which CURVE key each of them is recognised.

A node shows its chain; if it holds, the node takes a seat here until its certificate expires or a
revocation expels it. Everything else follows from this table: which CURVE key may connect and for
whom it speaks, what a peer's role allows, whose signature stands under a record.

Of two chains for one node the newer certificate counts, whatever order they come in, so an old chain
played back cannot bring an old CURVE key back. One CURVE key belongs to one node: the first that
certified it. So no member can take over a key that is seated; a member that copies the key of a
*newcomer* and is quicker can keep that newcomer out (`key_taken`) until it is revoked or the newcomer
takes a fresh key, but it can never speak with a key whose secret half it lacks.

The costly half of a check (signatures, about 0.6 ms) is remembered by the chain's bytes; dates and
revocations are looked at every time. Pure: wall time is an argument, no file and no socket is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from peerlm.errors import AuthError
from peerlm.identity.chain import SKEW_S, Chain, Verified, check_now, read_chain
from peerlm.identity.keys import Purpose, is_signed
from peerlm.identity.revocation import Revocations
from peerlm.types import PeerId, Role, RunId, WallTime

PEERS_MAX = 4096
"""Seats. A holder of an invite can enrol as many nodes as it likes, so there is an end to it."""
READ_MAX = 4096
"""Chains whose signatures are remembered, by all gates of a process together; the one unused for
longest is dropped and read again if shown."""
NO_ROLES: frozenset[Role] = frozenset()
KNOWN_MAX = 65_536
"""Node ids remembered as met; the oldest is dropped and then needs a member's word to come back."""


class Gate:
    """Admission to one run. Feed it chains and revocations; ask it about keys, roles and signatures."""

    def __init__(
        self,
        root_public_key: bytes,
        run_id: RunId,
        *,
        skew_s: float = SKEW_S,
        peers_max: int = PEERS_MAX,
    ) -> None:
        self.root_public_key = root_public_key
        self.run_id = run_id
        self.skew_s = skew_s
        self.peers_max = peers_max
        self.revocations = Revocations(root_public_key, run_id)
        self.refusals: dict[str, int] = {}
        """How often something was refused, by `AuthError.code`."""
        self.version = 0
        """Grows with every change of the seats."""
        self._seats: dict[PeerId, Verified] = {}
        self._by_curve: dict[bytes, PeerId] = {}
        self._known: dict[PeerId, None] = {}

    # ------------------------------------------------------------------------------ coming in

    def admit(self, chain: Chain, wall: WallTime, *, vouched: bool = False) -> Verified:
        """Check a chain and seat its node. Returns the chain that counts, which may be a newer one.

        `vouched`: the chain came by an admitted member's gossip, or we are the newcomer and this is a
        member we dialled; the closing date for new nodes is then not ours to enforce.

        Raises:
            AuthError: as `read_chain` and `check_now`; `key_taken` if another node has certified the same CURVE
                key; `full` if there is no seat.
        """
        try:
            verified = _read_once(chain, self.root_public_key, self.run_id)
            known = vouched or verified.peer_id in self._known
            check_now(
                verified, wall, self.revocations.first_revoked, known=known, skew_s=self.skew_s
            )
            return self._seat(verified)
        except AuthError as error:
            self._count(error)
            raise

    def author(self, chain: Chain) -> Verified:
        """Who may have written a name in the swarm's store, whether it has a seat here or not.

        Raises: `AuthError`, as `read_chain`; `revoked`, or `role` where it may not store.
        """
        verified = _read_once(chain, self.root_public_key, self.run_id)
        if self.revocations.is_revoked(verified.serials):
            raise AuthError("revoked", f"node {verified.peer_id.hex()} was revoked")
        if Role.STORE not in verified.roles:
            raise AuthError("role", f"node {verified.peer_id.hex()} has not the role store")
        return verified

    def know(self, peers: Iterable[PeerId]) -> None:
        """These ids have been met before (the address book says so)."""
        for peer in peers:
            self._known.pop(peer, None)
            self._known[peer] = None
        while len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]

    # ------------------------------------------------------------------------------ going out

    def add_revocation(self, blob: bytes) -> tuple[PeerId, ...]:
        """Take in a revocation, known or new; the peers it expels, whose connections must be closed.

        Raises:
            AuthError: as `verify_revocation`.
        """
        try:
            is_new = self.revocations.add(blob)
        except AuthError as error:
            self._count(error)
            raise
        if not is_new:
            return ()
        return self._drop_if(lambda seat: self.revocations.is_revoked(seat.serials))

    def forget(self, peer: PeerId) -> None:
        """Its seat is free for whatever chain it shows next, of an earlier date too."""
        self._drop_if(lambda seat: seat.peer_id == peer)

    def expire(self, wall: WallTime) -> tuple[PeerId, ...]:
        """Drop the peers whose certificates have ended; their connections must be closed."""
        return self._drop_if(lambda seat: wall > seat.not_after + self.skew_s)

    # -------------------------------------------------------------------------------- asking

    def verified(self, peer: PeerId) -> Verified | None:
        """The chain that counts for this peer, if it is admitted."""
        return self._seats.get(peer)

    def allows(self, peer: PeerId, role: Role) -> bool:
        """Whether the peer is admitted with this role."""
        seat = self._seats.get(peer)
        return seat is not None and role in seat.roles

    def roles_of(self, peer: PeerId) -> frozenset[Role]:
        """What the peer is admitted as; nothing if it is not."""
        seat = self._seats.get(peer)
        return NO_ROLES if seat is None else seat.roles

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Whether an admitted peer signed this record (`NodeKeys.sign`)."""
        seat = self._seats.get(peer)
        return seat is not None and _is_record(seat.ed25519_pk, message, signature)

    def check(self) -> None:
        """Raise `AssertionError` if the two tables cannot agree or a bound is broken."""
        assert len(self._by_curve) == len(self._seats) <= self.peers_max, "one CURVE key, one seat"
        assert len(self._known) <= KNOWN_MAX

    def audit(self) -> None:
        """Raise `AssertionError` if the two tables disagree anywhere."""
        self.check()
        by_curve = {seat.curve_pk: peer for peer, seat in self._seats.items()}
        assert by_curve == self._by_curve, "one CURVE key, one seat"

    # ------------------------------------------------------------------------------ the tables

    def _seat(self, verified: Verified) -> Verified:
        peer = verified.peer_id
        current = self._seats.get(peer)
        if current is not None and _recency(current) >= _recency(verified):
            return current
        owner = self._by_curve.get(verified.curve_pk, peer)
        if owner != peer:
            raise AuthError(
                "key_taken",
                f"node {peer.hex()}: its CURVE key belongs to node {owner.hex()} here; revoke that "
                "node or take a fresh key",
            )
        if current is None and len(self._seats) >= self.peers_max:
            raise AuthError("full", f"node {peer.hex()}: all {self.peers_max} seats are taken")
        if current is not None:
            del self._by_curve[current.curve_pk]
        self._seats[peer] = verified
        self._by_curve[verified.curve_pk] = peer
        self.version += 1
        self.know([peer])
        return verified

    def _drop_if(self, is_over: Callable[[Verified], bool]) -> tuple[PeerId, ...]:
        dropped = tuple(sorted(peer for peer, seat in self._seats.items() if is_over(seat)))
        for peer in dropped:
            del self._by_curve[self._seats.pop(peer).curve_pk]
        self.version += len(dropped)
        return dropped

    def _count(self, error: AuthError) -> None:
        self.refusals[error.code] = self.refusals.get(error.code, 0) + 1


@lru_cache(maxsize=READ_MAX)
def _read_once(chain: Chain, root_public_key: bytes, run_id: RunId) -> Verified:
    return read_chain(chain, root_public_key, run_id)


@lru_cache(maxsize=1024)
def _is_record(public: bytes, message: bytes, signature: bytes) -> bool:
    """Records are short, and all nodes of a process (a simulation) are shown the same ones."""
    return is_signed(public, Purpose.RECORD, message, signature)


def _recency(verified: Verified) -> tuple[int, int, bytes]:
    """Orders the chains of one node; a total order, so that all members settle on the same one."""
    return verified.not_before, verified.not_after, verified.serials[-1]
