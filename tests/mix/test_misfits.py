"""Who never fits is excluded; who lags, learns faster, or meets many others that do not fit is not."""

from __future__ import annotations

import pytest

from peerlm.mix.robust import EXCLUSION_S, FITTING_MIN, MISFIT_S, MISFIT_TIMES, Misfits
from peerlm.types import Instant, PeerId

OTHERS = [PeerId(bytes([number]) * 16) for number in range(1, 8)]
MISFIT, *FITTING = OTHERS


def minute(
    misfits: Misfits, *, times: int = MISFIT_TIMES, seconds: float = MISFIT_S, fitting: int = 6
) -> list[bool]:
    """So many refusals over so long, each after exchanges with others that went well."""
    verdicts = []
    for number in range(times):
        now = Instant(100.0 + seconds * number / (times - 1))
        for peer in FITTING[:fitting]:
            misfits.fits(peer, now)
        verdicts.append(misfits.failed(MISFIT, now))
    return verdicts


def test_who_has_not_fitted_for_a_minute_is_excluded_and_then_it_begins_anew() -> None:
    misfits = Misfits()
    assert minute(misfits) == [False] * (MISFIT_TIMES - 1) + [True]
    assert misfits.failed(MISFIT, Instant(200.0)) is False


@pytest.mark.parametrize(
    "unlike",
    [{"times": MISFIT_TIMES - 1}, {"seconds": MISFIT_S - 1}, {"fitting": FITTING_MIN - 1}],
)
def test_too_seldom_too_short_or_with_too_few_who_fit_is_not_enough(
    unlike: dict[str, float],
) -> None:
    assert not any(minute(Misfits(), **unlike))  # type: ignore[arg-type]


def test_a_laggard_that_has_caught_up_has_a_clean_slate() -> None:
    misfits = Misfits()
    minute(misfits, times=MISFIT_TIMES - 1, seconds=MISFIT_S)
    misfits.fits(MISFIT, Instant(165.0))
    assert misfits.failed(MISFIT, Instant(170.0)) is False


def test_where_many_do_not_fit_it_may_be_us() -> None:
    misfits, strange = Misfits(), OTHERS[:3]
    for number in range(4 * MISFIT_TIMES):
        now = Instant(100.0 + 5.0 * number)
        for peer in OTHERS[3:]:
            misfits.fits(peer, now)
        for peer in strange:
            assert misfits.failed(peer, now) is False


def test_refusals_that_are_far_apart_are_not_in_a_row() -> None:
    misfits, now = Misfits(), Instant(0.0)
    for _ in range(3 * MISFIT_TIMES):
        now = Instant(now + EXCLUSION_S + 1)
        for peer in FITTING:
            misfits.fits(peer, now)
        assert misfits.failed(MISFIT, now) is False
