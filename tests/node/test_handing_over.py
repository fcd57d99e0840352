"""Who leaves for good goes when others hold what only it held, and never waits for nobody."""

from __future__ import annotations

import dataclasses
from typing import Any

from peerlm.node.handing_over import HAND_OVER_S, HandingOver, held_alone
from peerlm.swarm.hosting import Hosting
from peerlm.types import Instant, PeerId
from peerlm.wire.message import Vitals

A, B = PeerId(b"a" * 16), PeerId(b"b" * 16)
PLAIN = Vitals(A, 1, 1, 0, "training", True, True, False, 1, None, None, None, 1.0)


def vitals(first: int, last: int, **more: Any) -> Vitals:
    return dataclasses.replace(PLAIN, first_stage=first, last_stage=last, **more)


def test_what_nobody_else_holds() -> None:
    mine = Hosting(0, 1, 3)
    assert held_alone(mine, {}) == [0, 1]
    assert held_alone(mine, {A: vitals(1, 2)}) == [0]
    assert held_alone(mine, {A: vitals(1, 2), B: vitals(0, 0)}) == []
    assert held_alone(mine, {A: vitals(0, 2, is_draining=True)}) == [0, 1], "who leaves is no help"
    assert held_alone(Hosting(0, 0, 1), {}) == [], "a model in one piece is at everybody's"
    assert held_alone(Hosting(1, 0, 3), {}) == [], "who holds nothing hands nothing over"


def test_it_goes_when_all_is_held_elsewhere_or_nobody_can_or_time_is_up() -> None:
    now = Instant(100.0)
    handing = HandingOver()
    handing.begin(now)
    able, fixed = {A: vitals(1, 1, is_auto=True)}, {A: vitals(1, 1)}
    assert not handing.is_over([0], able, now)
    assert handing.is_over([], able, now)
    assert handing.is_over([0], fixed, now), "nobody decides by itself what it holds"
    assert handing.is_over([0], {A: vitals(1, 1, is_auto=True, is_draining=True)}, now)
    handing.begin(Instant(now + 50))
    assert not handing.is_over([0], able, Instant(now + HAND_OVER_S - 1)), "it began once"
    assert handing.is_over([0], able, Instant(now + HAND_OVER_S + 1))
