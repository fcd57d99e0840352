"""Files that survive `kill -9`, and the one directory a node owns.

A file that matters is never changed in place. Its new version is written beside it, flushed to the
device and renamed over the old one, and the rename is flushed too, so that whoever looks after a
crash finds the old version or the new one, whole. (Pillai et al., "All File Systems Are Not Created
Equal", OSDI 2014, says why each of the four steps is needed.) A writer holds a lock on its
temporary file, so leftovers of dead writers can be told from files in the making, whatever became
of the writer's process id.

The state directory belongs to one process at a time, by a lock the kernel drops when that process
dies. What the operating system refuses becomes a `StateError` of one line that says what to do.
This file decides nothing about contents, and reads no clock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from peerlm.errors import StateError
from peerlm.types import ObjectHash, WallTime

Bytes = bytes | bytearray | memoryview

BLOCK_BYTES = 1 << 20
"""Files are hashed and copied in blocks of this size, so no second copy is ever in memory."""

RESERVE_BYTES = 4 << 20
"""Left free on the disk by anything large, so that small files can still be written."""

CONTROL_SOCKET_BYTES_MAX = 103
"""Longest path of a Unix socket that every supported system accepts."""

SYSTEM_STATE = (Path("/var/lib"), Path("/var/lib/private"))
SYSTEM_RUNTIME = Path("/run")
"""A system service keeps its state below the first, and takes commands below the second: others than its
own user can get there."""

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
        """Write all of `data` at `offset` bytes; gaps read as zeros. Raises: StateError."""
        rest = memoryview(data)
        with explained("write", self.path):
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
        if self._open:
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
            _give_to_owner_of(path.parent, fd)
            return fd, temp
        os.close(fd)
    raise AssertionError("unreachable: count() does not end")


def _give_to_owner_of(directory: Path, fd: int) -> None:
    """What root makes in the folder of a service belongs to the service's user, who must read it. Only for
    what has just been made: root must never give away what it merely found under a name."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)


def is_of_another(root: Path) -> bool:
    """Whether we are root, and `root` is the folder of somebody who is not: a service's."""
    return os.geteuid() == 0 and root.exists() and root.stat().st_uid != 0


def require_own(root: Path) -> None:
    """Raises `StateError` where root would run a node in a service's folder: what it writes there the
    service could not, and what lies there may lead root elsewhere."""
    if is_of_another(root):
        raise StateError(
            f"{root} belongs to another user: a service runs it (systemctl start {root.name}); as root only enrol "
            "in it (--enrol-only)"
        )


def _may_follow(root: Path, path: Path) -> bool:
    """Root does nothing through a link that somebody else may have laid."""
    return not (path.is_symlink() and is_of_another(root))


def _make_directory(path: Path) -> None:
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _give_to_owner_of(path.parent, fd)
        finally:
            os.close(fd)


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
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

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


# ------------------------------------------------------------------------- the state directory


NAMES = frozenset(
    {
        *("identity", "chain", "root", "inviter", "revocations", "plan", "node.toml"),
        *("address_book", "snapshots", "objects", "chunks", "scrub", "model", "local", "log"),
        *("log.1", "history", "epoch", "origin", "control.sock", "lock", "ports", "page_port"),
        *("curves", "api_keys", "placement", "catalog", "made", "passes"),
    }
)
"""What a node keeps in its folder. All else there is somebody else's."""

BORN_WITH = ("lost+found", "invite")
"""What a folder may hold before there is a node: of a file system's own, and what a service manager puts there. Names
with a dot in front are a home folder's."""

FOREIGN_SHOWN = 3


def is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(_TEMP_SUFFIX)


class Layout:
    """Where things lie in a state directory. Only names: nothing is opened, locked or made."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def foreign(self) -> list[str]:
        """Names in the folder that are no node's, sorted; empty if there is no folder."""
        if not self.root.is_dir():
            return []
        names = (entry.name for entry in self.root.iterdir())
        return sorted(n for n in names if n not in NAMES and not is_temporary(n))

    @property
    def identity(self) -> Path:
        """The node's private keys (0600)."""
        return self.root / "identity"

    @property
    def chain(self) -> Path:
        """Certificates that prove the node's membership."""
        return self.root / "chain"

    @property
    def run_root(self) -> Path:
        """The run's private root key (0600); on the founder's machine only."""
        return self.root / "root"

    @property
    def plan(self) -> Path:
        """The signed plan of the highest revision seen."""
        return self.root / "plan"

    @property
    def node_settings(self) -> Path:
        """node.toml: this machine's own settings."""
        return self.root / "node.toml"

    @property
    def address_book(self) -> Path:
        """Every node ever known, with its addresses."""
        return self.root / "address_book"

    @property
    def snapshots(self) -> Path:
        """Directory of snapshots of slow weights."""
        return self.root / "snapshots"

    @property
    def objects(self) -> Path:
        """Directory of content-addressed objects."""
        return self.root / "objects"

    @property
    def chunks(self) -> Path:
        """Directory of what the node keeps for the swarm's store."""
        return self.root / "chunks"

    @property
    def scrub(self) -> Path:
        """How far scrubbing has come."""
        return self.root / "scrub"

    @property
    def model(self) -> Path:
        """Directory of the finished model; made at the end of the run."""
        return self.root / "model"

    @property
    def local_text(self) -> Path:
        """Directory of the shards of this node's own text, which never leave it."""
        return self.root / "local"

    @property
    def log(self) -> Path:
        """What the daemon wrote about itself."""
        return self.root / "log"

    @property
    def history(self) -> Path:
        """Curves and events of the run so far, for the node's page."""
        return self.root / "history"

    @property
    def api_keys(self) -> Path:
        """Hashes of the keys that clients of `peerlm serve` show."""
        return self.root / "api_keys"

    @property
    def placement(self) -> Path:
        """The stages that a node which decides by itself holds, and copies of others' stages that it keeps."""
        return self.root / "placement"

    @property
    def catalog(self) -> Path:
        """Names of the swarm's store, and the nodes that were keeping it."""
        return self.root / "catalog"

    @property
    def made(self) -> Path:
        """What this node has made of corpora that are not complete yet."""
        return self.root / "made"

    @property
    def passes(self) -> Path:
        """What of the text the swarm has read, as far as this node knows."""
        return self.root / "passes"

    @property
    def moments(self) -> Path:
        """The inner optimizer's state, beside the snapshots: of one that swept there what its writer left goes too."""
        return self.snapshots / "optimizer.safetensors"

    @property
    def epoch(self) -> Path:
        """The boot epoch, as decimal digits."""
        return self.root / "epoch"

    @property
    def control_socket(self) -> Path:
        """Unix socket on which the daemon takes local commands. Of a system service it is in the
        runtime folder of the same name, if there is one: members of its group cannot enter its state."""
        if self.root.parent in SYSTEM_STATE:
            runtime = SYSTEM_RUNTIME / self.root.name
            if runtime.is_dir():
                return runtime / "control.sock"
        return self.root / "control.sock"

    @property
    def lock(self) -> Path:
        """Locked by the process that uses the directory; holds its process id."""
        return self.root / "lock"


class StateDirectory(Layout):
    """A state directory held by this process until `close()` or its death."""

    def __init__(self, root: Path) -> None:
        """Create or open it (0700), lock it, and remove what dead writers left.

        Permissions of an existing directory are narrowed to its owner, plus passage for its group
        where that was given (control.group).

        Raises:
            StateError: in use by another process, read-only, not ours, not a directory, too long
                a path.
        """
        super().__init__(root)
        length = len(os.fsencode(self.control_socket.absolute()))
        if length > CONTROL_SOCKET_BYTES_MAX:
            raise StateError(
                f"the path {root} is too long for the node's control socket ({length} bytes, at most "
                f"{CONTROL_SOCKET_BYTES_MAX}); use a shorter --state"
            )
        with explained("use", root):
            self._require_own_folder()
            _make_private(root)
            self._lock_fd = _lock(root, self.lock)
        try:
            with explained("use", root):
                made = (self.snapshots, self.objects, self.chunks)
                for directory in made:
                    _make_directory(directory)
                ours = [
                    directory
                    for directory in (*made, self.model, self.local_text)
                    if directory.is_dir() and _may_follow(root, directory)
                ]
                for directory in ours:
                    directory.chmod(0o700)
            for directory in (root, *ours):
                sweep(directory)
        except BaseException:
            self.close()
            raise

    def _require_own_folder(self) -> None:
        """Folders that others keep things in are not ours to lock up. Raises `StateError`."""
        if self.identity.exists():
            return
        foreign = [
            name for name in self.foreign() if not name.startswith(".") and name not in BORN_WITH
        ]
        if foreign:
            some = ", ".join(foreign[:FOREIGN_SHOWN]) + (
                ", …" if len(foreign) > FOREIGN_SHOWN else ""
            )
            raise StateError(
                f"{self.root} holds what is no node's ({some}); name an empty or a new folder with --state"
            )

    def next_epoch(self, wall: WallTime) -> int:
        """This start's boot epoch: larger than any before it here, and durable on return.

        It is `wall` in whole seconds, or one more than the last where the clock went back. An
        unreadable last epoch counts as none. Raises: StateError.
        """
        previous = 0
        if self.epoch.exists():
            text = read_file(self.epoch, 1024).strip()
            previous = int(text) if text.isdigit() and len(text) < 20 else 0
        epoch = max(previous + 1, int(wall))
        write_atomic(self.epoch, f"{epoch}\n".encode())
        return epoch

    def close(self) -> None:
        """Let another process use the directory. May be called again."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _make_private(root: Path) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(root, os.W_OK | os.X_OK):
        read_only = os.statvfs(root).f_flag & os.ST_RDONLY
        raise OSError(errno.EROFS if read_only else errno.EACCES, "not writable")
    mode = root.stat().st_mode & 0o7777
    if mode & 0o067:
        root.chmod(mode & ~0o067)


def _lock(root: Path, path: Path) -> int:
    fd = _open_lock(root, path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StateError(
            f"{root} is in use by process {pid} (peerlm up); stop it first or use another --state"
        ) from None
    except OSError:
        os.close(fd)
        raise
    return fd


def _open_lock(root: Path, path: Path) -> int:
    with suppress(FileExistsError):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _give_to_owner_of(root, fd)
        return fd
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # it will be written to
        os.close(fd)
        raise OSError(errno.EPERM, "its lock is no file of its own")
    return fd
