"""A checkpoint made while its swarm trains, by a node that does not hold the whole model; and a run of another shape that begins with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from swarm import NODE, PLAN, Swarm, options, succeed, wait_for

from peerlm.config import with_changes
from peerlm.daemon.desk_client import Client
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
