"""Both sides of an exchange, as arithmetic. The flow form:

    initiator i                                       responder j
    encode(φ_i)  ────────── request ──────────▶       x̂ = decode; gates; d = φ_j − x̂
    d̂ = decode;  φ_i += c·clip(d̂, τ_i)   ◀── reply ──  encode(d), d̂ = decode of that; φ_j −= c·clip(d̂, τ_j)

Both use the *same* decoded difference, so what one gains the other loses, and the sum over all
nodes is conserved for any codec, delay and order; the two moments need not be the same, and φ may
have moved in between. Only clipping bends the sum, and by how much is part of the result.

Gates stand in this order: schema, codec and element count (`codec.decode`), finite, norm ratio. The
protocol around this (who, when, how often) is exchange.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from peerlm.errors import WireError
from peerlm.mix.codec import WEIGHT_CODECS, decode, encode
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.robust import (
    clip_scale,
    difference_is_possible,
    first_clip_norm,
    is_absurd,
    norms_agree,
)
from peerlm.mix.vector import Vector, norm

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
    """|φ| before the flow."""
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


def make_request(fragment: SlowFragment, codec: str, rng: np.random.Generator) -> Request:
    """The initiator's first half. `codec` must be fit for raw weights.

    Raises:
        ValueError: φ does not fit the codec (fp16 ends at 65504).
    """
    assert codec in WEIGHT_CODECS, f"{codec} is for differences only"
    return Request(encode(fragment.phi, codec, rng), fragment.phi_norm(), fragment.version)


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
    """The responder's whole part: judge the request, compute the reply, apply our side of it.

    `weight` is c; `clip_norm` is τ, None while there is no history; `through_momentum` adds our side
    to m instead of φ.
    """
    assert codec_request in WEIGHT_CODECS, f"{codec_request} is for differences only"
    try:
        theirs = decode(request, fragment.size, (codec_request,))
    except WireError as error:
        return Refused(f"malformed: {error}")
    ours_norm, theirs_norm = fragment.phi_norm(), norm(theirs)
    if not norms_agree(theirs_norm, ours_norm, fragment.size):
        return _misfit("|x̂|", theirs_norm, ours_norm, fragment.size)
    difference = np.subtract(fragment.phi, theirs, out=theirs)
    try:
        payload = encode(difference, codec_reply, rng)
    except ValueError as error:
        return Refused(f"not finite: the difference does not fit {codec_reply}: {error}")
    decoded = decode(payload, fragment.size, (codec_reply,), out=difference)
    flow = _apply(fragment, decoded, ours_norm, -weight, clip_norm, through_momentum)
    return Response(payload, flow)


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
    try:
        decoded = decode(reply, fragment.size, (codec_reply,))
    except WireError as error:
        return Refused(f"malformed: {error}")
    raw_norm, phi_norm = norm(decoded), fragment.phi_norm()
    if not difference_is_possible(raw_norm, phi_norm, fragment.size):
        return _misfit("|d̂|", raw_norm, phi_norm, fragment.size)
    return _apply(fragment, decoded, phi_norm, weight, clip_norm, through_momentum)


def _misfit(what: str, theirs: float, ours: float, size: int) -> Refused:
    kind = "impossible" if is_absurd(theirs, ours, size) else "norm"
    return Refused(f"{kind}: {what} = {theirs:.3g} where |φ| = {ours:.3g}")


def _apply(
    fragment: SlowFragment,
    difference: Vector,
    phi_norm: float,
    weight: float,
    clip_norm: float | None,
    through_momentum: bool,
) -> Flow:
    raw_norm = norm(difference)
    if clip_norm is None:
        clip_norm = first_clip_norm(phi_norm, fragment.size)
    scale = clip_scale(raw_norm, clip_norm)
    if through_momentum:
        fragment.add_to_momentum(difference, weight * scale)
    else:
        fragment.add_flow(difference, weight * scale)
    return Flow(
        raw_norm=raw_norm,
        applied_norm=abs(weight) * scale * raw_norm,
        withheld_norm=abs(weight) * (1 - scale) * raw_norm,
        phi_norm=phi_norm,
        clipped=scale < 1,
    )
