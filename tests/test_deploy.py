"""Files for others' machines: what can be said of them without those machines."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from peerlm.chaos.scenario import Act, read_scenario
from peerlm.errors import ConfigError
from peerlm.observe.metrics import METRICS

DEPLOY = Path(__file__).parent.parent / "deploy"
KUBERNETES = "1.34"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.mark.parametrize("kind", ["Service", "StatefulSet"])
def test_kubernetes_knows_every_field(kind: str) -> None:
    (document,) = [d for d in documents("kubernetes.yaml") if d["kind"] == kind]
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    document = documents("kubernetes.yaml")[1]
    document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    names = {f.name + ("_total" if f.kind == "counter" else "") for f in METRICS}
    panels = json.loads((DEPLOY / "watch/peerlm.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) >= len(panels) >= 9
    for query in queries:
        assert any(name in query for name in names), query
        for word in query.replace("(", " ").replace("[", " ").replace(")", " ").split():
            if word.startswith("peerlm_"):
                assert word in names, query


def test_compose_scrapes_the_page_and_gives_each_node_the_same_ports() -> None:
    compose = documents("compose.yaml")[0]
    assert set(compose["services"]) == {"init", "first", "node", "chaos", "prometheus", "grafana"}
    scraped = documents("watch/prometheus.yaml")[0]["scrape_configs"][0]["dns_sd_configs"][0]
    assert scraped["names"] == ["first", "node"]
    assert f"127.0.0.1:{scraped['port']}:{scraped['port']}" in compose["services"]["first"]["ports"]


# ------------------------------------------------------------------------------ trouble of compose


def test_the_first_container_is_the_first_victim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DEPLOY)
    from chaos import victim

    names = ("/peerlm-first-1", "/peerlm-node-1", "/peerlm-node-2")
    nodes = [{"Names": [name], "State": "running"} for name in names]
    rng = random.Random(1)
    assert victim(nodes, rng, has_begun=False) is nodes[0]
    drawn = [victim(nodes, rng, has_begun=True) for _ in range(30)]
    assert all(node in drawn for node in nodes)
    nodes[0]["State"] = "exited"
    assert victim(nodes, rng, has_begun=False) is None, "it is waited for"
    assert victim(nodes, rng, has_begun=True) in nodes[1:]
    assert victim([], rng, has_begun=False) is None
    assert victim([], rng, has_begun=True) is None


# ---------------------------------------------------------------------- scenarios with containers


class Written:
    """An engine of three containers that writes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        if method == "GET":
            networks = {"swarm": {"IPAddress": "172.30.77.9"}}
            return {"State": {"Pid": 0}, "NetworkSettings": {"Networks": networks}}
        address = body and body.get("EndpointConfig", {}).get("IPAMConfig", {}).get("IPv4Address")
        self.asked.append(path.removeprefix("/containers/") + (f" {address}" if address else ""))
        return None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(DEPLOY)
    from containers import ContainerNode, Containers, ContainerSwarm

    engine = Written()
    swarm = ContainerSwarm(3, engine, lambda: None)  # type: ignore[arg-type]
    swarm.nodes = [ContainerNode(n, engine, {"Id": f"c{n}"}) for n in (1, 2, 3)]  # type: ignore[arg-type, misc]
    return Containers(swarm, engine)  # type: ignore[arg-type]


def test_what_befalls_containers_is_undone(world: Any) -> None:
    acts = [
        Act(0, 1, "stop", (2,)),
        Act(0, 1, "cut", (3,)),
        Act(0, 1, "everybody", (1, 2, 3)),
    ]
    said = [world.begin(act) for act in acts]
    assert said == ["stopped node 2", "off the network: node 3", "killed node 1, node 2, node 3"]
    assert world.down == {1, 2, 3}
    assert world.is_held_up(3)
    assert world.begin(Act(0, 1, "kill", (1,))) == "", "who is down cannot be killed"
    world.mend_all()
    assert not world.down | world.stopped
    assert world._engine.asked == [
        "c2/pause",
        "/networks/swarm/disconnect",
        "c2/unpause",
        *("c1/kill", "c2/kill", "c3/kill"),
        "/networks/swarm/connect 172.30.77.9",
        *("c3/start", "c1/start", "c2/start"),
    ]


def test_what_containers_cannot_play_is_said_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(DEPLOY)
    from containers import check

    for path in sorted((DEPLOY / "scenarios").glob("*.toml")):
        scenario = read_scenario(path.read_text(), str(path))
        if path.stem == "containers":
            check(scenario, str(path))
        elif path.stem == "everything":
            with pytest.raises(ConfigError, match="containers can play crash"):
                check(scenario, str(path))
