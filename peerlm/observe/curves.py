"""A node's curves for other tools: named numbers every so often, and the interface of whoever writes them.

Made from what a node says of itself (`status --json`) and from nothing else, as the page's curves are. Names are
stable: a later version may add curves, and does not rename them. docs/metrics.md lists them; that page is made
from `CURVES`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

Status = Mapping[str, Any]
"""What `peerlm status --json` prints."""

STEP = "swarm_tokens"
"""The curve that others are drawn over, where a tool wants a whole number that grows."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One named number. `read`: None while it is not known."""

    name: str
    unit: str
    help: str
    read: Callable[[Status], float | None]


CURVES: tuple[Curve, ...] = (
    Curve(STEP, "tokens", "The swarm has trained on.", lambda s: s["swarm_tokens"]),
    Curve(
        "swarm_tokens_per_s", "tokens/s", "How fast that grows.", lambda s: s["swarm_tokens_per_s"]
    ),
    Curve(
        "members_alive",
        "nodes",
        "Members that are alive, this node included.",
        lambda s: sum(m["state"] == "alive" for m in s["members"]),
    ),
    Curve("tokens", "tokens", "This node has trained on.", lambda s: s["tokens"]),
    Curve("tokens_per_s", "tokens/s", "Its worker's rate.", lambda s: s["worker"]["tokens_per_s"]),
    Curve("loss", "nats per token", "Training loss, smoothed.", lambda s: s["loss"]),
    Curve("val_loss", "nats per token", "Last validation loss.", lambda s: s["val_loss"]),
    Curve(
        "distance",
        "relative",
        "Distance of its weights from its partners'.",
        lambda s: s["consensus_distance"],
    ),
    Curve(
        "inner_steps",
        "inner steps",
        "Between two outer steps.",
        lambda s: s["tempo"]["inner_steps"],
    ),
    Curve("exchanges_ok", "count", "Exchanges done.", lambda s: s["exchanges"]["ok"]),
    Curve("exchanges_busy", "count", "Ended: partner busy.", lambda s: s["exchanges"]["busy"]),
    Curve(
        "exchanges_refused",
        "count",
        "Ended: refused.",
        lambda s: s["exchanges"]["refused"],
    ),
    Curve(
        "exchanges_timed_out",
        "count",
        "Ended: no answer in time.",
        lambda s: s["exchanges"]["timed_out"],
    ),
    Curve("bytes_sent", "bytes", "Weights sent.", lambda s: s["bytes_sent"]),
    Curve("bytes_received", "bytes", "Weights received.", lambda s: s["bytes_received"]),
    Curve(
        "bytes_allreduce",
        "bytes",
        "A ring all-reduce in every inner step would have sent.",
        lambda s: s["bytes_allreduce"],
    ),
    Curve(
        "worker_restarts",
        "count",
        "Times its worker was started again.",
        lambda s: s["worker"]["restarts"],
    ),
    Curve(
        "nonfinite_steps",
        "count",
        "Inner steps that were not finite.",
        lambda s: s["worker"]["nonfinite_steps"],
    ),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """All curves at one moment. `at`: seconds of wall time; `values`: by name, of those that are known."""

    at: float
    values: Mapping[str, float]

    @property
    def step(self) -> int:
        """Tokens of the swarm."""
        return int(self.values[STEP])

    def to_line(self) -> bytes:
        """As JSON, a line."""
        return json.dumps(asdict(self), separators=(",", ":")).encode() + b"\n"


def reading_of_line(line: bytes) -> Reading:
    """What `to_line` wrote."""
    return Reading(**json.loads(line))


def read_curves(status: Status, at: float) -> Reading:
    """What is known and finite of all curves."""
    values = {curve.name: curve.read(status) for curve in CURVES}
    known = {name: v for name, v in values.items() if v is not None and math.isfinite(v)}
    return Reading(round(at, 3), known)


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose curves they are; ids in hex digits."""

    run_name: str
    run_id: str
    node_id: str


class Writer(Protocol):
    """Hands readings on to one tool. It may take its time, and raise whatever it likes: it runs in a process of
    its own (`peerlm.daemon.writers`), is closed then and made again later."""

    def write(self, reading: Reading) -> None:
        """Hand on one reading, later than all before it unless the clock was set back."""

    def close(self) -> None:
        """Finish; nothing is written afterwards."""


class Cadence:
    """Which readings are handed on: one every `every_s` at most, and none in which nothing is new, so that a
    node at rest writes nothing however long it rests."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last: Reading | None = None
        self._held_back: Reading | None = None

    def see(self, status: Status, at: float) -> Reading | None:
        """The reading to hand on now, if there is one."""
        reading, last = read_curves(status, at), self._last
        if last is not None and reading.values == last.values:
            self._held_back = None
            return None
        if last is not None and 0 <= at - last.at < self._every_s:
            self._held_back = reading
            return None
        self._last, self._held_back = reading, None
        return reading

    def rest(self) -> Reading | None:
        """At the end: what is new since the last, if anything is."""
        return self._held_back
