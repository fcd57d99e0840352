"""Which nodes of the store are not believed for a while, and why.

What a node did is forgotten step by step: it is believed again after a time that grows with each fault, so that one whose disk was
repaired serves again, and one that goes on costs less and less. After a day without a fault it begins anew.

Meanwhile it counts as *away* (`store.owners`): its claims are no copies, nobody is sent to it, and what it alone should keep
is copied as after a death, with the same patience.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peerlm.types import Instant, PeerId, after

WRONG_BYTES_S = (60.0, 600.0, 3600.0)
"""After the first, second and each later time that it sent bytes which are not the chunk."""

FALSE_CLAIM_S = (3600.0, 86_400.0)
"""After it did not show what it says it keeps: that costs others their copies, if it is believed."""

FORGOTTEN_S = 86_400.0
"""So long after its time is over."""


@dataclass(frozen=True, slots=True)
class Distrust:
    why: str
    since: Instant
    """Without a break."""
    until: Instant
    faults: int


class Trust:
    def __init__(self) -> None:
        self._known: dict[PeerId, Distrust] = {}

    def distrust(self, peer: PeerId, why: str, steps: tuple[float, ...], now: Instant) -> None:
        """`steps`: for how many seconds after the first fault of late, the second, …"""
        known = self._known.get(peer)
        faults = 1 + (known.faults if known else 0)
        since, until = now, after(now, steps[min(faults, len(steps)) - 1])
        if known is not None and known.until > now:
            since, until = known.since, max(known.until, until)
        self._known[peer] = Distrust(why, since, until, faults)

    def at(self, now: Instant) -> dict[PeerId, Distrust]:
        """Who is not believed now."""
        return {peer: known for peer, known in self._known.items() if known.until > now}

    def forget(self, now: Instant) -> None:
        """What is long over."""
        self._known = {p: d for p, d in self._known.items() if now - d.until < FORGOTTEN_S}


NOBODY: Mapping[PeerId, Distrust] = {}
