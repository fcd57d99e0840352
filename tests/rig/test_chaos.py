"""A short scenario with real nodes, from the file to the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from needs import missing

from peerlm.chaos.scenario import INSTANT, KINDS

SCENARIO = """
name = "a kill, a cut, a freeze and guests"
nodes = 3
minutes = 2
pace = 600
calm_s = 40

[plan]
swarm.profile = "test"
model.dim = 32
model.heads = 2
model.kv_heads = 1
model.hidden = 64

[[fault]]
kind = "kill"
at_s = 5
for_s = 3
victims = [1]

[[fault]]
kind = "cut"
at_s = 30
for_s = 10

[[fault]]
kind = "stop"
at_s = 50
for_s = 6

[[fault]]
kind = "guests"
at_s = 60
for_s = 18
victims = [1]
"""


@pytest.mark.timeout(400)
def test_a_scenario_from_the_file_to_the_report(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("needs root")
    file, page = tmp_path / "short.toml", tmp_path / "report.html"
    file.write_text(SCENARIO)
    command = (
        sys.executable,
        "-m",
        "peerlm",
        "chaos",
        "run",
        str(file),
        "--json",
        "--page",
        str(page),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=380)
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert report["faults"] == {"kill": 1, "cut": 1, "stop": 1, "guests": 1}, done.stderr
    assert [e["text"] for e in report["events"]][:2] == ["killed node 1", "started node 1"]
    assert report["return_s"]["n"] == 1
    assert report["not_returned"] == 0
    assert report["well_s"] is not None
    assert report["tracebacks"] == 0
    assert report["tokens_that_fell"] == 0
    assert report["breadth_min"] == 2
    assert report["efficiency"] > 0.5
    assert 0.0 < report["cores_share"] <= 1.0
    assert (done.returncode == 0) == (report["missed"] == [])
    assert "<h2>What happened</h2>" in page.read_text()
    mounts = Path("/proc/mounts").read_text()
    assert "peerlm-chaos" not in mounts


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """Of each kind: what was said, what was so while it lasted, and after it was mended."""
    if os.geteuid() != 0:
        missing("needs root")
    script = Path(__file__).with_name("each_kind.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=580
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


OPEN = {"1-2": True, "2-1": True, "2-3": True}
WHILE_AND_THEN = {
    "kill": ([False, True, True], [True] * 3),
    "everybody": ([False] * 3, [True] * 3),
    "stop": (True, False),
    "cut": ({**OPEN, "1-2": False, "2-1": False}, OPEN),
    "oneway": ({**OPEN, "1-2": False}, OPEN),
    "split": ({**OPEN, "1-2": False, "2-1": False}, OPEN),
    "corrupt": (True, False),
    "full": (False, True),
    "guests": (True, False),
    "clock": (2, 0),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_does_what_it_says_and_is_mended(seen: dict[str, Any], kind: str) -> None:
    if kind == "clock" and kind not in seen:
        missing("needs libfaketime")
    during, then = seen[kind]["while"], seen[kind]["then"]
    assert seen[kind]["said"]
    assert seen[kind]["mended"] or kind in INSTANT
    match kind:
        case "loss":
            assert 0.25 < during < 0.75
            assert then == 1.0
        case "slow":
            assert during > 0.07 > then, "30 datagrams at 2 Mbit/s take 0.15 s, if none is dropped"
        case "delay":
            assert during > 0.2 > then
        case "worker" | "crash":
            assert during, "it is gone"
            assert then["restarts"] >= 1
            assert then["last_error"]
        case _:
            assert (during, then) == WHILE_AND_THEN[kind]


@pytest.mark.timeout(600)
def test_no_kind_of_fault_brought_out_one_of_our_own(seen: dict[str, Any]) -> None:
    assert seen["tracebacks"] == 0
    assert seen["tokens_that_fell"] == []
