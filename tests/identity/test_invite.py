"""Tokens: what they let a newcomer do, how they fail, and that they do not end up in logs."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.errors import AuthError, ConfigError
from peerlm.identity import canonical
from peerlm.identity.chain import INVITES_MAX
from peerlm.identity.invite import (
    CERTIFICATE_LIFE_S,
    Inviter,
    enrol,
    parse_token,
    redact,
    renew,
    renewal_due_at,
    root_inviter,
)
from peerlm.identity.keys import NodeKeys, SigningKey
from peerlm.types import Role, WallTime

DAY = 86_400


def test_the_founder_enrols_by_an_invite_of_the_roots(run):
    token = run.invite(Role)
    _, chain = run.newcomer(token)
    assert len(chain) == 3
    assert run.verify(chain).roles == frozenset(Role)


def test_a_token_survives_being_printed_pasted_and_wrapped(run):
    token = run.invite()
    text = token.to_text()
    wrapped = "  " + "\n   ".join(text[i : i + 60] for i in range(0, len(text), 60)) + "\r\n"
    for pasted in (text, wrapped):
        back = parse_token(pasted)
        assert (back.addresses, back.run_id) == (("tcp://10.0.0.1:7700",), run.root.run_id)
        assert back.root_public_key == run.root.public_key
        assert run.verify(run.newcomer(back)[1])


def test_the_whole_line_of_an_invite_will_do(run):
    text = run.invite().to_text()
    line = f"peerlm join tcp://192.168.1.20:7700 --token {text}\n"
    assert parse_token(line).to_text() == text


def test_a_token_fits_a_terminal(run):
    assert len(run.invite().to_text()) < 600


def test_no_changed_character_and_no_cut_makes_another_token(run):
    text = run.invite().to_text()
    for at in range(len(text)):
        swapped = "A" if text[at] != "A" else "B"
        for damaged in (text[:at], text[:at] + swapped + text[at + 1 :]):
            with pytest.raises(AuthError) as caught:
                parse_token(damaged)
            assert caught.value.code == "malformed"


def test_a_cut_token_is_told_apart(run):
    with pytest.raises(AuthError, match="cut short or mistyped"):
        parse_token(run.invite().to_text()[:-7])


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80), st.binary(max_size=80))
def test_junk_is_never_a_token_and_raises_nothing_else(text, raw):
    packed = base64.urlsafe_b64encode(canonical.seal(raw)).decode().rstrip("=")
    for junk in (text, "peerlm1-" + text, "peerlm1-" + packed):
        with pytest.raises(AuthError):
            parse_token(junk)


def forged(run, *, addresses=None, invites=None, seed=None):
    token = run.invite()
    inviter = token.inviter
    raw = canonical.encode(
        [
            list(token.addresses) if addresses is None else addresses,
            inviter.run_id,
            inviter.root_public_key,
            list(inviter.invites) if invites is None else invites,
            inviter.key.seed if seed is None else seed,
        ]
    )
    return "peerlm1-" + base64.urlsafe_b64encode(canonical.seal(raw)).decode().rstrip("=")


def test_a_token_with_a_good_checksum_is_still_checked(run, other_run, refused):
    assert parse_token(forged(run))
    for addresses in ("host", ["a"] * 9, [1], [""], ["a b"], ["a\nb"], ["a" * 256]):
        assert refused(parse_token, forged(run, addresses=addresses)) == "malformed"
    assert refused(parse_token, forged(run, seed=b"short")) == "malformed"
    assert refused(parse_token, forged(run, invites=[1])) == "malformed"
    assert refused(parse_token, forged(run, seed=bytes(32))) == "bad_signature"
    assert refused(parse_token, forged(run, invites=[])) == "bad_signature"
    foreign = list(other_run.invite().inviter.invites)
    assert refused(parse_token, forged(run, invites=foreign)) == "wrong_run"


def test_the_roots_own_key_is_no_token(run, refused):
    assert refused(parse_token, forged(run, invites=[], seed=run.root.key.seed)) == "malformed"


def test_tokens_are_stripped_from_whatever_is_logged(run):
    text = run.invite().to_text()
    line = redact(f"join tcp://h:7700 --token {text}; TOKEN='{text}'")
    assert line == "join tcp://h:7700 --token peerlm1-[removed]; TOKEN='peerlm1-[removed]'"
    assert redact("nothing to hide") == "nothing to hide"


# -------------------------------------------------------------------------------- delegation


def test_a_delegate_invites_within_what_it_was_given(run):
    delegate = run.invite({Role.INVITE, Role.TRAIN, Role.OBSERVE}, enrol_days=30, certs_days=60)
    token = run.invite({Role.TRAIN}, by=delegate.inviter, enrol_days=99, certs_days=999)
    keys, chain = run.newcomer(token)
    verified = run.verify(chain)
    assert verified.roles == {Role.TRAIN}
    assert verified.enrol_until == run.now + 30 * DAY
    assert verified.certs_until == verified.not_after == run.now + 60 * DAY
    assert verified.peer_id == keys.peer_id


def test_who_may_not_invite_is_told_so(run):
    plain, delegate = run.invite(), run.invite({Role.INVITE, Role.TRAIN})
    with pytest.raises(ConfigError, match="may not invite: it came by"):
        run.invite({Role.TRAIN}, by=plain.inviter)
    with pytest.raises(ConfigError, match="roles serve; this node may give invite, train"):
        run.invite({Role.SERVE}, by=delegate.inviter)
    with pytest.raises(ConfigError, match="roles \\(none\\)"):
        run.invite((), by=delegate.inviter)
    last = run.inviter
    for _ in range(INVITES_MAX):
        last = run.invite(Role, by=last).inviter
    with pytest.raises(ConfigError, match="in a row"):
        run.invite(Role, by=last)


def test_an_inviter_survives_its_bytes(run, refused):
    inviter = run.invite(Role).inviter
    raw = inviter.to_bytes()
    assert Inviter.from_bytes(raw).authority() == inviter.authority()
    assert refused(Inviter.from_bytes, raw[:-1]) == "malformed"


def test_an_inviter_with_anothers_key_is_refused(run, refused):
    invites = run.invite().inviter.invites
    stolen = Inviter(*reversed(run.place), invites, SigningKey.generate(run.entropy))
    assert refused(stolen.authority) == "bad_signature"


# -------------------------------------------------------------------------- enrol and renew


def test_an_invite_past_its_date_enrols_nobody(run, refused):
    token = run.invite(enrol_days=7)
    late = WallTime(run.now + 7 * DAY + 1)
    assert refused(enrol, token.inviter, run.keys(), late) == "expired"
    ended = run.invite(certs_days=-1)
    assert refused(enrol, ended.inviter, run.keys(), run.now) == "expired"


def test_a_node_may_take_fewer_roles_but_not_more(run, refused):
    token = run.invite({Role.TRAIN, Role.STORE})
    assert run.verify(enrol(token.inviter, run.keys(), run.now, {Role.STORE})).roles == {Role.STORE}
    for roles in ({Role.SERVE}, set()):
        code = refused(enrol, token.inviter, run.keys(), run.now, roles)
        assert code == "roles_exceed"


def test_a_certificate_lasts_ninety_days_and_is_renewed_at_half_life(run):
    keys, chain = run.newcomer()
    verified = run.verify(chain)
    assert verified.not_after == run.now + CERTIFICATE_LIFE_S
    half = renewal_due_at(verified)
    assert half == run.now + CERTIFICATE_LIFE_S / 2

    renewed = renew(chain, keys, *run.place, half)
    assert renewed[:-1] == chain[:-1]
    assert run.verify(renewed, 100, known=True).not_after == half + CERTIFICATE_LIFE_S


def test_renewals_go_on_until_certs_until_and_the_chain_does_not_grow(run, refused):
    keys, chain = run.newcomer(run.invite(certs_days=365))
    verified, renewals = run.verify(chain), 0
    while (due := renewal_due_at(verified)) is not None:
        chain, renewals = renew(chain, keys, *run.place, due), renewals + 1
        verified = run.verify(chain, (due - run.now) / DAY, known=True)
    assert verified.not_after == run.now + 365 * DAY
    assert (len(chain), renewals) == (3, 7)
    over = WallTime(run.now + 365 * DAY + 1)
    assert refused(renew, chain, keys, *run.place, over) == "expired"


def test_a_node_that_was_away_past_its_certificate_renews_it_by_itself(run, refused):
    keys, chain = run.newcomer()
    assert refused(run.verify, chain, 200, known=True) == "expired"
    renewed = renew(chain, keys, *run.place, WallTime(run.now + 200 * DAY))
    assert run.verify(renewed, 200, known=True)


def test_a_renewal_may_bring_a_new_curve_key(run):
    keys, chain = run.newcomer()
    fresh = NodeKeys(keys.signing, run.keys().curve_secret)
    verified = run.verify(renew(chain, fresh, *run.place, run.now))
    assert verified.peer_id == keys.peer_id
    assert verified.curve_pk == fresh.curve_public != keys.curve_public


def test_the_roots_inviter_has_every_right(run):
    authority = root_inviter(run.root).authority()
    assert authority.roles == frozenset(Role)
    assert authority.may_invite
