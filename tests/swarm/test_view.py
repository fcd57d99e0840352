from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from peerlm.membership.member import Member, State, from_alive
from peerlm.swarm.view import View, build_view
from peerlm.types import Instant, PeerId
from peerlm.wire.message import Alive, NodeRecord, Vitals

A, B, C, D = (PeerId(bytes([i]) * 16) for i in range(4))


def member(peer: PeerId, state: State, epoch: int = 1) -> Member:
    record = NodeRecord(peer, epoch, 0, "h", 1, 2, 3, False)
    return replace(from_alive(record, Alive(b"", b"", ()), Instant(0.0)), state=state)


def vitals(peer: PeerId, epoch: int, *, active: bool) -> Vitals:
    return Vitals(
        peer, epoch, 1, 5, "training", active, True, False, 1, None, None, None, 0.0, 0, 0
    )


def view_of(*members: Member, told: tuple[Vitals, ...] = ()) -> View:
    by_peer = {PeerId(v.peer): v for v in told}
    return build_view(7, members, by_peer.get)


def test_a_view_is_sorted_whatever_the_order_members_came_in() -> None:
    one = view_of(member(B, State.ALIVE), member(A, State.DEAD))
    other = view_of(member(A, State.DEAD), member(B, State.ALIVE))
    assert one == other
    assert [seen.peer for seen in one.members] == [A, B]


def test_the_suspected_count_as_live_and_the_dead_do_not() -> None:
    view = view_of(
        member(A, State.ALIVE),
        member(B, State.SUSPECT),
        member(C, State.DEAD),
        member(D, State.LEFT),
    )
    assert view.live() == (A, B)


def test_active_are_the_live_that_say_so() -> None:
    told = (vitals(A, 1, active=True), vitals(B, 1, active=False), vitals(C, 1, active=True))
    view = view_of(member(A, State.ALIVE), member(B, State.ALIVE), member(C, State.DEAD), told=told)
    assert view.active() == (A,)


def test_vitals_of_an_earlier_life_say_nothing() -> None:
    view = view_of(member(A, State.ALIVE, epoch=2), told=(vitals(A, 1, active=True),))
    seen = view.get(A)
    assert seen is not None
    assert seen.vitals is None
    assert view.active() == ()


def test_nobody_changes_a_view() -> None:
    view = view_of(member(A, State.ALIVE))
    assert view.get(B) is None
    with pytest.raises(FrozenInstanceError):
        view.version = 8  # type: ignore[misc]
