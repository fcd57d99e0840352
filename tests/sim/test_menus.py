"""Hours of random trouble. A seed that fails says how to see it again."""

from __future__ import annotations

from collections import Counter

import pytest

from peerlm.cli.sim_pool import all_runs
from peerlm.data.processes import processors
from peerlm.mix.algorithms import ALGORITHMS
from peerlm.sim.menus import FAULTS, NODES, Trouble, live_through
from peerlm.sim.world import World
from peerlm.swarm.sampler import MAKERS

FIRST, ALL = 100, 500
"""Seeds of every run, in which every fault comes six times or more, and those of the slow ones too. Ten thousand:
`python -m bench.faults`."""


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(1, FIRST + 1), id=f"1-{FIRST}"),
        pytest.param(range(FIRST + 1, ALL + 1), id=f"{FIRST + 1}-{ALL}", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(2400)
def test_after_any_trouble_all_is_well_again(seeds: range) -> None:
    failed, menus = [], set[str]()
    calls = [(seed, NODES) for seed in seeds]
    for lived in all_runs(live_through, calls, processors(), "random faults"):
        menus |= set(lived.menu)
        if lived.story:
            failed.append(f"peerlm sim replay {lived.seed}\n{lived.story}")
    assert not failed, "\n\n".join(failed)
    assert menus == set(FAULTS)


def test_menus_draw_every_algorithm_and_sampler_that_mixes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(World, "swarm", lambda self, n: self)
    mixes = [Trouble(seed, NODES, None).world.plan.plan.mix for seed in range(200)]
    algorithms = Counter(mix.algorithm for mix in mixes)
    samplers = Counter(mix.sampler for mix in mixes)
    assert set(algorithms) == {name for name, rule in ALGORITHMS.items() if rule.mixes}
    assert set(samplers) == set(MAKERS)
    assert algorithms.most_common(1)[0][0] == "outer_mix"
    assert samplers.most_common(1)[0][0] == "uniform"


def test_recovery_is_counted_from_when_everything_was_mended() -> None:
    trouble = Trouble(1, 4, None)
    world = trouble.world
    world.run(10)
    world.freeze(1, 6.0)
    mended = world.now
    assert trouble.recover() == world.now - mended >= 6.0
