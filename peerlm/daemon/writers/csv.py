"""Curves as a table: one CSV file of a node, appended to through all its lives.

The file is opened for each row, so it may be moved away at any moment and the next row begins another. A last line
that a death or a full disk has torn goes when the next row comes. A file with other columns, which another version
of peerlm has written, is left as it is, and the next number is taken.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from peerlm.observe.curves import CURVES, Origin, Reading
from peerlm.observe.history import short
from peerlm.store.disk import explained

HEAD = ",".join(("time", *(curve.name for curve in CURVES))).encode() + b"\n"
TAIL_BYTES = 1 << 16
"""A row is far shorter."""


class CsvWriter:
    def __init__(self, origin: Origin, folder: Path) -> None:
        self._folder = folder
        self._name = short(origin.node_id)

    def write(self, reading: Reading) -> None:
        """Raises `StateError`."""
        cells = (reading.values.get(curve.name, "") for curve in CURVES)
        row = ",".join(map(str, (reading.at, *cells))).encode() + b"\n"
        for number in count(1):
            path = self._folder / f"{self._name}{f'-{number}' if number > 1 else ''}.csv"
            with explained("write", path):
                if _append(path, row):
                    return

    def close(self) -> None:
        """Nothing is open."""


def _append(path: Path, row: bytes) -> bool:
    """False, and nothing changed: the file has other columns."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        head = os.pread(fd, len(HEAD), 0)
        if not HEAD.startswith(head):
            return False
        if head != HEAD:  # new, or torn in its first line
            os.ftruncate(fd, 0)
            row = HEAD + row
        else:
            _mend(fd)
        write_all(fd, row)
    finally:
        os.close(fd)
    return True


def _mend(fd: int) -> None:
    """Take away what follows the last whole line; the first is whole."""
    size = os.fstat(fd).st_size
    start = max(0, size - TAIL_BYTES)
    whole = start + os.pread(fd, TAIL_BYTES, start).rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(fd, whole)


def write_all(fd: int, data: bytes) -> None:
    """A disk that fills up takes a part, and refuses the rest. Raises `OSError`."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
