"""A real Prometheus reads two real nodes: the files in deploy/watch say something to it, and each panel shows something."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from needs import missing

from peerlm.bench.nodes import Swarm, running

WATCH = Path(__file__).parents[2] / "deploy" / "watch"
PLAN = {"swarm.profile": "test", "model.dim": 32, "model.heads": 2, "model.kv_heads": 1}
LOCAL = {"train.pace_tokens_s": 500, "page.enabled": True, "page.port": 0}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    if not shutil.which("promtool"):
        missing("prometheus is not installed")
    with running(Swarm(tmp_path_factory.mktemp("swarm"), 2, PLAN, LOCAL)) as swarm:
        swarm.start()
        swarm.wait("they mix", lambda: all(s["participating"] for s in swarm.statuses()))
        yield swarm


@pytest.fixture(scope="module")
def ask(swarm: Swarm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Prometheus' HTTP interface."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((WATCH / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    del config["scrape_configs"][0]["dns_sd_configs"]  # there are no names here
    pages = [urllib.parse.urlsplit(s["page"]).netloc for s in swarm.statuses()]
    config["scrape_configs"][0]["static_configs"] = [{"targets": pages}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(WATCH / "alerts.yaml", folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        at = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder / 'prometheus.yml'}"),
                *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={at}"),
            ],
            stderr=log,
        )

    def answer(path: str, **query: str) -> Any:
        url = f"http://{at}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=5) as reply:
            return json.load(reply)["data"]

    try:
        yield answer
    finally:
        process.terminate()
        process.wait(20)


def until(what: str, holds: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if holds():
                return
        except OSError:
            pass  # it is not up yet
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_files_are_what_prometheus_takes(tmp_path: Path) -> None:
    shutil.copy(WATCH / "prometheus.yaml", tmp_path)
    shutil.copy(WATCH / "alerts.yaml", tmp_path)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "9 rules found" in done.stdout


def test_names_and_units_follow_the_conventions(swarm: Swarm) -> None:
    with urllib.request.urlopen(f"{swarm.statuses()[0]['page']}metrics", timeout=5) as reply:
        text = reply.read()
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert done.stderr.decode() == ""
    assert done.returncode == 0


def test_both_nodes_are_read(ask: Callable[..., Any]) -> None:
    def healthy() -> bool:
        targets = ask("targets")["activeTargets"]
        return len(targets) == 2 and all(t["health"] == "up" for t in targets)

    until("both targets are up", healthy)


def expressions() -> list[str]:
    panels = json.loads((WATCH / "peerlm.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_the_dashboard_asks_for_something() -> None:
    assert len(expressions()) >= 10


@pytest.mark.parametrize("expression", expressions())
def test_each_panel_of_the_dashboard_has_something_to_show(
    ask: Callable[..., Any], expression: str
) -> None:
    until(expression, lambda: ask("query", query=expression)["result"])


def test_a_dead_member_is_about_to_be_told_of(swarm: Swarm, ask: Callable[..., Any]) -> None:
    known = {rule["name"] for rule in ask("rules")["groups"][0]["rules"]}
    assert len(known) == 9
    swarm.nodes[1].kill()

    def pending() -> bool:
        return any(
            a["labels"]["alertname"] == "PeerlmMemberDead" and a["state"] == "pending"
            for a in ask("alerts")["alerts"]
        )

    until("the alert is pending", pending)
