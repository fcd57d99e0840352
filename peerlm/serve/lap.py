"""What goes around the ring so that texts go on: tokens of some sessions in, logits out.

A *lap* leaves a *gateway* (the process that has the sessions: a web server, or one command) as tokens, passes its
*legs*, the hosts that between them hold all stages in order, as the stream, comes back to the first of
them, which holds the head too, and goes home as logits. Whoever cannot do its part says so straight to the
gateway. Everything is in the lap, so hosts keep nothing for it but what the model remembers of its sessions.

The bytes are a head of fixed size (by which daemons pass them on without looking further) and a msgpack array.
They come from another machine, so each field is checked before it is believed. Numbers are fp32, since sampling goes
by small differences.

D features of the stream, V token ids, R rows; P: tokens of all rows, one row after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from peerlm.errors import WireError
from peerlm.types import PeerId, printable

Numbers = NDArray[np.float32]

BYTES_MAX = 15 << 20
"""Of a lap: it has to fit into one message of a channel."""

BODY_BYTES_MAX = BYTES_MAX - (1 << 20)
"""Of its numbers. What remains is enough for the rest."""

ROWS_MAX = 4096
SLOT_MAX = 1 << 16
PLACE_MAX = LIFE_MAX = 1 << 40
LEGS_MAX = 256
SECONDS_MAX = 3600.0
NAME_MAX, REASON_MAX = 64, 200

_HEAD = struct.Struct("!B16sQQ")


class Kind(IntEnum):
    FORWARD = 0
    """For the leg that `at` names; behind the last, for the head at the first leg's host."""
    HOME = 1
    """Logits, for the gateway."""
    LOST = 2
    """It comes to nothing, for `reason`; for the gateway."""
    OVER = 3
    """The sessions of its rows are over; for a host."""
    READY = 4
    """Laps may come: a host gets its stage server and weights ready."""


@dataclass(frozen=True, slots=True)
class Head:
    """`origin`: the gateway's node; `gateway`: which of its processes; `number`: of the lap, there."""

    kind: Kind
    origin: PeerId
    gateway: int
    number: int


@dataclass(frozen=True, slots=True)
class Leg:
    """Stages `first` to `last`, at this host."""

    host: PeerId
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Row:
    """`length` tokens of the session in the gateway's `slot`, from place `start`. `wanted`: its logits are. `life`: a number that
    grows each time the slot's tokens begin anew, so that a late lap is not taken for one of whoever has the slot now."""

    slot: int
    start: int
    length: int
    wanted: bool = True
    life: int = 0


@dataclass(frozen=True, slots=True)
class Lap:
    """`tokens` on the first leg, `numbers` after it: the stream (P, D); for the head (R, D), and
    at home logits (R, V), of the wanted rows alone. `versions`, `seconds`: of each leg so far, the weights that each
    row's session is advanced with there, and how long the lap was there. `culprit`: whose fault it is that it is lost."""

    head: Head
    legs: tuple[Leg, ...] = ()
    at: int = 0
    rows: tuple[Row, ...] = ()
    tokens: tuple[int, ...] = ()
    numbers: Numbers | None = None
    versions: tuple[tuple[str, ...], ...] = ()
    seconds: tuple[float, ...] = ()
    reason: str = ""
    culprit: PeerId | None = None

    @property
    def wanted(self) -> int:
        return sum(row.wanted for row in self.rows)

    @property
    def before(self) -> PeerId:
        """Who hands it to the leg that `at` names."""
        return self.legs[self.at - 1].host if self.at else self.head.origin


def tokens_max(features: int) -> int:
    """Of one lap, by what its stream takes."""
    return BODY_BYTES_MAX // (4 * features)


def wanted_max(vocab: int) -> int:
    """Of one lap's rows, by what their logits take."""
    return min(ROWS_MAX, BODY_BYTES_MAX // (4 * vocab))


def read_head(data: bytes) -> Head:
    """Raises `WireError`."""
    if len(data) < _HEAD.size:
        raise WireError("lap: shorter than its head")
    kind, origin, gateway, number = _HEAD.unpack_from(data)
    _require("kind", kind <= Kind.READY)
    return Head(Kind(kind), PeerId(origin), gateway, number)


def pack(lap: Lap) -> bytes:
    head = lap.head
    numbers = b"" if lap.numbers is None else np.ascontiguousarray(lap.numbers, "<f4").tobytes()
    body: bytes = msgpack.packb(
        [
            [[leg.host, leg.first, leg.last] for leg in lap.legs],
            lap.at,
            [[row.slot, row.start, row.length, row.wanted, row.life] for row in lap.rows],
            np.asarray(lap.tokens, "<i4").tobytes(),
            numbers,
            lap.versions,
            lap.seconds,
            lap.reason[:REASON_MAX],
            lap.culprit or b"",
        ]
    )
    return _HEAD.pack(head.kind, head.origin, head.gateway, head.number) + body


def lost(head: Head, culprit: PeerId, reason: str) -> bytes:
    """The answer to a lap that cannot go on."""
    return pack(Lap(replace(head, kind=Kind.LOST), reason=reason, culprit=culprit))


def unpack(data: bytes, stages: int, features: int, vocab: int, context: int) -> Lap:
    """A lap of a model with so many `stages`. Raises `WireError`."""
    head = read_head(data)
    legs, at, rows, tokens, numbers, versions, seconds, reason, culprit = _array(data)
    _require("at", type(at) is int and 0 <= at <= LEGS_MAX)
    _require("tokens", type(tokens) is bytes and len(tokens) % 4 == 0)
    _require("numbers", type(numbers) is bytes and len(numbers) % 4 == 0)
    _require("versions", _is_list(versions, LEGS_MAX, lambda v: _is_list(v, ROWS_MAX, _is_name)))
    _require("seconds", _is_list(seconds, LEGS_MAX, _is_time))
    _require("reason", _is_line(reason, REASON_MAX))
    _require("culprit", type(culprit) is bytes and len(culprit) in (0, 16))
    lap = Lap(
        head,
        _legs(legs, stages) if legs != [] else (),
        at,
        _rows(rows),
        tuple(np.frombuffer(tokens, "<i4").tolist()),
        None,
        tuple(map(tuple, versions)),
        tuple(seconds),
        reason,
        PeerId(culprit) if culprit else None,
    )
    match head.kind:
        case Kind.FORWARD:
            _require("legs", bool(lap.legs) and at <= len(lap.legs) and bool(lap.rows))
            shape = _shape(lap, features)
            _require("versions", len(versions) == len(seconds) == at)
            _require("versions", all(len(names) == len(rows) for names in versions))
            _require("rows", lap.wanted <= wanted_max(vocab))
            _require("rows", all(r.length == 1 or r.start + r.length <= context for r in lap.rows))
            is_first = at == 0
            _require("tokens", len(lap.tokens) == (shape[0] if is_first else 0))
            _require("tokens", all(0 <= token < vocab for token in lap.tokens))
            return _with(lap, b"" if is_first else numbers, None if is_first else shape)
        case Kind.HOME:
            _require("tokens", not tokens and bool(lap.rows))
            _require("versions", len(versions) == len(seconds))
            _require("versions", all(len(names) == len(rows) for names in versions))
            return _with(lap, numbers, (lap.wanted, vocab))
        case Kind.OVER:
            _require("legs", at < len(lap.legs))
            _require("body", not tokens and not numbers)
            return lap
        case _:
            _require("legs", not legs and at == 0)
            _require("body", not tokens and not numbers)
            return lap


def _shape(lap: Lap, features: int) -> tuple[int, int]:
    places = sum(row.length for row in lap.rows)
    _require("rows", all(row.length > 0 for row in lap.rows))
    _require("rows", places <= tokens_max(features))
    return (places if lap.at < len(lap.legs) else lap.wanted, features)


def _with(lap: Lap, numbers: bytes, shape: tuple[int, int] | None) -> Lap:
    if shape is None:
        _require("numbers", not numbers)
        return lap
    _require("numbers", len(numbers) == 4 * shape[0] * shape[1] and len(numbers) <= BYTES_MAX)
    values = np.frombuffer(numbers, "<f4").reshape(shape)
    _require("numbers", bool(np.isfinite(values).all()))
    return replace(lap, numbers=values)


def _array(data: bytes) -> list[Any]:
    try:
        raw = msgpack.unpackb(
            memoryview(data)[_HEAD.size :], max_array_len=ROWS_MAX, max_map_len=0, max_ext_len=0
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"lap: not msgpack: {type(error).__name__}") from None
    if type(raw) is not list or len(raw) != 9:
        raise WireError("lap: not an array of 9")
    return raw


def _legs(raw: Any, stages: int) -> tuple[Leg, ...]:
    _require("legs", type(raw) is list and 0 < len(raw) <= LEGS_MAX)
    legs, following = [], 0
    for found in raw:
        _require("legs", type(found) is list and len(found) == 3)
        host, first, last = found
        _require("legs", type(host) is bytes and len(host) == 16)
        _require("legs", type(first) is int and first == following)
        _require("legs", type(last) is int and first <= last < stages)
        legs.append(Leg(PeerId(host), first, last))
        following = last + 1
    _require("legs", following == stages)
    return tuple(legs)


def _rows(raw: Any) -> tuple[Row, ...]:
    _require("rows", type(raw) is list)
    rows = []
    for found in raw:
        _require("rows", type(found) is list and len(found) == 5)
        slot, start, length, wanted, life = found
        _require("rows", all(type(n) is int and n >= 0 for n in (slot, start, length, life)))
        _require("rows", slot < SLOT_MAX and start + length <= PLACE_MAX and life <= LIFE_MAX)
        _require("rows", type(wanted) is bool)
        rows.append(Row(slot, start, length, wanted, life))
    _require("rows", len({row.slot for row in rows}) == len(rows))
    return tuple(rows)


def _is_list(raw: Any, most: int, fits: Callable[[Any], bool]) -> bool:
    return type(raw) is list and len(raw) <= most and all(map(fits, raw))


def _is_name(raw: Any) -> bool:
    return _is_line(raw, NAME_MAX)


def _is_time(raw: Any) -> bool:
    return type(raw) is float and 0.0 <= raw <= SECONDS_MAX


def _is_line(raw: Any, most: int) -> bool:
    return type(raw) is str and len(raw) <= most and printable(raw) == raw


def _require(what: str, holds: bool) -> None:
    if not holds:
        raise WireError(f"lap: {what} is not what it can be")
