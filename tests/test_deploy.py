"""Files for others' machines: what can be said of them without those machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

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
