"""What is wrong with a node's part of the store is said with how long it has been so, what is awaited, and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from store_scene import Store, peer_of

from peerlm.node.shortage import Shortage, jobs_stuck, wrong
from peerlm.node.status import StoreSummary
from peerlm.types import Instant

WELL = StoreSummary(capacity=10**9, used=10**6, names=2, nodes=3, replicas_wanted=3)


def lines(**changes: Any) -> list[str]:
    return list(wrong(replace(WELL, **changes), others=2))


def test_nothing_is_said_of_what_is_well_or_on_its_way() -> None:
    assert lines() == []
    assert lines(lacking=5, swarm_lacking=9, lacking_s=59.0, pulling=5) == []
    assert lines(nodes=2) == [], "two copies, as far as there are nodes"
    assert lines(names=0, nodes=0) == []
    assert list(wrong(replace(WELL, nodes=1), others=0)) == [], "it is alone, and knows it"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"trouble": "cannot write /n/chunks/1: the file system is read-only; remount it"},
            ("this node's disk takes nothing", "read-only; remount it"),
        ),
        (
            {"lacking": 7, "urgent": 2, "pulling": 4, "lacking_s": 720.0},
            (
                "7 chunks are not here, for 12 min",
                "2 of which may be on one",
                "4 are being fetched",
            ),
        ),
        (
            {"lacking": 1, "lacking_s": 7200.0},
            ("one chunk is not here, for 2.0 h", "repair_bytes_s"),
        ),
        (
            {"lacking": 9, "is_full": True},
            (
                "this node is full: 9 chunks are not here",
                "for a moment",
                "store.bytes (1,000,000,000)",
            ),
        ),
        (
            {"lacking": 3, "unfound": 3, "lacking_s": 99.0},
            ("3 chunks are looked for in vain", "start those that are away"),
        ),
        ({"nodes": 1}, ("only one live node offers room", "no", "second copy", "role store")),
        ({"nodes": 0, "capacity": 0}, ("no live node offers room",)),
        ({"jobs_stuck": ("no node can make job-a: no key",)}, ("no node can make job-a: no key",)),
    ],
)
def test_each_thing_has_one_line(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    (line,) = lines(**changes)
    for word in words:
        assert word in line


def job(**changes: Any) -> dict[str, Any]:
    at = {"name": "job-a", "sweep": "", "tasks": 3, "done": 1, "makers": [], "troubles": {}}
    return {**at, **changes}


def test_a_job_that_nobody_can_do_is_stuck_and_one_that_somebody_does_is_not() -> None:
    troubles = {"aa": "access denied", "bb": "no package"}
    assert jobs_stuck([job()]) == (), "nobody has looked at it yet"
    assert jobs_stuck([job(troubles=troubles)]) == ("no node can make job-a: access denied",)
    assert jobs_stuck([job(troubles=troubles, makers=["cc"])]) == ()
    assert jobs_stuck([job(troubles=troubles, done=3)]) == ()
    assert jobs_stuck([job(troubles=troubles, done=3, sweep="prints")]), "nobody can conclude it"


def test_it_lasts_from_the_first_that_lacks_to_the_last() -> None:
    shortage = Shortage()
    shortage.see(0, Instant(1.0))
    assert shortage.lasts_s(Instant(9.0)) == 0.0
    for lacking, at in ((5, 10.0), (2, 20.0), (7, 30.0)):
        shortage.see(lacking, Instant(at))
    assert shortage.lasts_s(Instant(40.0)) == 30.0
    shortage.see(0, Instant(50.0))
    assert shortage.lasts_s(Instant(60.0)) == 0.0


def test_a_node_that_is_full_knows_for_how_long_it_has_lacked_something() -> None:
    store = Store(2)
    small = store.add(peer_of(3), 1)
    store.run(5.0)
    store.publish(peer_of(1), "plays", [b"x" * 1000])
    store.run(90.0)
    assert small.storing.standing().full
    assert 60.0 < small.storing.shortage.lasts_s(store.now) <= 90.0
    assert store.nodes[peer_of(2)].storing.shortage.lasts_s(store.now) == 0.0
