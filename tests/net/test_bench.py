"""`peerlm bench exchange` with real nodes, and with rivals where they are installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from peerlm.bench.child import Child
from peerlm.bench.rival import PEERS
from peerlm.bench.rows import Missed
from peerlm.cli import bench_exchange
from peerlm.cli.main import main

SMALL = ["bench", "exchange", "--mb", "1", "--rounds", "1", "--json"]
FIGURES = {
    *("seconds_p50", "seconds_p90", "seconds_max", "param_gb_s"),
    *("wire_bytes", "cpu_s", "rss_mb", "ratio"),
}


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals stay pytest's."""
    monkeypatch.setattr(bench_exchange, "interrupt_on_terminate", lambda: None)


def run(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    before = set(psutil.Process().children(recursive=True))
    assert main([*SMALL, *more]) == 0, capsys.readouterr().err
    assert set(psutil.Process().children(recursive=True)) <= before
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    for row in found["rows"]:
        assert set(row) >= FIGURES
        assert 0 < row["seconds_p50"] <= row["seconds_max"]
        assert row["param_gb_s"] == pytest.approx(found["mb"] / 1e3 / row["seconds_p50"])
        assert row["rss_mb"] > 10
    return found


@pytest.mark.timeout(180)
def test_a_pair_with_two_codecs_beside_gloo(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--codec", "fp32,int8:int4", "--vs", "gloo")
    exact, coarse, gloo = found["rows"]
    names = [row["name"] for row in found["rows"]]
    assert names == ["peerlm fp32 aead", "peerlm int8:int4 aead", "gloo"]
    assert found["mb"] == pytest.approx(1, rel=0.02)
    # Each fragment goes up once and comes down once, in the codecs that were asked for.
    assert exact["exchanges"] == coarse["exchanges"] == found["fragments"]
    assert exact["wire_bytes"] == pytest.approx(8 * found["parameters"], rel=0.02)
    assert coarse["wire_bytes"] == pytest.approx(1.5625 * found["parameters"], rel=0.02)
    assert gloo["wire_bytes"] == 8 * found["parameters"]
    assert exact["ratio"] == {"gloo": pytest.approx(exact["param_gb_s"] / gloo["param_gb_s"])}


@pytest.mark.timeout(180)
def test_several_nodes_mix_in_pairs_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--nodes", "3", "--security", "plain")
    (row,) = found["rows"]
    assert row["name"] == "peerlm fp32 plain"
    # Every node takes part in an exchange of every fragment; an exchange has two nodes.
    assert row["exchanges"] >= 2 * found["fragments"]
    assert row["ratio"] == {}


@pytest.mark.skipif(not PEERS.exists(), reason="make bench-peers has not been run")
@pytest.mark.timeout(180)
def test_hivemind_with_and_without_its_matchmaking(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--vs", "hivemind")
    ours, alone, matched = found["rows"]
    assert (alone["name"], matched["name"]) == ("hivemind", "hivemind with matchmaking")
    assert alone["seconds_p50"] < matched["seconds_p50"]
    assert set(ours["ratio"]) == {"hivemind", "hivemind with matchmaking"}


# ---------------------------------------------------------------------------------- processes


def test_a_child_that_ends_has_its_last_words_heard(tmp_path: Path) -> None:
    said = "import sys; sys.stderr.write('out of tea\\n'); sys.exit(1)"
    child = Child("the cook", [sys.executable, "-c", said], tmp_path / "log")
    try:
        with pytest.raises(Missed, match="the cook has ended: out of tea"):
            child.ask("tea")
    finally:
        child.close()


def test_a_child_that_is_silent_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    child = Child("the cook", [sys.executable, "-c", "input(); input()"], tmp_path / "log")
    try:
        child.tell("tea")
        with pytest.raises(Missed, match="the cook: no answer within"):
            child.hear(0.01)
    finally:
        child.close()
    assert child.processes() == []
