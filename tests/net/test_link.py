from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable

import psutil
import pytest
import pytest_asyncio
import zmq
from zmq.utils import z85

from peerlm.daemon import dealer, link
from peerlm.daemon.resolve import reach, resolve
from peerlm.errors import ConfigError, Unreachable
from peerlm.events import LinkDown, LinkUp, Misbehaved, Received
from peerlm.wire.codec import encode
from peerlm.wire.message import Ack, Hello, Nack, Ping

BOTH_LOOPS = True


def ping(seq: int) -> Ping:
    return Ping(seq, ())


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """For facts that no event tells: looks again each turn of the loop."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - a counter tells nobody
            await asyncio.sleep(0.002)


class Intruder:
    """A bare DEALER with a key and, if it likes, somebody else's routing id."""

    def __init__(self, keys: tuple[bytes, bytes], target, routing_id: bytes = b"") -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.curve_publickey, self.socket.curve_secretkey = map(z85.encode, keys)
        self.socket.curve_serverkey = z85.encode(target.public)
        if routing_id:
            self.socket.set(zmq.ROUTING_ID, routing_id)
        self.watch = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_SUCCEEDED
        )
        self.socket.connect(f"tcp://127.0.0.1:{target.links.port}")

    async def wait_denied(self) -> bool:
        await until(lambda: self.watch.poll(0) != 0)
        event = int.from_bytes(self.watch.recv_multipart()[0][:2], "little")
        return event == zmq.EVENT_HANDSHAKE_FAILED_AUTH

    def close(self) -> None:
        self.socket.disable_monitor()
        self.watch.close()
        self.socket.close()
        self.context.term()


@pytest_asyncio.fixture
async def intrude() -> AsyncIterator[Callable[..., Intruder]]:
    made: list[Intruder] = []

    def make(*args, **kwargs) -> Intruder:
        made.append(Intruder(*args, **kwargs))
        return made[-1]

    yield make
    for intruder in made:
        intruder.close()


def keys_of(node) -> tuple[bytes, bytes]:
    return node.public, node.secret


async def test_one_connection_carries_messages_both_ways(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    ann.open(bob)
    assert await ann.box.wait(LinkUp) == LinkUp(bob.id, dialled=True)
    assert ann.links.send(bob.id, ping(1))
    assert await bob.box.wait(LinkUp) == LinkUp(ann.id, dialled=False)
    assert await bob.box.wait(Received) == Received(ann.id, ping(1))
    assert bob.links.send(ann.id, Ack(1, bob.id, ()))
    assert await ann.box.wait(Received) == Received(bob.id, Ack(1, bob.id, ()))


async def test_messages_keep_their_order_and_none_is_lost(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    ann.open(bob)
    await ann.box.wait(LinkUp)
    for seq in range(500):
        assert ann.links.send(bob.id, ping(seq))
    await bob.box.wait(Received, lambda e: e.message.seq == 499)
    assert [e.message.seq for e in bob.box.of(Received)] == list(range(499))


async def test_sending_without_a_connection_is_counted_not_raised(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    assert not ann.links.send(bob.id, ping(1))
    assert not ann.links.send(secrets.token_bytes(16), ping(1))
    assert ann.links.counters["sends_dropped"] == 2


async def test_an_unknown_key_gets_no_connection_and_says_denied(town) -> None:
    ann, bob = town.node(), town.node()
    ann.links.admit(bob.id, bob.public)  # but bob does not admit ann
    ann.open(bob)
    assert await ann.box.wait(LinkDown) == LinkDown(bob.id, "denied")
    assert not ann.links.send(bob.id, ping(1))
    assert bob.links.counters["handshakes_denied"] >= 1
    assert bob.box.events == []


async def test_an_unknown_key_delivers_nothing(town, intrude) -> None:
    bob = town.node()
    intruder = intrude(keys_of(town.node()), bob)
    intruder.socket.send(encode(ping(1)))
    assert await intruder.wait_denied()
    assert bob.box.events == []


async def test_dialling_with_the_wrong_server_key_fails(town) -> None:
    ann, bob, eve = town.node(), town.node(), town.node()
    ann.befriend(bob)
    ann.links.open(bob.id, "127.0.0.1", bob.links.port, eve.public)
    down = await ann.box.wait(LinkDown, timeout_s=9)
    assert down.peer == bob.id
    assert not ann.links.send(bob.id, ping(1))
    assert bob.box.events == []


async def test_a_forged_routing_id_does_not_make_the_sender_another(town, intrude) -> None:
    ann, bob, eve = town.node(), town.node(), town.node()
    ann.befriend(bob)
    bob.befriend(eve)
    ann.open(bob)
    await ann.box.wait(LinkUp)
    ann.links.send(bob.id, ping(1))
    await bob.box.wait(Received)
    (anns_route,) = bob.links._peers[ann.id].routes
    intruder = intrude(keys_of(eve), bob, routing_id=anns_route)
    intruder.socket.send(encode(ping(666)))
    assert await bob.box.wait(Received) == Received(eve.id, ping(666))
    # Knowing ann's secret routing id, eve took her connection over; what bob now says to ann may
    # reach eve's socket at worst until ann's own next message, but nothing of eve's is ann's.
    assert bob.box.of(Received) == []


async def test_an_expelled_peer_is_silenced_at_once_on_a_live_connection(town, intrude) -> None:
    ann, bob, carol = town.node(), town.node(), town.node()
    bob.befriend(carol)
    bob.befriend(ann)
    carol.open(bob)
    await carol.box.wait(LinkUp)
    intruder = intrude(keys_of(ann), bob)  # keeps its connection whatever happens
    intruder.socket.send(encode(ping(1)))
    await bob.box.wait(Received)
    bob.links.expel(ann.id)
    for seq in range(2, 20):
        intruder.socket.send(encode(ping(seq)))
    await until(lambda: bob.links.counters["strangers_dropped"] == 18)
    assert not bob.links.send(ann.id, ping(1))
    carol.links.send(bob.id, ping(100))
    assert (await bob.box.wait(Received)).peer == carol.id
    assert bob.box.of(Received) == []


async def test_an_expelled_peer_is_not_let_in_again(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    bob.links.expel(ann.id)
    ann.open(bob)
    assert await ann.box.wait(LinkDown) == LinkDown(bob.id, "denied")


async def test_a_second_peer_cannot_claim_a_key(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    eve_id = secrets.token_bytes(16)
    bob.links.admit(eve_id, ann.public)
    ann.open(bob)
    await ann.box.wait(LinkUp)
    ann.links.send(bob.id, ping(1))
    assert (await bob.box.wait(Received)).peer == ann.id
    bob.links.expel(eve_id)
    ann.links.send(bob.id, ping(2))
    assert (await bob.box.wait(Received)).peer == ann.id
    assert bob.links.counters["keys_claimed_twice"] == 1


@pytest.mark.parametrize(
    "parts",
    [
        [b"\xc1garbage"],
        [b""],
        [b"x" * 1000],
        [encode(ping(1)), b"more"],
        [b"y"] * 20,
        [encode(Hello(1, bytes(16), ()))],
    ],
    ids=["no msgpack", "empty", "not a struct", "two parts", "twenty parts", "introduction"],
)
async def test_garbage_from_a_peer_is_told_and_breaks_nothing(town, intrude, parts) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    intruder = intrude(keys_of(ann), bob)
    intruder.socket.send_multipart(parts)
    assert (await bob.box.wait(Misbehaved)).peer == ann.id
    intruder.socket.send(encode(ping(7)))
    assert await bob.box.wait(Received) == Received(ann.id, ping(7))
    assert bob.links.counters["garbage"] == 1


async def test_an_oversized_frame_costs_its_sender_the_connection_only(town, intrude) -> None:
    ann, bob, carol = town.node(), town.node(), town.node()
    ann.befriend(bob)
    carol.befriend(bob)
    intruder = intrude(keys_of(ann), bob)
    intruder.socket.send(bytes(4 << 20))
    carol.open(bob)
    await carol.box.wait(LinkUp)
    carol.links.send(bob.id, ping(1))
    assert await bob.box.wait(Received) == Received(carol.id, ping(1))
    assert [e for e in bob.box.of(LinkUp) if e.peer == ann.id] == []


async def test_a_peer_that_dies_and_comes_back_with_its_keys_is_linked_again(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    ann.open(bob)
    await ann.box.wait(LinkUp)
    port = bob.links.port
    await town.close(bob)
    assert await ann.box.wait(LinkDown) == LinkDown(bob.id, "closed")
    assert not ann.links.send(bob.id, ping(1))
    bob = town.node(like=bob, port=port)
    bob.links.admit(ann.id, ann.public)
    ann.open(bob)
    await ann.box.wait(LinkUp)
    assert ann.links.send(bob.id, ping(2))
    assert await bob.box.wait(Received) == Received(ann.id, ping(2))


async def test_a_lost_inbound_connection_shows_when_sending(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    ann.open(bob)
    await ann.box.wait(LinkUp)
    ann.links.send(bob.id, ping(1))
    await bob.box.wait(LinkUp)
    await town.close(ann)
    await until(lambda: not bob.links.send(ann.id, ping(2)))
    assert await bob.box.wait(LinkDown) == LinkDown(ann.id, "closed")


async def test_losing_our_own_connection_is_no_loss_while_the_peers_is_heard(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    ann.open(bob)
    bob.open(ann)
    await ann.box.wait(LinkUp, lambda e: e.dialled)
    await bob.box.wait(LinkUp, lambda e: e.dialled)
    bob.links.send(ann.id, ping(1))
    await ann.box.wait(Received)
    ann.links._peers[bob.id].dealer._end("closed")
    assert ann.box.of(LinkDown) == []
    assert ann.links.send(bob.id, ping(2))
    assert await bob.box.wait(Received) == Received(ann.id, ping(2))


async def test_nobody_there_is_told_as_timeout(town, monkeypatch) -> None:
    monkeypatch.setattr("peerlm.daemon.dealer.DIAL_TIMEOUT_S", 0.3)
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    await town.close(bob)
    ann.open(bob)
    assert await ann.box.wait(LinkDown) == LinkDown(bob.id, "timeout")


async def test_a_name_is_looked_up(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    ann.links.open(bob.id, "localhost", bob.links.port, bob.public)
    assert await ann.box.wait(LinkUp) == LinkUp(bob.id, dialled=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_fresh_connection_carries_a_message_and_its_answer(town, host) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    assert ann.links.send_fresh(bob.id, host, bob.links.port, bob.public, ping(9))
    assert await bob.box.wait(Received) == Received(ann.id, ping(9))
    assert bob.links.send(ann.id, Nack(9, ann.id))
    assert await ann.box.wait(Received) == Received(bob.id, Nack(9, ann.id))
    assert ann.box.of(LinkUp) == []


async def test_the_answer_to_a_fresh_message_takes_the_fresh_connection(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    bob.open(ann)
    await bob.box.wait(LinkUp)
    bob.links._peers[ann.id].dealer.send = lambda data: True  # stuck: takes all, delivers nothing
    ann.links.send_fresh(bob.id, "127.0.0.1", bob.links.port, bob.public, ping(9))
    await bob.box.wait(Received)
    bob.links.send(ann.id, Ack(9, bob.id, ()))
    assert await ann.box.wait(Received) == Received(bob.id, Ack(9, bob.id, ()))


async def test_fresh_connections_are_few_and_end(town, monkeypatch) -> None:
    monkeypatch.setattr(link, "FRESH_LIVES_S", 0.05)
    monkeypatch.setattr(link, "FRESH_MAX", 2)
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    target = (bob.id, "127.0.0.1", bob.links.port, bob.public)
    assert [ann.links.send_fresh(*target, ping(n)) for n in range(3)] == [True, True, False]
    await until(lambda: not ann.links._fresh)


async def test_goodbyes_leave_on_a_graceful_close(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    ann.open(bob)
    await ann.box.wait(LinkUp)
    for seq in range(100):
        ann.links.send(bob.id, ping(seq))
    town.nodes.remove(ann)
    await ann.links.close(graceful=True)
    await bob.box.wait(Received, lambda e: e.message.seq == 99)


async def test_a_taken_port_is_a_line_for_a_person(town) -> None:
    ann = town.node()
    with pytest.raises(ConfigError, match=rf"port {ann.links.port} on 127.0.0.1 is in use"):
        town.node(port=ann.links.port)
    links = link.Links(
        print, "127.0.0.1", ann.links.port, ann.public, ann.secret, ann.id, or_free=True
    )
    assert links.port not in (0, ann.links.port)
    await links.close()


async def test_an_address_that_is_not_ours_is_a_line_for_a_person(town) -> None:
    ann = town.node()
    with pytest.raises(ConfigError, match=r"check network\.host"):
        link.Links(print, "203.0.113.7", 0, ann.public, ann.secret, ann.id)


async def test_all_addresses_means_ipv6_too(town) -> None:
    ann = town.node()
    with_all = link.Links(print, "", 0, ann.public, ann.secret, ann.id)
    for host in ("127.0.0.1", "::1"):
        _, writer = await asyncio.open_connection(host, with_all.port)
        writer.close()
        await writer.wait_closed()
    await with_all.close()


async def test_links_that_come_and_go_leave_nothing_behind(town) -> None:
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    descriptors_before = psutil.Process().num_fds()
    for seq in range(30):
        ann.open(bob)
        await ann.box.wait(LinkUp)
        ann.links.send(bob.id, ping(seq))
        await bob.box.wait(Received)
        ann.links.close_link(bob.id)
    await until(lambda: psutil.Process().num_fds() <= descriptors_before + 2)
    assert len(bob.links._peers[ann.id].routes) <= link.ROUTES_MAX


@pytest.mark.parametrize("host", ["::1%\0", "fe80::1%a b", "fe80::1%nowhere0", "no such host"])
async def test_an_address_that_sockets_do_not_take_leads_nowhere(town, host, monkeypatch) -> None:
    monkeypatch.setattr(dealer, "DIAL_TIMEOUT_S", 0.3)
    ann, bob = town.node(), town.node()
    ann.befriend(bob)
    ann.links.open(bob.id, host, bob.links.port, bob.public)
    down = await ann.box.wait(LinkDown)
    assert (down.peer, down.reason) == (bob.id, "timeout")
    with pytest.raises(Unreachable):
        await reach(await resolve(host), bob.links.port)
