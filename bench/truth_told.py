"""What the nodes of bench.truth tell: their tables at any moment, and from their lines the figures.

Each node writes lines (`peerlm.bench.telling`) with the time by a clock that all share, so a figure is the
difference of two of them, or of one and the moment at which this process did something to the swarm. A verdict
counts when a node's own table takes it, not when somebody hears of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Samples = dict[str, list[float]]
"""By figure, in seconds. Real and simulated swarms have the same figures; see `FIGURES`."""

FIGURES = (
    "silent crash: first suspicion",
    "silent crash: first verdict",
    "silent crash: all others know",
    "crash with resets: first suspicion",
    "crash with resets: first verdict",
    "crash with resets: all others know",
    "partition: first verdict of a half",
    "partition: a half holds all of the other dead",
    "partition: one swarm after it ends",
)
"""What is compared; a partition gives two samples of a half, one for each."""


@dataclass(frozen=True, slots=True)
class Told:
    """One line of a node's; `peer` is a node's number too, 0 if it is about nobody."""

    node: int
    at: float
    what: str
    peer: int
    state: str
    dialled: bool
    took_s: float


@dataclass(slots=True)
class Tables:
    """What every node holds of every other. `numbers`: peer id in hex digits → node."""

    paths: Mapping[int, Path]
    numbers: dict[str, int] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    """All lines since the last `forget`."""
    _states: dict[int, dict[int, str]] = field(default_factory=dict)
    _linked: dict[int, dict[int, None]] = field(default_factory=dict)
    _read_bytes: dict[int, int] = field(default_factory=dict)

    def read(self) -> None:
        """Take in what has been written since."""
        lines = []
        for node, path in self.paths.items():
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read_bytes.get(node, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read_bytes[node] = self._read_bytes.get(node, 0) + len(whole) + len(newline)
            lines += [self._line(node, line) for line in whole.splitlines()]
        for line in sorted(lines, key=lambda line: line.at):
            self._take(line)

    def forget(self) -> None:
        """Drop the lines, not the tables."""
        self.told.clear()

    def see_all_alive(self) -> bool:
        """Whether every node holds every other alive."""
        return all(self.state(n, m) == "alive" for n, m in self._pairs())

    def all_linked(self) -> bool:
        return all(self.is_linked(n, m) for n, m in self._pairs())

    def state(self, node: int, peer: int) -> str:
        return self._states.get(node, {}).get(peer, "unknown")

    def is_linked(self, node: int, peer: int) -> bool:
        return peer in self._linked.get(node, {})

    def _pairs(self) -> list[tuple[int, int]]:
        return [(n, m) for n in self.paths for m in self.paths if n != m]

    def _line(self, node: int, text: bytes) -> Told:
        line = json.loads(text)
        return Told(
            node,
            line["at"],
            line["what"],
            self.numbers.get(line["peer"], 0),
            line.get("state", ""),
            line.get("dialled", False),
            line.get("took_s", 0.0),
        )

    def _take(self, line: Told) -> None:
        self.told.append(line)
        match line.what:
            case "began":
                self._states[line.node] = {}
                self._linked[line.node] = {}
            case "member":
                self._states[line.node][line.peer] = line.state
            case "link_up":
                self._linked[line.node][line.peer] = None
            case "link_down":
                self._linked[line.node].pop(line.peer, None)


def first_times(
    told: Sequence[Told], state: str, of: Sequence[int], by: Sequence[int], since: float
) -> dict[tuple[int, int], float]:
    """(node, peer) → seconds until a node in `by` first held a peer in `of` to be in this state."""
    found: dict[tuple[int, int], float] = {}
    for line in told:
        is_change = line.what == "member" and line.state == state and line.at >= since
        if is_change and line.node in by and line.peer in of:
            found.setdefault((line.node, line.peer), line.at - since)
    return found


def last_change(told: Sequence[Told], since: float) -> float:
    """Seconds until a table last changed."""
    return max((line.at for line in told if line.what == "member"), default=since) - since
