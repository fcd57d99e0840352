"""Keys on disk and what they may use a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from peerlm.cli.main import main
from peerlm.errors import StateError
from peerlm.serve import keys
from peerlm.serve.keys import Holder, Key, Keyring
from peerlm.types import Instant


def at(seconds: float) -> Instant:
    return Instant(seconds)


def test_a_key_is_found_by_its_secret_and_kept_as_a_hash(tmp_path: Path) -> None:
    secret = keys.secret_of(bytes(range(32)))
    keys.write(tmp_path / "k", [Key("ada", keys.hash_of(secret), 10)])
    assert secret not in (tmp_path / "k").read_text()
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    ring = Keyring(keys.read(tmp_path / "k"), at(0))
    found = ring.find(secret)
    assert found is not None
    assert found.key.name == "ada"
    for wrong in ("", secret[:-1], secret + "x", "\ud800", keys.hash_of(secret)):
        assert ring.find(wrong) is None


def test_quotas_flow_back_within_a_minute() -> None:
    holder = Holder(Key("ada", "0" * 64, tokens_a_minute=60, requests_a_minute=2), at(0))
    assert holder.take(50, at(0)) is None
    assert holder.take(20, at(0)) == ("tokens", pytest.approx(10))
    holder.give_back(30)
    assert holder.take(20, at(0)) is None
    assert holder.take(1, at(0)) == ("requests", pytest.approx(30))
    assert holder.take(61, at(1000)) == ("tokens", float("inf"))
    assert holder.take(60, at(1000)) is None


def test_a_refused_request_costs_nothing() -> None:
    holder = Holder(Key("ada", "0" * 64, requests_a_minute=1), at(0))
    assert holder.take(5, at(0)) is None
    holder.give_back(5, request=True)
    assert holder.take(5, at(0)) is None


def test_changes_of_the_file_keep_what_was_used_and_never_open_the_door() -> None:
    key = Key("ada", keys.hash_of("a"), requests_a_minute=1)
    ring = Keyring([key], at(0))
    held = ring.find("a")
    assert held is not None
    assert held.take(1, at(0)) is None
    ring.replace([key, Key("bob", keys.hash_of("b"))], at(1))
    assert ring.find("a") is held
    assert ring.find("b") is not None
    ring.replace([], at(2))
    assert ring.find("a") is None
    assert ring.is_needed
    assert not Keyring([], at(0)).is_needed


@pytest.mark.parametrize("text", ["", "[]", '{"format": "x", "keys": []}', "{" * 9999])
def test_a_damaged_file_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(StateError, match="no file of keys"):
        keys.read(tmp_path / "k")


def test_keys_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "k")
    assert main(["key", "ls", "--keys", file]) == 0
    assert main(["key", "add", "ada", "--tokens-a-minute", "500", "--keys", file]) == 0
    out = capsys.readouterr().out
    secret = out.splitlines()[-1]
    assert secret.startswith("sk-peerlm-")
    assert Keyring(keys.read(Path(file)), at(0)).find(secret) is not None
    assert main(["key", "add", "ada", "--keys", file]) == 2
    assert main(["key", "add", "a b", "--keys", file]) == 2
    assert main(["key", "add", "x", "--keys", str(tmp_path / "no" / "k")]) == 2
    assert main(["key", "ls", "--keys", file]) == 0
    assert "500" in capsys.readouterr().out
    assert main(["key", "rm", "bob", "--keys", file]) == 2
    assert main(["key", "rm", "ada", "--keys", file]) == 0
    assert keys.read(Path(file)) == []


def test_elsewhere_than_here_it_is_not_served_without_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.write(tmp_path / "k", [])
    assert main(["serve", "--host", "0.0.0.0", "--keys", str(tmp_path / "k")]) == 2
    err = capsys.readouterr().err
    assert "can be reached from elsewhere" in err
    assert "peerlm key add" in err
    assert err.count("\n") == 1


def test_a_file_of_keys_that_was_named_and_is_not_there_opens_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "keyz"
    assert main(["serve", "--port", "0", "--keys", str(missing), "--state", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"--keys {missing}: no such file" in err
    assert err.count("\n") == 1
