"""Models that no machine of this size can hold are refused before anything is made."""

from __future__ import annotations

import pytest

from peerlm.config import Plan, with_changes
from peerlm.daemon.memory import require_memory
from peerlm.errors import ConfigError


def test_a_model_that_cannot_fit_is_refused_with_figures() -> None:
    huge = with_changes(Plan(), {"model.dim": "1000000000"}, "--set")
    with pytest.raises(ConfigError, match=r"parameters takes [\d,.]+ GB .* has 24\.0 GB"):
        require_memory(huge, range(1), 24 * 10**9)


def test_one_that_fits_is_not() -> None:
    require_memory(Plan(), range(1), 10**9)
