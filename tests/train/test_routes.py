"""Where the stream goes: to whoever can take it, and more to whoever is fast."""

from __future__ import annotations

import random
from collections import Counter

from peerlm.train.routes import FORGIVE_S, PATIENCE_S_MAX, PATIENCE_S_MIN, SLOWEST_S, Routes
from peerlm.types import Instant, PeerId

ME, ANN, BOB, EVE = (PeerId(bytes([n]) * 16) for n in range(4))
RUNS = {ANN: (1, 1), BOB: (1, 2), EVE: (2, 3)}


def routes() -> Routes:
    made = Routes(random.Random(1))
    assert made.hosts_are(RUNS) == []
    return made


def tell(made: Routes, host: PeerId, took_s: float, times: int = 1) -> None:
    for number in range(times):
        made.sent((ME, number, 1), host, Instant(0.0))
        made.came_back((ME, number, 1), Instant(took_s))


def drawn(made: Routes, stage: int, times: int = 600) -> Counter[PeerId | None]:
    return Counter(made.choose(stage) for _ in range(times))


def test_a_stage_goes_to_those_that_hold_it() -> None:
    made = routes()
    assert set(drawn(made, 1)) == {ANN, BOB}
    assert set(drawn(made, 3)) == {EVE}
    assert made.choose(4) is None
    assert (made.has(3), made.has(4)) == (True, False)
    assert (made.knows(EVE), made.knows(ME)) == (True, False)


def test_a_host_gets_work_by_how_fast_it_was() -> None:
    made = routes()
    tell(made, ANN, 0.1)
    tell(made, BOB, 0.3)
    shares = drawn(made, 1, 4000)
    assert 2.5 < shares[ANN] / shares[BOB] < 3.5


def test_one_that_was_never_tried_counts_as_the_fastest() -> None:
    made = routes()
    tell(made, ANN, 0.1)
    shares = drawn(made, 1, 4000)
    assert 0.8 < shares[ANN] / shares[BOB] < 1.25


def test_one_that_was_never_tried_counts_by_how_far_it_is() -> None:
    made = routes()
    made.hosts_are(RUNS, {ANN: 0.1, BOB: 0.9})
    tell(made, ANN, 0.2)
    shares = drawn(made, 1, 4000)
    assert 4.0 < shares[ANN] / shares[BOB] < 6.2, "0.1 s of work and the way: 0.2 s and 1.0 s"
    tell(made, BOB, 0.2)
    shares = drawn(made, 1, 4000)
    assert 0.8 < shares[ANN] / shares[BOB] < 1.25, "what was measured counts"


def test_one_that_has_much_to_do_gets_less() -> None:
    made = routes()
    for number in range(3):
        made.sent((ME, number, 1), ANN, Instant(0.0))
    shares = drawn(made, 1, 4000)
    assert 3.3 < shares[BOB] / shares[ANN] < 4.8


def test_one_that_loses_what_it_gets_gets_less_but_some() -> None:
    made = routes()
    tell(made, ANN, 0.1)
    tell(made, BOB, 0.1)
    for number in range(3):
        made.sent((ME, number, 1), BOB, Instant(0.0))
        made.lost((ME, number, 1))
        assert made.host_of((ME, number, 1)) is None
    shares = drawn(made, 1, 4000)
    assert 6 < shares[ANN] / shares[BOB] < 11
    tell(made, ANN, SLOWEST_S, times=50)
    for number in range(100):
        made.sent((ME, number, 1), BOB, Instant(SLOWEST_S))
        made.lost((ME, number, 1))
    assert 0.7 < drawn(made, 1)[BOB] / 300 < 1.3
    tell(made, BOB, 0.1, times=50)
    assert drawn(made, 1)[BOB] > 550


def test_losses_are_forgiven_by_time_and_by_a_gradient() -> None:
    """Where a later stage is missing for a second, a host that is well loses all that it gets. It was left out for a quarter
    of an hour then."""
    made = routes()
    tell(made, ANN, 0.1)
    tell(made, BOB, 0.1)
    for number in range(12):
        made.sent((ME, number, 1), BOB, Instant(1.0))
        made.lost((ME, number, 1))
    assert drawn(made, 1)[BOB] < 20
    assert made.patience_s == PATIENCE_S_MAX
    made.overdue(Instant(1.0 + 9 * FORGIVE_S))
    assert 50 < drawn(made, 1)[BOB] < 100
    made.overdue(Instant(1.0 + 12 * FORGIVE_S))
    assert 250 < drawn(made, 1)[BOB] < 350
    assert made.patience_s == PATIENCE_S_MIN
    for number in range(12):
        made.sent((ME, number, 1), BOB, Instant(100.0))
        made.lost((ME, number, 1))
    made.sent((ME, 20, 1), BOB, Instant(100.0))
    made.came_back((ME, 20, 1), Instant(100.1))
    assert 250 < drawn(made, 1)[BOB] < 350


def test_who_says_nothing_is_forgiven_later_than_who_says_no() -> None:
    made = routes()
    tell(made, ANN, 0.1)
    tell(made, BOB, 0.1)
    made.sent((ME, 1, 1), BOB, Instant(0.0))
    made.sent((ME, 2, 1), BOB, Instant(0.0))
    assert made.overdue(Instant(6.0)) == [(ME, 1, 1), (ME, 2, 1)]
    made.lost((ME, 1, 1))
    made.lost((ME, 2, 1))
    made.overdue(Instant(65.0))
    assert 3 < drawn(made, 1)[ANN] / drawn(made, 1)[BOB] < 5
    made.overdue(Instant(67.0))
    assert 1.6 < drawn(made, 1)[ANN] / drawn(made, 1)[BOB] < 2.5


def test_a_loss_of_what_is_not_under_way_or_of_one_that_is_gone_is_nothing() -> None:
    made = routes()
    made.lost((ME, 1, 1))
    made.sent((ME, 1, 1), BOB, Instant(0.0))
    assert made.hosts_are({ANN: (1, 1)}) == [(ME, 1, 1)]
    made.lost((ME, 1, 1))
    made.hosts_are(RUNS)
    assert 250 < drawn(made, 1)[BOB] < 350


def test_hosts_that_are_gone_are_told_by_what_they_had() -> None:
    made = routes()
    made.sent((ME, 1, 1), ANN, Instant(0.0))
    made.sent((ME, 2, 1), BOB, Instant(0.0))
    made.sent((BOB, 2, 1), ANN, Instant(0.0))
    assert made.hosts_are({BOB: (1, 2)}) == [(ME, 1, 1), (BOB, 2, 1)]
    assert made.host_of((ME, 2, 1)) == BOB
    assert made.hosts_are({}) == [(ME, 1, 1), (ME, 2, 1), (BOB, 2, 1)]
    assert not made.has(1)


def test_what_is_late_is_told_until_it_is_forgotten() -> None:
    made = routes()
    made.sent((ME, 1, 1), ANN, Instant(0.0))
    made.sent((ME, 2, 1), ANN, Instant(5.0))
    assert made.overdue(Instant(30.0)) == []
    assert made.overdue(Instant(31.0)) == [(ME, 1, 1)]
    made.forget((ME, 1, 1))
    made.forget((ME, 1, 1))
    assert made.overdue(Instant(31.0)) == []


def test_an_instant_answer_is_no_division_by_nothing() -> None:
    made = routes()
    tell(made, ANN, 0.0)
    tell(made, BOB, 0.0)
    assert set(drawn(made, 1)) == {ANN, BOB}


def test_patience_is_many_times_what_a_way_takes_within_bounds() -> None:
    made = routes()
    assert made.patience_s == PATIENCE_S_MAX
    for number, took in ((1, 0.01), (2, 0.01)):
        made.sent((ME, number, 1), ANN, Instant(0.0))
        made.came_back((ME, number, 1), Instant(took))
    assert made.patience_s == PATIENCE_S_MIN
    made.sent((ME, 3, 1), BOB, Instant(0.0))
    made.came_back((ME, 3, 1), Instant(2.0))
    assert made.patience_s == 16.0


def handed(made: Routes, stage: int, passes: int = 0, times: int = 4000) -> Counter[PeerId | None]:
    return Counter(made.hand_over(stage, passes) for _ in range(times))


def test_who_could_go_on_shares_with_those_that_begin_there_and_with_nobody_else() -> None:
    made = routes()
    assert set(handed(made, 3)) == {None}, "who holds 3 has come by it already"
    assert set(handed(made, 2)) == {None, EVE}
    assert set(handed(made, 1)) == {None, ANN, BOB}


def test_who_could_go_on_draws_itself_by_the_rule_for_all() -> None:
    made = routes()
    tell(made, EVE, 0.1)
    shares = handed(made, 2)
    assert 0.8 < shares[EVE] / shares[None] < 1.25
    shares = handed(made, 2, passes=3)
    assert 3.3 < shares[EVE] / shares[None] < 4.8
    made.went_on(0.3)
    shares = handed(made, 2)
    assert 2.5 < shares[EVE] / shares[None] < 3.5
    made.sent((ME, 1, 2), EVE, Instant(0.0))
    shares = handed(made, 2)
    assert 1.2 < shares[EVE] / shares[None] < 1.8


def test_of_two_passes_of_one_microbatch_a_word_means_the_one_it_names() -> None:
    made = routes()
    made.sent((ME, 1, 1), BOB, Instant(0.0))
    assert made.sent_to(BOB, (ME, 1, 1)) == (ME, 1, 1)
    assert made.sent_to(BOB, (ME, 1, 0)) == (ME, 1, 1), "a node of before names none"
    made.sent((ME, 1, 3), BOB, Instant(0.0))
    assert made.sent_to(BOB, (ME, 1, 3)) == (ME, 1, 3)
    assert made.sent_to(BOB, (ME, 1, 0)) is None
    assert made.sent_to(BOB, (ME, 1, 2)) is None
    assert made.sent_to(ANN, (ME, 1, 1)) is None
