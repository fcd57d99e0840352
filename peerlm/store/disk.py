"""Files that survive `kill -9`.

A file that matters is never changed in place. Its new version is written beside it, flushed to the
device and renamed over the old one, and the rename is flushed too, so that whoever looks after a
crash finds the old version or the new one, whole. (Pillai et al., "All File Systems Are Not Created
Equal", OSDI 2014, says why each of the four steps is needed.) A writer holds a lock on its
temporary file, so leftovers of dead writers can be told from files in the making, whatever became
of the writer's process id.

What the operating system refuses becomes a `StateError` of one line that says what to do.
This file decides nothing about contents, and reads no clock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from peerlm.errors import StateError
from peerlm.types import ObjectHash

Bytes = bytes | bytearray | memoryview

BLOCK_BYTES = 1 << 20
"""Files are hashed and copied in blocks of this size, so no second copy is ever in memory."""

RESERVE_BYTES = 4 << 20
"""Left free on the disk by anything large, so that small files can still be written."""

_TEMP_SUFFIX = ".tmp"

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or use INSTEAD",
    errno.EDQUOT: "the disk quota is used up; free some space or use INSTEAD",
    errno.EFBIG: "the file would pass the limit on file sizes; raise it (ulimit -f)",
    errno.EIO: "the disk reports an I/O error; check it before going on, or use INSTEAD",
    errno.EROFS: "the file system is read-only; remount it or use INSTEAD",
    errno.EACCES: "permission denied; run as the owner of the directory or use INSTEAD",
    errno.EPERM: "permission denied; run as the owner of the directory or use INSTEAD",
}


@contextmanager
def explained(doing: str, path: Path, instead: str = "another --state") -> Iterator[None]:
    """Turns an `OSError` inside into a `StateError`: `cannot <doing> <path>: why; what to do`. `instead`: what may be named
    in the place of what is there."""
    try:
        yield
    except OSError as error:
        reason = _REMEDIES.get(error.errno or 0, error.strerror or str(error))
        raise StateError(f"cannot {doing} {path}: {reason.replace('INSTEAD', instead)}") from error


def error_number(error: StateError) -> int:
    """The `errno` of what the operating system refused; 0 where it refused nothing."""
    cause = error.__cause__
    return cause.errno or 0 if isinstance(cause, OSError) else 0


# ------------------------------------------------------------------------------------- writing


class AtomicFile:
    """A file in the making: it appears at `path` whole, or not at all.

    As a context manager it commits when the block ends and aborts when the block raises.
    """

    def __init__(self, path: Path, mode: int = 0o600, size_bytes: int = 0) -> None:
        """Start with `size_bytes` zeros: they count as used at once (`usage_bytes`).

        Raises: StateError when the directory cannot be written.
        """
        self.path = path
        self.size_bytes = size_bytes
        self._open = True
        self._is_placed = False
        self._turn = threading.Lock()
        """Held while the file is written or closed: a closed file's number may be another file's a moment later."""
        with explained("write", path):
            self._fd, self._temp = _open_temp(path, mode)
            try:
                os.ftruncate(self._fd, size_bytes)
            except OSError:
                self.abort()
                raise

    def write(self, data: Bytes) -> None:
        """Append all of `data`. Raises: StateError (disk full, quota, I/O error)."""
        self.write_at(self.size_bytes, data)

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write all of `data` at `offset` bytes; gaps read as zeros. May be called from another thread than `abort`.

        Raises: StateError, also when the file was given up.
        """
        rest = memoryview(data)
        with self._turn, explained("write", self.path):
            if not self._open:
                raise StateError(f"cannot write {self.path}: it was given up")
            while rest:
                written = os.pwrite(self._fd, rest, offset)
                rest, offset = rest[written:], offset + written
        self.size_bytes = max(self.size_bytes, offset)

    def hash(self) -> ObjectHash:
        """BLAKE3 of what has been written so far. Raises: StateError."""
        with explained("read", self.path):
            return _hash(self._fd, 0, self.size_bytes)

    def commit(
        self,
        turn: AbstractContextManager[object] | None = None,
        flush: Callable[[], None] | None = None,
    ) -> None:
        """Make the file durable and visible; visible under `turn`, a lock. `flush`: the directory, in its own way.

        Raises: StateError, and then it was aborted.
        """
        try:
            with explained("write", self.path):
                os.fsync(self._fd)
                with turn or nullcontext():
                    os.rename(self._temp, self.path)
                self._is_placed = True
                (flush or partial(sync_directory, self.path.parent))()
        finally:
            self.abort()

    def abort(self) -> None:
        """Forget the file; after `commit` only release it. May be called again."""
        with self._turn:
            if not self._open:
                return
            self._open = False
            if not self._is_placed:  # else another writer may have its temporary name by now
                with suppress(OSError):  # what made us give up says more; a sweep takes the litter
                    self._temp.unlink(missing_ok=True)
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


def write_atomic(path: Path, data: Bytes, mode: int = 0o600) -> None:
    """Replace the file at `path`: afterwards it holds `data`, durably. Raises: StateError."""
    with AtomicFile(path, mode) as file:
        file.write(data)


def remove(path: Path) -> None:
    """Remove a file, durably, if it is there. Raises: StateError."""
    with explained("remove", path):
        path.unlink(missing_ok=True)
        sync_directory(path.parent)


def sweep(directory: Path) -> list[str]:
    """Remove temporary files whose writers are dead; returns their names. Raises: StateError."""
    with explained("clean", directory):
        temps = sorted(directory.glob(f".*{_TEMP_SUFFIX}"))
        return [temp.name for temp in temps if _remove_if_orphan(temp)]


def is_temporary(name: str) -> bool:
    """Whether a file in the making has such a name."""
    return name.startswith(".") and name.endswith(_TEMP_SUFFIX)


def _open_temp(path: Path, mode: int) -> tuple[int, Path]:
    for number in count():
        temp = path.with_name(f".{path.name}.{os.getpid()}-{number}{_TEMP_SUFFIX}")
        try:
            fd = os.open(temp, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:  # else a sweep took it between our open and our lock
            os.fchmod(fd, mode)
            give_to_owner_of(path.parent, fd)
            return fd, temp
        os.close(fd)
    raise AssertionError("unreachable: count() does not end")


def give_to_owner_of(directory: Path, fd: int) -> None:
    """What root makes in the folder of a service belongs to the service's user, who must read it. Only for
    what has just been made: root must never give away what it merely found under a name."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)


def _remove_if_orphan(temp: Path) -> bool:
    try:
        fd = os.open(temp, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temp.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Make names that came or went in it durable. Raises: OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------------- reading


class ReadFile:
    """A file open for reading anywhere, from any thread, even after it was removed or replaced.

    Dropping the last reference closes it, so a reader in another thread is never cut off.
    """

    def __init__(self, path: Path) -> None:
        """Raises: StateError when it is absent or cannot be read."""
        self._fd = -1
        self.path = path
        with explained("read", path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, for ever
                raise OSError(errno.EINVAL, "not a file")
            self.size_bytes = found.st_size
            self.stamp = (*(found.st_dev, found.st_ino), *(found.st_mtime_ns, found.st_ctime_ns))
            """Another one, or another size, once somebody has written to the file or put another in its place."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises: StateError when the file is shorter."""
        with explained("read", self.path):
            data = os.pread(self._fd, length, offset)
            if len(data) == length:  # as ever: no memory is filled twice
                return data
            whole = bytearray(length)
            whole[: len(data)] = data
            _fill(self._fd, offset + len(data), memoryview(whole)[len(data) :])
            return bytes(whole)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out`, a writable view of bytes, from `offset`. Raises: StateError."""
        with explained("read", self.path):
            _fill(self._fd, offset, out)

    def hash(self, offset: int, length: int) -> ObjectHash:
        """BLAKE3 of a region, read block by block. Raises: StateError when the file is shorter."""
        with explained("read", self.path):
            return _hash(self._fd, offset, length)

    def forget_cached(self) -> None:
        """What is read next comes from the device, and not from what the kernel remembers; where it can be told to."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def is_at(self, path: Path) -> bool:
        """Whether it is the file that lies there now, under this name or another. Raises: StateError."""
        with explained("read", path):
            try:
                return os.path.samestat(os.fstat(self._fd), os.lstat(path))
            except FileNotFoundError:
                return False

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def read_file(path: Path, size_max: int) -> bytes:
    """A whole small file. Raises: StateError when it is absent, unreadable or past `size_max`."""
    file = ReadFile(path)
    if file.size_bytes > size_max:
        raise StateError(f"cannot read {path}: it has {file.size_bytes} bytes, at most {size_max}")
    return file.read_at(0, file.size_bytes)


def _fill(fd: int, offset: int, out: memoryview) -> None:
    while out:
        got = os.preadv(fd, [out], offset)
        if not got:
            raise OSError(errno.ENODATA, f"the file ends {len(out)} bytes too early")
        out, offset = out[got:], offset + got


def _hash(fd: int, offset: int, length: int) -> ObjectHash:
    digest = blake3()
    block = memoryview(bytearray(min(length, BLOCK_BYTES)))
    for at in range(offset, offset + length, BLOCK_BYTES):
        part = block[: offset + length - at]
        _fill(fd, at, part)
        digest.update(part)
    return ObjectHash(digest.digest())


# ---------------------------------------------------------------------------------------- room


def usage_bytes(directory: Path, without: Collection[str] = ()) -> int:
    """Bytes in all files below `directory`; those that vanish meanwhile count nothing. `without`: folders in it that are
    left out."""
    total = 0
    with explained("measure", directory):
        for folder, folders, names in os.walk(directory):
            if folder == os.fspath(directory):
                folders[:] = [name for name in folders if name not in without]
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:
                    continue
    return total


def check_room(root: Path, needed_bytes: int, disk_limit_bytes: int, what: str) -> None:
    """Make sure `what` fits, before any of it is written.

    Args:
        disk_limit_bytes: most that `root` may hold (limits.disk_bytes); 0 means no limit.

    Raises:
        StateError: naming what is needed, what there is, and what to change.
    """
    free = free_bytes(root)
    if needed_bytes + RESERVE_BYTES > free:
        raise StateError(
            f"no room for {what} in {root}: it needs {_mb(needed_bytes)} and {_mb(free)} are free "
            f"({_mb(RESERVE_BYTES)} are kept back); free some space or use another --state"
        )
    if disk_limit_bytes:
        check_limit(root, needed_bytes, usage_bytes(root), disk_limit_bytes, what)


def check_limit(
    root: Path, needed_bytes: int, used_bytes: int, disk_limit_bytes: int, what: str
) -> None:
    """Raises `StateError` where `what` would take `root` past limits.disk_bytes."""
    if used_bytes + needed_bytes > disk_limit_bytes:
        raise StateError(
            f"no room for {what} in {root}: it needs {_mb(needed_bytes)}, {_mb(used_bytes)} are in use and "
            f"limits.disk_bytes allows {_mb(disk_limit_bytes)}; raise the limit"
        )


def free_bytes(root: Path) -> int:
    """What is free on the disk of `root`. Raises: StateError."""
    with explained("measure", root):
        found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
