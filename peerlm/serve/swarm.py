"""Hosts of a model in stages as a route: what `gateway` decides, done through this node's daemon.

The daemon is reached by its control socket; from its answer on, both sides talk as `train.protocol` says. It passes
laps on to other nodes, and tells who is there.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence

from peerlm.config import Plan
from peerlm.errors import PeerlmError, WireError
from peerlm.model.stages import stages
from peerlm.serve.gateway import Gateway, Sent, Shape, Stuck
from peerlm.serve.route import Logits, Turn
from peerlm.train.channel import Channel, DaemonGone
from peerlm.train.protocol import Hop, Hosts, Message
from peerlm.types import Instant, PeerId

LOOK_S = 0.1
"""How often what is late is looked for, and new sessions are, where nothing comes back."""

AGAIN_S = 1.0
"""A daemon that is gone is looked for again so often."""


class Swarm:
    """`dial` reaches the daemon, and raises `PeerlmError`, with a line for a person, where none is. `say` takes a line
    where a host has answered what cannot be used; the same line once."""

    faults_pass = True

    def __init__(self, plan: Plan, dial: Callable[[], Channel], say: Callable[[str], None]) -> None:
        model = plan.model
        shape = Shape(len(stages(plan)), model.dim, plan.data.vocab, model.context)
        number = secrets.randbits(63)
        self._gateway = Gateway(shape, number, random.Random(number))
        self._dial, self._say, self._said = dial, say, ""
        self._channel: Channel | None = dial()
        self._dialled_at = 0.0
        self._why: dict[int, Stuck] = {}
        self._me = PeerId(bytes(16))

    @property
    def turn_max(self) -> int:
        """Tokens of one turn."""
        return self._gateway.turn_max

    @property
    def again(self) -> int:
        """Sessions that were read again by other hosts, or by the same."""
        return self._gateway.again

    def begin(self, turns: Sequence[Turn]) -> None:
        self._heed(0.0)
        self._send(self._gateway.begin(turns, _now()))

    def ended(self) -> tuple[list[int], Logits]:
        """NaN where nobody could."""
        self._send(self._gateway.look(_now()))
        if not self._gateway.has_ended:
            self._heed(LOOK_S)
        slots, logits, why = self._gateway.take()
        self._why.update(why)
        return slots, logits

    def clear(self, slot: int) -> None:
        """Hosts begin each session anew."""

    def release(self, slot: int) -> None:
        self._send(self._gateway.over(slot))
        self._why.pop(slot, None)

    def version_of(self, slot: int) -> str | None:
        return self._gateway.version_of(slot)

    def hosts_of(self, slot: int) -> tuple[PeerId, ...]:
        """Whom the session in `slot` goes through now, stage after stage."""
        return self._gateway.hosts_of(slot)

    def why(self, slot: int) -> str:
        return self._stuck(slot).why

    def is_full(self, slot: int) -> bool:
        return self._stuck(slot).is_full

    # ------------------------------------------------------------------------------------ inside

    def _stuck(self, slot: int) -> Stuck:
        return self._why.get(slot, Stuck("the numbers that came back are not finite", False))

    def _heed(self, patience_s: float) -> None:
        """Whatever the daemon says within `patience_s`."""
        if self._channel is None:
            self._dial_again(patience_s)
            return
        try:
            for message in self._channel.receive(patience_s):
                if self._channel is not None:  # else it was the last word of a daemon that is gone
                    self._take(message)
        except (DaemonGone, WireError):
            self._lost_daemon()
        while self._gateway.faults:
            self._tell(self._gateway.faults.popleft())

    def _tell(self, fault: str) -> None:
        line = f"an answer of a host is not used, and its texts are read again: {fault}"
        if line != self._said:
            self._said = line
            self._say(line)

    def _take(self, message: Message) -> None:
        match message:
            case Hosts(me, peers, firsts, lasts, behind, ways_s, onward_s):
                self._me = me
                ways = dict(zip(peers, zip(ways_s, onward_s, strict=True), strict=False))
                runs = dict(zip(peers, zip(firsts, lasts, strict=True), strict=True))
                self._send(self._gateway.hosts_are(me, runs, _now(), behind, ways))
            case Hop(peer, data):
                try:
                    self._send(self._gateway.hear(peer, data, _now()))
                except WireError:
                    pass  # a host talks nonsense: its lap is missed, and sent elsewhere

    def _send(self, sent: Sent) -> None:
        if self._channel is None:
            return
        try:
            for peer, data in sent:
                self._channel.send(Hop(peer, data))
        except DaemonGone:
            self._lost_daemon()

    def _lost_daemon(self) -> None:
        self._channel, self._dialled_at = None, time.monotonic()
        self._gateway.hosts_are(self._me, {}, _now())

    def _dial_again(self, patience_s: float) -> None:
        if time.monotonic() - self._dialled_at < AGAIN_S:
            time.sleep(patience_s)
            return
        self._dialled_at = time.monotonic()
        try:
            self._channel = self._dial()
        except PeerlmError:
            return


def _now() -> Instant:
    return Instant(time.monotonic())
