"""Revocations: who may revoke what, and that the set ends the same however it is reached."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerlm.errors import AuthError, ConfigError
from peerlm.identity import canonical
from peerlm.identity.keys import Purpose
from peerlm.identity.revocation import (
    DELEGATED_MAX,
    REVOCATION_BYTES_MAX,
    Revocations,
    sign_revocation,
    verify_revocation,
)
from peerlm.types import Role


@pytest.fixture
def revocations(run):
    return Revocations(*run.place)


def serials_of(run, token=None):
    return run.verify(run.newcomer(token)[1]).serials


def test_the_root_revokes_an_invite_a_node_or_a_certificate(run):
    serials = serials_of(run)
    for serial in serials:
        revocations = Revocations(*run.place)
        assert revocations.add(sign_revocation(run.inviter, [serial], run.now))
        assert revocations.first_revoked(serials) == serial
        assert not revocations.is_revoked(serials_of(run))


def test_revoking_an_invite_revokes_all_that_came_by_it_and_below(run, revocations):
    delegate = run.invite(Role)
    below = run.invite({Role.TRAIN}, by=delegate.inviter)
    by_delegate, by_below, apart = (
        serials_of(run, delegate),
        serials_of(run, below),
        serials_of(run),
    )
    revocations.add(sign_revocation(run.inviter, [by_delegate[0]], run.now))
    assert revocations.is_revoked(by_delegate)
    assert revocations.is_revoked(by_below)
    assert not revocations.is_revoked(apart)


def test_a_delegate_revokes_below_itself_and_itself_but_nobody_else(run, revocations):
    delegate, other = run.invite(Role), run.invite(Role)
    mine = serials_of(run, run.invite({Role.TRAIN}, by=delegate.inviter))
    foreign = serials_of(run, run.invite({Role.TRAIN}, by=other.inviter))

    revocations.add(sign_revocation(delegate.inviter, [mine[2], *foreign], run.now))
    assert revocations.is_revoked(mine)
    assert not revocations.is_revoked(foreign)

    revocations.add(sign_revocation(other.inviter, [foreign[0]], run.now))
    assert revocations.is_revoked(foreign)


def test_a_delegate_cannot_revoke_the_one_above_it(run, revocations):
    above = run.invite(Role)
    below = run.invite(Role, by=above.inviter)
    serials = serials_of(run, above)
    revocations.add(sign_revocation(below.inviter, serials, run.now))
    assert not revocations.is_revoked(serials)
    assert not revocations.is_revoked(serials_of(run, below))


def test_without_role_invite_nobody_revokes(run, refused):
    inviter = run.invite({Role.TRAIN}).inviter
    with pytest.raises(ConfigError, match="may not revoke"):
        sign_revocation(inviter, [bytes(16)], run.now)
    body = canonical.encode(
        ["revocation", run.root.run_id, inviter.key.public, [bytes(16)], int(run.now)]
    )
    blob = canonical.encode(
        [body, list(inviter.invites), inviter.key.sign(Purpose.REVOCATION, body)]
    )
    assert refused(verify_revocation, blob, *run.place) == "roles_exceed"


@pytest.mark.parametrize("serials", [[], [b"short"], [bytes([i] * 16) for i in range(65)]])
def test_a_revocation_names_1_to_64_serials(run, serials):
    with pytest.raises(ConfigError, match="1 to 64 serials"):
        sign_revocation(run.inviter, serials, run.now)


def test_the_largest_revocation_fits(run):
    inviter = run.inviter
    for _ in range(4):
        inviter = run.invite(Role, by=inviter).inviter
    blob = sign_revocation(inviter, [bytes([i] * 16) for i in range(64)], run.now)
    assert len(blob) <= REVOCATION_BYTES_MAX
    assert len(verify_revocation(blob, *run.place).serials) == 64


def test_of_another_run_or_root_it_is_refused(run, other_run, refused):
    blob = sign_revocation(run.inviter, [bytes(16)], run.now)
    assert refused(verify_revocation, blob, *other_run.place) == "wrong_run"
    strange_root = (other_run.root.public_key, run.root.run_id)
    assert refused(verify_revocation, blob, *strange_root) == "wrong_root"


def test_anothers_signature_or_chain_is_refused(run, refused):
    delegate, other = run.invite(Role).inviter, run.invite(Role).inviter
    blob = sign_revocation(delegate, [bytes(16)], run.now)
    body, invites, signature = canonical.decode(blob, 9999, "")
    forged = other.key.sign(Purpose.REVOCATION, body)
    for parts in (
        [body, list(other.invites), signature],
        [body, invites, forged],
        [body, invites, delegate.key.sign(Purpose.RECORD, body)],
    ):
        assert refused(verify_revocation, canonical.encode(parts), *run.place) == "bad_signature"


def test_truly_signed_but_ill_formed_is_malformed(run, refused):
    good = [
        "revocation",
        run.root.run_id,
        run.root.public_key,
        [bytes(16), b"1" * 16],
        int(run.now),
    ]
    wrong = {0: "plan", 1: b"", 2: b"", 3: [b"1" * 16, bytes(16)], 4: -1}
    for at, value in wrong.items():
        body = canonical.encode([*good[:at], value, *good[at + 1 :]])
        blob = canonical.encode([body, [], run.root.key.sign(Purpose.REVOCATION, body)])
        assert refused(verify_revocation, blob, *run.place) == "malformed"
    assert refused(verify_revocation, bytes(REVOCATION_BYTES_MAX + 1), *run.place) == "too_long"


def test_no_flipped_byte_and_no_cut_verifies(run):
    blob = sign_revocation(run.invite(Role).inviter, [b"s" * 16], run.now)
    for at in range(len(blob)):
        for damaged in (blob[:at], blob[:at] + bytes([blob[at] ^ 1 << at % 8]) + blob[at + 1 :]):
            with pytest.raises(AuthError):
                verify_revocation(damaged, *run.place)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(5)), again=st.lists(st.integers(0, 4), max_size=5))
def test_the_set_is_the_same_in_whatever_order_and_however_often(run, order, again):
    delegate = run.invite(Role).inviter
    blobs = [
        sign_revocation(run.inviter if i % 2 else delegate, [bytes([i] * 16)], run.now)
        for i in range(5)
    ]
    straight, shuffled = Revocations(*run.place), Revocations(*run.place)
    assert straight.merge(blobs) == 5
    shuffled.merge([blobs[i] for i in order])
    assert shuffled.merge([blobs[i] for i in again]) == 0
    assert straight.blobs() == shuffled.blobs()
    assert sorted(straight.blobs()) == sorted(blobs)


def test_a_rogue_delegate_cannot_fill_memories_but_the_root_goes_on(run, revocations, refused):
    delegate = run.invite(Role).inviter
    below = run.invite(Role, by=delegate).inviter
    for i in range(DELEGATED_MAX):
        signer = below if i % 2 else delegate
        revocations.add(sign_revocation(signer, [i.to_bytes(16, "big")], run.now))
    one_more = sign_revocation(below, [b"x" * 16], run.now)
    assert refused(revocations.add, one_more) == "too_long"
    assert len(revocations) == DELEGATED_MAX
    serial = serials_of(run)[0]
    assert revocations.add(sign_revocation(run.inviter, [serial], run.now))
