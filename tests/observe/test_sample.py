"""When a sample text is due, why there is none, and what a damaged one is taken for."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from peerlm.observe.sample import (
    COST_SHARE,
    FIRST_S,
    SWARM_RARER,
    Sample,
    as_json,
    encode,
    hosts_tokens,
    is_due,
    is_through_swarm,
    no_room,
    read_sample,
    why_none,
)

ME, ADA, BOB = "00" * 16, "aa" * 16, "bb" * 16
EVERY_S = 900.0
LATER = 1e6
"""Up for so long, in seconds, that no start matters."""

LAST = Sample("To be", 3, 1000, 5000.0, False, 4.0, 5000.0)


def status(number: int = 4, tokens: int = 2000, **changes: Any) -> dict[str, Any]:
    said = {
        "node_id": ME,
        "state": "training",
        "stages": {"first": 0, "last": 0, "count": 1},
        "snapshot": {"number": number, "tokens": tokens, "error": ""},
        "members": [member(ME, tokens)],
    }
    return said | changes


def member(peer: str, tokens: int | None, **changes: Any) -> dict[str, Any]:
    said = {"id": peer, "state": "alive", "weights_tokens": tokens, "behind": False}
    return said | {"stages": [0, 2]} | changes


PART = {
    "stages": {"first": 1, "last": 1, "count": 3},
    "members": [
        *(member(ME, 2000), member(ADA, 1900), member(BOB, 50, behind=True)),
        *(member("cc" * 16, 10, state="dead"), member("dd" * 16, None)),
    ],
}
ALONE = PART | {"members": [member(ME, 2000, stages=[1, 1])]}
ASIDE = {"stages": {"first": 1, "last": 0, "count": 1}}


def test_one_is_due_after_its_pause_and_with_newer_weights_alone() -> None:
    assert not is_due(LAST, status(), EVERY_S, 5000.0 + EVERY_S - 1, LATER)
    assert is_due(LAST, status(), EVERY_S, 5000.0 + EVERY_S, LATER)
    assert not is_due(LAST, status(3), EVERY_S, LATER, LATER), "of this snapshot there is one"
    assert not is_due(LAST, status(4, 1000), EVERY_S, LATER, LATER), "nothing is learnt since"
    assert is_due(LAST, status(), EVERY_S, 10.0, LATER), "the clock was set back"


def test_its_cost_is_bounded_whatever_the_setting() -> None:
    dear = replace(LAST, cpu_s=20.0)
    assert not is_due(dear, status(), 1.0, 5000.0 + 20 * COST_SHARE - 1, LATER)
    assert is_due(dear, status(), 1.0, 5000.0 + 20 * COST_SHARE, LATER)
    assert not is_due(LAST, status(), 0.0, LATER, LATER), "switched off"


def test_a_node_that_has_just_started_waits_and_not_all_for_as_long() -> None:
    assert not is_due(Sample(), status(), EVERY_S, 0.0, FIRST_S - 1)
    assert is_due(Sample(), status(), EVERY_S, 0.0, FIRST_S)
    assert is_due(Sample(), status(), 1.0, 0.0, 1.0)
    assert not is_due(Sample(), status(node_id="ff" * 16), EVERY_S, 0.0, 2 * FIRST_S - 1)


def test_the_finished_model_has_one_at_once_and_no_second() -> None:
    done = status(state="done", tokens=1000)
    assert is_due(LAST, done, EVERY_S, 5001.0, LATER)
    assert not is_due(replace(LAST, snapshot=4), done, EVERY_S, LATER, LATER)
    failed = replace(LAST, error="no text was written")
    assert not is_due(failed, done, EVERY_S, 5001.0, LATER), "not again and again"


def test_what_failed_is_tried_again_after_the_same_pause() -> None:
    failed = replace(LAST, snapshot=4, tokens=2000, error="out of memory")
    assert not is_due(failed, status(), EVERY_S, 5000.0 + EVERY_S - 1, LATER)
    assert is_due(failed, status(), EVERY_S, 5000.0 + EVERY_S, LATER)


def test_who_holds_a_part_writes_through_the_others_and_rarely() -> None:
    part = status(**PART)
    assert is_through_swarm(part)
    assert not is_through_swarm(status())
    turn_s = EVERY_S * SWARM_RARER * 3
    assert not is_due(LAST, part, EVERY_S, 5000.0 + turn_s - 1, LATER)
    assert is_due(LAST, part, EVERY_S, 5000.0 + turn_s, LATER)
    assert is_due(Sample(), part, EVERY_S, 0.0, FIRST_S)
    last = part | {"node_id": BOB}
    assert not is_due(Sample(), last, EVERY_S, 0.0, 3 * FIRST_S - 1), "one after the other"
    assert hosts_tokens(part) == 1900
    assert hosts_tokens(status(members=[])) == 0


@pytest.mark.parametrize(
    ("last", "said", "every_s", "words"),
    [
        (LAST, status(), EVERY_S, ""),
        (LAST, status(0), 0.0, ""),
        (replace(LAST, error="it broke"), status(), EVERY_S, "it broke"),
        (Sample(), status(), EVERY_S, "soon"),
        (Sample(), status(), 0.0, "observe.sample_every_s = 0"),
        (Sample(), status(0), EVERY_S, "there is no snapshot yet"),
        (Sample(), status(4, 0), EVERY_S, "nothing is learnt yet"),
        (Sample(), status(**ASIDE), EVERY_S, "keeps no weights"),
        (Sample(), status(**ALONE), EVERY_S, "nobody is there with weights of stage 0, 2"),
    ],
)
def test_why_there_is_none(last: Sample, said: dict[str, Any], every_s: float, words: str) -> None:
    why = why_none(last, said, every_s)
    assert words in why
    assert bool(why) == bool(words)
    assert as_json(last, why, is_writing=False)["why"] == why


def test_without_a_snapshot_or_weights_none_is_due() -> None:
    for said in (status(0), status(4, 0), status(**ASIDE), status(**ALONE)):
        assert not is_due(Sample(), said, EVERY_S, 0.0, LATER)


def test_a_model_that_would_crowd_the_machine_is_not_loaded_a_second_time() -> None:
    assert no_room(1_000_000, 2 << 30) == ""
    assert "28.4 GB" in no_room(7_000_000_000, 32 << 30)
    assert no_room(7_000_000_000, 128 << 30) == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"text": 7}',
        b'{"at": "now"}',
        b'{"error": null}',
        b'{"mood": "fine"}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_damaged_one_is_none(data: bytes) -> None:
    assert read_sample(data) == Sample()


def test_it_comes_back_as_it_was() -> None:
    assert read_sample(encode(LAST)) == LAST
    assert json.loads(encode(LAST))["tried_at"] == 5000.0
