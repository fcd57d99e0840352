"""The simulated network: what is late, what is lost, what waits for a cut to end."""

from __future__ import annotations

import random
import statistics

import pytest

from peerlm.errors import ConfigError
from peerlm.sim.clock import Clock
from peerlm.sim.network import RTO_S, Network, Wire, read_wire

FAST = (0.001, 0.002)


def network(**wire: object) -> tuple[Clock, Network]:
    clock = Clock()
    return clock, Network(clock, random.Random(1), Wire(**{"delay_s": FAST, **wire}))  # type: ignore[arg-type]


def arrivals(n: int, **wire: object) -> list[tuple[float, int]]:
    clock, net = network(**wire)
    came: list[tuple[float, int]] = []
    for i in range(n):
        net.carry(0, 1, 100, lambda i=i: came.append((clock.now, i)))
    clock.run(1000)
    return came


def test_messages_of_one_line_arrive_in_order() -> None:
    assert [i for _, i in arrivals(100)] == list(range(100))


def test_what_a_line_loses_comes_late_and_holds_up_the_rest() -> None:
    came = arrivals(200, loss=0.2)
    assert [i for _, i in came] == list(range(200))
    assert came[-1][0] > RTO_S


def test_a_lost_datagram_is_gone() -> None:
    kept = len(arrivals(5000, loss=0.2, datagrams=True))
    assert 5000 * 0.8 - 120 < kept < 5000 * 0.8 + 120


def test_a_connection_made_for_one_message_is_reliable_even_among_datagrams() -> None:
    clock, net = network(loss=0.5, datagrams=True)
    came: list[float] = []
    for _ in range(50):
        net.carry(0, 1, 10, lambda: came.append(clock.now), fresh=True)
    clock.run(1000)
    assert len(came) == 50


@pytest.mark.parametrize("datagrams", [False, True])
def test_some_messages_come_twice(datagrams: bool) -> None:
    assert 1000 + 200 < len(arrivals(1000, duplicate=0.25, datagrams=datagrams)) < 1000 + 300


def test_a_cut_has_a_direction_and_what_it_held_up_comes_after_it() -> None:
    clock, net = network()
    came: list[str] = []
    net.cut(0, 1)
    net.carry(0, 1, 10, came.append, "there")
    net.carry(1, 0, 10, came.append, "back")
    clock.run(10)
    assert came == ["back"]
    net.mend(0, 1)
    clock.run(1)
    assert came == ["back", "there"]


def test_what_a_cut_held_up_comes_in_its_order_and_before_what_is_sent_after_it() -> None:
    for seed in range(5):
        clock = Clock()
        net = Network(clock, random.Random(seed), Wire(delay_s=FAST))
        came: list[int] = []
        net.cut(0, 1)
        for i in range(10):
            net.carry(0, 1, 10, came.append, i)
        net.mend(0, 1)
        for i in range(10, 15):
            net.carry(0, 1, 10, came.append, i)
            clock.run(0.01)
        clock.run(5)
        assert came == list(range(15))


def test_what_a_cut_held_up_dies_with_its_connection() -> None:
    clock, net = network()
    came: list[str] = []
    net.cut(0, 1)
    net.carry(0, 1, 10, came.append, "there")
    net.forget(0, 1)
    net.mend(0, 1)
    clock.run(10)
    assert came == []


def test_bulk_shares_a_line() -> None:
    _, net = network(rate_bytes_s=1e6)
    first, second = net.transfer_s(0, 1, 500_000), net.transfer_s(0, 2, 500_000)
    assert first == pytest.approx(0.5, abs=0.01)
    assert second == pytest.approx(1.0, abs=0.01)


def test_loss_slows_bulk_as_it_slows_tcp() -> None:
    _, net = network(rate_bytes_s=125e6, loss=0.01, delay_s=(0.05, 0.05))
    assert net.transfer_s(0, 1, 10_000_000) == pytest.approx(
        10e6 / (1.22 * 1448 / (0.1 * 0.1)), rel=0.02
    )


def test_delays_are_what_was_asked_for() -> None:
    _, net = network(delay_s=(0.04, 0.06))
    delays = [net.delay_s(0, 1) for _ in range(2000)]
    assert statistics.mean(delays) == pytest.approx(0.05, rel=0.02)


def test_a_wire_as_people_write_it() -> None:
    wire = read_wire("100mbit, 50ms, 1%")
    assert wire.rate_bytes_s == 12.5e6
    assert wire.delay_s == pytest.approx((0.0475, 0.0525))
    assert wire.loss == 0.01
    assert read_wire("50ms").rate_bytes_s == Wire().rate_bytes_s


@pytest.mark.parametrize(
    "text",
    [
        *("fast", "100", "-5ms,100mbit", "100%", "0mbit", "nanmbit", "1e999ms"),
        *("", ",,", "1gbit,", "1gbit,5ms,1mbit", "5ms,50ms", "1%,1%"),
    ],
)
def test_a_wire_that_is_none_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="--link") as refused:
        read_wire(text)
    assert "\n" not in str(refused.value)
