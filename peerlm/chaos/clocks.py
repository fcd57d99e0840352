"""A wall clock of its own for each node, which can be wrong.

Processes of one machine share its clock, and it is not ours to set. So a node runs by libfaketime (a library that is
loaded before the C library, from the package `faketime`), which adds to the wall clock what a file says. The clock that only
counts, by which nodes time things, is left alone, as on a machine whose clock is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peerlm.bench.rows import Missed

PLACES = ("usr/lib", "usr/lib64", "usr/local/lib", "lib")
NAME = "libfaketimeMT.so.1"


def library(root: Path = Path("/")) -> Path:
    """Where libfaketime is. Raises `Missed`."""
    for place in PLACES:
        for pattern in (f"faketime/{NAME}", f"*/faketime/{NAME}"):
            for found in sorted((root / place).glob(pattern)):
                return found
    raise Missed(f"a fault of kind clock needs {NAME}: install the package faketime")


class Clock:
    """Of one node. `file` says by how many seconds it is wrong; a node reads it once a second."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._wrong_s = 0.0
        self._library = library()
        self.step(0.0)

    def step(self, seconds: float) -> None:
        """Set it forward, or back where negative."""
        self._wrong_s += seconds
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{self._wrong_s:+.3f}\n")
        fresh.replace(self._file)

    def set_right(self) -> None:
        self.step(-self._wrong_s)

    def program(self, program: Sequence[str]) -> list[str]:
        """What to run so that `program` goes by this clock."""
        return [
            "env",
            f"LD_PRELOAD={self._library}",
            f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_CACHE_DURATION=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "NO_FAKE_STAT=1",
            *program,
        ]
