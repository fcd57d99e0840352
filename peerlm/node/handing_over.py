"""Whether a node that leaves for good may go: what only it holds is first taken over by others.

It says that it is draining, and goes on as before; those that decide by themselves which stages they hold then take
its stages on, from its weights. It goes once they hold them, at once where nobody could, and after a while in any case.
"""

from __future__ import annotations

from collections.abc import Mapping

from peerlm.swarm.hosting import Hosting, holders
from peerlm.types import Instant, PeerId
from peerlm.wire.message import Vitals

HAND_OVER_S = 120.0


class HandingOver:
    def __init__(self) -> None:
        self.since: Instant | None = None

    def begin(self, now: Instant) -> None:
        self.since = now if self.since is None else self.since

    def is_over(self, alone: list[int], others: Mapping[PeerId, Vitals], now: Instant) -> bool:
        """`alone`: stages that no other live node holds; `others`: the vitals of live nodes."""
        assert self.since is not None, "nothing is handed over"
        nobody = not any(vitals.is_auto and not vitals.is_draining for vitals in others.values())
        return not alone or nobody or now - self.since > HAND_OVER_S


def held_alone(hosting: Hosting, active: Mapping[PeerId, Vitals]) -> list[int]:
    """Stages that this node holds, and of those that hold weights nobody who stays."""
    if hosting.is_none or hosting.count == 1:
        return []
    runs = {p: (v.first_stage, v.last_stage) for p, v in active.items() if not v.is_draining}
    held = range(hosting.first, hosting.last + 1)
    return [stage for stage in held if not holders(stage, runs, tuple(runs))]
