"""What a daemon and its worker say to each other.

Two processes of one machine share a Unix socketpair for words (this file) and one piece of memory
for numbers (`train.shared`). A socketpair, and not a named socket, because its end of file tells
each side of the other's death at once, and because it has no name, port or file that anybody else
could open or that a `kill -9` could leave behind.

A message is the msgpack array [name, field, …] behind its length in four bytes. Decoding is strict
although both sides are the same program: a broken worker must look broken, not strange. Numbers too
large for a message (fragments) lie in shared memory, and a message says whose turn it is with them.
This file imports neither torch nor numpy, since the daemon reads it too.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints

import msgpack

from peerlm import config
from peerlm.config import NodeSettings, Plan
from peerlm.errors import ConfigError, WireError
from peerlm.types import FragmentId, PeerId

LENGTH = struct.Struct("<I")
MESSAGE_BYTES_MAX = 16 << 20
"""Far above the largest true message, a `Setup` that names some hundred thousand shards."""

ITEMS_MAX = 1 << 18
"""Of one list: so many shards fit a message."""

TUPLES_MAX = 7
"""In one message: itself, and those of its fields."""

ADD, RESET = "add", "reset"
"""Kinds of correction: θ += values; θ := values and forget what the optimizer knew of θ."""

T = TypeVar("T", Plan, NodeSettings)


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages."""


# ---------------------------------------------------------------------------- daemon → worker


@dataclass(frozen=True, slots=True)
class Setup(Message):
    """The first message. Unless `fresh`, θ := φ, which lies in the `slow` region."""

    generation: int
    fresh: bool
    peer: PeerId
    plan: bytes
    """`packed(plan)`."""
    settings: bytes
    """`packed(node settings)`: device, pace, memory."""
    corpus: tuple[str, ...]
    """Paths of the token shards, in order."""
    threads: int
    passes: bytes
    """What of the text is read, as `data.passes` has it; empty: nothing."""
    first_stage: int = 0
    last_stage: int = 0
    """What of the model this node holds."""
    absent: tuple[int, ...] = ()
    """Of the shards, those that are not here yet, by their places in `corpus`."""
    moments: str = ""
    """Path of the file that the optimizer's state is kept in; empty: it is not kept."""
    cold: bool = False
    """Begin without what is kept there."""


@dataclass(frozen=True, slots=True)
class ServeSetup(Message):
    """The first message to a stage server (`serve.stage_server`), whose stages advance other nodes' texts."""

    peer: PeerId
    plan: bytes
    """`packed(plan)`."""
    state: str
    """Path of the folder whose newest snapshot has the weights."""
    first_stage: int
    last_stage: int
    sessions: int
    threads: int
    cache_bytes: int
    """At most, of what the model remembers of all sessions, where that lies in the host's memory."""
    device: str = "cpu"
    """`train.device` of the node."""


@dataclass(frozen=True, slots=True)
class Steer(Message):
    """As `effects.SteerWorker`; `token_budget` is that of the plan's newest revision."""

    training: bool
    swarm_tokens: int
    token_budget: int
    members: tuple[PeerId, ...]
    inner_steps: int
    hosts: tuple[PeerId, ...] = ()
    """Nodes that the stream can be sent to and come from, and the stages that each holds."""
    first_stages: tuple[int, ...] = ()
    last_stages: tuple[int, ...] = ()
    passes: bytes = b""
    """What of the text is read by now; empty: nothing is known."""
    ways_s: tuple[float, ...] = ()
    """Of each of `hosts`, seconds that a microbatch takes there and its gradient back; 0: not known. Empty: of none."""


@dataclass(frozen=True, slots=True)
class Shards(Message):
    """What shards of the text are here has changed."""

    absent: tuple[int, ...]
    """Places in `Setup.corpus` of those that are not. All others are, each at its path there."""


@dataclass(frozen=True, slots=True)
class Correction(Message):
    """Values for θ of this fragment lie in its `correction` slot, the worker's until `Applied`."""

    fragment: FragmentId
    seq: int
    kind: str
    """`ADD` or `RESET`."""


@dataclass(frozen=True, slots=True)
class BoundaryTaken(Message):
    """The `boundary` slot of this fragment is the worker's again."""

    fragment: FragmentId


@dataclass(frozen=True, slots=True)
class Evaluate(Message):
    """φ lies in the `slow` region, the worker's until `Evaluated`."""


@dataclass(frozen=True, slots=True)
class Keep(Message):
    """Write the optimizer's state to its file, between inner steps → `Kept`."""


@dataclass(frozen=True, slots=True)
class Drain(Message):
    """Take no more inner steps, hand in what θ has moved, say `Drained`."""


@dataclass(frozen=True, slots=True)
class Stop(Message):
    """Exit at once. θ is lost."""


# --------------------------------------------------------------------------- daemon → gateway


@dataclass(frozen=True, slots=True)
class Hosts(Message):
    """Who can advance texts now, this node (`me`) too if it can, and the first and last stage that each holds. `behind`:
    whose weights are far behind those of others of its stages."""

    me: PeerId
    peers: tuple[PeerId, ...]
    first_stages: tuple[int, ...]
    last_stages: tuple[int, ...]
    behind: tuple[PeerId, ...] = ()
    ways_s: tuple[float, ...] = ()
    """Seconds that a token takes from here to each; 0: not known. Empty: of none."""
    onward_s: tuple[float, ...] = ()
    """The same between it and a third."""


# ------------------------------------------------------------------------------- both ways


@dataclass(frozen=True, slots=True)
class Hop(Message):
    """A stream from, or for, the worker of another node (`train.hop`); of stage servers and gateways, a lap
    (`serve.lap`), from or for the one of `peer`."""

    peer: PeerId
    data: bytes


# ---------------------------------------------------------------------------- worker → daemon


@dataclass(frozen=True, slots=True)
class Initialised(Message):
    """The initial weights of a fresh start lie in the `boundary` region. Comes before `Ready`."""


@dataclass(frozen=True, slots=True)
class Ready(Message):
    device: str
    threads: int
    optimizer: str = ""
    """What it begins with, in a line; empty: there is nothing to say."""
    paces: tuple[float, ...] = ()
    """Tokens a second of one module of each kind (`model.stages.KINDS`), forward and back; 0: the plan has none. Empty: not tried."""


@dataclass(frozen=True, slots=True)
class Boundary(Message):
    """θ of this fragment lies in its `boundary` slot, the daemon's until `BoundaryTaken`."""

    fragment: FragmentId
    applied_seq: int
    """Of the last correction in it; 0 if none."""
    steps: int
    """Inner steps of this generation when it was read."""


@dataclass(frozen=True, slots=True)
class Applied(Message):
    """The correction is in θ; its slot is the daemon's again."""

    fragment: FragmentId
    seq: int


@dataclass(frozen=True, slots=True)
class Progress(Message):
    """Totals of this generation; `loss` and `tokens_per_s` since the last report."""

    steps: int
    tokens: int
    loss: float | None
    tokens_per_s: float
    nonfinite_steps: int
    stream_lost: int = 0
    stream_sent: int = 0
    stream_received: int = 0
    """Of a part of the model: microbatches that came to nothing, and bytes of hops."""
    busy: float = 1.0
    """Share of the time in which it worked, since the last report."""
    texts: tuple[bytes, ...] = ()
    ranges: tuple[int, ...] = ()
    """What it reads, as records have it (`data.passes.text_of`), and in how many ranges each; none: it reads nothing."""
    finished: tuple[int, ...] = ()
    """Text (its place in `texts`), pass and range of each that was finished since the last report, one after the other."""
    lanes: tuple[int, ...] = ()
    """Text, pass, range and windows read, of each that it is in the midst of."""
    order: bytes = b""
    """How far the drawing from `texts` is (`data.records`)."""
    lacks_text: bool = False
    """It should train, and waits for a shard to read."""
    worked_tokens_s: float = 0.0
    """Since the last report: tokens a second, of anybody's text, each as the share of the held stages' FLOPs that it took here.
    0: as many as `tokens_per_s`."""


@dataclass(frozen=True, slots=True)
class Evaluated(Message):
    val_loss: float
    """nan if the corpus holds nothing out."""
    noise_scale: float | None
    """Tokens; None: not known."""
    val_losses: tuple[float, ...] = ()
    """Of each text, of which `val_loss` is the mean by their shares."""


@dataclass(frozen=True, slots=True)
class Kept(Message):
    """The optimizer's state is on the disk."""

    seconds: float
    """That it took, writing and flushing."""
    error: str = ""
    """It is not: why."""


@dataclass(frozen=True, slots=True)
class Drained(Message):
    """Every last boundary has been taken; θ moves no more but by corrections."""


@dataclass(frozen=True, slots=True)
class Nonsense(Message):
    """A peer's hop is none."""

    peer: PeerId
    why: str


@dataclass(frozen=True, slots=True)
class Served(Message):
    """Of a stage server: sessions that it remembers now; laps that it took since its start, and those that it lost."""

    sessions: int
    laps: int
    lost: int


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """The worker's last word before it exits."""

    error: str
    """One line."""


# ---------------------------------------------------------------------------------- to bytes


def frame(message: Message) -> bytes:
    """The bytes of a message, its length in front."""
    values = (getattr(message, f.name) for f in dataclasses.fields(message))
    body: bytes = msgpack.packb([type(message).__name__, *values])
    assert len(body) <= MESSAGE_BYTES_MAX, f"{type(message).__name__} of {len(body)} bytes"
    return LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a stream of bytes into messages, however the bytes arrive."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes, in order.

        Raises:
            WireError: the stream is not what the other side can have meant; give it up.
        """
        self._waiting += data
        found: list[Message] = []
        while len(self._waiting) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._waiting)
            if length > MESSAGE_BYTES_MAX:
                raise WireError(
                    f"worker socket: message of {length} bytes, at most {MESSAGE_BYTES_MAX}"
                )
            end = LENGTH.size + length
            if len(self._waiting) < end:
                break
            found.append(decode(bytes(self._waiting[LENGTH.size : end])))
            del self._waiting[:end]
        return found


def decode(body: bytes) -> Message:
    """A message from the bytes behind its length. Raises `WireError`."""
    try:
        raw = msgpack.unpackb(
            body,
            list_hook=_tuples(),
            max_array_len=min(len(body), ITEMS_MAX),
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"worker socket: not msgpack: {type(error).__name__}") from None
    named = isinstance(raw, tuple) and raw and type(raw[0]) is str
    kind: Any = kinds().get(raw[0]) if named else None
    if kind is None:
        name = raw[0][:60] if named else type(raw).__name__
        raise WireError(f"worker socket: unknown message {name!r}")
    fields = _fields(kind)
    if len(raw) - 1 != len(fields):
        raise WireError(
            f"worker socket: {kind.__name__} of {len(raw) - 1} fields, not {len(fields)}"
        )
    for (name, fits), value in zip(fields, raw[1:], strict=True):
        if not fits(value):
            raise WireError(f"worker socket: {kind.__name__}.{name} = {repr(value)[:60]}")
    message: Message = kind(*raw[1:])
    return message


def _tuples() -> Callable[[list[Any]], tuple[Any, ...]]:
    """Lists to tuples, up to `TUPLES_MAX` of them; beyond, `ValueError`."""
    left = TUPLES_MAX

    def count(found: list[Any]) -> tuple[Any, ...]:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {TUPLES_MAX} lists")
        return tuple(found)

    return count


@cache
def kinds() -> dict[str, type[Any]]:
    """Every message there is, by its name."""
    found = [k for k in globals().values() if isinstance(k, type) and issubclass(k, Message)]
    return {kind.__name__: kind for kind in found if kind is not Message}


_FITS: dict[Any, Callable[[Any], bool]] = {
    bool: lambda v: type(v) is bool,
    int: lambda v: type(v) is int and v >= 0,
    float: lambda v: type(v) is float,
    float | None: lambda v: v is None or type(v) is float,
    str: lambda v: type(v) is str,
    bytes: lambda v: type(v) is bytes,
    tuple[str, ...]: lambda v: type(v) is tuple and all(type(item) is str for item in v),
    tuple[int, ...]: lambda v: type(v) is tuple and all(type(item) is int for item in v),
    tuple[float, ...]: lambda v: type(v) is tuple and all(type(item) is float for item in v),
    tuple[bytes, ...]: lambda v: type(v) is tuple and all(type(item) is bytes for item in v),
    tuple[PeerId, ...]: lambda v: type(v) is tuple and all(type(item) is bytes for item in v),
}


@cache
def _fields(kind: type[Any]) -> tuple[tuple[str, Callable[[Any], bool]], ...]:
    hints = get_type_hints(kind)
    return tuple(
        (f.name, _FITS[getattr(hints[f.name], "__supertype__", hints[f.name])])
        for f in dataclasses.fields(kind)
    )


def packed(settings: Plan | NodeSettings) -> bytes:
    """Settings as bytes, for `Setup`."""
    return bytes(msgpack.packb(config.to_dict(settings)))


def unpacked(kind: type[T], data: bytes) -> T:
    """Settings out of `Setup`. Raises `ConfigError`."""
    where = f"{kind.__name__} from the daemon"
    try:
        raw = msgpack.unpackb(data)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise ConfigError(f"{where}: not msgpack: {type(error).__name__}") from None
    return config.from_dict(kind, raw, where)
