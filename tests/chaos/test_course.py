"""What a course makes of what nodes say, with nodes that are made up."""

from __future__ import annotations

import os
from typing import Any

import pytest

from peerlm.bench.rows import Missed
from peerlm.chaos import course
from peerlm.chaos.course import Course
from peerlm.chaos.scenario import Act, Fault, Scenario
from peerlm.chaos.verdict import missed_bars

PACE = 1000.0


class Node:
    """Says that it trains; its process is that of the test."""

    def __init__(self, number: int) -> None:
        self.number, self.name, self.epoch, self.tokens = number, f"node {number}", 1, 0

    is_up = True
    pid = os.getpid()

    @property
    def status(self) -> dict[str, Any]:
        return {
            "node_id": self.name,
            "members": [],
            "participating": True,
            "state": "training",
            "val_loss": 2.0,
            "epoch": self.epoch,
            "tokens": self.tokens,
            "exchanges": {"ok": 0},
            "tempo": {"inner_steps": 5},
            "batch": {"tokens": 256},
        }


class Made:
    """A swarm and its world in one. Each look everybody has trained on 400 tokens more, never exchanged."""

    def __init__(self, size: int) -> None:
        self.nodes = [Node(number) for number in range(1, size + 1)]
        self.down: set[int] = set()
        self.stopped: set[int] = set()
        self.steps_back: list[str] = []
        self.swarm: Any = self
        self.counted = 0

    @property
    def tokens(self) -> int:
        return self.counted

    def start(self) -> None:
        """They are there."""

    def wait(self, what: str, *_: object) -> float:
        if what == "all have finished":
            raise Missed("never")
        return 0.0

    def look(self) -> None:
        for node in self.nodes:
            node.tokens += 400
            self.counted += 400

    def statuses(self) -> list[dict[str, Any]]:
        return [node.status for node in self.nodes if node.number not in self.down]

    def all_done(self) -> bool:
        return False

    def tracebacks(self) -> int:
        return 0

    def node(self, number: int) -> Any:
        return self.nodes[number - 1]

    def is_held_up(self, number: int) -> bool:
        return False

    def begin(self, act: Act) -> str:
        if act.kind in ("kill", "everybody"):
            self.down |= set(act.nodes)
        return f"{act.kind} {act.nodes}"

    def end(self, act: Act) -> str:
        self.down -= set(act.nodes)
        return "over"

    def mend_all(self) -> None:
        self.down.clear()


class Clock:
    """Of the course: it goes on when that sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def played(
    monkeypatch: pytest.MonkeyPatch, *faults: Fault, faulty: bool = True, **more: Any
) -> dict[str, Any]:
    monkeypatch.setattr(course, "time", Clock())
    of_all: dict[str, Any] = {"pace": PACE, "calm_s": 0.0, **more}
    scenario = Scenario("made up", 3, minutes=1, faults=faults, **of_all)
    return Course(scenario, Made(3), lambda line: None, faults=faulty).run()


@pytest.mark.parametrize("kind", ["kill", "crash", "worker"])
def test_what_dies_with_a_node_or_its_worker_is_not_efficiency(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    report = played(monkeypatch, Fault(kind, at_s=10.0, for_s=(5.0, 5.0)))
    assert report["faults"] == {kind: 1}
    assert report["events"][0]["text"] == f"{kind} (1,)"
    assert report["tokens_lost"] == 20 * 400, "what the one has trained on since it began"
    assert report["tokens"] == 120 * 3 * 400
    assert report["live_s"] == 3 * 59.5 - (5 if kind == "kill" else 0), "until the last look"
    kept = report["tokens"] - report["tokens_lost"]
    assert report["efficiency"] == pytest.approx(kept / (PACE * report["live_s"]))


def test_where_all_die_the_count_itself_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    report = played(monkeypatch, Fault("everybody", at_s=10.0, for_s=(5.0, 5.0)))
    assert report["tokens_lost"] == 0


def test_in_peace_nothing_is_lost_and_daemons_and_workers_are_looked_at_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = played(monkeypatch, Fault("kill", at_s=10.0, for_s=(5.0, 5.0)), faulty=False)
    assert report["tokens_lost"] == 0
    assert report["events"] == []
    assert set(report["growth"]) == {"daemon", "worker"}
    assert report["cores_share"] >= 0.0


@pytest.mark.parametrize("faulty", [True, False])
def test_trouble_lasts_its_time_even_if_the_budget_is_reached_before(
    monkeypatch: pytest.MonkeyPatch, faulty: bool
) -> None:
    kill = Fault("kill", at_s=10.0, for_s=(5.0, 5.0))
    report = played(monkeypatch, kill, faulty=faulty, finish=True, pace=500.0, calm_s=10.0)
    assert report["seconds"] == (50.0 if faulty else 37.5)
    assert report["trouble_s"] == (50.0 if faulty else 0.0)
    assert report["final"] is None
    assert "no finished models" in "".join(missed_bars(report))
