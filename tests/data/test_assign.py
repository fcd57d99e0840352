import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.data.assign import RANGES_MAX, assigned, cut, offset
from peerlm.types import PeerId

seeds = st.integers(0, 2**63)
passes = st.integers(0, 2**40)
peers = st.binary(min_size=16, max_size=16).map(PeerId)
views = st.lists(peers, min_size=1, max_size=8, unique=True)

MANY = 500  # ranges; with at most nine peers nobody's share is empty


def owners(seed: int, pass_number: int, members: list[PeerId], ranges: int) -> dict[int, PeerId]:
    """Who reads which range; fails if two do."""
    found: dict[int, PeerId] = {}
    for peer in members:
        for index in assigned(seed, pass_number, peer, members, ranges):
            assert found.setdefault(index, peer) == peer, index
    return found


@settings(max_examples=30)
@given(seeds, passes, views)
def test_every_range_has_exactly_one_reader(seed: int, number: int, view: list[PeerId]) -> None:
    assert sorted(owners(seed, number, view, MANY)) == list(range(MANY))


@settings(max_examples=30)
@given(seeds, passes, views, peers)
def test_a_newcomer_takes_only_what_becomes_its_own(
    seed: int, number: int, view: list[PeerId], newcomer: PeerId
) -> None:
    before = owners(seed, number, view, MANY)
    after = owners(seed, number, [*view, newcomer] if newcomer not in view else view, MANY)
    assert all(after[i] in (before[i], newcomer) for i in range(MANY))


@settings(max_examples=30)
@given(seeds, passes, views, st.randoms(use_true_random=False))
def test_the_order_of_members_means_nothing(seed, number, view, chance) -> None:  # type: ignore[no-untyped-def]
    shuffled = view.copy()
    chance.shuffle(shuffled)
    for peer in view:
        assert assigned(seed, number, peer, view, 50) == assigned(seed, number, peer, shuffled, 50)


@settings(max_examples=30)
@given(seeds, passes, views, peers, st.integers(1, 40))
def test_nobody_starves_and_nothing_is_left_however_few_the_ranges(
    seed: int, number: int, view: list[PeerId], peer: PeerId, ranges: int
) -> None:
    assert assigned(seed, number, peer, view, ranges)  # even one whom the view forgot
    read = {i for member in view for i in assigned(seed, number, member, view, ranges)}
    assert read == set(range(ranges))


def test_shares_are_even_within_statistics() -> None:
    view = [PeerId(bytes([i]) * 16) for i in range(16)]
    ranges = 8000
    fair = ranges / len(view)
    for peer in view:
        share = len(assigned(7, 3, peer, view, ranges))
        assert abs(share - fair) < 5 * math.sqrt(fair)


def test_an_order_of_its_own_in_every_pass() -> None:
    alone = PeerId(b"a" * 16)
    first, second = (assigned(1, number, alone, [alone], 1000) for number in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert sum(b == a + 1 for a, b in itertools.pairwise(first)) < 10


def test_passes_and_seeds_share_out_differently() -> None:
    view = [PeerId(b"a" * 16), PeerId(b"b" * 16)]
    shares = [
        set(assigned(seed, number, view[0], view, 400)) for seed, number in ((1, 0), (1, 1), (2, 0))
    ]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 50 < len(shares[a] & shares[b]) < 150  # by chance a quarter of 400


def test_the_same_on_every_machine() -> None:
    view = [PeerId(b"a" * 16), PeerId(b"b" * 16), PeerId(b"c" * 16)]
    assert [assigned(1, 2, peer, view, 12) for peer in view] == [
        (1, 8, 2),
        (5, 10, 6, 4),
        (3, 11, 7, 0, 9),
    ]
    assert [offset(1, number, 129) for number in range(4)] == [21, 93, 97, 84]


def test_offsets_spread_over_a_window() -> None:
    drawn = [offset(5, number, 129) for number in range(500)]
    assert min(drawn) < 10
    assert max(drawn) > 118
    assert max(drawn) < 129
    assert len(set(drawn)) > 100


@given(st.integers(2, 10**13), st.integers(1, 5000))
def test_the_cut_fits_the_text_with_room_for_any_offset(train_tokens: int, window: int) -> None:
    train_tokens = max(train_tokens, 2 * window)
    made = cut(train_tokens, window)
    assert 1 <= made.ranges <= RANGES_MAX
    at, windows = made.range_at(made.ranges - 1)
    assert 1 <= windows <= made.range_windows
    assert train_tokens - 2 * window < at + windows * window <= train_tokens - window
    assert at == (made.ranges - 1) * made.range_windows * window


def test_short_text_is_cut_as_finely_as_it_can_be() -> None:
    assert cut(1_000_000, 129).range_windows == 1


@pytest.mark.parametrize("ranges", [1, 2])
def test_fewer_ranges_than_peers_are_shared(ranges: int) -> None:
    view = [PeerId(bytes([i]) * 16) for i in range(10)]
    shares = [assigned(1, 0, peer, view, ranges) for peer in view]
    assert all(1 <= len(share) <= ranges for share in shares)
