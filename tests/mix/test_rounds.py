"""How many exchanges follow an outer step, and how momentum rises."""

from __future__ import annotations

import numpy as np
import pytest
from exchange_pool import Pool, peer_id

from peerlm.config import MixSection, Plan, told, with_changes
from peerlm.effects import RunExchange
from peerlm.mix import algorithms
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.rounds import FURTHER_MAX, exchanges_after, warmed
from peerlm.types import FragmentId, Instant


@pytest.mark.parametrize("exchanges", [0, 1, 3])
def test_a_plan_that_says_nothing_else_has_its_exchanges_after_each_step(exchanges: int) -> None:
    mix = MixSection(exchanges=exchanges)
    for version, distance in ((1, None), (2, 0.9), (4, 1e-6)):
        assert exchanges_after(mix, version, distance, 7, waits=False) == exchanges


def test_far_apart_an_exchange_more_for_each_factor_of_two() -> None:
    mix = MixSection(spread_target=0.01)
    many = [
        exchanges_after(mix, 1, distance, 20, waits=False)
        for distance in (None, 0.005, 0.01, 0.011, 0.02, 0.021, 0.08, 10.0)
    ]
    assert many == [1, 1, 1, 2, 2, 3, 4, 1 + FURTHER_MAX]


@pytest.mark.parametrize(("partners", "wanted"), [(1, 1), (3, 3), (7, 4), (15, 5), (16, 6)])
def test_now_and_then_as_many_as_come_close_to_an_average(partners: int, wanted: int) -> None:
    mix = MixSection(settle_every=3)
    many = [exchanges_after(mix, version, 0.1, partners, waits=False) for version in range(1, 7)]
    assert many == [1, 1, wanted, 1, 1, wanted]


@pytest.mark.parametrize("rule", [{"settle_every": 1}, {"spread_target": 1e-4}])
def test_not_where_exchanges_are_off_or_wait_in_the_momentum(rule: dict[str, float]) -> None:
    assert exchanges_after(MixSection(exchanges=0, **rule), 2, 0.5, 7, waits=False) == 0
    assert exchanges_after(MixSection(**rule), 2, 0.5, 7, waits=True) == 1


def test_a_node_settles_with_distinct_partners_after_its_second_step() -> None:
    pool = Pool(4, **{"mix.settle_every": 2})
    machine, others = pool.site(1).machine, tuple(peer_id(i) for i in (2, 3, 4))
    met = []
    for version in (1, 2):
        machine.outcomes.stepped(FragmentId(0), version, 1.0)
        begun = len(pool.site(1).effects)
        pool.carry(peer_id(1), machine.stepped(FragmentId(0), others, Instant(pool.now)))
        pool.complete_all()
        effects = pool.site(1).effects[begun:]
        met.append([e.peer for e in effects if isinstance(e, RunExchange)])
    assert [len(peers) for peers in met] == [1, 3]
    assert sorted(met[1]) == list(others)


def test_momentum_rises_over_the_first_outer_steps() -> None:
    mix = MixSection(outer_momentum=0.8, momentum_warmup=4)
    assert [warmed(mix, n).outer_momentum for n in range(6)] == pytest.approx(
        [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    )
    assert warmed(MixSection(outer_momentum=0.8), 0).outer_momentum == 0.8


def test_a_fragments_first_outer_step_goes_where_its_inner_steps_went() -> None:
    moved = []
    for warmup in (0, 2):
        mix = MixSection(outer_momentum=0.5, momentum_warmup=warmup)
        fragment = SlowFragment(np.zeros(3, np.float32))
        theta = fragment.new_generation(1) + np.float32(1.0)
        fragment.boundary(theta, 0, 1, algorithms.get("outer_mix"), mix)
        moved.append(float(fragment.phi[0]))
    assert moved == [1.5, 1.0]


def test_a_plan_without_these_rules_is_written_as_it_always_was() -> None:
    assert not {"momentum_warmup", "settle_every", "spread_target"} & told(Plan())["mix"].keys()
    changed = with_changes(Plan(), {"mix.settle_every": 4}, "test")
    assert told(changed)["mix"]["settle_every"] == 4
