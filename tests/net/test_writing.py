"""A node whose curves go to a table, through a kill and a clean end; and one that lacks a package."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import psutil
import pytest
from swarm import Node, Swarm, assert_refused, init, peerlm, wait_for

pytestmark = pytest.mark.timeout(180)

PACKAGE = "wandb"


def rows(node: Node) -> list[dict[str, str]]:
    with (node.folder / "curves" / f"{node.id[:8]}.csv").open() as file:
        return list(csv.DictReader(file))


def writers_of(node: Node) -> list[psutil.Process]:
    assert node.process is not None
    children = psutil.Process(node.process.pid).children()
    return [c for c in children if "peerlm.daemon.writers.process" in c.cmdline()]


def test_curves_in_a_table_through_a_kill_and_a_clean_end(swarm: Swarm) -> None:
    node = swarm.found(**{"observe.writers": "csv", "observe.every_s": "1"})
    name = f"{node.id[:8]}.csv"
    node.wait(lambda s: s["val_loss"] is not None and s["tokens"] > 0, "it has trained")
    wait_for(lambda: any(row["val_loss"] for row in rows(node)), "it is in the table")
    before = rows(node)
    assert float(before[-1]["swarm_tokens"]) > 0
    assert before[-1]["members_alive"] == "1"
    (writer,) = writers_of(node)
    node.kill()
    wait_for(lambda: not writer.is_running(), "its writer has gone with it", 10.0)
    node.up()
    node.wait(lambda s: s["state"] == "training", "it trains again")
    wait_for(lambda: len(rows(node)) > len(before) + 1, "the table goes on")
    assert rows(node)[: len(before)] == before
    node.signal(2)
    assert node.wait_end(20.0) == 0
    assert [path.name for path in (node.folder / "curves").iterdir()] == [name]
    assert (node.folder / "curves" / name).stat().st_mode & 0o777 == 0o600
    assert "writer_failed" not in node.said()


@pytest.fixture
def lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To whatever is run, the package is not there."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{PACKAGE!r}] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("lacking")
def test_a_package_that_is_missing_is_told_before_anything_is_begun(swarm: Swarm) -> None:
    node = swarm.node()
    init(node.folder)
    cure = f"{sys.executable} -m pip install {PACKAGE}"
    options = ("--state", node.folder, "--set-node", f"observe.writers=csv,{PACKAGE}")
    assert_refused(peerlm("up", *options), 2, PACKAGE, cure)
    toml = node.folder / "node.toml"
    toml.write_text(f'[observe]\nwriters = ["{PACKAGE}"]\n')
    assert_refused(peerlm("up", "--state", node.folder), 2, PACKAGE, cure)
    assert not (node.folder / "epoch").exists()
    elsewhere = (
        "--state",
        node.folder.with_name("new"),
        "--set-node",
        f"observe.writers={PACKAGE}",
    )
    assert_refused(peerlm("join", "127.0.0.1:1", "--token", "peerlm1-x", *elsewhere), 2, cure)
