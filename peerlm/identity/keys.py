"""The keys of a node: Ed25519 to sign with, X25519 for CURVE, and the id that follows from the first.

A node's id is the hash of its signing key, so nobody can claim an id without the key behind it, and
no registry of ids is needed. Every signature names its purpose: a signature made for one kind of
statement (a membership record) can never be passed off as another (a certificate).

The only randomness is `os.urandom`, and a caller with its own source (a simulation, a test) hands it
in as `entropy`. Private halves never show in a `repr`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from peerlm.errors import AuthError
from peerlm.identity import canonical
from peerlm.types import PeerId, short

KEY_BYTES = 32
SIGNATURE_BYTES = 64

Entropy = Callable[[int], bytes]
"""Gives so many random bytes."""


class Purpose(StrEnum):
    """What a signature is for. It is part of the signed bytes."""

    LINK = "link"
    """A link of a certificate chain."""
    PLAN = "plan"
    """A revision of the run's plan."""
    REVOCATION = "revocation"
    """A statement that serials no longer count."""
    RECORD = "record"
    """Anything a node says about itself: its member record, its leave."""


def peer_id(public: bytes) -> PeerId:
    """The id of the node that signs with this Ed25519 key."""
    return PeerId(canonical.hash16(public))


class SigningKey:
    """An Ed25519 private key: a node's, an invite's or a root's."""

    __slots__ = ("_private", "public")

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, entropy: Entropy = os.urandom) -> SigningKey:
        return cls(entropy(KEY_BYTES))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes; for the private files and for tokens only."""
        return self._private.private_bytes_raw()

    def sign(self, purpose: Purpose, message: bytes) -> bytes:
        return self._private.sign(_statement(purpose, message))

    def __repr__(self) -> str:
        return f"SigningKey(public={short(self.public)}…)"


def is_signed(public: bytes, purpose: Purpose, message: bytes, signature: bytes) -> bool:
    """Whether the owner of `public` signed `message` for this purpose. Junk of any kind is a no."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _statement(purpose, message))
    except (InvalidSignature, ValueError):
        return False
    return True


def _statement(purpose: Purpose, message: bytes) -> bytes:
    return b"peerlm/1/" + purpose.encode() + b"\0" + message


class NodeKeys:
    """All private keys of one node, with the public things that follow from them."""

    __slots__ = ("curve_public", "curve_secret", "peer_id", "signing")

    def __init__(self, signing: SigningKey, curve_secret: bytes) -> None:
        self.signing = signing
        self.curve_secret = curve_secret
        self.curve_public = (
            X25519PrivateKey.from_private_bytes(curve_secret).public_key().public_bytes_raw()
        )
        self.peer_id = peer_id(signing.public)

    @classmethod
    def generate(cls, entropy: Entropy = os.urandom) -> NodeKeys:
        return cls(SigningKey.generate(entropy), entropy(KEY_BYTES))

    @property
    def public(self) -> bytes:
        """The Ed25519 public key."""
        return self.signing.public

    def sign(self, message: bytes) -> bytes:
        """Sign a record of this node's own; `Gate.verify` checks it."""
        return self.signing.sign(Purpose.RECORD, message)

    def to_bytes(self) -> bytes:
        """All secrets, sealed, for the identity file."""
        return canonical.seal(
            canonical.encode(["peerlm-node-1", self.signing.seed, self.curve_secret])
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> NodeKeys:
        """Undo `to_bytes`. Raises `AuthError` `malformed`."""
        complaint = "node keys: damaged, or not a peerlm identity"
        match canonical.decode(canonical.unseal(raw, complaint), 256, "node keys"):
            case ["peerlm-node-1", bytes() as seed, bytes() as curve] if (
                len(seed) == len(curve) == KEY_BYTES
            ):
                return cls(SigningKey(seed), curve)
            case _:
                raise AuthError("malformed", complaint)

    def __repr__(self) -> str:
        return f"NodeKeys({short(self.peer_id)})"
