"""Both sides of an exchange, as arithmetic. The flow form:

    initiator i                                       responder j
    encode(φ_i)  ────────── request ──────────▶       x̂ = decode; gates; d = φ_j − x̂
    d̂ = decode;  φ_i += c·clip(d̂, τ_i)   ◀── reply ──  encode(d), d̂ = decode of that; φ_j −= c·clip(d̂, τ_j)

Both use the *same* decoded difference, so what one gains the other loses, and the sum over all
nodes is conserved for any codec, delay and order; the two moments need not be the same, and φ may
have moved in between. Only clipping bends the sum, and by how much is part of the result.

A fragment crosses in chunks (chunks.py), and each is answered as soon as
it is heard: so a fragment is on its way up and down at once, is worked on while it is in the caches,
and only the difference is kept, until its norm is known: the gates and the clipping want that of
the whole before anything is applied. φ is read for it without its turn, while outer steps and other
exchanges may move it; that is sound for the reason above, and an element of fp32 is never half
written. Only `apply` must have the fragment to itself.

Gates stand in this order: length (`codec.decode`), finite, norm ratio. The
protocol around this (who, when, how often) is exchange.py's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from peerlm.errors import WireError
from peerlm.mix.chunks import chunk_at, chunk_bytes, chunk_count, stream_bytes
from peerlm.mix.codec import (
    CODECS,
    IS_LITTLE,
    WEIGHT_CODECS,
    decode_measured,
    encode,
    encode_or_view,
    subtract_decoded,
)
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.robust import (
    clip_scale,
    difference_is_possible,
    first_clip_norm,
    is_absurd,
    norms_agree,
)
from peerlm.mix.vector import Vector

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Request:
    """`payload` is encode(φ_i), `phi_norm` is |φ_i|, `version` the outer steps in it."""

    payload: memoryview
    phi_norm: float
    version: int


@dataclass(frozen=True, slots=True)
class Flow:
    """What an exchange did to this side's φ, or to its m."""

    raw_norm: float
    """|d̂| as it came."""
    applied_norm: float
    """|u| = c·|clip(d̂, τ)|."""
    withheld_norm: float
    """c·(|d̂| − |clip(d̂, τ)|): how much of the flow this side did not take part in."""
    phi_norm: float
    """|φ| before the flow, as of the last outer step or exchange."""
    clipped: bool


@dataclass(frozen=True, slots=True)
class Response:
    """`payload` is encode(d), to be sent, and kept for a repeated request."""

    payload: memoryview
    flow: Flow


@dataclass(frozen=True, slots=True)
class Refused:
    """A gate held: nothing was applied. `reason` is one line that begins with the gate: malformed, not
    finite, impossible, norm. The last may be an honest laggard's."""

    reason: str


class _Side:
    """What both sides share: `weight` is c; `clip_norm` is τ, None while there is no history;
    `through_momentum` adds our side to m instead of φ; `difference` [n] is where d̂ is kept."""

    def __init__(
        self,
        fragment: SlowFragment,
        *,
        codec_request: str,
        codec_reply: str,
        weight: float,
        clip_norm: float | None,
        rng: np.random.Generator,
        difference: Vector,
        through_momentum: bool = False,
    ) -> None:
        assert codec_request in WEIGHT_CODECS, f"{codec_request} is for differences only"
        assert codec_reply in CODECS, codec_reply
        assert difference.size == fragment.size, (difference.size, fragment.size)
        self.codec_request, self.codec_reply = codec_request, codec_reply
        self.chunks = chunk_count(fragment.size)
        self._last = max(0, self.chunks - 1)
        self._request_bytes, self._reply_bytes = (
            (chunk_bytes(codec, 0, fragment.size), chunk_bytes(codec, self._last, fragment.size))
            for codec in (codec_request, codec_reply)
        )
        """Of the first chunk and those like it, and of the last: asked for at every turn of the bulk thread."""
        self.heard = 0
        self._fragment = fragment
        self._weight, self._clip_norm = weight, clip_norm
        self._through_momentum = through_momentum
        self._rng = rng
        self._difference = difference
        self._phi_norm = fragment.known_norm()
        self._squares = 0.0
        """Of d̂, so far."""

    @property
    def has_all(self) -> bool:
        return self.heard == self.chunks

    @property
    def held_bytes(self) -> int:
        """Memory that lives as long as the exchange."""
        return self._difference.nbytes

    def request_bytes(self, index: int) -> int:
        return self._request_bytes[index == self._last]

    def reply_bytes(self, index: int) -> int:
        return self._reply_bytes[index == self._last]

    def _next(self) -> slice:
        part = chunk_at(self.heard, self._fragment.size)
        self.heard += 1
        return part

    def _apply(self, weight: float) -> Flow:
        raw_norm, phi_norm = math.sqrt(self._squares), self._phi_norm
        clip_norm = self._clip_norm
        if clip_norm is None:
            clip_norm = first_clip_norm(phi_norm, self._fragment.size)
        scale = clip_scale(raw_norm, clip_norm)
        if self._through_momentum:
            self._fragment.add_to_momentum(self._difference, weight * scale)
        else:
            self._fragment.add_flow(self._difference, weight * scale)
        return Flow(
            raw_norm=raw_norm,
            applied_norm=abs(weight) * scale * raw_norm,
            withheld_norm=abs(weight) * (1 - scale) * raw_norm,
            phi_norm=phi_norm,
            clipped=scale < 1,
        )


class Asking(_Side):
    """The initiator's side: `request` every chunk, `hear` every chunk of the reply, `judge`, `apply`."""

    _placed: memoryview | None = None

    def request(self, index: int, out: memoryview) -> memoryview:
        """The chunk of φ, encoded: in `out`, or φ itself. Raises `ValueError`: φ does not fit the
        codec (fp16 ends at 65504)."""
        phi = self._fragment.phi[chunk_at(index, self._fragment.size)]
        return encode_or_view(phi, self.codec_request, self._rng, out, self._phi_norm)

    def place(self) -> memoryview | None:
        """Where the next chunk of the reply may be put for `hear`, if it needs no decoding."""
        if self.codec_reply != "fp32" or not IS_LITTLE:
            return None
        part = chunk_at(self.heard, self._fragment.size)
        self._placed = self._difference[part].data.cast("B")
        return self._placed

    def hear(self, encoded: Buffer) -> None:
        """The next chunk of the reply. Raises `WireError`."""
        room = self._difference[self._next()]
        decoded, of_chunk = decode_measured(encoded, self.codec_reply, room)
        if decoded is not room and encoded is not self._placed:
            room[...] = decoded
        self._squares += of_chunk

    def judge(self) -> Refused | None:
        """Once all is heard: whether a gate holds."""
        raw_norm, phi_norm = math.sqrt(self._squares), self._phi_norm
        if difference_is_possible(raw_norm, phi_norm, self._fragment.size):
            return None
        return _misfit("|d̂|", raw_norm, phi_norm, self._fragment.size)

    def apply(self) -> Flow:
        """Our side of it. Only after `judge`, with the fragment to ourselves."""
        return self._apply(self._weight)


class Answering(_Side):
    """The responder's side: `answer` every chunk, `judge`, `apply`."""

    _theirs = 0.0

    def answer(self, encoded: Buffer, out: memoryview) -> memoryview:
        """Take the next chunk of the request; returns that of the reply, in `out` or where it is kept.

        Raises:
            WireError: what came is malformed.
            ValueError: the difference does not fit the reply's codec.
        """
        part = self._next()
        phi, difference = self._fragment.phi[part], self._difference[part]
        of_theirs, of_chunk = subtract_decoded(encoded, self.codec_request, phi, difference)
        self._theirs += of_theirs
        payload = encode_or_view(difference, self.codec_reply, self._rng, out, of_chunk)
        if self.codec_reply != "fp32":  # what the initiator will make of it
            _, of_chunk = decode_measured(payload, self.codec_reply, difference)
        self._squares += of_chunk
        return payload

    def judge(self) -> Refused | None:
        """Once all is answered: whether a gate holds."""
        theirs, ours = math.sqrt(self._theirs), self._phi_norm
        if norms_agree(theirs, ours, self._fragment.size):
            return None
        return _misfit("|x̂|", theirs, ours, self._fragment.size)

    def apply(self) -> Flow:
        """Our side of it. Only after `judge`, with the fragment to ourselves."""
        return self._apply(-self._weight)


# --------------------------------------------------------------- for who has the whole at once


def make_request(fragment: SlowFragment, codec: str, rng: np.random.Generator) -> Request:
    """All chunks of the initiator's request. `codec` must be fit for raw weights.

    Raises:
        ValueError: φ does not fit the codec (fp16 ends at 65504).
    """
    assert codec in WEIGHT_CODECS, f"{codec} is for differences only"
    payload, at = np.empty(stream_bytes(codec, fragment.size), np.uint8).data, 0
    for index in range(chunk_count(fragment.size)):
        part = chunk_at(index, fragment.size)
        at += encode(fragment.phi[part], codec, rng, payload[at:]).nbytes
    return Request(payload, fragment.phi_norm(), fragment.version)


def respond(
    fragment: SlowFragment,
    request: Buffer,
    *,
    codec_request: str,
    codec_reply: str,
    weight: float,
    clip_norm: float | None,
    rng: np.random.Generator,
    through_momentum: bool = False,
) -> Response | Refused:
    """The responder's whole part: judge the request, compute the reply, apply our side of it."""
    side = Answering(
        fragment,
        codec_request=codec_request,
        codec_reply=codec_reply,
        weight=weight,
        clip_norm=clip_norm,
        rng=rng,
        difference=np.empty(fragment.size, np.float32),
        through_momentum=through_momentum,
    )
    payload, at = np.empty(stream_bytes(codec_reply, fragment.size), np.uint8).data, 0
    try:
        for chunk in _chunks(request, codec_request, fragment.size):
            said = side.answer(chunk, payload[at:])
            payload[at : at + len(said)] = said
            at += len(said)
    except WireError as error:
        return Refused(f"malformed: {error}")
    except ValueError as error:
        return Refused(f"not finite: the difference does not fit {codec_reply}: {error}")
    refused = side.judge()
    return Response(payload, side.apply()) if refused is None else refused


def absorb(
    fragment: SlowFragment,
    reply: Buffer,
    *,
    codec_reply: str,
    weight: float,
    clip_norm: float | None,
    through_momentum: bool = False,
) -> Flow | Refused:
    """The initiator's second half: judge the reply and apply our side of it."""
    side = Asking(
        fragment,
        codec_request="fp32",
        codec_reply=codec_reply,
        weight=weight,
        clip_norm=clip_norm,
        rng=np.random.default_rng(0),
        difference=np.empty(fragment.size, np.float32),
        through_momentum=through_momentum,
    )
    try:
        for chunk in _chunks(reply, codec_reply, fragment.size):
            side.hear(chunk)
    except WireError as error:
        return Refused(f"malformed: {error}")
    return side.judge() or side.apply()


def _chunks(encoded: Buffer, codec: str, size: int) -> list[memoryview]:
    """Raises `WireError` where the bytes are not as many as all chunks have."""
    view = memoryview(encoded).cast("B")
    if len(view) != stream_bytes(codec, size):
        raise WireError(f"{len(view)} bytes instead of {stream_bytes(codec, size)} of {codec}")
    ends = [stream_bytes(codec, chunk_at(i, size).stop) for i in range(chunk_count(size))]
    return [view[start:end] for start, end in zip([0, *ends], ends, strict=False)]


# ------------------------------------------------------------------------------- inside


def _misfit(what: str, theirs: float, ours: float, size: int) -> Refused:
    kind = "impossible" if is_absurd(theirs, ours, size) else "norm"
    return Refused(f"{kind}: {what} = {theirs:.3g} where |φ| = {ours:.3g}")
