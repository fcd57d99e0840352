"""How a run has gone so far, as curves and events that stay small however long it lasts.

Made from what a node says of itself each second (`status --json`), and from nothing else: a point of the
curves every so often, and an event where something has become different. When there are too many points
every second one goes and the next come half as often, so that the curves always span the whole run. What
is kept is plain JSON, so that it outlives the daemon.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import compress
from typing import Any

POINTS_MAX = 720
SPACING_S = 2.0
"""Between two points, until there are too many for the first time."""

EVENTS_MAX = 300

KEPT_OUT = ("another plan", "left out", "it leaves this node out")
"""What is said of a member begins so where it or this node will not mix, though both could."""

MEMBERS_MAX = 64
"""Members that have curves of their own."""

Status = Mapping[str, Any]
"""What `peerlm status --json` prints."""


@dataclass(frozen=True, slots=True)
class Point:
    """The swarm at one moment. `at` in seconds of wall time, losses in nats a token, bytes of all lives."""

    at: float
    tokens: int
    tokens_per_s: float
    loss: float | None
    val_loss: float | None
    distance: float | None
    alive: int
    bytes_sent: int
    bytes_allreduce: int
    members: dict[str, float | None] = field(default_factory=dict)
    """Validation loss by a member's short id."""
    rates: dict[str, float] = field(default_factory=dict)
    """Tokens/s by a member's short id."""


POINT_FIELDS = tuple(f.name for f in fields(Point))
OF_MEMBERS = ("members", "rates")
SHARED_FIELDS = tuple(name for name in POINT_FIELDS if name not in OF_MEMBERS)


@dataclass(frozen=True, slots=True)
class Event:
    """`kind`: one of `joined`, `back`, `suspect`, `dead`, `left`, `phase`, `worker`, `refused`, `snapshot`,
    `plan`, `start`. `text`: for a person."""

    at: float
    kind: str
    text: str
    peer: str = ""


class History:
    """Points and events, oldest first."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._texts: list[str] = []
        """Of the points, as JSON: each is made once."""
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self.spacing_s = SPACING_S
        self._last: Status | None = None
        self._sent_before = 0
        self._allreduce_before = 0

    def see(self, status: Status, at: float) -> None:
        """Take in what the node says of itself at wall time `at`."""
        self.events.extend(news(self._last, status, at))
        self._last = status
        last = self.points[-1].at if self.points else float("-inf")
        if last > at:  # the clock was set back: what lies in its future would stop us
            self._keep([p.at <= at for p in self.points])
        elif at - last < self.spacing_s:
            return
        self._add(self._point(status, at))
        if len(self.points) > POINTS_MAX:
            self._keep([place % 2 == 0 for place in range(len(self.points))])
            self.spacing_s *= 2

    def _add(self, point: Point) -> None:
        self.points.append(point)
        said = {name: getattr(point, name) for name in POINT_FIELDS}
        self._texts.append(json.dumps(said, separators=(",", ":")))

    def _keep(self, chosen: Sequence[bool]) -> None:
        self.points = [*compress(self.points, chosen)]
        self._texts = [*compress(self._texts, chosen)]

    def _point(self, status: Status, at: float) -> Point:
        members = status["members"][:MEMBERS_MAX]
        return Point(
            at=round(at, 1),
            tokens=status["swarm_tokens"],
            tokens_per_s=status["swarm_tokens_per_s"],
            loss=status["loss"],
            val_loss=status["val_loss"],
            distance=status["consensus_distance"],
            alive=sum(m["state"] == "alive" for m in status["members"]),
            bytes_sent=self._sent_before + status["bytes_sent"],
            bytes_allreduce=self._allreduce_before + status["bytes_allreduce"],
            members={short(m["id"]): m["val_loss"] for m in members if m["state"] == "alive"},
            rates={short(m["id"]): m["tokens_per_s"] for m in members if m["state"] == "alive"},
        )

    # ------------------------------------------------------------------------------ as JSON

    def to_text(self) -> str:
        """What `/history` answers and what is kept, as JSON."""
        rest = {"spacing_s": self.spacing_s, "events": [asdict(e) for e in self.events]}
        return f'{{"points":[{",".join(self._texts)}],{json.dumps(rest)[1:]}'

    def since(self, at: float) -> dict[str, Any]:
        """What came after wall time `at`, as JSON, without the members' own curves: little to say, however often
        one asks."""
        return {
            "points": [
                {name: getattr(point, name) for name in SHARED_FIELDS}
                for point in self.points
                if point.at > at
            ],
            "events": [asdict(event) for event in self.events if event.at > at],
        }


def read_history(data: bytes) -> History:
    """What `to_text` wrote, to be gone on with by another life of the node; damaged, it begins anew."""
    history = History()
    try:
        kept = json.loads(data)
        for point in kept["points"][-POINTS_MAX:]:
            history._add(_point_of(point))
        history.events.extend(Event(**e) for e in kept["events"])
        history.spacing_s = max(SPACING_S, float(kept["spacing_s"]))
        if history.points:
            history._sent_before = int(history.points[-1].bytes_sent)
            history._allreduce_before = int(history.points[-1].bytes_allreduce)
    except (ValueError, KeyError, TypeError, RecursionError):
        return History()
    return history


def _point_of(said: dict[str, Any]) -> Point:
    """Raises `TypeError`, `KeyError` or `ValueError` if it is none."""
    point = Point(**said)
    for name in SHARED_FIELDS:
        value = said[name]
        if not isinstance(value, int | float) and (value is not None or name == "at"):
            raise ValueError(name)
    for name in OF_MEMBERS:  # an earlier release kept no rates
        if not isinstance(getattr(point, name), dict):
            raise TypeError(name)
    return point


# ------------------------------------------------------------------------------------- events


def short(peer: str) -> str:
    return peer[:8]


def news(before: Status | None, now: Status, at: float) -> Sequence[Event]:
    """What has become different between two answers of one node; `before` None: it has just started."""
    if before is None:
        text = f"this node started, {now['state']}, at {now['swarm_tokens']:,} tokens"
        return [Event(at, "start", text, short(now["node_id"]))]
    return [*_of_members(before, now, at), *_of_this_node(before, now, at)]


def _of_members(before: Status, now: Status, at: float) -> list[Event]:
    was = {m["id"]: m["state"] for m in before["members"]}
    said = {m["id"]: m.get("reason", "") for m in before["members"]}
    events = []
    for member in now["members"]:
        old, new = was.get(member["id"]), member["state"]
        reason = member.get("reason", "")
        if reason.startswith(KEPT_OUT) and not said.get(member["id"], "").startswith(KEPT_OUT):
            name = short(member["id"])
            events.append(Event(at, "refused", f"{name} at {member['address']}: {reason}", name))
        if old == new or member["id"] == now["node_id"]:
            continue
        name = short(member["id"])
        where = f"{name} at {member['address']}"
        match new:
            case "alive" if old is None:
                events.append(Event(at, "joined", f"{where} joined", name))
            case "alive":
                events.append(Event(at, "back", f"{where} is back ({old} before)", name))
            case "suspect":
                events.append(Event(at, "suspect", f"{where} does not answer", name))
            case "dead" if old is not None:
                events.append(Event(at, "dead", f"{where} was declared dead", name))
            case "left" if old is not None:
                events.append(Event(at, "left", f"{where} left", name))
    return events


def _of_this_node(before: Status, now: Status, at: float) -> list[Event]:
    events, me = [], short(now["node_id"])
    if now["state"] != before["state"]:
        why = f": {now['state_reason']}" if now["state_reason"] else ""
        events.append(Event(at, "phase", f"this node is {now['state']}{why}", me))
    if now["worker"]["restarts"] > before["worker"]["restarts"]:
        error = now["worker"]["last_error"] or "no word of why"
        events.append(Event(at, "worker", f"the worker is started again: {error}", me))
    if now["plan_revision"] != before["plan_revision"]:
        events.append(Event(at, "plan", f"plan revision {now['plan_revision']} holds", me))
    if now["snapshot"]["error"] and now["snapshot"]["error"] != before["snapshot"]["error"]:
        events.append(Event(at, "snapshot", f"no snapshot: {now['snapshot']['error']}", me))
    for reason, times in now["exchange_reasons"].items():
        if _is_rejection(reason) and reason not in before["exchange_reasons"]:
            events.append(Event(at, "refused", f"exchange {reason} ({times} times so far)", me))
    return events


def _is_rejection(reason: str) -> bool:
    return reason.startswith(("refused", "excluded", "answered refuse"))
