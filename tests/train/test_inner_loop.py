"""The worker's own small decisions, without a process: pace, tally, patience."""

from __future__ import annotations

import socket

import pytest

from peerlm.train import protocol
from peerlm.train.channel import Channel, DaemonGone, one_line
from peerlm.train.inner_loop import Pace, Tally


def tokens_trained(pace: Pace, seconds: float, step_s: float, tokens: int) -> int:
    """Steps of `step_s` seconds, whenever the pace allows one, on a clock of our own."""
    now, trained = 100.0, 0
    while now < 100.0 + seconds:
        now += pace.wait_s(now)
        assert pace.is_due(now)
        pace.began(now, tokens)
        trained += tokens
        now += step_s
    return trained


def test_a_pace_is_held() -> None:
    assert tokens_trained(Pace(1000.0), 60.0, 0.01, 50) == pytest.approx(60_000, rel=0.01)


def test_no_pace_means_no_waiting() -> None:
    assert tokens_trained(Pace(0.0), 10.0, 0.5, 50) == 1000


def test_time_lost_is_not_made_up_for() -> None:
    pace = Pace(1000.0)
    pace.began(0.0, 100)
    pace.began(60.0, 100)  # a minute's pause
    pace.began(60.0, 100)  # one step is forgiven
    assert pace.wait_s(60.0) == pytest.approx(0.1)


def test_a_pace_of_all_is_shared_by_who_reads_and_taken_over_when_one_goes() -> None:
    for readers, tokens in ((1, 60_000), (2, 30_000), (4, 15_000)):
        pace = Pace(0.0, 1000.0)
        pace.shared_by(4)
        pace.shared_by(readers)
        assert tokens_trained(pace, 60.0, 0.01, 50) == pytest.approx(tokens, rel=0.02)


def test_the_slower_of_two_paces_holds() -> None:
    for readers, tokens in ((2, 18_000), (5, 12_000)):
        pace = Pace(300.0, 1000.0)
        pace.shared_by(readers)
        assert tokens_trained(pace, 60.0, 0.01, 50) == pytest.approx(tokens, rel=0.02)


def test_steps_that_were_not_finite_count_as_such_and_teach_nothing() -> None:
    tally = Tally()
    tally.begin_report(10.0)
    tally.add(100, 3.0, finite=True)
    tally.add(100, float("nan"), finite=False)
    tally.add(100, 2.0, finite=True)
    assert (tally.steps, tally.tokens, tally.nonfinite_steps) == (3, 200, 1)
    assert tally.loss() == 2.5
    assert tally.tokens_per_s(12.0) == 100.0
    tally.begin_report(12.0)
    assert tally.loss() is None
    assert tally.tokens_per_s(13.0) == 0.0


def test_what_comes_with_the_first_message_is_kept_for_later() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(protocol.frame(protocol.Drain()) + protocol.frame(protocol.Stop()))
        channel = Channel(theirs)
        assert channel.receive_one() == protocol.Drain()
        assert channel.receive() == [protocol.Stop()]
        assert channel.receive() == []


def test_half_a_message_is_no_message_yet() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = protocol.frame(protocol.Failed("long" * 50))
        ours.sendall(data[:20])
        channel = Channel(theirs)
        assert channel.receive(0.001) == []
        ours.sendall(data[20:])
        assert channel.receive() == [protocol.Failed("long" * 50)]


@pytest.mark.parametrize("unread", [False, True])
def test_a_daemon_that_is_gone_is_noticed(unread: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(theirs)
        if unread:
            channel.send(protocol.Drained())
        ours.close()
        with pytest.raises(DaemonGone):
            channel.receive(None)
        with pytest.raises(DaemonGone):
            channel.send(protocol.Drained())


def test_errors_become_one_line() -> None:
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(MemoryError()) == "MemoryError"
    assert len(one_line(ValueError("x" * 1000))) == 300
