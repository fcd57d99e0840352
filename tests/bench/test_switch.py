"""The switch gives lines the rate, delay and loss that they are said to have."""

from __future__ import annotations

import random

import pytest

from peerlm.bench.switch import QUEUE_FRAMES, Due, Switch

A, B, C = b"aaaaaa", b"bbbbbb", b"cccccc"
EVERYBODY = b"\xff" * 6


def frame(to: bytes, sender: bytes, size: int = 1000) -> bytes:
    return (to + sender).ljust(size, b".")


def switch(rate: float = 1e6, delay_s: float = 0.05, loss: float = 0.0, ports: int = 3) -> Switch:
    made = Switch(ports, rate, delay_s, loss, random.Random(1))
    for port, sender in enumerate((A, B, C)[:ports]):
        made.take(port, frame(sender, sender), 0.0)  # to itself: learnt, and sent nowhere
    return made


def all_due(made: Switch, until: float = 1e9) -> list[Due]:
    return list(made.due(until))


def test_a_frame_takes_its_turn_on_both_lines_and_the_delay_between() -> None:
    made = switch()
    made.take(0, frame(B, A), 10.0)
    assert made.patience_s(10.0) == pytest.approx(0.052)
    assert all_due(made, 10.05) == []
    (due,) = all_due(made, 10.053)
    assert (due.port, due.frame) == (1, frame(B, A))
    assert made.patience_s(10.1) is None


def test_a_line_is_as_fast_as_it_is_said_to_be() -> None:
    made = switch(rate=1e6)
    for number in range(50):
        made.take(0, frame(B, A), 10.0 + number * 1e-4)  # ten times as fast as it may leave
    last = all_due(made)[-1]
    assert last.at == pytest.approx(10.0 + 50 * 0.001 + 0.05 + 0.001)


def test_what_does_not_fit_the_queue_is_dropped_and_order_is_kept() -> None:
    made = switch(rate=1e5)
    for number in range(200):
        made.take(0, frame(B, A, 1000 + number), 10.0)
    sizes = [len(due.frame) for due in all_due(made)]
    assert sizes == sorted(sizes)
    assert QUEUE_FRAMES <= len(sizes) < 40
    assert made.dropped == 200 - len(sizes)


def test_two_senders_share_their_receivers_line() -> None:
    made = switch(rate=1e6)
    for _ in range(20):
        made.take(0, frame(C, A), 10.0)
        made.take(1, frame(C, B), 10.0)
    assert all_due(made)[-1].at == pytest.approx(10.0 + 0.001 + 0.05 + 40 * 0.001, abs=2e-3)


def test_who_is_not_known_is_looked_for_everywhere() -> None:
    made = Switch(3, 1e6, 0.0, 0.0, random.Random(1))
    made.take(0, frame(EVERYBODY, A), 1.0)
    assert sorted(due.port for due in all_due(made)) == [1, 2]
    made.take(2, frame(A, C), 2.0)
    assert [due.port for due in all_due(made)] == [0]


def test_as_many_frames_are_lost_as_were_asked_for() -> None:
    made = switch(loss=0.1, rate=1e12)
    for number in range(5000):
        made.take(0, frame(B, A), float(number))
    assert len(all_due(made)) + made.lost == 5000
    assert made.lost == pytest.approx(500, rel=0.15)
