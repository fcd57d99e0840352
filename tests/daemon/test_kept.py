"""Which bulk connections wait for another transfer, for how long, and which is taken first."""

from __future__ import annotations

import socket
from typing import cast

import pytest

from peerlm.daemon import kept
from peerlm.daemon.kept import CALLED_S, DIALLED_S, Kept

ADA, BOB = ("10.0.0.1", 7702), ("10.0.0.2", 7702)


def connections(count: int) -> list[socket.socket]:
    """They are only ever told apart."""
    return [cast("socket.socket", object()) for _ in range(count)]


def test_the_latest_that_was_used_there_is_taken_once() -> None:
    waiting = Kept()
    first, second, other, caller = connections(4)
    for at, (connection, target) in enumerate(
        [(first, ADA), (second, ADA), (other, BOB), (caller, None)]
    ):
        assert waiting.add(connection, target, float(at)) == []
    assert [waiting.take(ADA) for _ in range(3)] == [second, first, None]
    assert other in waiting
    assert caller in waiting
    assert waiting.take_all(BOB) == [other]
    waiting.drop(caller)
    waiting.drop(caller)
    assert not waiting


def test_who_dialled_gives_up_first() -> None:
    waiting = Kept()
    dialled, caller = connections(2)
    assert waiting.next_at == float("inf")
    waiting.add(caller, None, 100.0)
    waiting.add(dialled, ADA, 100.0)
    assert waiting.next_at == 100.0 + DIALLED_S
    assert waiting.overdue(100.0 + DIALLED_S - 0.1) == []
    assert waiting.overdue(100.0 + DIALLED_S) == [dialled]
    assert waiting.next_at == 100.0 + CALLED_S
    assert waiting.overdue(100.0 + CALLED_S) == [caller]


def test_the_one_that_waited_longest_goes_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "KEPT_MAX", 2)
    waiting = Kept()
    first, second, third = connections(3)
    assert waiting.add(first, None, 0.0) == []
    assert waiting.add(second, ADA, 1.0) == []
    assert waiting.add(third, None, 2.0) == [first]
    assert waiting.clear() == [second, third]
