"""A run's root, its id, and the plans it stands behind."""

from __future__ import annotations

import pytest

from peerlm.config import Plan, with_changes
from peerlm.errors import AuthError, ConfigError
from peerlm.identity import canonical
from peerlm.identity.keys import Purpose
from peerlm.identity.root import (
    PLAN_BYTES_MAX,
    RunRoot,
    create_run,
    encode_plan,
    plan_hash,
    sign_plan,
    verify_plan,
)

PLAN = with_changes(Plan(), {"mix.inner_steps": 50, "data.shards": ("ab" * 32,)}, "test")


def test_a_runs_id_depends_on_its_key_name_and_nonce(run):
    root = run.root
    others = [
        create_run("plays", run.entropy),
        RunRoot(root.key, "poems", root.nonce),
        RunRoot(root.key, root.name, bytes(16)),
    ]
    assert len({r.run_id for r in [root, *others]}) == 4
    assert RunRoot(root.key, root.name, root.nonce).run_id == root.run_id


@pytest.mark.parametrize("name", ["", "x" * 257, "é" * 129])
def test_a_run_needs_a_name_of_bounded_length(name):
    with pytest.raises(ConfigError, match="1 to 256 bytes"):
        create_run(name)


def test_a_root_survives_its_bytes_and_damage_is_noticed(run):
    raw = run.root.to_bytes()
    back = RunRoot.from_bytes(raw)
    assert (back.run_id, back.key.seed, back.name) == (run.root.run_id, run.root.key.seed, "plays")
    for at in range(len(raw)):
        for damaged in (raw[:at], raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]):
            with pytest.raises(AuthError):
                RunRoot.from_bytes(damaged)


def test_a_signed_plan_comes_back_equal_with_its_revision_and_hash(run):
    signed = sign_plan(run.root, PLAN, 3)
    assert verify_plan(signed.blob, *run.place) == signed
    assert (signed.revision, signed.plan) == (3, PLAN)
    assert signed.plan_hash == plan_hash(PLAN) != plan_hash(Plan())
    assert signed.plan_hash == canonical.hash32(encode_plan(PLAN))


def test_a_plan_of_another_run_or_root_is_refused(run, other_run, refused):
    blob = sign_plan(run.root, PLAN, 1).blob
    assert refused(verify_plan, blob, *other_run.place) == "wrong_run"
    code = refused(verify_plan, blob, other_run.root.public_key, run.root.run_id)
    assert code == "bad_signature"


def test_no_flipped_byte_and_no_cut_of_a_plan_verifies(run):
    blob = sign_plan(run.root, PLAN, 3).blob
    for at in range(len(blob)):
        for damaged in (blob[:at], blob[:at] + bytes([blob[at] ^ 1 << at % 8]) + blob[at + 1 :]):
            with pytest.raises(AuthError):
                verify_plan(damaged, *run.place)


def signed_by_root(run, revision, plan_bytes):
    body = canonical.encode(["plan", run.root.run_id, revision, plan_bytes])
    return canonical.encode([body, run.root.key.sign(Purpose.PLAN, body)])


def test_a_plan_by_a_later_version_names_the_field_this_one_lacks(run):
    sections = canonical.decode(encode_plan(PLAN), 10_000, "")
    sections["mix"]["magic"] = 1
    blob = signed_by_root(run, 2, canonical.encode(sections))
    with pytest.raises(ConfigError, match=r"plan revision 2: unknown field mix\.magic"):
        verify_plan(blob, *run.place)


def test_fields_that_say_nothing_are_not_told_to_releases_that_do_not_know_them():
    plan = with_changes(Plan(), {"data.shards": "ab" * 32}, "test")
    assert (
        not {"parts", "shard_tokens"}
        & canonical.decode(encode_plan(plan), 10_000, "")["data"].keys()
    )
    told = with_changes(plan, {"data.shard_tokens": "7"}, "test")
    assert canonical.decode(encode_plan(told), 10_000, "")["data"]["shard_tokens"] == [7]
    assert "checkpoint_optimizer" not in canonical.decode(encode_plan(plan), 10_000, "")["run"]
    told = with_changes(plan, {"run.checkpoint_optimizer": True}, "test")
    assert canonical.decode(encode_plan(told), 10_000, "")["run"]["checkpoint_optimizer"] is True


def test_a_plan_by_an_earlier_version_keeps_its_hash_and_gets_the_default(run):
    sections = canonical.decode(encode_plan(Plan()), 10_000, "")
    del sections["mix"]["clip_factor"]
    plan_bytes = canonical.encode(sections)
    signed = verify_plan(signed_by_root(run, 1, plan_bytes), *run.place)
    assert signed.plan == Plan()
    assert signed.plan_hash == canonical.hash32(plan_bytes) != plan_hash(Plan())


@pytest.mark.parametrize("value", [[], 1, {1: 2}, {b"mix": {}}, None])
def test_a_plan_that_is_no_plan_though_signed(run, value):
    with pytest.raises((AuthError, ConfigError)):
        verify_plan(signed_by_root(run, 1, canonical.encode(value)), *run.place)


@pytest.mark.parametrize("revision", [0, -1, 2**31, True, 1.0, "1"])
def test_a_revision_is_a_whole_number_from_one(run, refused, revision):
    blob = signed_by_root(run, revision, encode_plan(PLAN))
    assert refused(verify_plan, blob, *run.place) == "malformed"


def test_a_plan_too_large_to_travel_says_so_when_it_is_signed(run, refused):
    large = with_changes(PLAN, {"data.shards": ("ab" * 32,) * 8000}, "test")
    with pytest.raises(ConfigError, match=r"data\.shards has 8000 entries"):
        sign_plan(run.root, large, 1)
    fits = with_changes(PLAN, {"data.shards": ("ab" * 32,) * 7700}, "test")
    assert verify_plan(sign_plan(run.root, fits, 1).blob, *run.place).plan == fits
    assert refused(verify_plan, bytes(PLAN_BYTES_MAX + 1), *run.place) == "too_long"
