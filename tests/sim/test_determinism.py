"""One seed, one run: whatever the hash seed, the process, the interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peerlm.sim.menus import live_through
from peerlm.sim.scenarios import play, read_params

ROOT = Path(__file__).parents[2]

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
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def other_pythons() -> list[str]:
    """Interpreters of another version that have what a simulation needs: the one that
    `OTHER_PYTHON` names, and those on the path."""
    named = [os.environ.get("OTHER_PYTHON"), *(f"python3.{minor}" for minor in range(11, 16))]
    found = [path for name in named if name and (path := shutil.which(name))]
    return [path for path in found if _is_other(path)]


def _is_other(python: str) -> bool:
    ask = "import sys, peerlm.sim.training; print(*sys.version_info[:2])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-c", ask], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and done.stdout.split() != [str(n) for n in sys.version_info[:2]]


@pytest.mark.timeout(120)
def test_one_seed_gives_one_trace_whatever_the_hash_seed() -> None:
    first = digests(sys.executable, "0")
    assert len(set(first)) == 3
    assert digests(sys.executable, "4242") == first


@pytest.mark.timeout(300)
def test_another_python_gives_the_same_trace() -> None:
    others = other_pythons()
    if not others:
        pytest.skip("no other Python has numpy, msgpack, ...: `make other-python`")
    for python in others:
        assert digests(python, "0") == digests(sys.executable, "0"), python


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
