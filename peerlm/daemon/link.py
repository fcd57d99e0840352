"""Links: encrypted connections with peers, where a message's sender is the key that sent it.

One ROUTER takes the connections others open, one DEALER per peer is a connection we open, and both
carry messages both ways, so a node that nobody can dial takes part by dialling. A sender is known by
the CURVE key libzmq vouches for (User-Id), looked up anew on each message: a routing id or a field
is a claim, and a peer expelled a moment ago is silent although its connection lives.

A peer may have several connections. A message goes out on the one last heard from, so an answer
returns the way its question came (a fresh connection is opened exactly when an older one may be
stuck), else on our own, else on any other.

ROUTERs do not tell when a connection is gone; sending does. So the loss of our own connection is
noticed at once, that of a peer's at the next send.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from peerlm.daemon.dealer import CurveKeys, Dealer, make_control_socket
from peerlm.daemon.inlet import Inlet
from peerlm.daemon.sockets import bind, make_context, property_of
from peerlm.daemon.zap import Admission
from peerlm.errors import ConfigError, UnknownMessage, WireError
from peerlm.events import Event, LinkDown, LinkUp, Misbehaved, Received
from peerlm.types import PeerId
from peerlm.wire.codec import decode, encode
from peerlm.wire.message import Hello, Message, Refusal, Welcome

ROUTES_MAX = 4
"""Inbound connections remembered of one peer: its lasting one, fresh ones, one of a past life."""

ROUTE_LIVES_S = 6.0
"""An inbound connection silent for longer does not count when our own is lost (heartbeat TTL)."""

FRESH_LIVES_S = 10.0
FRESH_MAX = 64
"""Fresh connections at once; past it, messages meant for one are dropped, and probes fail."""

GRACE_MS = 1000
"""On a graceful close, time for the last messages (the goodbye) to leave."""


@dataclass(slots=True)
class _Peer:
    key: str = ""
    """Admitted CURVE key in hex digits; empty while not admitted."""
    dealer: Dealer | None = None
    dealer_heard_at: float = float("-inf")
    routes: OrderedDict[bytes, float] = field(default_factory=OrderedDict)
    """Inbound connections and when each was last heard from, the latest last."""
    linked: bool = False
    """`LinkUp` was posted last, not `LinkDown`."""


class Links:
    """Binds the control port. `port` is where it listens; `counters` what was dropped and why.

    Keys are raw, 32 bytes each. Raises `ConfigError` when the port is taken (with `or_free`, takes
    any free one instead).
    """

    def __init__(
        self,
        post: Callable[[Event], None],
        host: str,
        port: int,
        public_key: bytes,
        secret_key: bytes,
        my_id: PeerId,
        *,
        or_free: bool = False,
    ) -> None:
        if not zmq.has("curve"):
            raise ConfigError("this build of ZeroMQ lacks CURVE: install pyzmq's own wheel")
        self.counters: Counter[str] = Counter()
        self._post = post
        self._my_id = my_id
        self._keys = CurveKeys.of(public_key, secret_key)
        self._loop = asyncio.get_running_loop()
        self._peers: dict[PeerId, _Peer] = {}
        self._by_key: dict[str, PeerId] = {}
        self._fresh: dict[Dealer, PeerId] = {}
        self._context = make_context()
        self._admission = Admission(self._context, self._by_key.__contains__, self.counters)
        router = make_control_socket(self._context, zmq.ROUTER, self._keys)
        router.set(zmq.CURVE_SERVER, 1)
        router.set(zmq.ZAP_DOMAIN, b"peerlm")
        try:
            self.port = bind(router, host, port, or_free=or_free)
        except BaseException:
            self._admission.close()
            router.close()
            self._context.term()
            raise
        self._inlet = Inlet(router, 2, self._on_inbound)

    # --------------------------------------------------------------------- who may speak with us

    def admit(self, peer: PeerId, curve_key: bytes) -> None:
        """From now on connections of this key (raw, 32 bytes) are this peer's; an older key of
        the peer is none of its any more. A key that another peer holds stays that peer's."""
        key = curve_key.hex()
        if self._by_key.setdefault(key, peer) != peer:
            self.counters["keys_claimed_twice"] += 1
            return
        entry = self._peers.setdefault(peer, _Peer())
        if entry.key != key:
            self._by_key.pop(entry.key, None)
            entry.routes.clear()
            entry.key = key

    def expel(self, peer: PeerId) -> None:
        """Drop the peer's key, its messages from this moment and our connections; no event."""
        self.close_link(peer)
        entry = self._peers.pop(peer, None)
        if entry is not None and self._by_key.get(entry.key) == peer:
            del self._by_key[entry.key]
        for dealer in [d for d, owner in self._fresh.items() if owner == peer]:
            self._end_fresh(dealer)

    # ------------------------------------------------------------------------------- connections

    def open(self, peer: PeerId, host: str, port: int, curve_key: bytes) -> None:
        """Dial a peer → `LinkUp(dialled=True)`, or `LinkDown` when it fails and no connection is
        left. Does nothing when a connection to this very address is up or being made."""
        assert peer != self._my_id, "a link to ourselves"
        entry = self._peers.setdefault(peer, _Peer())
        if entry.dealer is not None:
            if entry.dealer.target == (host, port, curve_key):
                return
            entry.dealer.close()
        entry.dealer_heard_at = float("-inf")
        entry.dealer = Dealer(
            self._context,
            self._keys,
            host,
            port,
            curve_key,
            on_message=lambda parts: self._on_outbound(peer, parts),
            on_up=lambda: self._on_up(peer),
            on_down=lambda reason: self._on_down(peer, reason),
        )

    def close_link(self, peer: PeerId) -> None:
        """Close our connection with a peer and forget its own; no event. If it speaks again on
        one of its own, that is a `LinkUp`."""
        entry = self._peers.get(peer)
        if entry is None:
            return
        if entry.dealer is not None:
            entry.dealer.close(GRACE_MS)
            entry.dealer = None
        entry.routes.clear()
        entry.linked = False

    async def close(self, *, graceful: bool = False) -> None:
        """Close everything. `graceful`: what is queued has a second to leave."""
        linger_ms = GRACE_MS if graceful else 0
        for dealer in list(self._fresh):
            dealer.close(linger_ms)
        self._fresh.clear()
        for entry in self._peers.values():
            if entry.dealer is not None:
                entry.dealer.close(linger_ms)
        self._inlet.close(linger_ms)
        self._admission.close()
        await asyncio.to_thread(self._context.term)

    # ----------------------------------------------------------------------------------- sending

    def send(self, peer: PeerId, message: Message) -> bool:
        """Send over a connection with the peer; False, and counted, when none takes it."""
        entry = self._peers.get(peer)
        data = encode(message)
        if entry is not None and self._send(peer, entry, data):
            self.counters["messages_sent"] += 1
            self.counters["bytes_sent"] += len(data)
            return True
        self.counters["sends_dropped"] += 1
        return False

    def send_fresh(
        self, peer: PeerId, host: str, port: int, curve_key: bytes, message: Message
    ) -> bool:
        """Send over a connection made for this message and kept 10 s; its answers are `Received`.
        False, and counted, when there are too many of these."""
        if len(self._fresh) >= FRESH_MAX:
            self.counters["sends_dropped"] += 1
            return False
        dealer = Dealer(
            self._context,
            self._keys,
            host,
            port,
            curve_key,
            on_message=lambda parts: self._take(peer, parts),
            on_up=lambda: None,
            on_down=lambda reason: self._end_fresh(dealer),
            hold=True,
        )
        self._fresh[dealer] = peer
        self._loop.call_later(FRESH_LIVES_S, self._end_fresh, dealer)
        data = encode(message)
        self.counters["messages_sent"] += 1
        self.counters["bytes_sent"] += len(data)
        return dealer.send(data)

    def _send(self, peer: PeerId, entry: _Peer, data: bytes) -> bool:
        own = entry.dealer if entry.dealer is not None and entry.dealer.up else None
        newest_heard_at = next(reversed(entry.routes.values()), float("-inf"))
        if own is not None and entry.dealer_heard_at >= newest_heard_at and own.send(data):
            return True
        if self._send_inbound(peer, entry, data):
            return True
        return own is not None and own.send(data)

    def _send_inbound(self, peer: PeerId, entry: _Peer, data: bytes) -> bool:
        sent = False
        for route in list(reversed(entry.routes)):
            try:
                self._inlet.send([route, data])
            except zmq.ZMQError as error:
                if error.errno == zmq.EHOSTUNREACH:
                    entry.routes.pop(route, None)
            else:
                sent = True
                break
        if not sent:
            self._note_loss(peer, entry)
        return sent

    def _end_fresh(self, dealer: Dealer) -> None:
        self._fresh.pop(dealer, None)
        dealer.close()

    # ---------------------------------------------------------------------------------- arriving

    def _on_inbound(self, parts: list[zmq.Frame]) -> None:
        peer = self._by_key.get(property_of(parts[0], "User-Id"))
        if peer is None:
            self.counters["strangers_dropped"] += 1
            return
        route = parts[0].bytes
        message = self._decode(peer, parts[1:])
        entry = self._peers.get(peer)
        if message is None or entry is None:
            return
        entry.routes[route] = self._loop.time()
        entry.routes.move_to_end(route)
        if len(entry.routes) > ROUTES_MAX:
            entry.routes.popitem(last=False)
        if not entry.linked:
            entry.linked = True
            self._post(LinkUp(peer, dialled=False))
        self._post(Received(peer, message))

    def _on_outbound(self, peer: PeerId, parts: list[zmq.Frame]) -> None:
        entry = self._peers.get(peer)
        if entry is not None:
            entry.dealer_heard_at = self._loop.time()
            self._take(peer, parts)

    def _take(self, peer: PeerId, parts: list[zmq.Frame]) -> None:
        message = self._decode(peer, parts)
        if message is not None:
            self._post(Received(peer, message))

    def _decode(self, peer: PeerId, parts: list[zmq.Frame]) -> Message | None:
        try:
            if len(parts) != 1:
                raise WireError("a message of more or fewer parts than one")
            self.counters["bytes_received"] += len(parts[0].buffer)
            message = decode(parts[0].buffer)
            if isinstance(message, (Hello, Welcome, Refusal)):
                raise WireError(f"{type(message).__name__} belongs on the introduction port")
        except UnknownMessage:
            self.counters["unknown"] += 1
            return None
        except WireError as error:
            self.counters["garbage"] += 1
            self._post(Misbehaved(peer, str(error)))
            return None
        self.counters["messages_received"] += 1
        return message

    # ------------------------------------------------------------------------------- up and down

    def _on_up(self, peer: PeerId) -> None:
        self._peers[peer].linked = True
        self._post(LinkUp(peer, dialled=True))

    def _on_down(self, peer: PeerId, reason: str) -> None:
        entry = self._peers[peer]
        entry.dealer = None
        oldest = self._loop.time() - ROUTE_LIVES_S
        for route in [r for r, heard_at in entry.routes.items() if heard_at < oldest]:
            del entry.routes[route]
        if not entry.routes:
            entry.linked = False
            self._post(LinkDown(peer, reason))

    def _note_loss(self, peer: PeerId, entry: _Peer) -> None:
        alive = entry.dealer is not None and entry.dealer.up
        if entry.linked and not entry.routes and not alive:
            entry.linked = False
            self._post(LinkDown(peer, "closed"))
