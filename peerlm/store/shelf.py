"""A shelf: files named by the hash of what is in them, in a directory of their own, and what is known to lie there.

The directory is read once, at the start; from then on what it holds is what was put and taken here. A file that goes
missing, shrinks or rots behind our back is found when it is next read, and is no longer known from that moment: *gone*
where nothing can be read (`Vanished`), *damaged* where it is not what its name says (`ChunkCorrupt`). Neither is ever
returned. What does not bear the name of a hash, is no file, or is empty is left alone, and is not known.

Any thread may put, take and read. A lock is held while a name appears, is looked at to be removed, and goes, so that a
good file which has just replaced a damaged one is never removed in its stead; no flush is waited for under it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock

from blake3 import blake3

from peerlm.errors import ChunkCorrupt, StateError, Vanished
from peerlm.store import disk
from peerlm.store.disk import AtomicFile, ReadFile
from peerlm.store.flushes import Flushes
from peerlm.types import ObjectHash, short

_NAME = re.compile(r"[0-9a-f]{64}")

_EMPTY = blake3(b"").hexdigest()

_UNREADABLE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENXIO),
    *(errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EACCES, errno.EPERM),
}
"""What a file that is gone, is something else by now, lies on a bad spot of the disk or was locked away is answered with.
Anything else, such as too many open files, passes."""


class Shelf:
    def __init__(self, directory: Path) -> None:
        """Finds the files that are there. Raises: StateError."""
        self.directory = directory
        self.size_bytes = 0
        """Of all files known."""
        self._sizes: dict[ObjectHash, int] = {}
        self._condemned: dict[ObjectHash, int] = {}
        """Not here any more, but their files are still to be removed."""
        self._lock = Lock()
        self._flushes = Flushes(partial(disk.sync_directory, directory))
        with disk.explained("list", directory):
            for name, size in sorted(_named_files(directory)):
                self._sizes[ObjectHash(bytes.fromhex(name))] = size
                self.size_bytes += size

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, object_hash: ObjectHash) -> bool:
        return object_hash in self._sizes

    @property
    def sizes(self) -> tuple[tuple[ObjectHash, int], ...]:
        """(hash, bytes) of each."""
        return tuple(self._sizes.items())

    def size(self, object_hash: ObjectHash) -> int | None:
        """Bytes; None: it is not here."""
        return self._sizes.get(object_hash)

    def path(self, object_hash: ObjectHash) -> Path:
        """Where it lies, or would lie."""
        return self.directory / object_hash.hex()

    # --------------------------------------------------------------------------------- keeping

    def keep(self, file: AtomicFile, object_hash: ObjectHash) -> None:
        """Commit a file that was written to `path`. Raises: StateError."""
        self._pardon(object_hash)
        file.commit(self._lock, self._flushes.flush)
        self._know(object_hash, file.size_bytes)

    def write(self, object_hash: ObjectHash, data: disk.Bytes) -> None:
        """Keep bytes that hash to their name. Raises: StateError."""
        file = AtomicFile(self.path(object_hash))
        try:
            file.write(data)
            self.keep(file, object_hash)
        finally:
            file.abort()

    def link(self, path: Path, object_hash: ObjectHash, size_bytes: int) -> bool:
        """Give the file at `path`, which was flushed and is never written to, a name here, durably. False: it cannot be."""
        self._pardon(object_hash)
        try:
            os.link(path, self.path(object_hash), follow_symlinks=False)
            self._flushes.flush()
        except OSError:
            return False
        self._know(object_hash, size_bytes)
        return True

    def is_there(self, object_hash: ObjectHash) -> bool:
        """It is known, and its file has the size that it had; if not, it is known no more."""
        size = self.size(object_hash)
        if size is None:
            return False
        with self._lock:
            try:
                found = self.path(object_hash).lstat()
                if stat.S_ISREG(found.st_mode) and found.st_size == size:
                    return True
            except OSError:
                pass
            self._forget(object_hash)
        return False

    def condemn(self, object_hash: ObjectHash) -> None:
        """From now on it is not here; `remove_condemned` removes its file, unless it is put again before."""
        with self._lock:
            if (size := self._sizes.pop(object_hash, None)) is not None:
                self._condemned[object_hash] = size

    def remove_condemned(self, hashes: Iterable[ObjectHash]) -> None:
        """Durably. Raises: StateError; what is left of them is found at the next start."""
        with disk.explained("remove", self.directory):
            for object_hash in hashes:
                with self._lock:
                    if self._pardoned(object_hash):
                        self.path(object_hash).unlink(missing_ok=True)
            self._flushes.flush()

    def _pardon(self, object_hash: ObjectHash) -> None:
        """It is put again: its file, old or new, stays."""
        with self._lock:
            self._pardoned(object_hash)

    def _pardoned(self, object_hash: ObjectHash) -> bool:
        """With the lock. Whether it was condemned."""
        size = self._condemned.pop(object_hash, None)
        self.size_bytes -= size or 0
        return size is not None

    def remove(self, object_hash: ObjectHash) -> None:
        """Durably, if it is here. Raises: StateError."""
        path = self.path(object_hash)
        with disk.explained("remove", path):
            with self._lock:
                self._forget(object_hash)
                path.unlink(missing_ok=True)
            self._flushes.flush()

    def remove_damaged(self, object_hash: ObjectHash, file: ReadFile) -> bool:
        """Remove what was read from `file`, unless something else lies in its place by now (False).

        Where it cannot be removed it is at least known no more. Not flushed: if it comes back, it is found again.
        """
        path = self.path(object_hash)
        with self._lock:
            with suppress(StateError):
                if not file.is_at(path):
                    return False
            self._forget(object_hash)
            with suppress(OSError):
                path.unlink()
        return True

    def _know(self, object_hash: ObjectHash, size_bytes: int) -> None:
        with self._lock:
            self._forget(object_hash)
            self._sizes[object_hash] = size_bytes
            self.size_bytes += size_bytes

    def _forget(self, object_hash: ObjectHash) -> bool:
        """With the lock. Whether it was known."""
        size = self._sizes.pop(object_hash, None)
        self.size_bytes -= size or 0
        return size is not None

    # --------------------------------------------------------------------------------- reading

    def open(self, object_hash: ObjectHash) -> ReadFile:
        """Raises:
        Vanished: it was here, and is not any more.
        StateError: it is not kept here, or cannot be opened now.
        """
        if object_hash not in self._sizes:
            raise StateError(f"object {short(object_hash)} is not kept here")
        try:
            return ReadFile(self.path(object_hash))
        except StateError as error:
            raise self._seen(object_hash, error) from error

    def read(self, object_hash: ObjectHash, *, from_device: bool = False) -> bytes:
        """All of it, checked. `from_device`: and not from the kernel's memory, where no rot shows.

        Raises:
            ChunkCorrupt: it was damaged, and is removed.
            Vanished, StateError: as `open`.
        """
        while True:
            file = self.open(object_hash)
            size = self.size(object_hash)
            if from_device:
                file.forget_cached()
            try:
                data = file.read_at(0, file.size_bytes) if file.size_bytes == size else b""
            except StateError as error:
                if disk.error_number(error) != errno.ENODATA:  # else it has just become shorter
                    raise self._seen(object_hash, error) from error
                data = b""
            if from_device:
                file.forget_cached()
            if blake3(data).digest() == object_hash:
                return data
            if self.remove_damaged(object_hash, file):
                raise damaged(object_hash, file)

    def _seen(self, object_hash: ObjectHash, error: StateError) -> StateError:
        """What to raise for a file that could not be opened or read."""
        if disk.error_number(error) not in _UNREADABLE:
            return error
        with self._lock:
            if disk.error_number(error) == errno.ENOENT and self.path(object_hash).is_file():
                return error  # removed and put again meanwhile
            was_known = self._forget(object_hash)
        kind = Vanished if was_known else StateError
        return kind(f"object {short(object_hash)} is not kept here any more: {error}")

    # ------------------------------------------------------------------------------------ room

    def foreign_bytes(self) -> int:
        """Bytes in the directory that are none of these files, nor in the making. Raises: StateError."""
        total = 0
        with disk.explained("measure", self.directory), os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += disk.usage_bytes(Path(entry.path))
                elif not (disk.is_temporary(entry.name) or self._knows_name(entry.name)):
                    with suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_size
        return total

    def _knows_name(self, name: str) -> bool:
        if _NAME.fullmatch(name) is None:
            return False
        object_hash = ObjectHash(bytes.fromhex(name))
        return object_hash in self._sizes or object_hash in self._condemned


def damaged(object_hash: ObjectHash, file: ReadFile) -> ChunkCorrupt:
    return ChunkCorrupt(f"object {short(object_hash)} in {file.path} has changed")


def _named_files(directory: Path) -> Iterator[tuple[str, int]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) is None:
                continue
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and (found.st_size or entry.name == _EMPTY):
                    yield entry.name, found.st_size
