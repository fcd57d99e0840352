"""Channels for texts: with members alone, while they are wanted."""

from __future__ import annotations

import random

from peerlm.effects import CancelTransfer, Effect, Send, ServeChannel, TellHosts
from peerlm.node.channels import WANTED_S
from peerlm.node.seen import Seen
from peerlm.node.texts import Texts
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
    told = TellHosts(((ANN, 1, 1), (ME, 0, 0)), (ann, (0.0, 0.0)))
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
