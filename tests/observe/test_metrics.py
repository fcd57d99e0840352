"""Metrics as Prometheus reads them: by convention, and of what the node says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

sys.path.append(str(Path(__file__).parents[1] / "cli"))

from cli_scene import answer_of, member, sample_summary

from peerlm.node.lifecycle import Phase
from peerlm.observe.metrics import METRICS, exposition

WATCH = Path(__file__).parents[2] / "deploy" / "watch"

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def read(text: bytes) -> dict[tuple[str, str], float]:
    """(name, label) → value."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_values_are_those_of_the_status() -> None:
    found = read(exposition(answer_of(sample_summary()), "1.2.3"))
    assert found["peerlm_tokens", ""] == 1_000_000
    assert found["peerlm_swarm_tokens", ""] == 2_500_000
    assert found["peerlm_validation_loss_nats", ""] == 1.81
    assert found["peerlm_members", "alive"] == 1
    assert found["peerlm_members", "dead"] == 1
    assert found["peerlm_exchanges_total", "ok"] == 12
    assert found["peerlm_ready", ""] == 1
    assert {phase: found["peerlm_phase", phase] for phase in Phase} == {
        phase: float(phase is Phase.TRAINING) for phase in Phase
    }
    assert found["process_cpu_seconds_total", ""] > 0


def test_what_is_not_known_is_left_out_and_not_zero() -> None:
    found = read(exposition(answer_of(sample_summary(loss=None, val_loss=None)), "1"))
    assert ("peerlm_loss_nats", "") not in found
    assert ("peerlm_validation_loss_nats", "") not in found
    assert ("peerlm_tokens", "") in found


def test_partners_are_those_of_the_last_five_minutes() -> None:
    summary = sample_summary(
        members=(
            member(1),
            member(2, mixed_s_ago=299.0),
            member(3, mixed_s_ago=301.0),
            member(4, mixed_s_ago=0.0),
        )
    )
    assert read(exposition(answer_of(summary), "1"))["peerlm_partners", ""] == 2


def test_names_follow_the_conventions_and_each_is_explained() -> None:
    page = PAGE.read_text()
    for figure in METRICS:
        assert figure.name.startswith("peerlm_")
        assert not figure.name.endswith("_total"), "the format adds it to counters"
        assert figure.help.endswith(".")
        suffix = "_total" if figure.kind == "counter" else ""
        assert f"`{figure.name}{suffix}`" in page


def test_alerts_and_panels_ask_for_metrics_that_there_are() -> None:
    there = {name for name, _ in read(exposition(answer_of(sample_summary()), "1"))}
    for file in ("alerts.yaml", "peerlm.json"):
        asked = set(re.findall(r"\bpeerlm_[a-z_]+", (WATCH / file).read_text()))
        assert asked, file
        assert asked <= there, file


RULES = yaml.safe_load((WATCH / "alerts.yaml").read_text())["groups"][0]["rules"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_of_which_node_and_waits_no_longer_than_it_must(
    rule: dict[str, object],
) -> None:
    assert set(rule) <= {"alert", "expr", "for", "annotations"}
    assert re.fullmatch(r"Peerlm[A-Za-z]+", str(rule["alert"]))
    assert re.fullmatch(r"[0-9]+[mh]", str(rule.get("for", "1m")))
    assert "{{ $labels.instance }}" in str(rule["annotations"])


def test_each_alert_is_explained() -> None:
    page = PAGE.read_text()
    assert [rule["alert"] for rule in RULES if f"| `{rule['alert']}` |" not in page] == []
