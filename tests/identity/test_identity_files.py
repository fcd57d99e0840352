"""The private files: owner only, whole or not there, and clear about what is wrong."""

from __future__ import annotations

import os
import stat

import pytest

from peerlm.errors import ConfigError, StateError
from peerlm.identity import files


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_comes_back_as_it_was_written(run, tmp_path):
    keys, chain = run.newcomer()
    inviter = run.invite().inviter
    files.write_keys(tmp_path, keys)
    files.write_chain(tmp_path, chain)
    files.write_root(tmp_path, run.root)
    files.write_inviter(tmp_path, inviter)
    files.write_revocations(tmp_path, [b"one", b"two"])
    files.write_plan(tmp_path, b"plan")

    assert files.read_keys(tmp_path).curve_secret == keys.curve_secret
    assert files.read_chain_file(tmp_path) == chain
    assert files.read_root(tmp_path).run_id == run.root.run_id
    assert files.read_inviter(tmp_path).authority() == inviter.authority()
    assert files.read_revocations(tmp_path) == (b"one", b"two")
    assert files.read_plan(tmp_path) == b"plan"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "chain", "identity", "inviter", "plan", "revocations", "root",
    ]  # fmt: skip
    assert {mode(path) for path in tmp_path.iterdir()} == {0o600}


def test_before_anything_is_written_there_is_nothing(tmp_path):
    assert files.read_keys(tmp_path) is None
    assert files.read_chain_file(tmp_path) is None
    assert files.read_root(tmp_path) is None
    assert files.read_inviter(tmp_path) is None
    assert files.read_plan(tmp_path) is None
    assert files.read_revocations(tmp_path) == ()


def test_a_write_that_fails_leaves_the_old_file_and_says_why(run, tmp_path, monkeypatch):
    old, new = run.keys(), run.keys()
    files.write_keys(tmp_path, old)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"cannot write .*identity: the disk is full"):
        files.write_keys(tmp_path, new)
    assert files.read_keys(tmp_path).peer_id == old.peer_id
    monkeypatch.undo()
    files.write_keys(tmp_path, new)
    assert files.read_keys(tmp_path).peer_id == new.peer_id


def test_the_new_file_reaches_the_disk_before_the_old_is_replaced(run, tmp_path, monkeypatch):
    steps = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("flush"), fsync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda p, to: (steps.append("rename"), rename(p, to))[1])
    files.write_plan(tmp_path, b"plan")
    assert steps == ["flush", "rename", "flush"]


def test_a_secret_that_others_can_read_is_refused(run, tmp_path):
    files.write_keys(tmp_path, run.keys())
    (tmp_path / "identity").chmod(0o640)
    with pytest.raises(StateError, match=r"others can read \(mode 0640\); run: chmod 600"):
        files.read_keys(tmp_path)


@pytest.mark.parametrize("name", ["identity", "chain", "root", "inviter", "revocations"])
def test_a_damaged_file_is_named(run, tmp_path, name):
    keys, chain = run.newcomer()
    files.write_keys(tmp_path, keys)
    files.write_chain(tmp_path, chain)
    files.write_root(tmp_path, run.root)
    files.write_inviter(tmp_path, run.invite().inviter)
    files.write_revocations(tmp_path, [b"one"])
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    reads = {
        "identity": files.read_keys,
        "chain": files.read_chain_file,
        "root": files.read_root,
        "inviter": files.read_inviter,
        "revocations": files.read_revocations,
    }
    with pytest.raises(StateError, match=rf"{name}: .*damaged.*put back a copy"):
        reads[name](tmp_path)


def test_a_file_that_cannot_be_read_or_written_is_a_state_error(run, tmp_path):
    (tmp_path / "identity").mkdir()
    with pytest.raises(StateError, match="cannot read"):
        files.read_keys(tmp_path)
    with pytest.raises(StateError, match="cannot write"):
        files.write_keys(tmp_path / "nowhere", run.keys())


def test_the_root_moves_offline_and_back(run, tmp_path):
    files.write_root(tmp_path, run.root)
    elsewhere = tmp_path / "usb.root"
    files.export_root(run.root, elsewhere)
    files.remove_root(tmp_path)
    assert files.read_root(tmp_path) is None
    assert mode(elsewhere) == 0o600
    assert files.import_root(elsewhere).run_id == run.root.run_id


def test_export_never_overwrites_and_import_says_what_is_wrong(run, tmp_path):
    path = tmp_path / "usb.root"
    path.write_bytes(b"holiday photo")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="exists already"):
        files.export_root(run.root, path)
    with pytest.raises(ConfigError, match="not a peerlm root key"):
        files.import_root(path)
    with pytest.raises(ConfigError, match="no such file"):
        files.import_root(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot write"):
        files.export_root(run.root, tmp_path / "nowhere" / "usb.root")
