"""Five hundred minutes of random trouble. A seed that fails says how to see it again."""

from __future__ import annotations

import pytest

from peerlm.cli.sim_pool import all_runs, processors
from peerlm.sim.menus import FAULTS, NODES, live_through

SEEDS = 500


@pytest.mark.timeout(2400)
def test_after_any_trouble_all_is_well_again() -> None:
    failed, menus = [], set[str]()
    calls = [(seed, NODES) for seed in range(1, SEEDS + 1)]
    for lived in all_runs(live_through, calls, processors(), "random faults"):
        menus |= set(lived.menu)
        if lived.story:
            failed.append(f"peerlm sim replay {lived.seed}\n{lived.story}")
    assert not failed, "\n\n".join(failed)
    assert menus == set(FAULTS)
