"""Channels for texts: with members alone, while they are wanted."""

from __future__ import annotations

import random

import pytest
from node_scene import World

from peerlm.effects import CancelTransfer, Effect, Send, ServeChannel, TellHosts
from peerlm.node import texts as texts_module
from peerlm.node.channels import WANTED_S
from peerlm.node.seen import Seen
from peerlm.node.texts import COMPARE_EVERY_S, FAR_S, Texts, Weights, far_behind
from peerlm.swarm.ways import Way
from peerlm.types import Instant, PeerId
from peerlm.wire.message import ChannelAnswer, ChannelRequest

ME, ANN, BOB = (PeerId(name * 16) for name in (b"m", b"a", b"b"))
SEEN = Seen(runs={ANN: (1, 1)}, servers=(ANN,))
REQUEST = ChannelRequest(b"t" * 16, b"u" * 32, b"d" * 32, for_texts=True)


def texts() -> Texts:
    return Texts(ME, lambda _: ("host", 7703), random.Random(1))


def see(texts: Texts, seen: Seen, now: float) -> list[Effect]:
    return texts.see(seen, (ME, 0, 0), Instant(now))


def test_hosts_are_told_when_they_change() -> None:
    found = texts()
    assert see(found, SEEN, 0.0) == [TellHosts(((ANN, 1, 1), (ME, 0, 0)))]
    assert see(found, SEEN, 1.0) == []
    assert see(found, Seen(), 2.0) == [TellHosts(((ME, 0, 0),))]


def test_how_far_hosts_are_is_told_with_them_and_anew_when_it_is_another() -> None:
    ways = {ANN: Way(0.02, 0.1, 1e6)}
    found = Texts(ME, lambda _: ("host", 7703), random.Random(1), ways.__getitem__, 1000)
    ann = (ways[ANN].hop_s(1000), ways[ANN].onward_s(1000))
    told = TellHosts(((ANN, 1, 1), (ME, 0, 0)), (), (ann, (0.0, 0.0)))
    assert see(found, SEEN, 0.0) == [told]
    ways[ANN] = Way(0.0205, 0.1, 1e6)
    assert see(found, SEEN, 1.0) == []
    ways[ANN] = Way(0.1, 0.1, 1e6)
    assert [type(e) for e in see(found, SEEN, 2.0)] == [TellHosts]


def test_a_channel_is_asked_for_when_it_is_wanted_and_let_go_when_it_is_no_more() -> None:
    found = texts()
    see(found, SEEN, 0.0)
    (asked,) = found.want(ANN, SEEN, Instant(0.0))
    assert isinstance(asked, Send)
    assert asked.message.for_texts
    assert found.want(BOB, SEEN, Instant(0.0)) == []
    assert see(found, SEEN, WANTED_S) == []
    assert found.channels.deadline() is None


def test_who_is_no_member_has_no_channel_and_who_was_one_has_none_any_more() -> None:
    found = texts()
    see(found, SEEN, 0.0)
    (refused,) = found.on_request(BOB, REQUEST, SEEN, Instant(0.0))
    assert isinstance(refused, Send)
    assert isinstance(refused.message, ChannelAnswer)
    assert refused.message.verdict == "refuse"
    served, _ = found.on_request(ANN, REQUEST, SEEN, Instant(0.0))
    assert isinstance(served, ServeChannel)
    cancelled, _ = see(found, Seen(), 1.0)
    assert cancelled == CancelTransfer(REQUEST.transfer)


def old_of(hosts: list[tuple[PeerId, int, int]], *weights: Weights | None) -> tuple[PeerId, ...]:
    said = {host[0]: found for host, found in zip(hosts, weights, strict=True) if found}
    return far_behind(hosts, said)


def test_weights_are_old_by_what_the_swarm_trains_in_ten_minutes() -> None:
    hosts = [(ANN, 1, 1), (BOB, 1, 1)]
    bound = int(FAR_S * (100 + 50))
    newest = 10**6
    for missed, old in ((bound, ()), (bound + 1, (ANN,))):
        assert old_of(hosts, Weights(newest - missed, 100.0), Weights(newest, 50.0)) == old


def test_where_nobody_trains_a_hundredth_of_all_tokens_makes_weights_old() -> None:
    hosts = [(ANN, 0, 0), (BOB, 0, 0)]
    assert old_of(hosts, Weights(990), Weights(1000)) == ()
    assert old_of(hosts, Weights(989), Weights(1000)) == (ANN,)
    assert old_of(hosts, Weights(0), Weights(0)) == ()


def test_weights_are_compared_where_hosts_have_a_stage_in_common() -> None:
    old, new = Weights(10), Weights(1000)
    assert old_of([(ANN, 0, 0), (BOB, 1, 1)], old, new) == ()
    assert old_of([(ANN, 0, 2), (BOB, 1, 1)], old, new) == (ANN,)
    assert old_of([(ANN, 0, 3), (BOB, 2, 1 << 60), (ME, 5, 6)], old, new, old) == tuple(
        sorted((ANN, ME))
    )


def test_who_does_not_say_what_weights_it_has_is_neither_old_nor_the_measure() -> None:
    hosts = [(ANN, 1, 1), (BOB, 1, 1)]
    assert old_of(hosts, Weights(None, 1.0), Weights(10)) == ()
    assert old_of(hosts, None, Weights(10)) == ()


def test_old_weights_are_told_at_once_of_a_new_host_and_then_now_and_again() -> None:
    found = texts()
    see(found, Seen(runs={ANN: (0, 0)}, servers=(ANN,)), 0.0)
    said = {ANN: Weights(10), ME: Weights(1000)}
    hosts = ((ANN, 0, 0), (ME, 0, 0))
    assert found.compare(said.get, Instant(0.0)) == [TellHosts(hosts, (ANN,))]
    assert found.compare(said.get, Instant(1.0)) == []
    said[ANN] = Weights(1000)
    assert found.compare(said.get, Instant(1.0)) == []
    assert found.compare(said.get, Instant(COMPARE_EVERY_S)) == [TellHosts(hosts)]
    assert found.behind == ()


def test_who_was_cut_off_for_long_is_old_until_it_has_caught_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(texts_module, "FAR_S", 10.0)
    world = World(1).swarm(3)
    world.within(60, lambda: all_known(world) == [False] * 3, "each says what weights it has")
    apart = world.split([2], [0, 1])
    world.run(60.0)
    world.end_split(apart)
    world.within(30, lambda: all_known(world) == [False, False, True], "who comes back is old")
    world.within(90, lambda: all_known(world) == [False] * 3, "it has caught up")


def all_known(world: World) -> list[bool | None]:
    """Of each node, as the first one sees it: whether its weights are old; None where it has not said what it has."""
    found = [world.member(0, number) for number in range(3)]
    return [m.is_behind if m and m.weights_tokens is not None else None for m in found]
