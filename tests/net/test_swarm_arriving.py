"""A joiner of a run trains before all of its text is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from swarm import NODE, PLAN, Swarm, environment, options

pytestmark = pytest.mark.timeout(180)
HOLDING_BACK = (sys.executable, str(Path(__file__).parent / "holding_back.py"))


def trains_on_all_but_one(status: dict[str, Any]) -> bool:
    data = status["data"]
    is_there = data["shards_here"] == data["shards"] - 1
    return is_there and status["state"] == "training" and status["worker"]["tokens_per_s"] > 0


def test_a_joiner_takes_steps_before_the_last_shard_is_there(swarm: Swarm, tmp_path: Path) -> None:
    founder, given = swarm.node(), tmp_path / "given"
    settings = options("--set", PLAN) + options("--set-node", NODE)
    command = [*HOLDING_BACK, "init", "--state", str(founder.folder), *settings]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=60)
    founder.program = HOLDING_BACK
    founder.start("up", variables={"GIVEN": str(given)})
    founder.wait(lambda s: s["state"] == "training", "the founder trains")

    joiner = swarm.join(founder)
    status = joiner.wait(trains_on_all_but_one, "it trains on what is there")
    line = "on {} of {} shards".format(*(status["data"][k] for k in ("shards_here", "shards")))
    assert status["data"]["shards"] >= 3
    assert any(line in why and "validation waits" in why for why in status["why"]), status["why"]
    assert status["val_loss"] is None

    joiner.kill()
    joiner.up()
    status = joiner.wait(trains_on_all_but_one, "it goes on with what is there")
    (worker,) = joiner.workers()
    tokens = status["tokens"]

    given.touch()
    joiner.wait(lambda s: s["data"]["shards_here"] == s["data"]["shards"], "the last is there")
    status = joiner.wait(lambda s: s["val_loss"] is not None, "it evaluates")
    assert status["tokens"] > tokens
    assert joiner.workers() == [worker], "the same worker reads on"
    assert not any("shards" in why for why in status["why"])
