"""What a chain of signatures proves, and each way in which it can fail to."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerlm.errors import AuthError
from peerlm.identity import canonical
from peerlm.identity.chain import (
    INVITES_MAX,
    LINK_BYTES_MAX,
    LINKS_MAX,
    SKEW_S,
    TIME_MAX,
    Certificate,
    Enrolment,
    Invite,
    date,
    read_invites,
    sign_link,
)
from peerlm.identity.keys import NodeKeys, Purpose, SigningKey
from peerlm.types import Role, RunId

ALL = frozenset(Role)
TRAIN = frozenset({Role.TRAIN})
DAY = 86_400


@dataclasses.dataclass
class Scene:
    """A chain under construction: two invites, an enrolment, a certificate, each link replaceable."""

    run: object
    roles: tuple[frozenset[Role], ...] = (ALL, ALL, ALL, ALL)

    def __post_init__(self):
        make = self.run.entropy
        self.delegate, self.invite = SigningKey.generate(make), SigningKey.generate(make)
        self.node = NodeKeys.generate(make)
        root, run_id, now = self.run.root.key, self.run.root.run_id, int(self.run.now)
        week, year = now + 7 * DAY, now + 365 * DAY
        a, b, c, d = self.roles
        self.signers = [root, self.delegate, self.invite, self.node.signing]
        self.links = [
            Invite(run_id, root.public, self.delegate.public, a, week, year),
            Invite(run_id, self.delegate.public, self.invite.public, b, week, year),
            Enrolment(run_id, self.invite.public, self.node.public, c, now),
            Certificate(run_id, self.node.public, self.node.curve_public, d, now, now + 90 * DAY),
        ]

    def change(self, index, **fields):
        self.links[index] = dataclasses.replace(self.links[index], **fields)
        return self

    def chain(self):
        return tuple(map(sign_link, self.links, self.signers))


@pytest.fixture
def scene(run):
    return Scene(run)


def test_a_sound_chain_tells_who_the_node_is_and_what_it_may(run, scene):
    verified = run.verify(scene.chain())
    assert verified.peer_id == scene.node.peer_id
    assert verified.ed25519_pk == scene.node.public
    assert verified.curve_pk == scene.node.curve_public
    assert verified.roles == ALL
    assert verified.not_after == run.now + 90 * DAY
    assert verified.enrol_until == run.now + 7 * DAY
    assert verified.certs_until == run.now + 365 * DAY
    assert verified.serials == tuple(link.serial for link in scene.links)
    assert verified.serials[2] == verified.peer_id


def test_links_are_small(scene):
    assert max(map(len, scene.chain())) <= 256 < LINK_BYTES_MAX


# ------------------------------------------------------------------------------ each refusal


def test_malformed_too_few_links_or_links_in_the_wrong_place(run, scene, refused):
    a, b, c, d = scene.chain()
    for chain in ((), (c, d), (a, b, c), (a, c, b, d), (a, b, d, c), (a, b, c, c), (b"", b, c, d)):
        assert refused(run.verify, chain) == "malformed"


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, "visa"),
        (0, 7),
        (1, b"short"),
        (1, None),
        (2, b"k" * 31),
        (3, "k" * 32),
        (4, []),
        (4, ["train", "king"]),
        (4, ["train", "serve"]),
        (4, ["train", "train"]),
        (4, [1]),
        (4, "train"),
        (4, [["train"]]),
        (5, -1),
        (5, 1.5),
        (5, True),
        (5, TIME_MAX + 1),
        (5, None),
    ],
)
def test_malformed_a_field_that_is_not_what_it_must_be_though_truly_signed(
    run, scene, refused, at, field, value
):
    chain = list(scene.chain())
    fields = canonical.decode(scene.links[at].body(), 9999, "")
    fields[field] = value
    body = canonical.encode(fields)
    chain[at] = canonical.encode([body, scene.signers[at].sign(Purpose.LINK, body)])
    assert refused(run.verify, chain) == "malformed"


def test_malformed_an_extra_or_a_missing_field(run, scene, refused):
    fields = canonical.decode(scene.links[3].body(), 9999, "")
    for wrong in ([*fields, 1], fields[:-1], [], {"a": 1}, 5):
        body = canonical.encode(wrong)
        link = canonical.encode([body, scene.signers[3].sign(Purpose.LINK, body)])
        assert refused(run.verify, (*scene.chain()[:3], link)) == "malformed"


def test_too_long_more_links_or_larger_links_than_allowed(run, scene, refused):
    a, b, c, d = scene.chain()
    assert refused(run.verify, (a, b, b, b, b, c, d)) == "too_long"
    assert refused(run.verify, (a, b, c, d + bytes(LINK_BYTES_MAX))) == "too_long"
    assert refused(read_invites, [a] * (INVITES_MAX + 1), *run.place) == "too_long"


def test_wrong_run(run, other_run, scene, refused):
    assert refused(other_run.verify, scene.chain()) == "wrong_run"
    for at in range(4):
        mixed = Scene(run).change(at, run_id=RunId(bytes(16)))
        assert refused(run.verify, mixed.chain()) == "wrong_run"


def test_wrong_root_for_the_right_run(run, other_run, scene, refused):
    scene.signers[0] = other_run.root.key
    scene.change(0, issuer=other_run.root.public_key)
    assert refused(run.verify, scene.chain()) == "wrong_root"


@pytest.mark.parametrize("at", range(4))
def test_bad_signature_by_another_key_than_the_one_named(run, scene, refused, at):
    stranger = SigningKey.generate(run.entropy)
    body = scene.links[at].body()
    chain = list(scene.chain())
    chain[at] = canonical.encode([body, stranger.sign(Purpose.LINK, body)])
    assert refused(run.verify, chain) == "bad_signature"


@pytest.mark.parametrize("at", [1, 2, 3])
def test_bad_signature_by_a_key_the_link_before_does_not_name(run, scene, refused, at):
    stranger = SigningKey.generate(run.entropy)
    scene.signers[at] = stranger
    scene.change(at, issuer=stranger.public)
    assert refused(run.verify, scene.chain()) == "bad_signature"


def test_bad_signature_made_for_another_purpose(run, scene, refused):
    body = scene.links[3].body()
    record = canonical.encode([body, scene.node.sign(body)])
    assert refused(run.verify, (*scene.chain()[:3], record)) == "bad_signature"


def test_an_inviter_cannot_speak_for_anothers_node(run, scene, refused):
    """It may enrol the victim's public key, but the certificate needs the victim's own signature."""
    mallory = NodeKeys.generate(run.entropy)
    forged = Certificate(
        run.root.run_id, scene.invite.public, mallory.curve_public, ALL, int(run.now), TIME_MAX
    )
    chain = (*scene.chain()[:3], sign_link(forged, scene.invite))
    assert refused(run.verify, chain) == "bad_signature"


@pytest.mark.parametrize("at", [1, 2, 3])
def test_roles_exceed_what_the_link_above_has(run, refused, at):
    roles = [frozenset({Role.INVITE, Role.TRAIN})] * 4
    roles[at] = roles[at] | {Role.SERVE}
    assert refused(run.verify, Scene(run, tuple(roles)).chain()) == "roles_exceed"


def test_roles_exceed_an_invite_signed_without_role_invite(run, refused):
    assert refused(run.verify, Scene(run, (TRAIN,) * 4).chain()) == "roles_exceed"


def test_revoked_by_any_serial_of_the_chain(run, scene, refused):
    for link in scene.links:
        revoked = lambda serials, s=link.serial: s if s in serials else None  # noqa: E731
        assert refused(run.verify, scene.chain(), revoked=revoked) == "revoked"


def test_not_yet_valid_until_the_clocks_may_agree(run, scene, refused):
    scene.change(3, not_before=int(run.now + SKEW_S))
    assert run.verify(scene.chain())
    scene.change(3, not_before=int(run.now + SKEW_S) + 1)
    assert refused(run.verify, scene.chain()) == "not_yet_valid"


def test_expired_certificate_with_five_minutes_grace(run, scene, refused):
    chain = scene.chain()
    end = 90 + SKEW_S / DAY
    assert run.verify(chain, end, known=True)
    assert refused(run.verify, chain, end + 1 / DAY, known=True) == "expired"


def test_expired_past_the_invites_certs_until_whatever_the_certificate_says(run, scene, refused):
    scene.change(0, certs_until=int(run.now) + 10 * DAY)
    scene.change(3, not_after=TIME_MAX)
    assert run.verify(scene.chain()).not_after == run.now + 10 * DAY
    assert refused(run.verify, scene.chain(), 11, known=True) == "expired"


def test_expired_enrolment_for_a_node_never_met_but_not_for_a_known_one(run, scene, refused):
    chain = scene.chain()
    assert run.verify(chain, 7)
    assert refused(run.verify, chain, 8) == "expired"
    assert run.verify(chain, 8, known=True)


def test_expired_when_the_enrolment_itself_is_dated_after_the_invite_closed(run, scene, refused):
    scene.change(2, enrolled_at=int(run.now) + 7 * DAY + 1)
    assert refused(run.verify, scene.chain(), known=True) == "expired"


def test_the_earliest_date_along_the_chain_counts(run, scene):
    scene.change(0, enrol_until=int(run.now) + DAY, certs_until=int(run.now) + 2 * DAY)
    verified = run.verify(scene.chain())
    assert (verified.enrol_until, verified.certs_until) == (run.now + DAY, run.now + 2 * DAY)


def test_dates_are_shown_in_utc():
    assert date(0) == "1970-01-01 00:00:00Z"
    assert date(1e20) == "9999-12-31 23:59:59Z"


# -------------------------------------------------------------------------------- properties


def test_no_flipped_byte_and_no_cut_verifies(run, scene):
    chain = scene.chain()
    for at, link in enumerate(chain):
        for byte in range(len(link)):
            cut, flipped = link[:byte], bytearray(link)
            flipped[byte] ^= 1 << (byte % 8)
            for damaged in (cut, bytes(flipped)):
                with pytest.raises(AuthError):
                    run.verify((*chain[:at], damaged, *chain[at + 1 :]), known=True)


one_run = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@one_run
@given(at=st.integers(0, 3), junk=st.binary(max_size=300))
def test_junk_raises_nothing_but_auth_error(run, scene, at, junk):
    chain = list(scene.chain())
    chain[at] = junk
    with pytest.raises(AuthError):
        run.verify(chain)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**64 - 1) | st.floats() | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@one_run
@given(at=st.integers(0, 3), value=values)
def test_well_packed_nonsense_truly_signed_raises_nothing_but_auth_error(run, scene, at, value):
    chain = list(scene.chain())
    body = canonical.encode(value)
    chain[at] = canonical.encode([body, scene.signers[at].sign(Purpose.LINK, body)])
    with pytest.raises(AuthError):
        run.verify(chain)


@one_run
@given(
    roles=st.lists(st.frozensets(st.sampled_from(list(Role)), min_size=1), min_size=4, max_size=4)
)
def test_roles_never_grow(run, roles):
    chain = Scene(run, tuple(roles)).chain()
    may_invite = Role.INVITE in roles[0]
    shrinks = all(below <= above for above, below in pairwise(roles))
    if may_invite and shrinks:
        assert run.verify(chain).roles == roles[-1]
    else:
        with pytest.raises(AuthError) as caught:
            run.verify(chain)
        assert caught.value.code == "roles_exceed"


def test_the_longest_chain_holds(run):
    inviter = run.inviter
    for _ in range(INVITES_MAX):
        token = run.invite(Role, by=inviter)
        inviter = token.inviter
    _, chain = run.newcomer(token)
    assert len(chain) == LINKS_MAX
    assert run.verify(chain).roles == ALL
    assert not inviter.authority().may_invite
