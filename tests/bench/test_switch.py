"""The switch gives lines the rate, delay and loss that they are said to have."""

from __future__ import annotations

import random
import struct

import pytest

from peerlm.bench.switch import QUEUE_FRAMES, Due, Switch, Trouble, corrupted, read_trouble

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


# ------------------------------------------------------------------------------------- trouble


def tcp_frame(load: bytes) -> bytes:
    """An Ethernet frame with a TCP segment whose checksum holds."""
    segment = bytearray(struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 0x18, 100, 0, 0) + load)
    segment[16:18] = (~sum_of(segment) & 0xFFFF).to_bytes(2)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
    )
    return b"\2" * 6 + b"\4" * 6 + b"\x08\x00" + header + bytes(segment)


def sum_of(segment: bytes) -> int:
    """Ones' complement sum of the pseudo header and the segment; 0xFFFF where its checksum holds."""
    words = b"\x0a\0\0\1\x0a\0\0\2" + struct.pack("!HH", 6, len(segment)) + bytes(segment)
    total = sum(int.from_bytes(words[i : i + 2].ljust(2, b"\0")) for i in range(0, len(words), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("load", [b"ab", b"abc", bytes(range(256)) * 5, b"\xff" * 99])
def test_a_corrupted_frame_has_another_load_and_a_checksum_that_holds(load: bytes) -> None:
    frame, rng = tcp_frame(load), random.Random(1)
    assert sum_of(frame[34:]) == 0xFFFF
    for _ in range(50):
        spoilt = corrupted(frame, rng)
        assert len(spoilt) == len(frame)
        assert spoilt[:50] == frame[:50]
        assert sum((a ^ b).bit_count() for a, b in zip(spoilt[54:], load, strict=True)) == 1
        assert sum_of(spoilt[34:]) in (0xFFFF, 0)


@pytest.mark.parametrize(
    "frame", [b"", b"x" * 13, b"\2" * 12 + b"\x08\x06" + bytes(46), tcp_frame(b""), tcp_frame(b"a")]
)
def test_a_frame_without_a_load_is_left_as_it_was(frame: bytes) -> None:
    assert corrupted(frame, random.Random(1)) == frame


def test_what_is_blocked_does_not_arrive_and_the_other_way_does() -> None:
    switch = Switch(2, 1e6, 0.0, 0.0, random.Random(1))
    switch.suffer(read_trouble(Trouble(blocked=((0, 1),), delay_s=0.5).to_line()))
    switch.take(0, b"\2" * 6 + b"\1" * 6 + b"to the second", 0.0)
    switch.take(1, b"\1" * 6 + b"\2" * 6 + b"to the first", 0.0)
    assert [due.port for due in switch.due(0.4)] == []
    assert [due.port for due in switch.due(1.0)] == [0]
    assert switch.lost == 1
    switch.suffer(Trouble())
    switch.take(0, b"\2" * 6 + b"\1" * 6 + b"to the second", 2.0)
    assert [due.port for due in switch.due(2.1)] == [1]
