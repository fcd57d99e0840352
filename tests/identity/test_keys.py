"""Keys are what they claim, survive their file, and their signatures serve one purpose only."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq import curve_public
from zmq.utils import z85

from peerlm.errors import AuthError
from peerlm.identity import canonical
from peerlm.identity.keys import (
    NodeKeys,
    Purpose,
    SigningKey,
    is_signed,
    peer_id,
)


def test_the_curve_key_is_the_one_zeromq_computes(run):
    keys = run.keys()
    assert curve_public(z85.encode(keys.curve_secret)) == z85.encode(keys.curve_public)


def test_a_node_is_named_by_half_the_hash_of_its_signing_key(run):
    keys = run.keys()
    assert keys.peer_id == peer_id(keys.public) == canonical.hash32(keys.public)[:16]


def test_keys_come_from_the_entropy_that_is_handed_in():
    one, same = (NodeKeys.generate(random.Random(7).randbytes) for _ in range(2))
    assert (one.public, one.curve_public) == (same.public, same.curve_public)
    assert NodeKeys.generate().public != NodeKeys.generate().public


def test_keys_survive_their_bytes(run):
    keys = run.keys()
    back = NodeKeys.from_bytes(keys.to_bytes())
    assert (back.signing.seed, back.curve_secret) == (keys.signing.seed, keys.curve_secret)


def test_every_flipped_or_missing_byte_of_saved_keys_is_noticed(run):
    raw = run.keys().to_bytes()
    for at in range(len(raw)):
        for damaged in (raw[:at], raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]):
            with pytest.raises(AuthError):
                NodeKeys.from_bytes(damaged)


def test_no_secret_shows_in_a_repr(run):
    keys, token = run.keys(), run.invite()
    shown = repr([keys, keys.signing, run.root, token, token.inviter])
    for secret in (keys.signing.seed, keys.curve_secret, run.root.key.seed, token.inviter.key.seed):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_a_signature_serves_one_purpose_one_message_one_key(run):
    key, other = SigningKey.generate(run.entropy), SigningKey.generate(run.entropy)
    signature = key.sign(Purpose.RECORD, b"alive")
    assert is_signed(key.public, Purpose.RECORD, b"alive", signature)
    assert not is_signed(key.public, Purpose.LINK, b"alive", signature)
    assert not is_signed(key.public, Purpose.RECORD, b"dead", signature)
    assert not is_signed(other.public, Purpose.RECORD, b"alive", signature)


@given(public=st.binary(max_size=40), signature=st.binary(max_size=70))
def test_junk_is_never_a_signature_and_never_an_error(public, signature):
    assert not is_signed(public, Purpose.RECORD, b"alive", signature)


@pytest.mark.parametrize("value", [[1, 2.5, "a", b"b", True], {"a": [1]}, 2**63, []])
def test_canonical_bytes_come_back_as_the_value(value):
    assert canonical.decode(canonical.encode(value), 100, "test") == value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xcc\x01",  # 1, spelt in two bytes
        b"\xca\x3f\x80\x00\x00",  # 1.0, spelt as a 32-bit float
        b"\x82\xa1a\x01\xa1a\x02",  # one key twice
        b"\x01\x01",  # something follows
        b"\xdd\xff\xff\xff\xff",  # an array of four billion, it says
        b"\xa1\xff",  # not UTF-8
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xd4\x05\x00",  # somebody's own type
        b"\x91" * 5000,  # deeper than anybody means
        b"\xc1",
    ],
)
def test_anything_but_the_one_spelling_is_malformed(raw, refused):
    assert refused(canonical.decode, raw, 10_000, "test") == "malformed"


def test_too_long_is_said_before_anything_is_decoded(refused):
    assert refused(canonical.decode, b"\x00" * 11, 10, "test") == "too_long"
