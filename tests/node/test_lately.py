"""Who exchanges with whom in the swarm: as nodes say it, as they believe each other, and as any of them shows it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from node_scene import World

from peerlm.node.lately import LATELY_S, PARTNERS_MAX, believed, coarse, named, said
from peerlm.node.status import as_json
from peerlm.types import PeerId
from peerlm.wire.codec import decode_as, encode
from peerlm.wire.message import Vitals

ME, ADA, BOB, EVE = (PeerId(name * 16) for name in (b"m", b"a", b"b", b"e"))
PLAIN = Vitals(ADA, 1, 1, 0, "training", True, True, False, 1, None, None, None, 0.0)
NAMES = named((ME, ADA, BOB, EVE))


def told(
    mixed_with: tuple[bytes, ...], mixed_s: tuple[int, ...], met_s_ago: float | None = None
) -> tuple[tuple[PeerId, float], ...]:
    """What is believed of Ada's word."""
    vitals = replace(PLAIN, mixed_with=mixed_with, mixed_s=mixed_s)
    return believed(decode_as(Vitals, encode(vitals)), NAMES, ME, met_s_ago)


def test_what_is_said_is_heard_coarsely_and_takes_few_bytes() -> None:
    mixed = [(BOB, 0.2), (EVE, 5.9), (ME, 130.0), (ADA, 299.0), (ADA, 300.0)]
    mixed_with, mixed_s = said(mixed)
    assert mixed_s == (1, 4, 128, 256)
    assert (
        len(encode(replace(PLAIN, mixed_with=mixed_with, mixed_s=mixed_s)))
        <= len(encode(PLAIN)) + 31
    )
    assert told(mixed_with[:2], mixed_s[:2]) == ((BOB, 1.0), (EVE, 4.0))


def test_a_time_changes_seldom_and_is_never_too_long_ago() -> None:
    steps = [coarse(second / 10) for second in range(10 * int(LATELY_S))]
    assert sum(a != b for a, b in pairwise(steps)) == 8
    assert all(step <= max(1.0, at / 10) < 2 * step + 1 for at, step in enumerate(steps))


@pytest.mark.parametrize(
    ("mixed_with", "mixed_s"),
    [
        ((b"zzzz",), (1,)),
        ((ADA[:4],), (1,)),
        ((BOB[:4],), (2**62,)),
        ((BOB[:4],), (301,)),
        ((BOB[:4],), ()),
        ((), (1, 2)),
        ((ME[:4],), (1,)),
    ],
    ids=["a stranger", "itself", "never", "long ago", "no time", "nobody", "us, who know nothing"],
)
def test_what_cannot_be_so_is_not_believed(
    mixed_with: tuple[bytes, ...], mixed_s: tuple[int, ...]
) -> None:
    assert told(mixed_with, mixed_s) == ()


def test_of_exchanges_with_this_node_its_own_time_holds_and_each_partner_counts_once() -> None:
    claims = (ME[:4], BOB[:4], BOB[:4])
    assert told(claims, (1, 8, 2), met_s_ago=40.0) == ((BOB, 8.0), (ME, 40.0))
    assert told(claims, (1, 8, 2), met_s_ago=LATELY_S + 1) == ((BOB, 8.0),)


def test_two_members_whose_ids_begin_alike_are_not_taken_for_each_other() -> None:
    twin = PeerId(BOB[:4] + bytes(12))
    assert named((ADA, BOB, twin)) == {ADA[:4]: ADA}
    assert named((BOB, BOB)) == {BOB[:4]: BOB}


def test_any_node_shows_the_exchanges_of_the_whole_swarm() -> None:
    world = World(1, speed=4_000.0).swarm(4)
    world.within(30, world.all_mixing, "all mix")
    world.within(30, lambda: all(len(pairs(world, n)) == 6 for n in range(4)), "all know of all")
    for member in world.summary(0).members:
        assert 1 <= len(member.mixed_with) <= PARTNERS_MAX
        assert all(peer != member.peer for peer, _ in member.mixed_with)
        assert all(ago <= LATELY_S for _, ago in member.mixed_with)
    dead = world.summary(3).peer
    world.kill(3, silently=True)
    world.within(60, lambda: state_of(world, dead) == "dead", "it is held dead")
    (gone,) = (m for m in as_json(world.summary(0))["members"] if m["id"] == dead.hex())
    assert gone["mixed_with"] == []


def pairs(world: World, viewer: int) -> set[frozenset[PeerId]]:
    """Who exchanges with whom, as one node shows it."""
    members = world.summary(viewer).members
    return {frozenset((m.peer, peer)) for m in members for peer, _ in m.mixed_with}


def state_of(world: World, peer: PeerId) -> str:
    (state,) = (m.state for m in world.summary(0).members if m.peer == peer)
    return state
