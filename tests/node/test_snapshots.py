"""What is kept and given: when a newer snapshot is written, and who is served."""

from __future__ import annotations

from peerlm.effects import ServePull, WriteSnapshot
from peerlm.events import SnapshotWritten
from peerlm.node.snapshots import HELD_INTERVALS, PULLS_MAX_EACH, Snapshots
from peerlm.types import FragmentId, Instant, ObjectHash, PeerId
from peerlm.wire.message import PullRequest

EVERY_S = 30.0
WANTED = ObjectHash(b"w" * 32)
A, B = PeerId(b"a" * 16), PeerId(b"b" * 16)


def with_one_written(now: float = 100.0) -> Snapshots:
    snapshots = Snapshots(EVERY_S, None, Instant(now))
    write(snapshots, now)
    return snapshots


def write(snapshots: Snapshots, now: float, *, final: bool = False) -> None:
    effects = snapshots.write(1000, 10, Instant(now), final=final)
    assert [type(e) for e in effects] == [WriteSnapshot]
    offers = ((FragmentId(0), 1, WANTED, 400, (0.5,)),)
    snapshots.written(SnapshotWritten(1, 1000, offers, 0.01), Instant(now))


def pull(snapshots: Snapshots, peer: PeerId, number: int, now: float) -> bool:
    request = PullRequest(bytes([number]) * 16, WANTED, b"u" * 32, b"d" * 32)
    effects = snapshots.donate(peer, request, Instant(now), active=True, taken=False)
    return any(isinstance(e, ServePull) for e in effects)


def test_a_snapshot_that_is_being_pulled_is_kept_but_not_for_ever() -> None:
    snapshots = with_one_written()
    assert not snapshots.is_held(Instant(101.0))
    assert pull(snapshots, A, 1, 101.0)
    assert snapshots.is_held(Instant(200.0))
    assert snapshots.is_fresh(B, Instant(200.0))
    assert not snapshots.is_held(Instant(101.0 + HELD_INTERVALS * EVERY_S))


def test_whoever_has_pulled_a_snapshot_is_offered_a_newer_one() -> None:
    snapshots = with_one_written()
    assert pull(snapshots, A, 1, 101.0)
    snapshots.served(bytes([1]) * 16)
    assert snapshots.is_fresh(B, Instant(102.0)), "A may be half through it"
    assert not snapshots.is_fresh(A, Instant(102.0)), "that one it has"
    assert pull(snapshots, B, 2, 102.0)
    assert snapshots.is_fresh(A, Instant(103.0)), "now B may be half through it"


def test_what_nobody_pulls_any_more_is_not_held() -> None:
    snapshots = with_one_written()
    assert pull(snapshots, A, 1, 101.0)
    snapshots.served(bytes([1]) * 16)
    assert snapshots.is_held(Instant(102.0))
    assert not snapshots.is_held(Instant(120.0))


def test_one_peer_cannot_take_all_the_places() -> None:
    snapshots = with_one_written()
    served = [pull(snapshots, A, number, 101.0) for number in range(PULLS_MAX_EACH + 1)]
    assert served == [True] * PULLS_MAX_EACH + [False]
    assert pull(snapshots, B, 100, 101.0)


def test_finished_weights_are_written_once_and_anew_after_another_end() -> None:
    snapshots = with_one_written()
    write(snapshots, 200.0, final=True)
    assert snapshots.is_final
    assert snapshots.write(1000, 10, Instant(300.0), final=True) == []
    snapshots.is_final = False  # what `Work` does when a run goes on
    write(snapshots, 400.0, final=True)
