"""What the store promises of its disk, as bench.store_disk measures it: few of each here, all of them where it may take minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.store_disk import flip_many, kill_often


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_what_was_acknowledged_outlives_every_kill_and_litter_none(
    tmp_path: Path, kills: int
) -> None:
    found = kill_often(tmp_path / "state", kills, seed=kills)
    assert found.kills == kills
    assert (found.lost, found.left) == (0, 0)
    assert found.acknowledged >= kills, "hardly anything was put: the test proves nothing"
    assert found.litter, "the kills never hit a write: the test proves nothing"


@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found_and_none_is_returned(tmp_path: Path, flips: int) -> None:
    found = flip_many(tmp_path / "state", flips, seed=flips)
    assert (found.flips, found.found, found.wrongly, found.returned) == (flips, flips, 0, 0)
