"""Control groups that others' programs make at the top and leave behind when they end: taken away, for nothing is to be left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def swept(*names: str, root: Path = ROOT) -> Iterator[None]:
    """Groups of these names that come meanwhile are gone at the end, with those in them. Whatever has a process stays."""
    before = _named(names, root)
    try:
        yield
    finally:
        for group in _named(names, root) - before:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def _named(names: tuple[str, ...], root: Path) -> set[Path]:
    """In each hierarchy, whether there is one or one for each controller."""
    return {path for name in names for path in (*root.glob(name), *root.glob(f"*/{name}"))}
