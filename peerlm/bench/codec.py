"""What codecs and the arithmetic of an exchange cost on one processor, without a network.

Two fragments, about as far apart as nodes that have trained for a while, live in this process. Encoding and
decoding are timed by themselves, then the three halves of an exchange as the daemon calls them: `request`
(the initiator encodes φ), `respond` (decode, gates, difference, encode, decode again, apply) and
`absorb` (decode, gates, apply). Repetitions of all take turns, so that a slow moment hits all alike.

The error of a codec is the norm of what rounding changed ÷ the norm of the vector. That of an exchange is the
distance that it has left between the two ÷ the distance there was; with c = ½ and no rounding it is 0.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from peerlm.bench.rows import Missed, Row, codec_row, codecs_of
from peerlm.bench.weights import prepare
from peerlm.mix import flow, loops
from peerlm.mix.chunks import stream_bytes
from peerlm.mix.codec import CODECS, decode, encode
from peerlm.mix.fragment import SlowFragment
from peerlm.mix.loops import norm
from peerlm.mix.vector import Vector
from peerlm.types import FragmentId

EXCHANGES = ("fp32", "fp16", "int8", "int8:int4")
"""Codecs of request and reply whose whole arithmetic is timed."""

RNG_SEED = 1
WEIGHT = 0.5

T = TypeVar("T")
Seconds = dict[str, list[float]]


def measure(parameters: int, repeat: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Everything on fragments of `parameters`, `repeat` times after one that is not counted; the object
    that `--json` prints."""
    bench = Bench(parameters)
    seconds: Seconds = defaultdict(list)
    for number in range(repeat + 1):
        tell(f"repetition {number} of {repeat}" if number else "warm-up")
        once: Seconds = defaultdict(list)
        for codec in CODECS:
            bench.code(codec, once)
        for codecs in EXCHANGES:
            bench.exchange(codecs, once)
        if number:
            for name, values in once.items():
                seconds[name] += values
    return {
        "parameters": parameters,
        "repeat": repeat,
        "loops": loops.NAME,
        "rows": list(bench.rows(seconds)),
    }


class Bench:
    """Two nodes' weights of one fragment, and room to bring them back to where they were."""

    def __init__(self, parameters: int) -> None:
        self._rng = np.random.default_rng(RNG_SEED)
        self._weights = [np.empty(parameters, np.float32) for _ in range(2)]
        for number, phi in enumerate(self._weights, 1):
            prepare(phi, FragmentId(0), RNG_SEED, number)
        self._nodes = [SlowFragment(phi) for phi in self._weights]
        self._decoded: Vector = np.empty(parameters, np.float32)
        self._size = parameters
        self._errors: dict[str, float] = {}

    def code(self, codec: str, seconds: Seconds) -> None:
        """Encode and decode one node's weights."""
        weights = self._weights[0]
        encoded = timed(seconds[f"{codec} encode"], lambda: encode(weights, codec, self._rng))
        timed(
            seconds[f"{codec} decode"],
            lambda: decode(encoded, self._size, codec, self._decoded),
        )
        self._errors[codec] = norm(self._decoded - weights) / norm(weights)

    def exchange(self, codecs: str, seconds: Seconds) -> None:
        """Both sides of one exchange. Raises `Missed` if a gate held."""
        codec_request, codec_reply = codecs_of(codecs)
        initiator, responder = self._nodes
        for node, phi in zip(self._nodes, self._weights, strict=True):
            node.phi[...] = phi
        apart = norm(initiator.phi - responder.phi)
        request = timed(
            seconds[f"{codecs} request"],
            lambda: flow.make_request(initiator, codec_request, self._rng),
        )
        response = timed(
            seconds[f"{codecs} respond"],
            lambda: flow.respond(
                responder,
                request.payload,
                codec_request=codec_request,
                codec_reply=codec_reply,
                weight=WEIGHT,
                clip_norm=apart,
                rng=self._rng,
            ),
        )
        if isinstance(response, flow.Refused):
            raise Missed(f"{codecs}: {response.reason}")
        absorbed = timed(
            seconds[f"{codecs} absorb"],
            lambda: flow.absorb(
                initiator,
                response.payload,
                codec_reply=codec_reply,
                weight=WEIGHT,
                clip_norm=apart,
            ),
        )
        if isinstance(absorbed, flow.Refused):
            raise Missed(f"{codecs}: {absorbed.reason}")
        self._errors[f"{codecs} exchange"] = norm(initiator.phi - responder.phi) / apart

    def rows(self, seconds: Seconds) -> Iterator[Row]:
        for codec in CODECS:
            facts = {"bytes_per_parameter": self._bytes(codec), "error": self._errors[codec]}
            for half in ("encode", "decode"):
                name = f"{codec} {half}"
                yield codec_row(name, seconds[name], self._size, **facts)
        for codecs in EXCHANGES:
            request, reply = codecs_of(codecs)
            parts = {
                "request": self._bytes(request),
                "respond": self._bytes(reply),
                "absorb": None,
            }
            for part, size in parts.items():
                name = f"{codecs} {part}"
                yield codec_row(
                    name, seconds[name], self._size, bytes_per_parameter=size, error=None
                )
            whole = [
                sum(each) for each in zip(*(seconds[f"{codecs} {p}"] for p in parts), strict=True)
            ]
            yield codec_row(
                f"{codecs} exchange",
                whole,
                self._size,
                bytes_per_parameter=self._bytes(request) + self._bytes(reply),
                error=self._errors[f"{codecs} exchange"],
            )

    def _bytes(self, codec: str) -> float:
        return stream_bytes(codec, self._size) / self._size


def timed(seconds: list[float], call: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - began)
    return result
