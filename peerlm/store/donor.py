"""What a fetch knows of one that it pulls from: what it offers, how fast it was, and whether it is to be asked now.

Who fails rests, for a time that doubles; who sends wrong bytes is left out, for longer each time, since what is wrong with it may
be mended. Who was outrun by a hedge has done nothing wrong, and is asked last (`store.fetch`).

Pure: no clock.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass

from peerlm.types import Instant, ObjectHash, after

Key = Hashable
"""What is wanted, by whatever name each donor has it."""


@dataclass(frozen=True, slots=True)
class Limits:
    per_donor: int = 2
    """Objects in flight from one donor: two keep its link full between objects."""
    total: int = 8
    """Objects in flight in all, each of which is up to two pulls (`hedges`); bounds memory, sockets and space for partial files."""
    stall_timeout_s: float = 5.0
    """A pull without a new byte for this long is given up."""
    floor_bytes_s: float = 16_384.0
    """A pull of known size may take size ÷ this (and `stall_timeout_s`) in all."""
    object_bytes_max: int = 1 << 30
    """A donor that claims more for an object of unknown size is not believed."""
    rest_s: float = 0.5
    """Rest after a first failure; doubles with each in a row, up to `rest_s_max`."""
    rest_s_max: float = 30.0
    excluded_s: tuple[float, ...] = (60.0, 600.0, 3600.0)
    """A donor is left out for so long after it sent wrong bytes for the first time, the second, and from then on. What is wrong
    with it may be mended, as rot is by scrubbing."""
    hedges: int = 2
    """Objects pulled from two donors at once; 0: none ever is."""
    hedge_after_s: float = 1.0
    """No pull is hedged sooner: many a short one takes several times as long as its like."""
    hedge_factor: float = 3.0
    """A pull is slow once it has taken this many times what is usual; while a donor has nothing else to do, once as long."""
    hedged_share: float = 0.1
    """No hedge is begun once more than this part of all bytes that came has come twice."""


USUAL = Limits()


@dataclass(slots=True)
class Rest:
    """Waiting time after failures, doubling with each in a row."""

    failures: int = 0
    until: Instant | None = None
    """Set while resting; cleared by the first wake at or after it."""

    def fail(self, now: Instant, limits: Limits, rng: random.Random) -> None:
        pause_s = min(limits.rest_s_max, limits.rest_s * 2.0 ** min(self.failures, 20))
        self.failures += 1
        self.until = after(now, pause_s * rng.uniform(0.75, 1.25))

    def succeed(self) -> None:
        self.failures, self.until = 0, None

    def wake(self, now: Instant) -> None:
        if self.until is not None and now >= self.until:
            self.until = None


@dataclass(slots=True)
class Donor:
    offers: dict[Key, ObjectHash]
    rest: Rest
    rate_bytes_s: float = 0.0
    """Of its last complete pulls; 0 until there was one."""
    faults: int = 0
    """Times that it sent wrong bytes."""
    excluded_until: Instant | None = None
    """Set while it is left out; cleared by the first wake at or after it."""
    outrun: int = 0
    """Times that a hedge was faster, since it last brought something in good time."""

    @property
    def excluded(self) -> bool:
        return self.excluded_until is not None

    def exclude(self, now: Instant, limits: Limits) -> None:
        self.faults += 1
        steps = limits.excluded_s
        self.excluded_until = after(now, steps[min(self.faults, len(steps)) - 1])
        self.offers = {}

    def ran(self, size_bytes: int, took_s: float) -> None:
        rate = max(1, size_bytes) / max(took_s, 1e-3)
        self.rate_bytes_s = (self.rate_bytes_s + rate) / 2 if self.rate_bytes_s else rate

    def wake(self, now: Instant) -> None:
        self.rest.wake(now)
        if self.excluded_until is not None and now >= self.excluded_until:
            self.excluded_until = None
