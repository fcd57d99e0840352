"""One seed, one run: whatever the hash seed, the process, the interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from peerlm.sim.menus import live_through
from peerlm.sim.scenarios import play, read_params

SCRIPT = """
from peerlm.sim.learner import ByteModel
from peerlm.sim.menus import live_through
from peerlm.sim.network import Wire
from peerlm.sim.scenarios import play, read_params
from peerlm.sim.training import train
from peerlm.sim.world import plan_of
print(live_through(7, 4).digest)
print(play("partition", 6, 3, params=read_params("partition", {"minutes": "0.5"})).digest)
plan = plan_of(run__token_budget=200_000)
text = b"the quick brown fox jumps over the lazy dog. " * 500
trained = train(plan, 3, ByteModel(text, 2), (9000, 5000), [20_000.0], Wire(loss=0.01), (), 5)
print(trained.digest)
"""


def digests(python: str, hash_seed: str) -> list[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [python, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.timeout(120)
def test_one_seed_gives_one_trace_whatever_the_hash_seed() -> None:
    first = digests(sys.executable, "0")
    assert len(set(first)) == 3
    assert digests(sys.executable, "4242") == first


@pytest.mark.timeout(120)
def test_another_python_gives_the_same_trace() -> None:
    others = [p for v in ("12", "13", "14") if (p := shutil.which(f"python3.{v}"))]
    able = [
        p for p in others if subprocess.run([p, "-c", "import peerlm"], check=False).returncode == 0
    ]
    if not able:
        pytest.skip("no second Python with peerlm installed")
    assert digests(able[0], "0") == digests(sys.executable, "0")


def test_another_seed_gives_another_trace() -> None:
    assert live_through(1, 4).digest != live_through(2, 4).digest


def test_a_trace_can_be_told_without_changing_the_run() -> None:
    from peerlm.sim.trace import Trace

    told: list[str] = []
    params = read_params("crash", {})
    quiet = play("crash", 8, 5, params=params)
    loud = play("crash", 8, 5, params=params, trace=Trace(lambda *line: told.append(str(line))))
    assert quiet.digest == loud.digest
    assert len(told) > 100
