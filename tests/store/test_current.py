"""Whether a register is current: what counts as compared, for how long, and who goes on together."""

from __future__ import annotations

import pytest

from peerlm.store.current import COMPANY_S, CURRENT_S, DAY_S, SETTLED_S, Current
from peerlm.store.names import HIGHEST, LOWEST, following
from peerlm.types import Instant, PeerId, WallTime

ONE, OTHER = PeerId(b"1" * 16), PeerId(b"2" * 16)
WALL, MIDDLE = WallTime(1e9), b"m" * 8
FIRST, LAST, WHOLE = (LOWEST, MIDDLE), (following(MIDDLE), HIGHEST), (LOWEST, HIGHEST)


def after_hearing(*pages: tuple[PeerId, tuple[bytes, bytes], float]) -> bool:
    """`pages`: who shows what, when."""
    current = Current(None)
    for peer, (low, high), at in pages:
        current.heard(peer, low, high, WALL, Instant(at))
    return current.holds(WALL)


def test_it_is_compared_twice_whole_with_time_for_what_is_lacking() -> None:
    assert after_hearing((ONE, WHOLE, 0), (OTHER, WHOLE, SETTLED_S))
    assert not after_hearing((ONE, WHOLE, 0), (OTHER, WHOLE, SETTLED_S - 1))
    assert after_hearing((ONE, FIRST, 0), (ONE, LAST, 0), (ONE, FIRST, 99), (ONE, LAST, 99))


@pytest.mark.parametrize(
    "pages",
    [[(ONE, FIRST)], [(ONE, LAST)], [(ONE, FIRST), (OTHER, LAST)], [(ONE, LAST), (ONE, FIRST)]],
)
def test_pages_that_leave_something_out_are_no_comparison(
    pages: list[tuple[PeerId, tuple[bytes, bytes]]],
) -> None:
    twice = [(*page, float(at)) for at in (0, 99) for page in pages]
    assert not after_hearing(*twice)


@pytest.mark.parametrize(
    ("later", "holds"),
    [(0, True), (CURRENT_S - 1, True), (CURRENT_S, False), (-DAY_S / 2, True), (-2 * DAY_S, False)],
)
def test_it_holds_for_twenty_days_and_not_by_a_clock_that_was_ahead(
    later: float, holds: bool
) -> None:
    assert Current(WALL).holds(WallTime(WALL + later)) is holds


def test_alone_nobody_becomes_current_and_in_company_only_where_nobody_is() -> None:
    current, now = Current(None), 0.0
    for linked, heard in ([], False), ([ONE], True), ([ONE], False):
        for _ in range(int(COMPANY_S / 60)):
            assert not current.holds(WALL), (linked, heard)
            now += 60
            if heard:
                current.heard(ONE, *LAST, WALL, Instant(now))
            current.look(linked, WALL, Instant(now))
    current.look([ONE], WALL, Instant(now + 60))
    assert current.holds(WALL)
