"""A name that a stranger has signed is refused in one line that says which, whose it claims to be, and what does not hold."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from peerlm.effects import Log
from peerlm.identity.gate import Gate
from peerlm.identity.invite import enrol, make_invite, root_inviter
from peerlm.identity.keys import NodeKeys
from peerlm.identity.revocation import sign_revocation
from peerlm.identity.root import create_run
from peerlm.node.certificates import Certificates
from peerlm.node.refusals import TOLD_S
from peerlm.node.register import Register
from peerlm.node.shortage import wrong
from peerlm.node.status import StoreSummary
from peerlm.types import Instant, PeerId, Role, WallTime, after, short
from peerlm.wire.codec import encode
from peerlm.wire.message import Named, NameRecord

WALL, NOW = WallTime(1_800_000_000.0), Instant(5.0)
UNTIL = WallTime(WALL + 86_400)
TELLER = PeerId(b"t" * 16)


class Run:
    """A run with its root, and nodes of it with real keys and chains."""

    def __init__(self, rng_seed: int) -> None:
        self.entropy = random.Random(rng_seed).randbytes
        self.root = create_run("plays", self.entropy)

    def node(self, *roles: Role) -> Certificates:
        inviter = root_inviter(self.root)
        token = make_invite(
            inviter, roles or (Role.STORE,), UNTIL, UNTIL, ("tcp://h:1",), self.entropy
        )
        keys = NodeKeys.generate(self.entropy)
        chain = enrol(token.inviter, keys, WALL)
        return Certificates(keys, chain, Gate(self.root.public_key, self.root.run_id), WALL)


def record(writer: PeerId) -> NameRecord:
    return NameRecord("evil", "files", b"m" * 32, 10, 1, writer, float(WALL), 3, False, "")


@pytest.fixture
def run() -> Run:
    return Run(1)


@pytest.fixture
def here(run: Run) -> Certificates:
    return run.node()


def register_of(here: Certificates) -> Register:
    rng = random.Random(1)
    made = Register(here.me, here.sign_name, here.author_of, lambda *_: [], rng, NOW)
    made.wall = WALL
    return made


def refused(here: Certificates, proof: Named) -> tuple[str, dict[str, Any]]:
    """What `why` says of it, and what the log does."""
    register = register_of(here)
    assert register.hear(proof, TELLER, NOW) == (None, [])
    assert not register.living()
    (log,) = (e for e in register.wake(list, NOW) if isinstance(e, Log))
    line = register.refused.line(after(NOW, 120.0))
    assert "\n" not in line
    assert list(wrong(StoreSummary(refused=line), others=2)) == [line]
    assert not register.refused.line(after(NOW, TOLD_S + 1)), "said for an hour"
    return line, dict(log.fields)


def test_what_a_node_of_the_run_has_signed_is_taken(run: Run, here: Certificates) -> None:
    other, register = run.node(), register_of(here)
    news, _ = register.hear(other.sign_name(record(other.me)), TELLER, NOW)
    assert news == record(other.me)
    assert register.refused.total() == 0
    assert not register.refused.line(NOW)


def test_a_stranger_with_a_root_of_its_own(here: Certificates) -> None:
    """It has a good signature, and a chain that holds, of another run."""
    stranger = Run(2).node()
    line, logged = refused(here, stranger.sign_name(record(stranger.me)))
    name = short(stranger.me)
    assert line.startswith(
        f"a name was not believed, the last 2 min ago: evil, by its word of node {name}, told by node {short(TELLER)}: "
        "invite 1: is of run "
    )
    assert "nothing was taken from it" in line
    assert logged["last"] == "evil"
    assert logged["writer"] == name
    assert logged["told_by"] == short(TELLER)
    assert logged["why"].startswith("invite 1: is of run")
    assert logged["since_start"] == "wrong_run (1)"


def test_a_stranger_behind_the_chain_of_a_member(run: Run, here: Certificates) -> None:
    """Its own good signature, and a chain that it has heard of."""
    stranger, member = Run(2).node(), run.node()
    signed = stranger.sign_name(record(member.me))
    line, logged = refused(here, replace(signed, chain=member.chain))
    assert f"evil, by its word of node {short(member.me)}" in line
    assert f"node {member.me.hex()} did not sign it" in line
    assert logged["since_start"] == "bad_signature (1)"


def test_a_member_that_signs_for_another(run: Run, here: Certificates) -> None:
    other = run.node()
    line, _ = refused(here, other.sign_name(record(here.me)))
    assert f"by its word of node {short(here.me)}" in line
    assert f"node {short(other.me)} has signed it" in line


def test_a_member_that_may_not_store(run: Run, here: Certificates) -> None:
    other = run.node(Role.TRAIN)
    line, _ = refused(here, other.sign_name(record(other.me)))
    assert "has not the role store" in line


def test_who_was_revoked_can_be_published_again(run: Run, here: Certificates) -> None:
    other = run.node()
    here._gate.add_revocation(revocation_of(run, other))
    line, _ = refused(here, other.sign_name(record(other.me)))
    assert "was revoked; publish it from another node" in line
    assert line.endswith("or peerlm data rm evil")


def revocation_of(run: Run, node: Certificates) -> bytes:
    verified = node._gate.verified(node.me)
    assert verified is not None
    return sign_revocation(root_inviter(run.root), [verified.serials[-2]], WALL)


def test_what_is_no_record_has_neither_name_nor_writer(here: Certificates) -> None:
    line, logged = refused(here, Named(b"garbage", b"x" * 64, ()))
    assert f"a record that is none, told by node {short(TELLER)}: " in line
    assert (logged["last"], logged["writer"]) == ("", "")
    odd = encode(replace(record(here.me), name="../up"))
    assert "no name" in refused(here, Named(odd, b"x" * 64, ()))[0]
