"""The one directory a node owns: what lies where in it, and that it is this process's alone.

The state directory belongs to one process at a time, by a lock the kernel drops when that process
dies. It is its owner's alone, too: root, which may enrol a service's node in it, neither runs a node there nor follows
links that somebody else may have laid. What matters in it is written as `store.disk` writes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

from peerlm.errors import StateError
from peerlm.store.disk import (
    explained,
    give_to_owner_of,
    is_temporary,
    read_file,
    sweep,
    write_atomic,
)
from peerlm.types import WallTime

CONTROL_SOCKET_BYTES_MAX = 103
"""Longest path of a Unix socket that every supported system accepts."""

SYSTEM_STATE = (Path("/var/lib"), Path("/var/lib/private"))
SYSTEM_RUNTIME = Path("/run")
"""A system service keeps its state below the first, and takes commands below the second: others than its
own user can get there."""

NAMES = frozenset(
    {
        *("identity", "chain", "root", "inviter", "revocations", "plan", "node.toml"),
        *("address_book", "snapshots", "objects", "chunks", "scrub", "model", "local", "log"),
        *("log.1", "history", "epoch", "origin", "control.sock", "lock", "ports", "page_port"),
        *("curves", "api_keys", "placement", "catalog", "made", "passes", "sample", "verified"),
    }
)
"""What a node keeps in its folder. All else there is somebody else's."""

BORN_WITH = ("lost+found", "invite")
"""What a folder may hold before there is a node: of a file system's own, and what a service manager puts there. Names
with a dot in front are a home folder's."""

FOREIGN_SHOWN = 3


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
    def sample(self) -> Path:
        """The sample text of the newest weights, and when it was written."""
        return self.root / "sample"

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
    def verified(self) -> Path:
        """When somebody of this node last had all of a name read."""
        return self.root / "verified"

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
            give_to_owner_of(path.parent, fd)
        finally:
            os.close(fd)


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
        give_to_owner_of(root, fd)
        return fd
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # it will be written to
        os.close(fd)
        raise OSError(errno.EPERM, "its lock is no file of its own")
    return fd
