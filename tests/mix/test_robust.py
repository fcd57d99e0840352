"""Thresholds that follow the swarm, and memory of who broke the rules."""

import pytest

from peerlm.mix.robust import (
    EXCLUSION_MAX_S,
    REQUEST_BURST,
    ClipTracker,
    PeerScores,
    clip_scale,
    is_absurd,
    norms_agree,
)

A, B, C, D = (name * 16 for name in (b"a", b"b", b"c", b"d"))


def seasoned(raw_norm: float = 1.0) -> ClipTracker:
    tracker = ClipTracker(1.5)
    for _ in range(20):
        tracker.update(A, raw_norm, False)
    return tracker


@pytest.mark.parametrize(
    ("theirs", "ours", "agree"),
    [
        (1, 1, True),
        (2, 1, True),
        (1, 2, True),
        (2.01, 1, False),
        (1, 2.01, False),
        (0, 0, True),
        (0, 1e-9, True),
        (0, 1, False),
        (1, 0, False),
        (float("inf"), 1, False),
    ],
)
def test_norm_ratio(theirs, ours, agree):
    assert norms_agree(theirs, ours, size=100) is agree


def test_not_a_number_agrees_with_nothing():
    assert not norms_agree(float("nan"), 1.0, 100)


@pytest.mark.parametrize(
    ("raw", "tau", "scale"), [(1, 2, 1), (2, 2, 1), (4, 2, 0.5), (0, 0, 1), (1, 0, 0)]
)
def test_clip_scale(raw, tau, scale):
    assert clip_scale(raw, tau) == scale


def test_tau_is_a_fifth_of_phi_until_there_is_history():
    tracker = ClipTracker(1.5)
    for k in range(5):
        assert tracker.tau(phi_norm=10.0) == pytest.approx(2.0), k
        tracker.update(A, 0.5, False)
    assert tracker.tau(phi_norm=10.0) == pytest.approx(0.75)


def test_tau_follows_the_median_of_the_last_twenty():
    tracker = seasoned(1.0)
    for _ in range(9):
        tracker.update(A, 100.0, True)
    assert tracker.tau(1.0) == 1.5, "nine of twenty do not move a median"
    for _ in range(11):
        tracker.update(A, 2.0, False)
    assert tracker.tau(1.0) == 3.0


def test_three_distinct_partners_clipped_in_a_row_double_tau_until_one_is_not():
    tracker = seasoned()
    taus = []
    for partner in (A, B, C, D, A):
        tracker.update(partner, 50.0, True)
        taus.append(tracker.tau(1.0))
    assert taus == [1.5, 1.5, 3.0, 6.0, 12.0]
    tracker.update(B, 4.0, False)
    assert tracker.tau(1.0) == 1.5
    tracker.update(C, 50.0, True)
    tracker.update(D, 50.0, True)
    assert tracker.tau(1.0) == 1.5, "the row starts anew"


def test_two_colluding_partners_do_not_double_tau():
    tracker = seasoned()
    for _ in range(4):
        tracker.update(A, 50.0, True)
        tracker.update(B, 50.0, True)
    assert tracker.tau(1.0) == 1.5


def in_company(factor: float = 1.5) -> ClipTracker:
    """Has mixed with four partners, all about as far away."""
    tracker = ClipTracker(factor)
    for partner in (A, B, C, D) * 5:
        assert not tracker.update(partner, 1.0, False)
    return tracker


def test_who_is_far_beyond_tau_four_times_in_a_row_is_a_stranger():
    tracker = in_company()
    verdicts = []
    for other in (B, C, D, B):
        verdicts.append(tracker.update(A, 3.1, True))
        assert not tracker.update(other, 1.0, False)
    assert verdicts == [False, False, False, True]


def test_who_comes_near_in_between_or_stays_below_twice_tau_is_no_stranger():
    tracker = in_company()
    for raw_norm in (3.1, 3.1, 3.1, 1.0, 3.1, 3.1, 3.1, 2.9, 2.9, 2.9, 2.9):
        assert not tracker.update(A, raw_norm, raw_norm > 1.5)
        tracker.update(B, 1.0, False)
        tracker.update(C, 1.0, False)
        tracker.update(D, 1.0, False)


def test_where_more_than_a_third_are_far_away_nobody_is_a_stranger():
    tracker = in_company()
    for _ in range(6):
        assert not tracker.update(A, 50.0, True)
        assert not tracker.update(B, 50.0, True)
        assert not tracker.update(C, 1.0, False)
        assert not tracker.update(D, 1.0, False)


def test_without_a_full_history_nobody_is_a_stranger():
    tracker = ClipTracker(1.5)
    for other in (B, C, D) * 3:
        assert not tracker.update(A, 50.0, True)
        assert not tracker.update(other, 1.0, False)


@pytest.mark.parametrize(
    ("theirs", "ours", "absurd"),
    [(99, 1, False), (101, 1, True), (float("inf"), 1, True), (19, 0, False), (21, 0, True)],
)
def test_norms_no_honest_node_can_have(theirs, ours, absurd):
    assert is_absurd(theirs, ours, size=100) is absurd


def test_exclusion_doubles_and_is_forgiven():
    scores = PeerScores()
    assert not scores.excluded(A, 0.0)
    assert scores.refused(A, 0.0) == 600.0
    assert scores.excluded(A, 599.0)
    assert not scores.excluded(A, 600.0)
    assert scores.refused(A, 600.0) == 600.0 + 1200.0
    assert not scores.excluded(B, 600.0)
    long_after = 1800.0 + 2 * 3600.0
    assert scores.refused(A, long_after) == long_after + 600.0


def test_exclusion_is_never_longer_than_a_day():
    scores = PeerScores()
    for _ in range(50):
        until = scores.refused(A, 0.0)
    assert until == EXCLUSION_MAX_S


def test_a_success_forgets_losses_but_not_refusals():
    scores = PeerScores()
    scores.refused(A, 0.0)
    scores.succeeded(A, 700.0)
    assert scores.refused(A, 700.0) == 700.0 + 1200.0
    scores.failed(B, 0.0)
    scores.failed(B, 0.0)
    assert scores.avoided(B, 3.9)
    assert not scores.excluded(B, 0.0), "who was lost may still ask us"
    scores.succeeded(B, 1.0)
    assert not scores.avoided(B, 1.0)


def test_who_has_excluded_us_is_at_odds_with_us_for_a_while_but_not_excluded():
    scores = PeerScores()
    scores.excluded_by(A, 0.0)
    assert scores.at_odds(A, 59.0)
    assert not scores.excluded(A, 59.0), "it may still ask us"
    assert not scores.at_odds(A, 60.0)
    scores.excluded_by(A, 60.0)
    scores.succeeded(A, 61.0)
    assert not scores.at_odds(A, 61.0)
    scores.refused(B, 0.0)
    assert scores.at_odds(B, 599.0)
    assert not scores.at_odds(B, 600.0)


def test_requests_are_limited_per_peer_and_fragment():
    scores = PeerScores()
    assert all(scores.allow_request(A, 7, 0.0) for _ in range(int(REQUEST_BURST)))
    assert not scores.allow_request(A, 7, 0.0)
    assert scores.allow_request(A, 8, 0.0)
    assert scores.allow_request(B, 7, 0.0)
    assert scores.allow_request(A, 7, 1.0)
    assert sum(scores.allow_request(A, 7, 1000.0) for _ in range(100)) == REQUEST_BURST
