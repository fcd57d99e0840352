"""A worker keeps its optimizer's state on the disk, and begins with what the one before it has kept.

Without it a worker that is started again goes up to its rate in small steps, and learns less for a while. The state is
written a few parameters at a time, between inner steps, and flushed by a thread, so that training stands still for
milliseconds; parameters may so be some steps apart, as slow weights are too. Nothing of what is read is taken over unless all
that is held is sound.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from peerlm.config import Plan
from peerlm.errors import ConfigError, PeerlmError
from peerlm.model.moments import (
    MomentsFile,
    has_moments,
    open_moments,
    read_moments,
    remembered,
)
from peerlm.train.hands import Hands
from peerlm.train.optimizer import InnerOptimizer

PIECE_BYTES = 16 << 20
"""Written between two inner steps, if no parameter has more."""


class Keepsake:
    """What is being kept, from the first parameter to the file's flush. Raises nothing: what goes wrong is its `error`."""

    def __init__(
        self, optimizer: InnerOptimizer, plan: Plan, path: Path, disk_limit_bytes: int
    ) -> None:
        self._optimizer = optimizer
        counts = remembered(plan)
        self._left = [name for name in optimizer.names if counts[name]]
        self._file: MomentsFile | None = None
        self._flush: threading.Thread | None = None
        self.error, self.seconds = "", 0.0
        began = time.monotonic()
        try:
            self._file = MomentsFile(path, plan, self._left, disk_limit_bytes)
        except PeerlmError as error:
            self._fail(error)
        self.seconds += time.monotonic() - began

    @property
    def is_written(self) -> bool:
        """The rest is the disk's."""
        return not self._left

    @property
    def is_over(self) -> bool:
        return self.is_written and (self._flush is None or not self._flush.is_alive())

    def go_on(self) -> None:
        """Write some more of it."""
        began, written = time.monotonic(), 0
        try:
            while self._left and self._file is not None and written < PIECE_BYTES:
                steps, values = self._optimizer.moments(self._left[0])
                self._file.write(self._left.pop(0), steps, values)
                written += values.nbytes
            if not self._left and self._file is not None and self._flush is None:
                self._flush = threading.Thread(target=self._commit, args=(self._file,), daemon=True)
                self._flush.start()
        except PeerlmError as error:
            self._fail(error)
        self.seconds += time.monotonic() - began

    def finish(self) -> None:
        """All of it, now."""
        while not self.is_written:
            self.go_on()
        if self._flush is not None:
            self._flush.join()

    def _commit(self, file: MomentsFile) -> None:
        began = time.monotonic()
        try:
            file.commit()
        except PeerlmError as error:
            self.error = str(error)
        self.seconds += time.monotonic() - began

    def _fail(self, error: PeerlmError) -> None:
        self.error, self._left = str(error), []
        if self._file is not None:
            self._file.abort()
            self._file = None


def begin_with(path: Path, plan: Plan, optimizer: InnerOptimizer, hands: Hands) -> tuple[bool, str]:
    """Give the optimizer what is kept at `path`. Whether it has all of it now, and what to say of that."""
    if not path.exists():
        return False, ""
    counts = remembered(plan)
    try:
        tensors = open_moments(path, plan)
        wanted = [name for name in optimizer.names if counts[name]]
        there = [name for name in wanted if has_moments(tensors, name)]
        if not there:
            raise ConfigError(f"{path}: has nothing of what is held here")
        for name in there:  # all are looked at before the first is taken over
            read_moments(tensors, name)
        for name in there:
            hands.remember(name, *read_moments(tensors, name))
    except PeerlmError as error:
        return False, f"begins empty: {error}"
    if len(there) < len(wanted):
        return (
            False,
            f"goes on for {len(there)} of {len(wanted)} parameters, begins empty for the rest",
        )
    return True, "goes on from what was kept"
