"""The gate: seats, CURVE keys, roles, and how peers come to lose their place."""

from __future__ import annotations

import dataclasses

import pytest

from peerlm.identity.chain import SKEW_S, Certificate, Enrolment, sign_link
from peerlm.identity.gate import Gate
from peerlm.identity.invite import enrol, renew
from peerlm.identity.keys import NodeKeys
from peerlm.identity.revocation import sign_revocation
from peerlm.types import Role, WallTime

DAY = 86_400


@pytest.fixture
def gate(run):
    gate = Gate(*run.place)
    yield gate
    gate.audit()


def later(run, days):
    return WallTime(run.now + days * DAY)


def test_an_admitted_node_is_known_by_its_curve_key_its_roles_and_its_signature(run, gate):
    keys, chain = run.newcomer(run.invite({Role.TRAIN}))
    assert gate.verified(keys.peer_id) is None
    assert not gate.allows(keys.peer_id, Role.TRAIN)

    verified = gate.admit(chain, run.now)
    assert verified.curve_pk == keys.curve_public
    assert gate.verified(keys.peer_id) == verified
    assert gate.allows(keys.peer_id, Role.TRAIN)
    assert not gate.allows(keys.peer_id, Role.SERVE)
    assert gate.verify(keys.peer_id, b"alive", keys.sign(b"alive"))
    assert not gate.verify(keys.peer_id, b"dead", keys.sign(b"alive"))
    assert not gate.verify(run.keys().peer_id, b"alive", keys.sign(b"alive"))


def test_refusals_are_counted_by_code_and_leave_no_trace(run, other_run, gate, refused):
    keys, chain = run.newcomer()
    stranger, foreign = other_run.newcomer()
    assert refused(gate.admit, foreign, run.now) == "wrong_run"
    assert refused(gate.admit, foreign, run.now) == "wrong_run"
    assert refused(gate.admit, chain[:2], run.now) == "malformed"
    assert refused(gate.admit, chain, later(run, 99)) == "expired"
    assert refused(gate.add_revocation, b"junk") == "malformed"
    assert gate.refusals == {"wrong_run": 2, "malformed": 2, "expired": 1}
    assert gate.verified(keys.peer_id) is None
    assert gate.verified(stranger.peer_id) is None


def test_the_signatures_of_a_chain_are_checked_once(run, gate, monkeypatch):
    _, chain = run.newcomer()
    verified = gate.admit(chain, run.now)
    monkeypatch.setattr("peerlm.identity.gate.read_chain", None)
    assert gate.admit(chain, run.now) is verified


def test_a_remembered_chain_still_expires_and_can_still_be_revoked(run, gate, refused):
    keys, chain = run.newcomer()
    gate.admit(chain, run.now)
    assert refused(gate.admit, chain, later(run, 91)) == "expired"
    gate.add_revocation(sign_revocation(run.inviter, [keys.peer_id], run.now))
    assert refused(gate.admit, chain, run.now) == "revoked"


# ------------------------------------------------------------------------------- newcomers


def test_a_late_newcomer_needs_a_members_word_a_known_node_does_not(run, gate, refused):
    chains = [run.newcomer() for _ in range(3)]
    late = later(run, 8)
    assert refused(gate.admit, chains[0][1], late) == "expired"
    assert gate.admit(chains[0][1], late, vouched=True)
    gate.know([chains[1][0].peer_id])
    assert gate.admit(chains[1][1], late)
    assert refused(gate.admit, chains[2][1], late) == "expired"


def test_once_met_a_node_stays_known_when_its_seat_is_freed(run, gate):
    keys, chain = run.newcomer()
    gate.admit(chain, run.now)
    away = later(run, 200)
    assert gate.expire(away) == (keys.peer_id,)
    assert gate.verified(keys.peer_id) is None
    assert gate.admit(renew(chain, keys, *run.place, away), away), "though its invite has closed"


# ------------------------------------------------------------------ renewals and other keys


def test_a_renewed_chain_brings_its_new_curve_key_and_an_old_one_does_not_come_back(run):
    keys, chain = run.newcomer()
    fresh = NodeKeys(keys.signing, run.keys().curve_secret)
    renewed = renew(chain, fresh, *run.place, later(run, 45))
    for order in ((chain, renewed), (renewed, chain), (chain, renewed, chain)):
        gate = Gate(*run.place)
        for shown in order:
            counting = gate.admit(shown, later(run, 45), vouched=True)
            gate.audit()
        assert counting.curve_pk == fresh.curve_public
        assert gate.verified(keys.peer_id) == counting


def test_members_settle_on_one_of_two_chains_of_the_same_second(run):
    keys = run.keys()
    chains = [enrol(run.invite().inviter, keys, run.now) for _ in range(2)]
    chains.append(enrol(run.invite({Role.OBSERVE}).inviter, keys, run.now))
    results = set()
    for order in (chains, chains[::-1]):
        gate = Gate(*run.place)
        for chain in order:
            gate.admit(chain, run.now)
        results.add(gate.verified(keys.peer_id).serials)
    assert len(results) == 1


def test_nobody_takes_over_a_seated_nodes_curve_key(run, gate, refused):
    keys, chain = run.newcomer()
    gate.admit(chain, run.now)
    thief = NodeKeys(run.keys().signing, keys.curve_secret)
    stolen = enrol(run.invite().inviter, thief, run.now)
    assert refused(gate.admit, stolen, run.now) == "key_taken"
    assert gate.verified(keys.peer_id).curve_pk == keys.curve_public
    assert gate.verified(thief.peer_id) is None


def test_an_invite_holder_cannot_reseat_anothers_node_under_its_own_curve_key(run, gate, refused):
    victim, chain = run.newcomer()
    gate.admit(chain, run.now)
    token, mallory = run.invite(), run.keys()
    run_id, roles = run.root.run_id, frozenset({Role.TRAIN})
    now = int(run.now)
    enrolment = Enrolment(run_id, token.inviter.key.public, victim.public, roles, now)
    certificate = Certificate(
        run_id, mallory.public, mallory.curve_public, roles, now + 9, now + DAY
    )
    forged = (
        *token.inviter.invites,
        sign_link(enrolment, token.inviter.key),
        sign_link(certificate, mallory.signing),
    )
    assert refused(gate.admit, forged, run.now) == "bad_signature"
    assert gate.verified(victim.peer_id).curve_pk == victim.curve_public


# --------------------------------------------------------------------- revoked, expired, full


def test_a_revoked_invite_expels_everybody_who_came_by_it_at_once(run, gate, refused):
    token = run.invite()
    guests = [run.newcomer(token) for _ in range(3)]
    other, other_chain = run.newcomer()
    for chain in [*(chain for _, chain in guests), other_chain]:
        gate.admit(chain, run.now)
    serial = gate.verified(guests[0][0].peer_id).serials[0]
    blob = sign_revocation(run.inviter, [serial], run.now)

    assert gate.add_revocation(blob) == tuple(sorted(keys.peer_id for keys, _ in guests))
    assert gate.add_revocation(blob) == ()
    assert gate.verified(other.peer_id)
    for keys, chain in guests:
        assert refused(gate.admit, chain, run.now) == "revoked"
        assert gate.verified(keys.peer_id) is None
        assert not gate.allows(keys.peer_id, Role.TRAIN)
        assert not gate.verify(keys.peer_id, b"alive", keys.sign(b"alive"))


def test_a_node_revoked_by_its_id_gets_in_by_no_other_invite(run, gate, refused):
    keys, chain = run.newcomer()
    gate.admit(chain, run.now)
    gate.add_revocation(sign_revocation(run.inviter, [keys.peer_id], run.now))
    for again in (
        renew(chain, keys, *run.place, run.now),
        enrol(run.invite().inviter, keys, run.now),
    ):
        assert refused(gate.admit, again, run.now) == "revoked"


def test_expired_peers_leave_when_their_grace_is_over(run, gate):
    short = run.newcomer(run.invite(certs_days=10))
    long = run.newcomer()
    for _, chain in (short, long):
        gate.admit(chain, run.now)
    end = WallTime(later(run, 10) + SKEW_S)
    assert gate.expire(end) == ()
    assert gate.expire(WallTime(end + 1)) == (short[0].peer_id,)
    assert gate.verified(short[0].peer_id) is None
    assert gate.verified(long[0].peer_id)


def test_there_is_an_end_to_the_seats_but_those_seated_may_renew(run, refused):
    gate = Gate(*run.place, peers_max=2)
    guests = [run.newcomer() for _ in range(3)]
    for _, chain in guests[:2]:
        gate.admit(chain, run.now)
    assert refused(gate.admit, guests[2][1], run.now) == "full"
    keys, chain = guests[0]
    assert gate.admit(renew(chain, keys, *run.place, later(run, 1)), later(run, 1))
    gate.add_revocation(sign_revocation(run.inviter, [keys.peer_id], run.now))
    assert gate.admit(guests[2][1], run.now)
    gate.audit()


def test_what_is_remembered_is_bounded(run, gate, monkeypatch):
    monkeypatch.setattr("peerlm.identity.gate.KNOWN_MAX", 4)
    guests = [run.newcomer() for _ in range(6)]
    for _, chain in guests:
        gate.admit(chain, run.now)
    gate.audit()
    assert all(gate.verified(keys.peer_id) for keys, _ in guests)


def test_a_verified_node_is_plain_data(run, gate):
    verified = gate.admit(run.newcomer()[1], run.now)
    with pytest.raises(dataclasses.FrozenInstanceError):
        verified.roles = frozenset(Role)
