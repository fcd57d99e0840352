"""What a hostile member says instead of the truth, in messages that are otherwise in order.

An attacker follows the protocol to the letter; only the weights it claims to have are not its own.
An *attack* turns its φ into that claim. As an initiator it sends the claim, as a responder the
difference that the claim would make, so one lie serves on both sides. What no honest encoder would
write (elements that are not finite) is forged into otherwise valid bytes.

    inverted   −2 φ: away from where training leads, twice over
    opposed    −φ: the same with a norm that gates let pass
    noise      a random direction of φ's norm, another one each time
    stale      the φ of its first claim, ever after: back to where training was
    creeping   φ and a fifth of its norm in one direction, always the same: away with everybody
    nan        not a number
    huge       a million times φ
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from peerlm.errors import ConfigError
from peerlm.mix.codec import LARGEST, decode, encode
from peerlm.mix.loops import norm
from peerlm.mix.vector import BLOCK, Vector

LARGEST_FP16 = 65504.0

Attack = Callable[[Vector, np.random.Generator], Vector]
"""From φ [n] of one fragment to the claim [n], a new vector. May remember."""


def _scaled(factor: float) -> Attack:
    return lambda phi, rng: np.float32(factor) * phi


def _noise(phi: Vector, rng: np.random.Generator) -> Vector:
    return _of_norm(norm(phi), rng.standard_normal(phi.size, np.float32))


def _of_norm(wanted: float, direction: Vector) -> Vector:
    return np.float32(wanted / norm(direction)) * direction


class _Stale:
    def __init__(self) -> None:
        self._first: Vector | None = None

    def __call__(self, phi: Vector, rng: np.random.Generator) -> Vector:
        if self._first is None:
            self._first = phi.copy()
        return self._first.copy()


class _Creeping:
    STEP = 0.2

    def __init__(self) -> None:
        self._direction: Vector | None = None

    def __call__(self, phi: Vector, rng: np.random.Generator) -> Vector:
        if self._direction is None:
            self._direction = rng.standard_normal(phi.size, np.float32)
        return phi + _of_norm(self.STEP * norm(phi), self._direction)


def _nan(phi: Vector, rng: np.random.Generator) -> Vector:
    return np.full_like(phi, np.nan)


ATTACKS: dict[str, Callable[[], Attack]] = {
    "inverted": lambda: _scaled(-2.0),
    "opposed": lambda: _scaled(-1.0),
    "noise": lambda: _noise,
    "stale": _Stale,
    "creeping": _Creeping,
    "nan": lambda: _nan,
    "huge": lambda: _scaled(1e6),
}
"""Name → a fresh attack for one fragment."""


class Attacker:
    """One hostile node's claims, about all its fragments."""

    def __init__(self, attack: str, fragments: int) -> None:
        """Raises `ConfigError` for an attack there is not."""
        if attack not in ATTACKS:
            raise ConfigError(f"attack = {attack!r}: must be one of {', '.join(ATTACKS)}")
        self._attacks = [ATTACKS[attack]() for _ in range(fragments)]

    def request(
        self, fragment: int, phi: Vector, codec: str, rng: np.random.Generator
    ) -> memoryview:
        """What it sends as initiator: the encoded claim."""
        return forge(self._attacks[fragment](phi, rng), codec, rng)

    def reply(
        self,
        fragment: int,
        phi: Vector,
        request: bytes | bytearray | memoryview,
        codecs: tuple[str, str],
        rng: np.random.Generator,
    ) -> memoryview:
        """What it sends as responder: the claim minus the weights in `request`.

        `codecs`: of the request and of the reply. Raises `WireError` if the request is malformed.
        """
        claim = self._attacks[fragment](phi, rng)
        claim -= decode(request, phi.size, codecs[0])
        return forge(claim, codecs[1], rng)


def forge(values: Vector, codec: str, rng: np.random.Generator) -> memoryview:
    """`encode`, but for values that it refuses: NaN where they are not finite, and the codec's
    largest where they are larger."""
    finite = np.isfinite(values)
    largest = np.float32(LARGEST_FP16 if codec == "fp16" else LARGEST)
    payload = encode(np.where(finite, values, 0).clip(-largest, largest), codec, rng)
    if finite.all():
        return payload
    if codec in ("fp32", "fp16"):
        elements = np.frombuffer(payload, "<f4" if codec == "fp32" else "<f2")
        elements[~finite] = np.nan
    else:
        blocks = -(-values.size // BLOCK)
        scales = np.frombuffer(payload, "<f4", count=blocks)
        scales[np.flatnonzero(~finite) // BLOCK] = np.nan
    return payload
