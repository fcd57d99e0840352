"""The other end of the store's desk (`daemon.desk` says what can be asked): a process of this machine that waits for answers.

It is imported by whoever reads a file through `peerlm.filesystem`, and so needs little.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgpack

from peerlm.daemon import control
from peerlm.errors import ChunkCorrupt, StateError
from peerlm.store.layout import Layout
from peerlm.store.manifest import Manifest, read_manifest
from peerlm.types import ObjectHash

LENGTH = struct.Struct(">I")
"""Before each frame: its bytes."""

ANSWER_S = 300.0
"""For an answer that takes the daemon moments, and minutes on a disk that is busy."""


class Surveyed(NamedTuple):
    counts: list[int]
    """Live nodes that keep each."""
    silent: list[str]
    """Nodes that did not answer, and are not counted."""
    kept: dict[str, int]
    """How many each node keeps, but for those that keep none."""


class Client:
    """A process's end. Not safe from several threads: each needs its own.

    Raises: NoDaemon, StateError, as `control.dial`.
    """

    def __init__(self, layout: Layout, timeout_s: float = 10.0) -> None:
        self._socket = control.dial(layout, "store", timeout_s)
        self._file = self._socket.makefile("rb")
        self._root = layout.root

    def close(self) -> None:
        """Also while another thread waits for an answer: it gets `NoDaemon`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self,
        *request: Any,
        progress: Callable[..., None] = lambda *_: None,
        timeout_s: float | None = ANSWER_S,
    ) -> Any:
        """Raises: StateError with the daemon's line, or that it has given none in `timeout_s` (None: however long it
        takes); NoDaemon, it hung up."""
        data = msgpack.packb(list(request))
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(LENGTH.pack(len(data)))
            self._socket.sendall(data)
            while True:
                verdict, result = self._answer()
                if verdict is not None:
                    break
                progress(*result)
        except TimeoutError:
            self.close()  # what comes later would be taken for the next answer
            raise StateError(
                f"the daemon on {self._root} has not answered `{request[0]}` in {timeout_s:g} s: see `peerlm logs`"
            ) from None
        except (OSError, ValueError):
            raise control.NoDaemon(
                f"the daemon on {self._root} hung up: start it with `peerlm up` if it has ended, and the same command again"
            ) from None
        if not verdict:
            raise StateError(str(result))
        return result

    def _answer(self) -> tuple[bool | None, Any]:
        head = self._file.read(LENGTH.size)
        if len(head) < LENGTH.size:
            raise OSError("it ended")
        data = self._file.read(LENGTH.unpack(head)[0])
        verdict, result = msgpack.unpackb(data)
        return verdict, result

    # ------------------------------------------------------------------------------ in words

    def put(self, data: bytes | memoryview) -> ObjectHash:
        """Keep a chunk, durably on this node."""
        return ObjectHash(self.ask("put", bytes(data))[0])

    def read(self, object_hash: ObjectHash, size: int, timeout_s: float = 60.0) -> bytes:
        """An object's bytes, from here or from others; they hash to its name."""
        data: bytes = self.ask("read", object_hash, size, timeout_s, timeout_s=timeout_s + ANSWER_S)
        return data

    def publish(self, name: str, manifest: Manifest, **options: Any) -> dict[str, Any]:
        """Give a name to chunks that were put. Options: replicas, is_pinned, about, replaces."""
        kind = str(manifest.kind)
        found: dict[str, Any] = self.ask("publish", name, kind, manifest.encode(), options)
        return found

    def names(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("names")
        return found

    def manifest(self, name: str, timeout_s: float = 60.0) -> Manifest:
        """What a name stands for. Raises `StateError` too where that is no manifest."""
        try:
            return read_manifest(
                self.ask("manifest", name, timeout_s, timeout_s=timeout_s + ANSWER_S)
            )
        except ChunkCorrupt as error:
            raise StateError(f"{name}: {error}") from None

    def survey(self, hashes: Sequence[ObjectHash]) -> Surveyed:
        """Who keeps these now, of live nodes."""
        return Surveyed(*self.ask("survey", list(hashes)))

    def checked(self, hashes: Sequence[ObjectHash]) -> dict[str, Any]:
        """When those of them that are here were last read by scrubbing: here, unknown, oldest. Raises: StateError, the daemon is
        of a release that cannot say."""
        found: dict[str, Any] = self.ask("checked", list(hashes))
        return found

    def verified(self, manifest: ObjectHash, missing: int) -> None:
        """All chunks of it were just read, but for so many: the node remembers when. Raises: StateError, the daemon is of a
        release that does not, or its disk takes nothing."""
        self.ask("verified", manifest, missing)

    def replicas(self, hashes: list[ObjectHash]) -> list[int]:
        """How many live nodes keep each."""
        return self.survey(hashes).counts

    def remove(self, name: str) -> None:
        self.ask("remove", name)

    def pin(self, name: str, is_pinned: bool) -> None:
        self.ask("pin", name, is_pinned)

    def checkpoint(self, name: str = "", *, is_pinned: bool = False) -> str:
        """Its name, once it is in the store."""
        return str(self.ask("checkpoint", name, is_pinned, timeout_s=None))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")
        return found

    def repair(self) -> None:
        self.ask("repair")

    def scrub(self, progress: Callable[..., None]) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("scrub", progress=progress, timeout_s=None)
        return found

    # ------------------------------------------------------------------------------ jobs

    def jobs(self, name: str = "") -> list[dict[str, Any]]:
        """How far each job is, or the one of this name."""
        found: list[dict[str, Any]] = self.ask("jobs", name)
        return found

    def done(self, name: str) -> list[bytes]:
        """Pages of bits: which tasks of a job are made."""
        found: list[bytes] = self.ask("done", name)
        return found

    def work(self) -> tuple[str, ObjectHash] | None:
        """(name, job) that this process should work on."""
        found = self.ask("work")
        return None if found is None else (str(found[0]), ObjectHash(found[1]))

    def next_task(self, job: ObjectHash) -> int | str:
        """A task, or `wait`, `finish`, `over`."""
        found: int | str = self.ask("next", job)
        return found

    def made(
        self, job: ObjectHash, task: int, documents: int, shards: Sequence[Sequence[Any]]
    ) -> bool:
        """A task is made, its chunks are put. False: the job is over."""
        return bool(self.ask("made", job, task, documents, [list(shard) for shard in shards]))

    def failed(self, job: ObjectHash, why: str) -> None:
        """This node cannot work on it."""
        self.ask("failed", job, why)

    def rows(self, job: ObjectHash) -> list[Any]:
        """(task, documents, shards) of all tasks, in order."""
        found: list[Any] = self.ask("rows", job)
        return found

    def look_again(self, job: ObjectHash) -> None:
        """Chunks of a job that is to be finished cannot be had."""
        self.ask("again", job)

    def false(self, job: ObjectHash, task: int, why: str) -> None:
        """What was found in a task of a job that is to be finished is damaged."""
        self.ask("false", job, task, why)

    def name_corpus(self, job: ObjectHash, manifest: Manifest) -> None:
        """Give what a job has made its name; or, if it is the job of the next sweep, the name that this one has."""
        self.ask("name", job, manifest.encode())
