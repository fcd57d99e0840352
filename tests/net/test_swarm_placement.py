"""Nodes that decide by themselves which stages they hold, from end to end: none has room for the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from swarm import NODE, PLAN, Node, Swarm, options, succeed, wait_for

from peerlm.config import preset, with_changes
from peerlm.model.export import write_model
from peerlm.model.plan import fragments
from peerlm.model.stages import held_fragments, memory_of, stages
from peerlm.store.placed import read_placed

pytestmark = pytest.mark.timeout(120)

STAGES = {"model.stages": "2"}
CUT = stages(with_changes(preset("tiny"), PLAN | STAGES, "test"))
ROOM = max(memory_of(CUT, range(stage, stage + 1)).total() for stage in range(2))
AUTO = {"host.stages": "auto", "host.memory_bytes": str(ROOM)}


def held(status: dict[str, Any]) -> range:
    return range(status["stages"]["first"], status["stages"]["last"] + 1)


def learns(node: Node) -> None:
    """From here on, with every stage in somebody's hands."""
    then = node.status()["swarm_tokens"]
    node.wait(lambda s: s["swarm_tokens"] > then and s["stages"]["lacking"] == [], "it is learnt")


def shared_out(swarm: Swarm) -> tuple[list[Node], Node]:
    """Three nodes that learn with two stages, as they have shared them out; and who is alone with one."""
    ada = swarm.found("--set", "model.stages=2", **AUTO)
    assert held(ada.status()) == range(1), "who begins takes the first stages"
    token = swarm.token
    nodes = [ada, *(swarm.join(ada, token, **AUTO) for _ in range(2))]
    for node in nodes:
        node.wait(lambda s: len(held(s)) == 1 and s["state"] == "training", "it has a stage")
        learns(node)
    runs = [held(node.status()) for node in nodes]
    (alone,) = (n for n, run in zip(nodes, runs, strict=True) if runs.count(run) == 1)
    return nodes, alone


def test_nodes_share_the_stages_out_and_one_takes_over_what_another_leaves_behind(
    swarm: Swarm,
) -> None:
    nodes, alone = shared_out(swarm)
    ada = nodes[0]
    (stage,) = held(alone.status())
    others = [node for node in nodes if node is not alone]
    text = {path.name for path in ada.layout.objects.iterdir() if path.stat().st_size > 100_000}
    for node in others:
        node.wait(lambda s: stage in s["placement"]["copies"], "it keeps a copy")
        wait_for(
            lambda node=node: stage or text <= {p.name for p in node.layout.objects.iterdir()},
            "and of the text, for stage 0",
        )
    shown = succeed("placement", "--explain", "--state", others[0].folder)
    assert f"single points of failure: stage {stage}" in shown

    alone.kill()
    both = {range(1), range(1, 2)}
    wait_for(lambda: {held(node.wait(bool, "it answers")) for node in others} == both, "it moves")
    for node in others:
        learns(node)
    (mover,) = (node for node in others if held(node.status()) == range(stage, stage + 1))
    assert read_placed(mover.layout.placement.read_bytes(), mover.folder, 2).held[0] == stage

    mover.kill()
    mover.up()
    mover.wait(lambda s: held(s) == range(stage, stage + 1), "it goes on with the same stage")


def test_the_only_host_of_a_stage_goes_when_another_holds_it_and_training_goes_on(
    swarm: Swarm,
) -> None:
    nodes, alone = shared_out(swarm)
    left = held(alone.status())
    others = [node for node in nodes if node is not alone]

    assert "left" in succeed("leave", "--state", alone.folder, timeout_s=90)
    assert alone.wait_end() == 0
    assert left in [held(node.status()) for node in others], "it was held before it went"
    for node in others:
        learns(node)
    assert {held(node.status()) for node in others} == {range(1), range(1, 2)}


def test_given_weights_of_which_the_first_node_holds_a_part_reach_who_holds_the_rest(
    swarm: Swarm, tmp_path: Path
) -> None:
    plan = with_changes(preset("tiny"), PLAN | STAGES, "test")
    rng = np.random.default_rng(1)
    values = {s.id: rng.normal(0, 0.2, s.size).astype(np.float32) for s in fragments(plan)}
    write_model(tmp_path / "given", plan, list(values.values()))
    ada, node = swarm.node(), {"host.stages": "0"}
    changes = {field: value for field, value in PLAN.items() if not field.startswith("model.")}
    settings = options("--set", changes | STAGES) + options("--set-node", NODE | node)
    succeed("init", "--state", ada.folder, "--from", tmp_path / "given", *settings)
    ada.up()
    ada.wait(lambda s: s["stages"]["lacking"] == [1], "it has its own stage, and nobody the other")

    bob = swarm.join(ada, **{"host.stages": "1"})
    bob.wait(lambda s: s["state"] == "training", "it has been given its stage")
    learns(ada)
    bob.wait(lambda s: s["snapshot"]["number"] > 0, "it keeps it")
    for found, spec in zip(bob.kept_weights(), held_fragments(plan, range(1, 2)), strict=True):
        assert np.corrcoef(found, values[spec.id])[0, 1] > 0.5
    wait_for(
        lambda: not read_placed(ada.layout.placement.read_bytes(), ada.folder, 2).copies,
        "the first node keeps its own stage alone",
    )


def test_who_stands_aside_has_no_weights_and_feeds_the_others(swarm: Swarm, tmp_path: Path) -> None:
    ada = swarm.found("--set", "model.stages=2")
    aside = swarm.join(ada, swarm.invite("--role", "store"), **{"host.stages": "none"})
    aside.wait(lambda s: s["state"] == "aside", "it is a member")
    text = tmp_path / "letters.txt"
    text.write_text("Dear Ada, the engine weaves patterns.\n" * 3000)
    succeed("data", "add", text, "--name", "letters", "--state", aside.folder)
    succeed("plan", "set", "data.source=swarm:letters", "--state", ada.folder)
    aside.wait(lambda s: s["plan_revision"] == 2, "it has heard of the new plan")
    ada.wait(lambda s: s["plan_revision"] == 2 and s["state"] == "training", "it trains on that")
    learns(ada)
    status = aside.wait(lambda s: s["swarm_tokens"] > 0, "it sees them learn")
    assert status["state"] == "aside"
    assert status["stages"]["first"] > status["stages"]["last"]
    assert status["snapshot"]["number"] == 0
    assert any("host.stages = none" in line for line in status["why"])
    assert "–" in succeed("placement", "--state", aside.folder)
    asked = ("generate", "ROMEO:", "--tokens", 8, "--swarm", "--state", aside.folder)
    assert succeed(*asked).startswith("ROMEO:"), "it holds nothing, and others write for it"
