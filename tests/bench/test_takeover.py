"""How long a takeover took is told from what nodes say, one after the other, and the worst counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import takeover
from bench.takeover import Line, Taken, room, rows
from peerlm.config import preset, with_changes
from peerlm.model.stages import memory_of, stages


def said(lacking: tuple[int, ...], held: int, tokens: int) -> dict[str, Any]:
    found = {"first": held, "last": held, "lacking": list(lacking)}
    return {"stages": found, "swarm_tokens": tokens, "epoch": 1}


def test_the_moments_of_a_takeover_are_read_from_the_spare_and_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, now, killed = Line(tmp_path, 800.0), [0.0], list[float]()
    line.nodes.append(line.spare)
    told = [
        *(said((), 1, 5000 + n) for n in range(3)),  # it has not heard yet, and some come home
        *(said((2,), 1, 5100) for _ in range(4)),
        *(said((2,), 2, 5200) for _ in range(2)),
        *(said((), 2, 5300 + 400 * n) for n in range(6)),
    ]

    def look() -> None:
        now[0] += 1.0
        line.spare.status = told[int(now[0]) - 1]

    monkeypatch.setattr(line, "look", look)
    monkeypatch.setattr(takeover.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(takeover.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(line.nodes[2], "kill", lambda: killed.append(now[0]))
    taken = line.host_killed(2)
    assert killed == [0.0]
    assert taken == Taken(stage=2, heard_s=4.0, held_s=8.0, rising_s=13.0)
    assert taken.able_s == 9.0


def test_the_worst_of_several_is_held_to_half_a_minute() -> None:
    quick, slow = Taken(1, 3.0, 8.0, 12.0), Taken(2, 2.0, 20.0, 33.0)
    bounds = {row.what: row for row in rows([quick, slow], 0) if row.ok is not None}
    (able,) = (row for what, row in bounds.items() if what.startswith("the spare can take it"))
    assert (able.value, able.ok) == (31.0, False)
    assert all(row.ok for row in rows([quick], 0) if row.ok is not None)


def test_a_spare_has_room_for_one_stage_and_not_for_two() -> None:
    cut = stages(with_changes(preset("tiny"), takeover.PLAN, "test"))
    fits = {
        (a, b): memory_of(cut, range(a, b)).total() <= room()
        for a, b in ((0, 1), (1, 2), (2, 3), (1, 3))
    }
    assert fits == {(0, 1): False, (1, 2): True, (2, 3): True, (1, 3): False}
