"""The network between machines: delay, loss, bandwidth, cuts in one or both directions.

By default a line is a TCP connection, as between daemons: what the network loses comes late (after
retransmission time-outs that double) and holds up what was sent behind it, and what is sent while a
line is cut comes after the cut, if the connection lives so long. With `datagrams` a lost message is
gone, which is what SWIM was made for; only connections made for one message (`carry(fresh=True)`) and
the answers on them are then still reliable. Different lines between two machines keep no order among each other.

Bulk transfers share each machine's line: one after another, at the slower end's rate, or at what TCP
makes of loss and delay where that is less (Mathis et al. 1997: 1.22 · MSS / (RTT · √loss)).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peerlm.errors import ConfigError
from peerlm.sim.clock import Clock

RTO_S = 0.2
"""Shortest retransmission time-out of TCP on Linux; doubles with each loss in a row."""
RTO_DOUBLINGS = 8

SEGMENT_BYTES = 1448
MATHIS = 1.22

ENVELOPE_BYTES = 110
"""What a control message costs on the wire besides its own bytes: CURVE (33), ZeroMQ (9), TCP and IP
with time stamps (52), and a share of the acknowledgement."""

FRESH_BYTES = 1500
"""What a new CURVE connection costs its dialler: TCP, ZeroMQ's greeting, hello, initiate, close."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How one direction between two machines behaves."""

    delay_s: tuple[float, float] = (0.001, 0.01)
    """One way, uniform between the two."""
    loss: float = 0.0
    """Of packets."""
    rate_bytes_s: float = 125e6
    """Of bulk transfers; 1 Gbit/s."""
    duplicate: float = 0.0
    """Share of messages that come twice. TCP does not do that; a node must stand it all the same."""
    datagrams: bool = False

    def stream_bytes_s(self) -> float:
        """What one bulk transfer gets of it, if there is no other."""
        if not self.loss:
            return self.rate_bytes_s
        round_trip_s = 2 * max(self.delay_s[1], 1e-4)
        return min(
            self.rate_bytes_s,
            MATHIS * SEGMENT_BYTES / (round_trip_s * math.sqrt(self.loss)),
        )


UNITS = {"kbit": 125.0, "mbit": 125e3, "gbit": 125e6}


def read_wire(text: str, name: str = "--link") -> Wire:
    """A wire as a person writes it: `100mbit,50ms,1%`, in any order; each part may be left out.

    Args:
        name: what the text was given as, for the error.

    Raises:
        ConfigError: a part that is none of the three, says nothing, is out of range or there twice.
    """
    found: dict[str, float] = {}
    for part in (p.strip().lower() for p in text.split(",")):
        kind, value = _part_of_wire(part)
        wrong = {
            "": "is no rate (100mbit, 1gbit, 512kbit), delay (50ms) or loss (1%)",
            "rate": "" if 0 < value < math.inf else "must be a rate above 0",
            "delay": "" if 0 <= value < 60 else "must be a delay from 0 to below 60 s",
            "loss": "" if 0 <= value < 1 else "must be a loss from 0 to below 100 %",
        }[kind] or (f"is a second {kind}" if kind in found else "")
        if wrong:
            raise ConfigError(f"{name} {text[:80]!r}: {part[:80]!r} {wrong}")
        found[kind] = value
    usual = Wire()
    delay_s = found.get("delay")
    return Wire(
        usual.delay_s if delay_s is None else (0.95 * delay_s, 1.05 * delay_s),
        found.get("loss", usual.loss),
        found.get("rate", usual.rate_bytes_s),
    )


def _part_of_wire(part: str) -> tuple[str, float]:
    """What it is and its value, as a `Wire` has it; the kind is empty for what is nothing."""
    try:
        if part.endswith("%"):
            return "loss", float(part[:-1]) / 100
        if part.endswith("ms"):
            return "delay", float(part[:-2]) / 1000
        return "rate", float(part[:-4]) * UNITS[part[-4:]]
    except (ValueError, KeyError):
        return "", 0.0


class Network:
    """Lines between machines by number. `wire` is every direction's unless `set_wire` says more."""

    def __init__(self, clock: Clock, rng: random.Random, wire: Wire) -> None:
        self.wire = wire
        self.fresh_is_sure = True
        """Where messages are datagrams: whether those over fresh connections are not."""
        self.messages: Counter[int] = Counter()
        """Control messages sent by each machine."""
        self.bytes: Counter[int] = Counter()
        """Their bytes, on the wire."""
        self.bulk_bytes: dict[int, int] = {}
        self._clock, self._rng = clock, rng
        self._own: dict[tuple[int, int], Wire] = {}
        self._cuts: set[tuple[int, int]] = set()
        self._held: dict[tuple[int, int], list[tuple[Callable[..., None], tuple[Any, ...]]]] = {}
        self._free: dict[tuple[int, int], float] = {}
        self._up: dict[int, float] = {}
        self._down: dict[int, float] = {}

    # -------------------------------------------------------------------------------------- cuts

    def cut(self, a: int, b: int) -> None:
        """Nothing from `a` arrives at `b` any more."""
        self._cuts.add((a, b))

    def mend(self, a: int, b: int) -> None:
        """It does again, what was held up by the cut first and in its order."""
        self._cuts.discard((a, b))
        held = self._held.pop((a, b), [])
        if held:
            at = self._in_turn(a, b, self._clock.now + self._rng.uniform(0.0, RTO_S))
            for arrive, args in held:
                self._clock.on(at, arrive, *args)

    def cuts(self) -> list[tuple[int, int]]:
        return sorted(self._cuts)

    def reaches(self, a: int, b: int) -> bool:
        return (a, b) not in self._cuts

    def forget(self, a: int, b: int) -> None:
        """The connection is gone, and with it what was held up."""
        self._held.pop((a, b), None)

    # ----------------------------------------------------------------------------------- messages

    def set_wire(self, a: int, b: int, wire: Wire | None) -> None:
        """This direction is of its own kind from now on; None: like all others."""
        if wire is None:
            self._own.pop((a, b), None)
        else:
            self._own[a, b] = wire

    def wire_of(self, a: int, b: int) -> Wire:
        return self._own.get((a, b), self.wire) if self._own else self.wire

    def delay_s(self, a: int, b: int) -> float:
        """Of one small message, retransmissions included."""
        wire = self.wire_of(a, b)
        low, high = wire.delay_s
        delay_s = low + (high - low) * self._rng.random()
        if wire.loss:
            for doubling in range(RTO_DOUBLINGS):
                if self._rng.random() >= wire.loss:
                    break
                delay_s += RTO_S * 2**doubling
        return delay_s

    def carry(
        self,
        a: int,
        b: int,
        size: int,
        arrive: Callable[..., None],
        *args: Any,
        fresh: bool = False,
        sure: bool = False,
    ) -> None:
        """A control message of `size` bytes. `fresh`: over a connection made for it; `sure`: over one
        that is reliable even where messages are datagrams."""
        wire = self.wire_of(a, b)
        self.messages[a] += 1
        sure = ((sure or fresh) and self.fresh_is_sure) or not wire.datagrams
        overhead = ENVELOPE_BYTES + (FRESH_BYTES if fresh else 0)
        self.bytes[a] += size + overhead
        if (a, b) in self._cuts:
            if sure and not fresh:
                self._held.setdefault((a, b), []).append((arrive, args))
            return
        clock = self._clock
        if not sure:
            if wire.loss and self._rng.random() < wire.loss:
                return
            at = clock.now + self._rng.uniform(*wire.delay_s)
        elif fresh:
            at = clock.now + self.delay_s(a, b)
            at += self._rng.uniform(*wire.delay_s) * 2  # its handshake
        else:
            at = self._in_turn(a, b, clock.now + self.delay_s(a, b))
        clock.on(at, arrive, *args)
        if wire.duplicate and self._rng.random() < wire.duplicate:
            clock.on(at + self._rng.uniform(0.0, 1.0), arrive, *args)

    def _in_turn(self, a: int, b: int, at: float) -> float:
        """When something arrives that would by itself at `at`: not before what was sent before it."""
        line = (a, b)
        free_at = self._free.get(line, 0.0)
        if free_at > at:
            return free_at
        self._free[line] = at
        return at

    # --------------------------------------------------------------------------------------- bulk

    def transfer_s(self, a: int, b: int, size: int) -> float:
        """How long `size` bytes from `a` to `b` take if begun now; both lines are taken for it."""
        now, wire = self._clock.now, self.wire_of(a, b)
        begin = max(now, self._up.get(a, 0.0), self._down.get(b, 0.0))
        end = begin + size / wire.stream_bytes_s()
        # A transfer that loss makes slow leaves the rest of the line to others.
        self._up[a] = self._down[b] = begin + size / wire.rate_bytes_s
        self.bulk_bytes[a] = self.bulk_bytes.get(a, 0) + size
        return end - now + self._rng.uniform(*wire.delay_s)
