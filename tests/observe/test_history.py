"""Curves that span the run in bounded room, and events where something has become different."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest

from peerlm.observe.history import (
    EVENTS_MAX,
    POINTS_MAX,
    SPACING_S,
    History,
    news,
    read_history,
)

ME, ADA, BOB = "11" * 16, "aa" * 16, "bb" * 16


def member(peer: str, state: str = "alive", val_loss: float | None = 2.0) -> dict[str, Any]:
    return {
        "id": peer,
        "state": state,
        "address": f"tcp://{peer[:2]}:7700",
        "val_loss": val_loss,
        "tokens_per_s": 5.0,
    }


def status(*members: dict[str, Any], **changes: Any) -> dict[str, Any]:
    said = {
        "node_id": ME,
        "state": "training",
        "state_reason": "",
        "members": [member(ME), *members],
        "swarm_tokens": 1000,
        "swarm_tokens_per_s": 10.0,
        "loss": 2.5,
        "val_loss": 2.4,
        "consensus_distance": 0.01,
        "bytes_sent": 100,
        "bytes_allreduce": 1000,
        "plan_revision": 1,
        "worker": {"restarts": 0, "last_error": ""},
        "snapshot": {"error": ""},
        "exchange_reasons": {},
    }
    return said | changes


def told(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    return [(e.kind, e.text) for e in news(before, after, 5.0)]


def test_points_come_at_their_spacing_and_not_more_often() -> None:
    history = History()
    for tick in range(10):
        history.see(status(swarm_tokens=tick), 100.0 + tick)
    assert [p.at for p in history.points] == [100.0, 102.0, 104.0, 106.0, 108.0]
    assert [p.tokens for p in history.points] == [0, 2, 4, 6, 8]


def test_a_long_run_is_spanned_from_its_beginning_in_bounded_room() -> None:
    history = History()
    for tick in range(20_000):
        history.see(status(), 1000.0 + SPACING_S * tick)
    assert len(history.points) <= POINTS_MAX
    times = [p.at for p in history.points]
    assert times[0] == 1000.0
    assert times[-1] >= 1000.0 + SPACING_S * 20_000 - 2 * history.spacing_s
    gaps = {round(b - a, 3) for a, b in pairwise(times)}
    assert max(gaps) <= 2 * min(gaps)


def test_what_came_after_a_moment_can_be_asked_for_alone() -> None:
    history = History()
    for tick in range(4):
        others = [member(ADA)] if tick >= 2 else []
        history.see(status(*others, swarm_tokens=tick), 100.0 + 2 * tick)
    whole, later = history.since(0.0), history.since(103.0)
    assert [p["tokens"] for p in whole["points"]] == [0, 1, 2, 3]
    assert [e["kind"] for e in whole["events"]] == ["start", "joined"]
    assert [p["tokens"] for p in later["points"]] == [2, 3]
    assert [e["kind"] for e in later["events"]] == ["joined"]
    assert not {"members", "rates"} & set(later["points"][0])
    assert history.since(106.0) == {"points": [], "events": []}


def test_another_life_goes_on_where_the_last_ended() -> None:
    history = History()
    history.see(status(bytes_sent=70, bytes_allreduce=700), 10.0)
    second = read_history(history.to_text().encode())
    second.see(status(bytes_sent=5, bytes_allreduce=50), 20.0)
    assert [p.bytes_sent for p in second.points] == [70, 75]
    assert [p.bytes_allreduce for p in second.points] == [700, 750]
    assert [e.kind for e in second.events] == ["start", "start"]


def test_each_member_has_curves_of_its_own_also_after_a_release_that_kept_fewer() -> None:
    history = History()
    history.see(status(member(ADA), member(BOB, "dead")), 10.0)
    assert history.points[0].rates == {ME[:8]: 5.0, ADA[:8]: 5.0}
    kept = json.loads(history.to_text())
    del kept["points"][0]["rates"]
    assert read_history(json.dumps(kept).encode()).points[0].rates == {}


def history_with(**changes: Any) -> str:
    """One whose last two points are right."""
    history = History()
    for tick in range(3):
        history.see(status(), 10.0 * tick)
    kept = json.loads(history.to_text())
    kept["points"][0] |= changes
    return json.dumps(kept)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"points": [{"at": 1}], "events": [], "spacing_s": 2}',
        b'{"points": [], "events": [7], "spacing_s": 2}',
        b'{"points": [], "events": [], "spacing_s": "often"}',
        b"\xff\x00",
        history_with(at="soon").encode(),
        history_with(at=None).encode(),
        history_with(members=[]).encode(),
        history_with(rates=[]).encode(),
        b"[" * 100_000,
    ],
)
def test_a_damaged_history_begins_anew(data: bytes) -> None:
    history = read_history(data)
    assert history.points == []
    history.see(status(), 1.0)
    assert len(history.points) == 1


def test_a_clock_that_is_set_back_does_not_stop_the_curves() -> None:
    history = History()
    for at in (1000.0, 1002.0, 500.0, 502.0):
        history.see(status(), at)
    assert [p.at for p in history.points] == [500.0, 502.0]


def test_members_that_come_and_go() -> None:
    alone, both = status(), status(member(ADA))
    assert told(alone, both) == [("joined", "aaaaaaaa at tcp://aa:7700 joined")]
    for state, kind in (("suspect", "suspect"), ("dead", "dead"), ("left", "left")):
        gone = status(member(ADA, state))
        assert [k for k, _ in told(both, gone)] == [kind]
        assert [k for k, _ in told(gone, both)] == ["back"]
    assert told(alone, status(member(ADA, "dead"))) == []  # known from old, never seen
    assert told(both, both) == []


def test_a_member_that_is_kept_out_is_told_once() -> None:
    def kept(reason: str) -> dict[str, Any]:
        return status({**member(ADA), "reason": reason})

    plan = "another plan of revision 1: train.lr"
    assert told(kept(""), kept(plan)) == [("refused", f"aaaaaaaa at tcp://aa:7700: {plan}")]
    assert told(kept(plan), kept(f"{plan} again")) == []
    assert told(kept(""), kept("no connection: refused")) == []


def test_what_becomes_of_this_node() -> None:
    before = status()
    assert told(before, status(state="settling", state_reason="budget")) == [
        ("phase", "this node is settling: budget")
    ]
    assert told(before, status(plan_revision=2)) == [("plan", "plan revision 2 holds")]
    died = status(worker={"restarts": 1, "last_error": "killed by signal 9"})
    assert told(before, died) == [("worker", "the worker is started again: killed by signal 9")]
    full = status(snapshot={"error": "the disk is full"})
    assert told(before, full) == [("snapshot", "no snapshot: the disk is full")]
    assert told(full, copy.deepcopy(full)) == []


def test_the_first_rejection_of_a_kind_is_told_and_what_is_merely_busy_is_not() -> None:
    reasons = {"busy: in exchange": 9, "refused: plan": 2, "excluded: a stranger": 1}
    assert told(status(), status(exchange_reasons=reasons)) == [
        ("refused", "exchange refused: plan (2 times so far)"),
        ("refused", "exchange excluded: a stranger (1 times so far)"),
    ]
    more = reasons | {"refused: plan": 40}
    assert told(status(exchange_reasons=reasons), status(exchange_reasons=more)) == []


def test_events_are_bounded() -> None:
    history = History()
    for tick in range(3 * EVENTS_MAX):
        history.see(status(member(ADA, ("alive", "suspect")[tick % 2])), float(tick))
    assert len(history.events) == EVENTS_MAX
    assert len(json.loads(history.to_text())["events"]) == EVENTS_MAX
