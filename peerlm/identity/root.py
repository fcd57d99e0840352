"""The run's authority: one Ed25519 key that signs invites and plans, and that no running node needs.

A run's id is the hash of the root's public key, the run's name and a nonce, so a run cannot be
claimed by another root. The plan travels as a signed blob with a revision; every node runs the
highest revision it has seen. A plan's hash is taken over the very bytes that were signed, so it stays
the same when a later version of peerlm, which knows more fields, reads them and fills in its defaults.

Never holds the clock, and never writes: `files` keeps the private half.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache

from peerlm import config
from peerlm.errors import AuthError, ConfigError
from peerlm.identity import canonical
from peerlm.identity.chain import ID_BYTES, is_bytes
from peerlm.identity.keys import KEY_BYTES, SIGNATURE_BYTES, Entropy, Purpose, SigningKey, is_signed
from peerlm.types import ObjectHash, RunId, short

PLAN_BYTES_MAX = 512 * 1024
"""Room for the hashes of about 7,700 corpus shards."""
REVISION_MAX = 2**31 - 1
NAME_BYTES_MAX = 256


@dataclass(frozen=True, slots=True)
class RunRoot:
    """The authority over one run. `key` is its secret."""

    key: SigningKey = field(repr=False)
    name: str
    nonce: bytes

    @property
    def public_key(self) -> bytes:
        return self.key.public

    @property
    def run_id(self) -> RunId:
        return RunId(canonical.hash16(self.key.public + self.name.encode() + self.nonce))

    def to_bytes(self) -> bytes:
        """Everything, the secret too, sealed, for the root file."""
        return canonical.seal(
            canonical.encode(["peerlm-root-1", self.key.seed, self.name, self.nonce])
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> RunRoot:
        """Undo `to_bytes`. Raises `AuthError` `malformed` or `too_long`."""
        complaint = "root key: damaged, or not a peerlm root key"
        match canonical.decode(canonical.unseal(raw, complaint), 512, "root key"):
            case ["peerlm-root-1", seed, str() as name, nonce] if is_bytes(
                seed, KEY_BYTES
            ) and is_bytes(nonce, ID_BYTES):
                return cls(SigningKey(seed), name, nonce)
        raise AuthError("malformed", complaint)


def create_run(name: str, entropy: Entropy = os.urandom) -> RunRoot:
    """A new run. Raises `ConfigError` if the name is empty or past 256 bytes."""
    if not 1 <= len(name.encode()) <= NAME_BYTES_MAX:
        raise ConfigError(f"run name {name[:40]!r}: must have 1 to {NAME_BYTES_MAX} bytes")
    return RunRoot(SigningKey.generate(entropy), name, entropy(ID_BYTES))


# ------------------------------------------------------------------------------------- plans


@dataclass(frozen=True, slots=True)
class SignedPlan:
    """A plan the root stands behind. `blob` is what travels and what is kept."""

    revision: int
    plan: config.Plan
    plan_hash: ObjectHash
    blob: bytes = field(repr=False)


def encode_plan(plan: config.Plan) -> bytes:
    """The canonical bytes of a plan: sections and fields in alphabetical order, those that say nothing left out where earlier
    releases do not know them (`config.told`)."""
    sections = config.told(plan)
    return canonical.encode(
        {name: dict(sorted(sections[name].items())) for name in sorted(sections)}
    )


def plan_hash(plan: config.Plan) -> ObjectHash:
    """BLAKE3 of the canonical bytes: equal hashes mean equal plans, field by field."""
    return ObjectHash(canonical.hash32(encode_plan(plan)))


def sign_plan(root: RunRoot, plan: config.Plan, revision: int) -> SignedPlan:
    """The plan as revision `revision`, 1 or more. Raises `ConfigError` if it is too large to travel."""
    assert 1 <= revision <= REVISION_MAX, f"revision {revision}"
    plan_bytes = encode_plan(plan)
    body = canonical.encode(["plan", root.run_id, revision, plan_bytes])
    blob = canonical.encode([body, root.key.sign(Purpose.PLAN, body)])
    if len(blob) > PLAN_BYTES_MAX:
        raise ConfigError(
            f"the plan takes {len(blob)} bytes, at most {PLAN_BYTES_MAX} can travel; data.shards has "
            f"{len(plan.data.shards)} entries, use larger shards"
        )
    return SignedPlan(revision, plan, ObjectHash(canonical.hash32(plan_bytes)), blob)


@lru_cache(maxsize=16)
def verify_plan(blob: bytes, root_public_key: bytes, run_id: RunId) -> SignedPlan:
    """Check a plan that came from a peer or from disk. One that holds is read once, though all nodes
    of a process (a simulation) have it.

    Raises:
        AuthError: `malformed`, `too_long`, `wrong_run` or `bad_signature`.
        ConfigError: truly signed, but with fields this version does not know or allow.
    """
    match canonical.decode(blob, PLAN_BYTES_MAX, "plan"):
        case [bytes() as body, signature] if is_bytes(signature, SIGNATURE_BYTES):
            parts = canonical.decode(body, PLAN_BYTES_MAX, "plan")
        case _:
            raise AuthError("malformed", "plan: not a signed plan")
    match parts:
        case ["plan", run, int() as revision, bytes() as plan_bytes] if (
            is_bytes(run, ID_BYTES) and revision is not True and 1 <= revision <= REVISION_MAX
        ):
            if run != run_id:
                raise AuthError(
                    "wrong_run", f"plan: is of run {short(run)}, this is run {short(run_id)}"
                )
        case _:
            raise AuthError("malformed", "plan: not a signed plan")
    if not is_signed(root_public_key, Purpose.PLAN, body, signature):
        raise AuthError("bad_signature", f"plan revision {revision}: not signed by this run's root")
    plan = _read_plan(plan_bytes, f"plan revision {revision}")
    return SignedPlan(revision, plan, ObjectHash(canonical.hash32(plan_bytes)), blob)


def _read_plan(plan_bytes: bytes, where: str) -> config.Plan:
    sections = canonical.decode(plan_bytes, PLAN_BYTES_MAX, where)
    if not isinstance(sections, dict) or not all(isinstance(name, str) for name in sections):
        raise AuthError("malformed", f"{where}: not a table of sections")
    return config.from_dict(config.Plan, sections, where)
