"""Certificates by the clock on the wall: our own, kept fresh, and those of whoever is shown to us.

The gate decides who is admitted; this file knows when it is asked, since nothing but certificates is
read by wall time. It holds this node's chain and keys: it shows them, signs our record with them, and
takes a fresh certificate at half life for as long as the invite allows. One that does not hold at the
time that it is here is replaced before anything else: it ended while the node was away, or the clock
was ahead when it was made. What a wrong clock says is held for true until it says something else; it
ends no node that runs, and keeps one from starting only past the end of what its invite allows.

Nothing here closes a connection: who has lost its seat is handed to `company`, which lets it go.
"""

from __future__ import annotations

from peerlm.effects import Admit, Effect, Log, SaveChain
from peerlm.errors import AuthError
from peerlm.identity.chain import SKEW_S, Chain, Verified
from peerlm.identity.gate import Gate
from peerlm.identity.invite import renew, renewal_due_at
from peerlm.identity.keys import NodeKeys, Purpose, is_signed
from peerlm.membership.address_book import AddressBook
from peerlm.types import PeerId, WallTime
from peerlm.wire.codec import encode
from peerlm.wire.message import Alive, Named, NameRecord, NodeRecord, Pulse, Vitals

OUT_OF_TIME = ("expired", "not_yet_valid")
"""Why a chain is refused that may hold at another time."""


class Certificates:
    """Our own chain, and seats for others. Raises `AuthError` where ours does not hold.

    Args:
        chain: our own; a renewal replaces it.
        wall: whoever drives the node sets it anew at each wake.
    """

    def __init__(self, keys: NodeKeys, chain: Chain, gate: Gate, wall: WallTime) -> None:
        self.chain = chain
        self.wall = wall
        self.kept: list[Effect] = []
        """For the node's start: a chain that was renewed before it."""
        self._keys = keys
        self._gate = gate
        self.me = self._admit_ourselves()

    def _admit_ourselves(self) -> PeerId:
        """Our own seat; a certificate that does not hold at this time is renewed first, if its
        invite still allows it. Raises `AuthError`."""
        try:
            return self.admit(self.chain, vouched=True).peer_id
        except AuthError as error:
            if error.code not in OUT_OF_TIME:
                raise
        self._renew()
        self.kept.append(SaveChain(self.chain))
        return self.admit(self.chain, vouched=True).peer_id

    def _renew(self) -> None:
        """A fresh certificate in the place of ours. Raises `AuthError` past the invite's end."""
        gate = self._gate
        self.chain = renew(self.chain, self._keys, gate.root_public_key, gate.run_id, self.wall)
        gate.forget(self._keys.peer_id)
        self.admit(self.chain, vouched=True)

    def renew_if_due(self) -> list[Effect]:
        """At half life, or where ours is of a time to come; members have to be told of what follows."""
        try:
            own = self._gate.verified(self.me) or self.admit(self.chain, vouched=True)
            due = renewal_due_at(own)
            if own.not_before <= self.wall + SKEW_S and (due is None or due > self.wall):
                return []
        except AuthError as error:
            if error.code not in OUT_OF_TIME:
                return []
        try:
            self._renew()
        except AuthError as error:
            return [Log("warning", "not_renewed", (("why", str(error)),))]
        return [SaveChain(self.chain)]

    # --------------------------------------------------------------------------------- of others

    def admit(self, chain: Chain, *, vouched: bool) -> Verified:
        """A seat for whoever this is the chain of, as `Gate.admit`. Raises `AuthError`."""
        return self._gate.admit(chain, self.wall, vouched=vouched)

    def admit_book(self, book: AddressBook) -> list[Effect]:
        """Seats for everybody in the book whose chain still holds."""
        self._gate.know(contact.peer for contact in book.contacts())
        effects: list[Effect] = []
        for contact in book.contacts():
            try:
                verified = self.admit(contact.chain, vouched=False)
            except AuthError:
                continue
            if verified.peer_id != self.me:
                effects.append(Admit(verified.peer_id, verified.curve_pk))
        return effects

    def curve_of(self, peer: PeerId) -> bytes | None:
        """The CURVE key an admitted peer is known by."""
        verified = self._gate.verified(peer)
        return verified.curve_pk if verified is not None else None

    def expire(self) -> tuple[PeerId, ...]:
        """Whose certificates have ended; they have no seat any more."""
        return self._gate.expire(self.wall)

    # --------------------------------------------------------------------------- signed by us

    def sign_record(self, record: NodeRecord) -> Alive:
        """Our own record as a rumor, with the chain that proves it ours."""
        encoded = encode(record)
        return Alive(encoded, self._keys.sign(encoded), self.chain)

    def sign_name(self, record: NameRecord) -> Named:
        """A name's record with our signature, and the chain that lets us write it."""
        encoded = encode(record)
        return Named(encoded, self._keys.sign(encoded), self.chain)

    def author_of(self, proof: Named) -> PeerId:
        """Who has written a name. A chain that has ended since counts: names outlive their writers.

        Raises:
            AuthError: the chain is not of this run, does not allow its node to store, or was revoked; or the
                signature is not of its node.
        """
        author = self._gate.author(proof.chain)
        if not is_signed(author.ed25519_pk, Purpose.RECORD, proof.record, proof.signature):
            raise AuthError("bad_signature", f"node {author.peer_id.hex()} did not sign it")
        return author.peer_id

    def sign_vitals(self, vitals: Vitals) -> Pulse:
        """Our vitals as a rumor."""
        encoded = encode(vitals)
        return Pulse(encoded, self._keys.sign(encoded))
