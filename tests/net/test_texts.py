"""Texts through stages on real nodes: whatever node asks, and whoever dies on the way, the text is the same.

Nothing is trained, so that both hosts of a stage have the same weights.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from swarm import (
    PEERLM,
    Node,
    Swarm,
    assert_refused,
    at_once,
    environment,
    peerlm,
    succeed,
    wait_for,
)

pytestmark = pytest.mark.timeout(180)

LENGTH = 160
ASKED = ("generate", "ROMEO:", "--tokens", LENGTH, "--temperature", 1.5, "--seed", 4, "--swarm")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """The first node holds stage 0, two others stage 1."""
    swarm = Swarm(tmp_path_factory.mktemp("texts"))
    try:
        founder = swarm.found("--set", "model.stages=2", "--host", "0")
        for _ in range(2):
            swarm.join(founder, "", "--host", "1", **{"train.enabled": "false"})
        for node in swarm.nodes[1:]:
            node.wait(lambda s: s["snapshot"]["number"], "it has weights")
        yield swarm
    finally:
        swarm.close()


def stage_servers(node: Node) -> int:
    return node.said().count("stage_server_started")


def test_a_host_that_is_killed_takes_no_text_with_it(swarm: Swarm) -> None:
    founder, one, other = swarm.nodes
    whole, also = at_once(
        *(partial(succeed, *ASKED, "--state", node.folder) for node in (founder, other))
    )
    assert len(whole) >= LENGTH // 2
    assert also == whole, "whoever asks"
    for victim in (one, other):
        wait_for(lambda: stage_servers(one) and stage_servers(other), "both are ready")
        command = [*PEERLM, *map(str, ASKED), "--state", str(founder.folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as asking:
            assert asking.stdout is not None
            text = b""
            while len(text) < 20:
                text += os.read(asking.stdout.fileno(), 1 << 16)
            victim.kill()
            text += asking.stdout.read()
        assert asking.returncode == 0
        assert text.decode().replace("\r", "\n") == whole, "as a terminal shows it"
        victim.up()
        victim.wait(lambda s: s["state"] == "ready", "it is back")


def test_what_cannot_be_asked_for_is_one_line(swarm: Swarm, tmp_path: Path) -> None:
    founder = ("--state", swarm.nodes[0].folder)
    part, both, empty, nobody = at_once(
        lambda: peerlm("generate", "ROMEO:", *founder),
        lambda: peerlm("generate", "ROMEO:", "--swarm", "--model", tmp_path, *founder),
        lambda: peerlm("generate", "", "--swarm", *founder),
        lambda: peerlm("generate", "ROMEO:", "--swarm", "--state", tmp_path / "none"),
    )
    assert_refused(part, 3, "holds a part of the model", "--swarm")
    assert_refused(both, 2, "--swarm and --model")
    assert_refused(empty, 2, "prompt is empty")
    assert_refused(nobody, 3, "no node in")
