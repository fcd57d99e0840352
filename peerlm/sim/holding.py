"""Which stages of the model a simulated process holds, from its disk and settings, and how it comes to hold others.

What `daemon.holding` and `daemon.keeping` do about it: what is held at the start, what of the newest snapshot counts then, and a
*move*: a snapshot of what is held and of what was pulled is written, the work is taken down, and a little later
it is built anew. A death on the way leaves one or the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peerlm import effects as fx
from peerlm.model.stages import first_held, held_stages
from peerlm.node.placing import EMPTY, Offered
from peerlm.node.snapshots import Restored
from peerlm.sim.disk import WRITE_S, Snapshot
from peerlm.sim.learner import by_id
from peerlm.store.placed import Placed, read_placed
from peerlm.swarm.hosting import Hosting
from peerlm.types import FragmentId, Memory

if TYPE_CHECKING:
    from peerlm.sim.machine import Machine

BUILD_S = 0.3
"""From the work's end to its new beginning."""


class Holding:
    """Of one process. `held`: stages, perhaps none yet; of a model in one piece the only one."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._world = machine, machine.world
        self._plan = machine.world.plan.plan
        self.count = self._plan.model.stages
        self.offered = self._offered()
        self.held = self._first_held()

    def _offered(self) -> Offered | None:
        if self.count == 1:
            return None
        settings, kept = self._machine.settings, self._machine.disk.placement
        is_auto = held_stages(settings.host.stages, self._plan) is None
        placed = read_placed(kept, Path("placement"), self.count) if kept else Placed()
        memory = Memory(None, settings.host.memory_bytes)
        return Offered(is_auto, memory, placed, settings.limits.snapshot_every_s)

    def _first_held(self) -> range:
        held = held_stages(self._machine.settings.host.stages, self._plan)
        if held is not None:
            return held
        assert self.offered is not None
        if not self.offered.placed.held and self._machine.disk.origin:
            return first_held(self._plan, self.offered.memory, "host")
        return self.offered.placed.held

    # ------------------------------------------------------------------------------ what is held

    @property
    def is_whole(self) -> bool:
        return len(self.held) == self.count

    @property
    def fragments(self) -> tuple[FragmentId, ...]:
        """Held, in order."""
        if self.count == 1:
            return tuple(by_id(self._world.sizes))
        return tuple(sorted(f for f, stage in self._world.stage_of.items() if stage in self.held))

    @property
    def sizes(self) -> dict[FragmentId, int]:
        """Elements of each fragment held."""
        return {fragment: self._world.sizes[fragment] for fragment in self.fragments}

    @property
    def hosting(self) -> Hosting:
        if self.count == 1:
            return Hosting()
        first, last = (self.held[0], self.held[-1]) if self.held else EMPTY
        return Hosting(first, last, self.count, self._world.stage_of)

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest, if it has all that is held."""
        last = self._machine.disk.snapshots[-1] if self._machine.disk.snapshots else None
        has_all = last is not None and all(f in last.fragments for f in self.fragments)
        return last if has_all else None

    @property
    def restored(self) -> Restored | None:
        found = self.snapshot
        if found is None or not self.held:
            return None
        offers = tuple(offer for offer in found.offers if offer[0] in self.sizes)
        return Restored(found.number, found.tokens, offers)

    # ------------------------------------------------------------------------------------ moves

    def move(self, wanted: fx.Rehost) -> None:
        """→ `Node.rehost`."""
        self._machine.later(WRITE_S, self._written, wanted)

    def _written(self, wanted: fx.Rehost) -> None:
        machine, disk, labour = self._machine, self._machine.disk, self._machine.labour
        failure, found = "", labour.states() if wanted.is_installed else {}
        for fragment, version, wanted_hash, _ in wanted.objects:
            values = disk.objects.get(wanted_hash)
            if values is None or isinstance(values, bytes):
                failure = f"fragment {fragment} is not here"
                break
            assert fragment not in found, f"fragment {fragment} is held, and was pulled"
            found[fragment] = (values, np.zeros_like(values), version)
        if not failure:
            if found:
                labour.keep(wanted.snapshot, found)
            self.held = range(wanted.first, wanted.stop)
        labour.leave()
        machine.later(BUILD_S, self._built, failure)

    def _built(self, failure: str) -> None:
        machine = self._machine
        machine.employ()
        assert machine.node is not None
        machine.perform(
            machine.node.rehost(self.hosting, self.sizes, self.restored, failure, machine.world.now)
        )
