"""A short scenario with real nodes, from the file to the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        pytest.skip("needs root")
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
