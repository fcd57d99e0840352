"""Files written by way of fsspec that are there whole, or not at all, however the writing ends.

Where a file system renames at no cost, a file has another name until it is all written. An object store shows an object
once it is closed; there one that was given up must not be closed, and fsspec's own files close themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

RENAMES = frozenset(
    ("file", "local", "memory", "hdfs", "viewfs", "webhdfs", "sftp", "ssh", "smb", "ftp")
)
"""Kinds of file systems on which a new name costs nothing."""

PART = ".peerlm-part"


class Folder:
    """As a context it removes what is half-written, in the end.

    Args:
        last: a file that says of all others that they are there. One from before goes before any other comes.
    """

    def __init__(self, fs: Any, path: str, last: str = "") -> None:
        self._fs, self._path, self._last = fs, path.rstrip("/"), last
        kinds = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._renames = bool(kinds & RENAMES)
        self._half: str | None = None

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._half is not None:
            with suppress(Exception):
                self._fs.rm_file(self._half)

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """A file to write to. It has its name when the block ends, and is given up when it raises."""
        path = f"{self._path}/{name}"
        if not self._renames:
            with self._closed(self._fs.open(path, "wb")) as out:
                yield out
                self._make_way(name)
            return
        self._half = path + PART
        with self._closed(self._fs.open(self._half, "wb")) as out:
            yield out
            if isinstance(self._fs, LocalFileSystem):
                out.flush()
                os.fsync(out.fileno())
        self._make_way(name)
        if isinstance(self._fs, LocalFileSystem):
            os.replace(self._half, path)
        else:
            if self._fs.exists(path):
                self._fs.rm_file(path)
            self._fs.mv(self._half, path)
        self._half = None

    def _make_way(self, name: str) -> None:
        last, self._last = self._last, ""
        if last not in ("", name) and self._fs.exists(path := f"{self._path}/{last}"):
            self._fs.rm_file(path)

    @contextmanager
    def _closed(self, out: Any) -> Iterator[Any]:
        try:
            yield out
        except BaseException:
            if isinstance(out, AbstractBufferedFile):
                with suppress(Exception):
                    out.discard()
                out.closed = True  # else it would be closed, and so be there, when it is collected
            else:
                out.close()
            raise
        out.close()
