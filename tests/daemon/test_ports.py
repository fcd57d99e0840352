from __future__ import annotations

import pytest

from peerlm.daemon.ports import PORTS, preferred, remember
from peerlm.store.layout import Layout

PICKED = (45_001, 45_002, 45_003)


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(tmp_path)


def test_picked_ports_are_wanted_again(layout: Layout) -> None:
    assert preferred(layout, 0, or_free=True) == (0, 0, 0)
    remember(layout, 0, PICKED)
    assert preferred(layout, 0, or_free=True) == PICKED
    assert preferred(layout, 7700, or_free=True) == PICKED


def test_the_next_three_in_a_row_are_wanted_where_the_default_is_taken(layout: Layout) -> None:
    taken = {7700, 7712}

    def wanted(base: int, *, or_free: bool = True) -> tuple[int, int, int]:
        return preferred(layout, base, or_free=or_free, is_free=lambda port: port not in taken)

    assert wanted(7700) == (7720, 7721, 7722)
    assert wanted(7700, or_free=False) == (7700, 7701, 7702), "asked for by number"
    assert wanted(0) == (0, 0, 0)
    taken |= set(range(7700, 7900))
    assert wanted(7700) == (7700, 7701, 7702), "then any will do"


def test_a_port_that_was_asked_for_counts_before_a_picked_one(layout: Layout) -> None:
    remember(layout, 0, PICKED)
    assert preferred(layout, 8000, or_free=False) == (8000, 8001, 8002)


def test_ports_that_were_asked_for_are_not_remembered(layout: Layout) -> None:
    remember(layout, 0, PICKED)
    remember(layout, 7700, (7700, 7701, 7702))
    assert not (layout.root / PORTS).exists()
    assert preferred(layout, 7700, or_free=True) == (7700, 7701, 7702)


@pytest.mark.parametrize("text", ["", "1 2", "1 2 3 4", "1 2 99999", "a b c", "1" * 100])
def test_what_cannot_be_read_is_as_if_nothing_had_been_written(layout: Layout, text: str) -> None:
    (layout.root / PORTS).write_text(text)
    assert preferred(layout, 0, or_free=True) == (0, 0, 0)
