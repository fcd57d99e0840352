"""The weights that a stage server answers with: read from the node's newest snapshot, in a thread of their own.

What cannot be read may be damaged, and then the snapshot before is taken; or there was no memory for it, or the disk was not
to be read just then. Which of these it was nobody can tell, so it is tried again, ever more rarely: a node that is done
writes no newer snapshot.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from peerlm.config import Plan
from peerlm.errors import ChunkCorrupt, PeerlmError, StateError
from peerlm.model.stages import held_fragments
from peerlm.serve.lap import Numbers
from peerlm.serve.route import name_of
from peerlm.store import snapshot
from peerlm.store.layout import Layout
from peerlm.types import Instant, after

if TYPE_CHECKING:
    from peerlm.serve.engine import Held, Slots

READ_AGAIN_S, READ_AGAIN_S_MAX = 5.0, 300.0
"""What could not be read is tried again after so long, each time after twice that, up to so long."""

TROUBLE_MAX = 200
"""Characters of what went wrong: torch has much to say of memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One version of the held stages."""

    name: str
    held: Held


class Reader:
    """Reads the newest snapshot of a node, in a thread, whenever there is a newer one, and again one that could not be read.
    `trouble`: why there is none, or only an older one; empty: nothing."""

    def __init__(self, layout: Layout, plan: Plan, held: range, slots: Slots) -> None:
        self._layout, self._plan, self._held, self._slots = layout, plan, held, slots
        self.trouble = ""
        self._number = self._tried = 0
        """Of the snapshot that was read last, and of the newest that there was then."""
        self._failures, self._again_at = 0, Instant(0.0)
        self._thread: threading.Thread | None = None
        self._found: Weights | None = None
        self._failure = ""

    def look(self, now: Instant, *, wait: bool) -> None:
        if self._thread is None and self._is_wanted(now):
            self._thread = threading.Thread(target=self._read, name="weights", daemon=True)
            self._thread.start()
        if wait and self._thread is not None:
            self._thread.join()

    def _is_wanted(self, now: Instant) -> bool:
        try:
            newest = snapshot.newest(self._layout)
        except StateError as error:
            self._say(str(error))
            return False
        is_new, is_due = newest > self._tried, now >= self._again_at
        if newest <= self._number or not (is_new or is_due):
            return False
        self._tried = newest
        return True

    def found(self, now: Instant) -> Weights | None:
        """What was read since it was asked last."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread, found, self._found = None, self._found, None
        if self._number >= self._tried:
            self._failures, self.trouble = 0, ""
            return found
        wait_s = min(READ_AGAIN_S * 2.0 ** min(self._failures, 20), READ_AGAIN_S_MAX)
        self._failures, self._again_at = self._failures + 1, after(now, wait_s)
        self._say(self._failure)
        return found

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            sys.stderr.write(f"peerlm: weights to answer with: {trouble}\n")

    def _read(self) -> None:
        from peerlm.serve.engine import Held

        self._failure = f"snapshot {self._tried} cannot be read"
        try:
            values, tokens, number = held_values(self._layout, self._plan, self._held)
            if number <= self._number:  # it is damaged, and the one before is known
                return
            held = Held(self._slots, self._held, values)
        except (PeerlmError, OSError, MemoryError, RuntimeError) as error:  # torch without memory
            self._failure = f"{self._failure}: {_one_line(error)}"
            return
        self._found, self._number = Weights(name_of(values, tokens), held), number


def _one_line(error: BaseException) -> str:
    """Others' messages have several, and are long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:TROUBLE_MAX]


def held_values(layout: Layout, plan: Plan, held: range) -> tuple[list[Numbers], int, int]:
    """Fragments of these stages from the newest snapshot that can be read, in the plan's order, the swarm's tokens they were trained
    on, and its number. Raises `StateError`."""
    loaded = snapshot.load(layout).snapshot
    if loaded is None:
        raise StateError("no snapshot that can be read")
    records = {record.id: record for record in loaded.manifest.fragments}
    file, values = loaded.open(), []
    for spec in held_fragments(plan, held):
        record = records.get(spec.id)
        if record is None or record.phi.size != 4 * spec.size:
            raise StateError(f"{loaded.path}: does not hold {spec.name} of this plan")
        out = np.empty(spec.size, np.float32)
        try:
            snapshot.read_array(file, record.phi, out)
        except ChunkCorrupt as error:
            raise StateError(str(error)) from None
        values.append(out)
    return values, loaded.manifest.contents.swarm_tokens, loaded.manifest.number
