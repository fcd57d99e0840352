"""A checkpoint made while its swarm trains, by a node that does not hold the whole model; a run of another shape that begins with it; and a
swarm of which nothing else is left, that goes on from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from swarm import NODE, PLAN, Node, Swarm, options, peerlm, succeed, wait_for

from peerlm.cli.plan import current_plan
from peerlm.config import Plan, differences, with_changes
from peerlm.daemon.desk_client import Client
from peerlm.data.records import FILE as PASSES
from peerlm.filesystem import PeerlmFileSystem
from peerlm.model.export import open_model, read_model
from peerlm.model.hf import open_hf
from peerlm.model.plan import fragments
from peerlm.model.tensors import fragment_values
from peerlm.store.layout import Layout

pytestmark = pytest.mark.timeout(120)

LOCAL = {"page.enabled": "false", "store.checkpoint_every_s": "0"}
TRAINED = {name: value for name, value in PLAN.items() if not name.startswith("model.")}
"""Of the plan, what a run that begins with a model may say."""
OTHERWISE = {"model.stages": "1", "mix.fragment_max": "3000"}
FILES = ["model.safetensors", "plan.toml"]


def test_who_holds_half_a_model_gathers_all_of_it_and_a_single_node_goes_on_with_that(
    swarm: Swarm, tmp_path: Path
) -> None:
    ada = swarm.found("--set", "model.stages=2", **LOCAL)
    ben = swarm.join(ada, "", "--host", "1", **LOCAL)
    ben.wait(lambda s: s["state"] == "training" and s["swarm_tokens"] > 0, "both train")
    at_ada, at_ben = ("--state", ada.folder), ("--state", ben.folder)

    made = json.loads(succeed("checkpoint", "make", "--name", "kept", "--json", *at_ben))
    assert (made["kind"], made["is_durable"], made["replicas_least"]) == ("checkpoint", True, 2)
    assert made["tokens"] > 0
    succeed("checkpoint", "pin", "kept", *at_ben)
    wait_for(lambda: _is_pinned(ada.layout), "the other has heard of it")
    shown = json.loads(succeed("checkpoint", "show", "kept", "--json", *at_ada))
    assert (shown["is_pinned"], shown["found"]["least"], shown["found"]["unreadable"]) == (True, 2, 0)  # fmt: skip
    assert (shown["tokens"], shown["manifest"]) == (made["tokens"], made["manifest"])
    assert ada.id in shown["meta"]["makers"], "the other has not the first stage"

    model = tmp_path / "model"
    succeed("checkpoint", "get", "kept", model, *at_ada)
    plan, values = read_model(model)
    assert plan.model.stages == 2
    assert all(np.isfinite(part).all() for part in values)
    through = PeerlmFileSystem(state=str(ben.folder), skip_instance_cache=True)
    succeed("checkpoint", "export", "kept", f"file://{tmp_path}/out", *at_ben)
    for file in FILES:
        found = (model / file).read_bytes()
        assert through.cat_file(f"peerlm:///kept/{file}") == found
        assert (tmp_path / "out" / file).read_bytes() == found
    succeed("checkpoint", "export", "kept", f"file://{tmp_path}/hf", "--format", "hf", *at_ben)
    published = open_hf(tmp_path / "hf").tensors
    for spec, part in zip(fragments(plan), values, strict=True):
        assert fragment_values(spec, published).tobytes() == part.tobytes()

    alone = swarm.node("alone")
    settings = options("--set", TRAINED | OTHERWISE) + options("--set-node", NODE | LOCAL)
    succeed("init", "--from", model, *settings, "--state", alone.folder)
    whole = with_changes(plan, OTHERWISE, "test")
    assert len(fragments(whole)) > len(values), "its fragments are others"
    _, tensors = open_model(model)
    for spec, part in zip(fragments(whole), alone.kept_weights(), strict=True):
        assert fragment_values(spec, tensors).tobytes() == part.tobytes()
    ben.kill()
    ada.kill()
    alone.up()
    alone.wait(lambda s: s["state"] == "training" and s["swarm_tokens"] > 0, "it goes on alone")


def _is_pinned(layout: Layout) -> bool:
    with Client(layout) as desk:
        return any(name["name"] == "kept" and name["is_pinned"] for name in desk.names())


# ------------------------------------------------------------------- all of it is lost but that

LEARNING = {"train.warmup": "0", "train.lr": "0.01", "run.checkpoint_optimizer": "true"}
QUICK = LOCAL | {"train.pace_tokens_s": "6000"}
LEARNT = 4.3
"""Of 5.5 nats per token that a model begins with."""


@pytest.mark.timeout(240)
def test_a_swarm_that_is_gone_goes_on_on_more_nodes_and_on_fewer_that_share_its_stages(
    tmp_path: Path,
) -> None:
    with _another(tmp_path / "first") as first:
        ada = first.found(*options("--set", LEARNING), **QUICK)
        ben = first.join(ada, **QUICK)
        ada.wait(lambda s: s["val_loss"] and s["val_loss"] < LEARNT, "it has learnt something")
        for node in (ada, ben):
            wait_for(node.layout.moments.exists, "its optimizer's state is kept")
        kept = _checkpoint(ben, tmp_path / "kept")
        assert kept["optimizer"] == "muon"
        plan, was = current_plan(ada.layout).plan, ada.status()
    _, tensors = open_model(tmp_path / "kept")

    with _another(tmp_path / "second") as second:
        cat, said = _begun(second, tmp_path / "kept")
        assert "the optimizer begins with" in said
        assert "the text goes on where it was" in said
        again = current_plan(cat.layout).plan
        assert _same_but(plan, again) == {"run.initial", "run.continues"}
        for spec, part in zip(fragments(again), cat.kept_weights(), strict=True):
            assert fragment_values(spec, tensors).tobytes() == part.tobytes()
        cat.up()
        learnt = _goes_on_learning(cat, kept)
        assert learnt["continues"] == kept["manifest"]
        assert learnt["token_budget"] == was["token_budget"]
        assert learnt["run_id"] != was["run_id"]
        assert _place(learnt) > (0, 0.0)
        dan, eve = (second.join(cat, **LOCAL) for _ in range(2))
        second.wait_whole()
        for node in (dan, eve):
            assert node.status()["swarm_tokens"] >= learnt["swarm_tokens"]
        more = _checkpoint(dan, tmp_path / "more")
        assert more["before"] == kept["manifest"], "lineage goes on across runs"
        assert more["tokens"] > kept["tokens"]

    with _another(tmp_path / "third") as third:
        fay, _ = _begun(third, tmp_path / "more", "--set", "model.stages=2", "--host", "0")
        fay.up()
        fay.wait(lambda s: s["stages"]["lacking"] == [1], "it holds its own stage")
        gus = third.join(fay, "", "--host", "1", **LOCAL)
        for node in (fay, gus):
            node.wait(lambda s: s["state"] == "training", "it trains its half")
        learnt = _goes_on_learning(fay, more)
        assert learnt["continues"] == more["manifest"]
        gus.wait(lambda s: s["swarm_tokens"] > more["tokens"], "it counts on")


@contextmanager
def _another(folder: Path) -> Iterator[Swarm]:
    """A swarm of machines that are lost in the end, with all that is on them."""
    folder.mkdir()
    swarm = Swarm(folder)
    try:
        yield swarm
    finally:
        swarm.close()
        shutil.rmtree(folder)


def _goes_on_learning(node: Node, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Its first validation loss is that of who has learnt, and the swarm's tokens are counted on."""
    first = node.wait(lambda s: s["val_loss"], "it is evaluated")
    assert first["val_loss"] < LEARNT
    return node.wait(lambda s: s["swarm_tokens"] > checkpoint["tokens"], "it trains on")


def _checkpoint(node: Node, model: Path) -> dict[str, Any]:
    """One made now, copied out. What is said of it."""
    made = json.loads(succeed("checkpoint", "make", "--json", "--state", node.folder))
    succeed("checkpoint", "get", made["name"], model, "--state", node.folder)
    assert (model / PASSES).is_file()
    return dict(made)


def _begun(swarm: Swarm, model: Path, *settings: object) -> tuple[Node, str]:
    """A new run's first node, not started, and what was said of it."""
    node = swarm.node()
    done = peerlm(
        *("init", "--from", model, "--continue", "--state", node.folder),
        *(*options("--set-node", NODE | LOCAL), *settings),
    )
    assert done.code == 0, done
    return node, done.err


def _place(status: dict[str, Any]) -> tuple[int, float]:
    """Where in its text the swarm is."""
    return status["data"]["pass"], status["data"]["position"]


def _same_but(one: Plan, other: Plan) -> set[str]:
    return {line.partition(":")[0] for line in differences(one, other)}
