"""What a long figure has found so far, as lines of JSON in a file, so that it can be interrupted and go on.

A line that was being written when the power went does not count. What an outcome depends on is for the line to say.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Kept:
    """`found` has what earlier runs left, in the order in which it came."""

    def __init__(self, path: Path) -> None:
        text = path.read_text() if path.exists() else ""
        self.found = [line for line in map(_read, text.splitlines()) if line is not None]
        self._file = path.open("a")
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def keep(self, line: dict[str, Any]) -> None:
        """On the disk when this returns."""
        self.found.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _read(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
