"""`peerlm bench …` as a person uses it, as far as nothing has to be started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peerlm import config
from peerlm.bench import quality as quality_bench
from peerlm.bench import rival
from peerlm.bench.step import flops_per_token
from peerlm.cli import bench_exchange, bench_quality
from peerlm.cli.bench_overlap import as_changes
from peerlm.cli.main import main
from peerlm.cli.sim_train import read_plan


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


def test_serving_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--tokens", "3", "--pairs", "1", "--requests", "4", "--sessions", "2")
    assert main(["bench", "serve", *small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same_text"] is True
    assert [row["name"] for row in found["rows"]] == ["plain", "one session", "together"]
    assert 0 < found["first_token_ms"]["p50"] <= found["first_token_ms"]["p99"]


def test_codecs_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", "--parameters", "1000", "--repeat", "1"]) == 0
    out = capsys.readouterr().out
    assert "int8:int4 respond" in out
    assert "ns/parameter" in out


def test_overlap_takes_the_plan_of_a_file_as_init_takes_its_fields(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    text = '[model]\nblocks = ["attention", "feedforward"]\ntied = false\n[mix]\nweight = 0.25\n'
    file.write_text(text + '[run]\nname = "x"\ntoken_budget = 7\n')
    plan = read_plan(str(file), ())
    preset, changes = as_changes(plan, str(file))
    assert sorted(changes) == ["mix.weight", "model.blocks", "model.tied"]
    made = config.with_changes(config.preset(preset), changes, "test")
    assert (made.model, made.mix, made.train) == (plan.model, plan.mix, plan.train)
    assert as_changes(config.preset("small"), "small") == ("small", {})


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
        (["serve", "--sessions", "0"], "--sessions 0"),
        (["serve", "--requests", "1"], "--requests 1"),
        (["codec", "--repeat", "0"], "--repeat 0"),
        (["exchange", "--link", "fast"], "--link 'fast'"),
        (["exchange", "--link", "1gbit", "--vs", "gloo"], "only tcp"),
        (["overlap", "--nodes", "1"], "--nodes 1"),
        (["overlap", "--link", "1 parsec"], "--link"),
        (["overlap", "--pairs", "0"], "--pairs 0"),
        (["overlap", "--seconds", "1"], "--seconds 1"),
        (["overlap", "--pace", "-1"], "--pace -1"),
        (["overlap", "--set", "mix.speed=1"], "mix.speed"),
        (["overlap", "--plan", "nowhere.toml"], "--plan nowhere.toml"),
        (["step", "--pairs", "0"], "--pairs 0"),
        (["step", "--steps", "0"], "--steps 0"),
        (["step", "--plan", "nowhere.toml"], "nowhere.toml"),
        (["quality", "--nodes", "1"], "--nodes 1"),
        (["quality", "--seeds", "0"], "--seeds 0"),
        (["quality", "--tokens", "1000"], "--tokens 1000"),
        (["quality", "--methods", "adam"], "solo, alone, ddp"),
        (["quality", "--lr", "0"], "--lr '0'"),
        (["quality", "--lr", "fast"], "--lr 'fast'"),
        (["quality", "--vary", "mix.inner_steps"], "KEY=VALUE"),
        (["quality", "--vary", "mix.inner_steps=0,5"], "mix.inner_steps = 0"),
        (["quality", "--vary", "mix.pace=1,2"], "mix.pace"),
        (["quality", "--link", "fast"], "--link 'fast'"),
        (["quality", "--local", "a.txt", "--methods", "solo,ddp"], "solo and alone"),
        (["exchange", "--nodes", "4", "--vs", "tcp"], "is a pair"),
        (["quality", "--speed", "0"], "--speed '0'"),
        (["quality", "--plan", "nowhere.toml"], "nowhere.toml"),
        (["quality", "--local", "nowhere.txt", "--methods", "ddp"], "nowhere.txt"),
        (["quality", "--plot", "picture.doc"], ".png"),
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


def test_where_trials_are_to_be_kept_is_tried_before_any_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_quality, "interrupt_on_terminate", lambda: None)
    monkeypatch.setattr(quality_bench, "live", None)
    assert main(["bench", "quality", "--keep", "/nowhere/kept.jsonl"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--keep /nowhere/kept.jsonl" in line


def test_steps_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model.dim=16", "model.hidden=16", "model.context=8", "mix.inner_steps=2"]
    arguments = [part for change in small for part in ("--set", change)]
    arguments += ["--device", "cpu", "--pairs", "2", "--steps", "3"]
    assert main(["bench", "step", *arguments, "--peak-tflops", "0.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    off, on = found["rows"]
    assert (off["name"], on["name"]) == ("mixing off", "mixing on")
    assert found["on_off"] == pytest.approx(on["tokens_s"] / off["tokens_s"])
    assert off["step_ms"] == pytest.approx(1e3 * found["tokens_per_step"] / off["tokens_s"])
    assert off["mfu"] == pytest.approx(off["tokens_s"] * found["flops_per_token"] / 1e11)
    assert off["idle"] is None


def test_operations_of_a_step_are_those_of_its_matrices() -> None:
    plan = config.with_changes(
        config.Plan(),
        {"model.blocks": ("attention",), "model.dim": 8, "model.heads": 2, "model.kv_heads": 1},
        "test",
    )
    # query and output 8 × 8, key and value 8 × 4, and the head; one attention over 128 tokens
    weights = 2 * 64 + 2 * 32 + 256 * 8
    assert flops_per_token(plan) == 6 * weights + 12 * 8 * 128
    untied = config.with_changes(plan, {"model.tied": False}, "test")
    assert flops_per_token(untied) == flops_per_token(plan)


def test_a_device_that_is_not_there_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--device", "cuda:77"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cuda:77" in line


def test_quality_as_json_and_a_second_time_from_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_quality, "interrupt_on_terminate", lambda: None)
    text = tmp_path / "text"
    text.write_text("a rose is a rose is a rose. " * 400)
    small = ["data.source=" + str(text), "model.dim=16", "model.hidden=16", "model.context=16"]
    arguments = ["bench", "quality", "--tokens", "2048", "--nodes", "2", "--speed", "300"]
    arguments += [part for change in small for part in ("--set", change)]
    arguments += ["--methods", "ddp,outer_mix", "--vary", "mix.inner_steps=2,4", "--jobs", "1"]
    arguments += ["--keep", str(tmp_path / "kept.jsonl"), "--plot", str(tmp_path / "plot.svg")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["nodes"], found["tokens"]) == (2, 2048)
    assert [(row["method"], row["changes"]) for row in found["rows"]] == [
        (method, {"mix.inner_steps": h}) for h in (2, 4) for method in ("ddp", "outer_mix")
    ]
    assert all(0 < row["val_loss"] < 6 for row in found["rows"])
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
    monkeypatch.setattr(quality_bench, "live", None)  # nothing is trained again
    assert main(arguments) == 0
    assert f"{found['rows'][1]['val_loss']:.4f}" in capsys.readouterr().out
