"""`peerlm bench …` as a person uses it, as far as nothing has to be started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peerlm.bench import rival
from peerlm.cli import bench_exchange
from peerlm.cli.main import main


def test_codecs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", "--parameters", "20000", "--repeat", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["rows"]}
    assert found["parameters"] == 20_000
    for row in rows.values():
        assert row["ns_per_parameter"] > 0
        assert row["gb_s"] == pytest.approx(4 / row["ns_per_parameter"])
    assert rows["fp32 decode"]["error"] == 0
    assert 1e-4 < rows["fp16 encode"]["error"] < rows["int8 encode"]["error"] < 0.02
    assert rows["fp32 exchange"]["error"] < 1e-6
    assert rows["int8:int4 exchange"]["error"] < 0.3
    assert rows["int8:int4 exchange"]["bytes_per_parameter"] < 1.58
    parts = sum(
        rows[f"fp16 {part}"]["ns_per_parameter"] for part in ("request", "respond", "absorb")
    )
    assert rows["fp16 exchange"]["ns_per_parameter"] == pytest.approx(parts)


def test_codecs_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", "--parameters", "1000", "--repeat", "1"]) == 0
    out = capsys.readouterr().out
    assert "int8:int4 respond" in out
    assert "ns/parameter" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exchange", "--mb", "0"], "--mb 0"),
        (["exchange", "--rounds", "0"], "--rounds 0"),
        (["exchange", "--nodes", "1"], "--nodes 1"),
        (["exchange", "--codec", "int4"], "--codec int4"),
        (["exchange", "--codec", "fp32,fp64"], "--codec fp64"),
        (["exchange", "--codec", "fp32,"], "--codec"),
        (["exchange", "--security", "none"], "aead, plain"),
        (["exchange", "--vs", "horovod"], "gloo, hivemind"),
        (["codec", "--parameters", "5"], "--parameters 5"),
        (["codec", "--repeat", "0"], "--repeat 0"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]


def test_a_rival_that_is_not_installed_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rival, "PEERS", tmp_path)
    monkeypatch.setattr(bench_exchange, "interrupt_on_terminate", lambda: None)
    assert main(["bench", "exchange", "--vs", "hivemind"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "make bench-peers" in lines[0]
