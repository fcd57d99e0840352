"""Files for others' machines: what can be said of them without those machines."""

from __future__ import annotations

import json
import random
import re
import subprocess
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


@pytest.fixture
def pod() -> Any:
    (stateful,) = [d for d in documents("kubernetes.yaml") if d["kind"] == "StatefulSet"]
    return stateful["spec"]["template"]["spec"]


def test_a_pod_that_is_made_again_finds_its_secrets_as_they_were(pod: Any) -> None:
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    (container,) = pod["containers"]
    (volume,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "state"]
    (state,) = [v["value"] for v in container["env"] if v["name"] == "PEERLM_STATE"]
    assert Path(volume) in Path(state).parents, (
        "the volume's root keeps the mode that a mount gave it"
    )


def test_an_image_that_was_loaded_is_not_looked_for_in_a_registry(pod: Any) -> None:
    containers = [*pod["initContainers"], *pod["containers"]]
    assert [c["imagePullPolicy"] for c in containers] == ["IfNotPresent"] * 2


@pytest.mark.parametrize(
    ("name", "there", "founds"),
    [
        ("peerlm-0", (), True),
        ("peerlm-0", ("state/node/identity",), False),
        ("peerlm-0", ("state/node/identity", "invites/invite"), False),
        ("peerlm-0", ("invites/invite",), False),  # its volume is lost, the run is not
        ("peerlm-1", (), False),
        ("peerlm-1", ("invites/invite",), False),
    ],
)
def test_only_the_first_pod_founds_a_run_and_only_where_none_lets_it_in(
    pod: Any, tmp_path: Path, name: str, there: tuple[str, ...], founds: bool
) -> None:
    (container,) = pod["initContainers"]
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    *shell, script = container["command"]
    for volume, folder in (("state", "state"), ("invite", "invites")):
        assert mounts[volume] in script
        script = script.replace(mounts[volume], str(tmp_path / folder))
    for path in there:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    script = script.replace("peerlm init", "echo founds")
    done = subprocess.run(
        [*shell, script], env={"POD_NAME": name}, capture_output=True, text=True, check=True
    )
    assert done.stdout == (f"founds --state {tmp_path}/state/node\n" if founds else "")


def test_the_invite_of_the_pods_names_the_service_first_so_that_any_of_them_lets_one_in() -> None:
    (service,) = [d for d in documents("kubernetes.yaml") if d["kind"] == "Service"]
    name = service["metadata"]["name"]
    (port,) = [p["port"] for p in service["spec"]["ports"] if p["name"] == "introduction"]
    head = (DEPLOY / "kubernetes.yaml").read_text().split("apiVersion")[0]
    addresses = re.findall(r"--address (\S+)", head)
    assert addresses[:2] == [f"{name}:{port}", f"{name}-0.{name}:{port}"]


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
