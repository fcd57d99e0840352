"""Lent vectors come back, whatever their length, and not more are kept than may be."""

import numpy as np
import pytest

from peerlm.daemon.spare import KEPT_BYTES_MAX, Spare


def test_one_vector_does_for_every_length() -> None:
    spare = Spare(100)
    with spare.lent(100) as first:
        assert first.shape == (100,)
    with spare.lent(7) as second:
        assert second.shape == (7,)
        assert np.shares_memory(first, second)


def test_two_at_a_time_are_two() -> None:
    spare = Spare(10)
    with spare.lent(10) as first, spare.lent(10) as second:
        assert not np.shares_memory(first, second)


def test_one_that_may_still_be_written_to_is_not_lent_again() -> None:
    spare = Spare(10)
    with pytest.raises(ZeroDivisionError), spare.lent(10) as first:
        raise ZeroDivisionError
    with spare.lent(10) as second:
        assert not np.shares_memory(first, second)


def test_what_is_too_long_is_not_kept() -> None:
    spare = Spare(KEPT_BYTES_MAX // 4 + 1)
    with spare.lent(1) as first:
        pass
    with spare.lent(1) as second:
        assert not np.shares_memory(first, second)
