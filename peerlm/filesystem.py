"""The swarm's store as a file system of fsspec: `peerlm://RUN/NAME/PATH`, for pandas, pyarrow, datasets and plain Python.

A run has names, a name has the files of its manifest. RUN is a run's name, or the first eight digits of its id, and is found
among the nodes that run on this machine; empty (`peerlm:///NAME`) it is the run of the default node. The storage
option `state`, or PEERLM_STATE, names a node's folder instead. A name with one file is that file.

Files are read chunk by chunk through the node's daemon, which checks each, fetches what is not here from others, and keeps
a little of it. Read only: `peerlm data add` puts things in. A connection is made for each question and each chunk, so a file
system may be used from many threads, and after a fork.
"""

from __future__ import annotations

import errno
import hashlib
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from itertools import accumulate
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from peerlm.cli.nodes_here import node_of
from peerlm.daemon.desk_client import Client
from peerlm.errors import PeerlmError
from peerlm.store.layout import Layout
from peerlm.store.manifest import CHUNK_BYTES, Chunk, Manifest, read_manifest
from peerlm.types import ObjectHash

T = TypeVar("T")

NAMES_S = 2.0
"""Names are asked for again after so long."""

MANIFESTS_KEPT = 8

CHUNKS_KEPT = 4
"""In memory, of 4 MiB at most."""

TRIES = 20
PAUSE_S = 0.25
"""The daemon has a bounded number of connections: who finds none comes again."""

READ_ONLY = "peerlm:// is read only: `peerlm data add` puts files into the store"


class Contents:
    """A manifest as folders and files."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.files = {file.path: file for file in manifest.files}
        self.folders: dict[str, dict[str, None]] = {"": {}}
        """Path of a folder → paths of what is in it, in order."""
        for path in self.files:
            parts = path.split("/")
            for depth in range(len(parts)):
                parent = "/".join(parts[:depth])
                self.folders.setdefault(parent, {})["/".join(parts[: depth + 1])] = None

    @cached_property
    def alone(self) -> str | None:
        """The path of the only file."""
        return next(iter(self.files)) if len(self.files) == 1 else None

    def chunks(self, path: str) -> tuple[Chunk, ...]:
        return self.manifest.chunks_of(self.files[path])

    def size(self, path: str) -> int:
        return sum(chunk.size for chunk in self.chunks(path))

    def of_file(self, path: str) -> dict[str, Any]:
        """What is said of a file. `ETag`, by which programs know what they have copied: another content has another."""
        hashes = b"".join(chunk.hash for chunk in self.chunks(path))
        tag = hashlib.blake2b(hashes, digest_size=16).hexdigest()
        return {"size": self.size(path), "type": "file", "ETag": tag}


class Place(NamedTuple):
    """What a path leads to."""

    run: str
    name: str
    """Empty: the run itself."""
    path: str
    """Below the name; empty: the name itself."""


class PeerlmFileSystem(AbstractFileSystem):
    """Args:
    state: a node's folder.
    timeout_s: a chunk that has to be fetched from others has so long to come.
    """

    protocol = "peerlm"
    root_marker = ""

    def __init__(self, state: str | None = None, timeout_s: float = 60.0, **options: Any) -> None:
        super().__init__(**options)
        self._state, self._timeout_s = state, timeout_s
        self._layouts: dict[str, Layout] = {}
        self._names: dict[str, tuple[float, dict[str, dict[str, Any]]]] = {}
        self._contents: OrderedDict[str, Contents] = OrderedDict()
        self._chunks: OrderedDict[ObjectHash, bytes] = OrderedDict()
        self._lock = Lock()

    # ------------------------------------------------------------------------------ looking

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """The names of a run, or what is in a name or a folder of one."""
        where = self._strip_protocol(path)
        place = place_of(where)
        if not place.name:
            names = self._names_of(place.run)
            paths = [f"{place.run}/{name}" for name in sorted(names)]
            return [self.info(path) for path in paths] if detail else paths
        contents = self._contents_of(place)
        if place.path in contents.folders:
            prefix = f"{place.run}/{place.name}"
            inner = contents.folders[place.path]
            infos = [self._info(contents, prefix, path) for path in inner]
        else:
            infos = [self.info(where)]
        return infos if detail else [info["name"] for info in infos]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """`name`, `size`, `type`, of a file `ETag`; of a name also what the store says of it."""
        where = self._strip_protocol(path)
        place = place_of(where)
        if not place.name:
            self._names_of(place.run)
            return {"name": where, "size": 0, "type": "directory"}
        contents = self._contents_of(place)
        if place.path:
            return self._info(contents, f"{place.run}/{place.name}", place.path)
        record = self._record(place)
        told = {key: record[key] for key in ("kind", "manifest", "replicas", "about")}
        if contents.alone is None:
            return {"name": where, "size": 0, "type": "directory", **told}
        return {"name": where, **contents.of_file(contents.alone), **told}

    def exists(self, path: str, **options: Any) -> bool:
        """A node that cannot be asked is an error, not an answer."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ukey(self, path: str) -> str:
        """Changes when, and only when, the content does."""
        place = place_of(self._strip_protocol(path))
        return f"{self._record(place)['manifest']}/{place.path}"

    def _info(self, contents: Contents, prefix: str, path: str) -> dict[str, Any]:
        name = f"{prefix}/{path}"
        if path in contents.files:
            return {"name": name, **contents.of_file(path)}
        if path in contents.folders:
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(errno.ENOENT, "not in the swarm's store", name)

    # ------------------------------------------------------------------------------ reading

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """The file's bytes, or some of them; negative ends count from its end."""
        pieces = self._pieces(path)
        first, last, _ = slice(start, end).indices(pieces.size)
        return pieces.read(first, last)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | str | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> PeerlmFile:
        if mode != "rb":
            raise _read_only(path)
        return PeerlmFile(self, path, self._pieces(path))

    def _pieces(self, path: str) -> Pieces:
        where = self._strip_protocol(path)
        place = place_of(where)
        if not place.name:
            raise IsADirectoryError(errno.EISDIR, "a run, not a file", where)
        contents = self._contents_of(place)
        inner = place.path or contents.alone
        if inner is None or (inner in contents.folders and inner not in contents.files):
            raise IsADirectoryError(errno.EISDIR, "not one file", where)
        self._info(contents, f"{place.run}/{place.name}", inner)
        return Pieces(contents.chunks(inner), lambda chunk: self._chunk(place.run, chunk))

    def _chunk(self, run: str, chunk: Chunk) -> bytes:
        with self._lock:
            if (kept := self._chunks.get(chunk.hash)) is not None:
                self._chunks.move_to_end(chunk.hash)
                return kept
        data = self._ask(run, lambda desk: desk.read(chunk.hash, chunk.size, self._timeout_s))
        with self._lock:
            self._chunks[chunk.hash] = data
            if len(self._chunks) > CHUNKS_KEPT:
                self._chunks.popitem(last=False)
        return data

    # --------------------------------------------------------------------------- the daemon

    def _names_of(self, run: str) -> dict[str, dict[str, Any]]:
        at, names = self._names.get(run, (-NAMES_S, {}))
        if time.monotonic() - at >= NAMES_S:
            names = {record["name"]: record for record in self._ask(run, lambda desk: desk.names())}
            self._names[run] = time.monotonic(), names
        return names

    def _record(self, place: Place) -> dict[str, Any]:
        record = self._names_of(place.run).get(place.name)
        if record is None:
            where = f"{place.run}/{place.name}"
            raise FileNotFoundError(errno.ENOENT, "no such name in the swarm's store", where)
        return record

    def _contents_of(self, place: Place) -> Contents:
        record = self._record(place)
        wanted, size = record["manifest"], record["manifest_bytes"]
        with self._lock:
            if (known := self._contents.get(wanted)) is not None:
                self._contents.move_to_end(wanted)
                return known
        named = ObjectHash(bytes.fromhex(wanted))
        encoded = self._ask(place.run, lambda desk: desk.read(named, size, self._timeout_s))
        contents = Contents(read_manifest(encoded))
        with self._lock:
            self._contents[wanted] = contents
            if len(self._contents) > MANIFESTS_KEPT:
                self._contents.popitem(last=False)
        return contents

    def _ask(self, run: str, question: Callable[[Client], T]) -> T:
        if run not in self._layouts:
            self._layouts[run] = node_of(run, self._state)
        with self._dialled(self._layouts[run]) as desk:
            return question(desk)

    def _dialled(self, layout: Layout) -> Client:
        for _ in range(TRIES):
            try:
                return Client(layout)
            except PeerlmError as error:
                if "too many such connections" not in str(error):
                    raise
            time.sleep(PAUSE_S)
        return Client(layout)

    # ---------------------------------------------------------------------------- read only

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        raise _read_only(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise _read_only(path)

    def rmdir(self, path: str) -> None:
        raise _read_only(path)

    def _rm(self, path: str) -> None:
        raise _read_only(path)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        raise _read_only(path2)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        raise _read_only(rpath)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        raise _read_only(path)

    def touch(self, path: str, truncate: bool = True, **options: Any) -> None:
        raise _read_only(path)


class Pieces:
    """A file as its chunks."""

    def __init__(self, chunks: tuple[Chunk, ...], fetch: Callable[[Chunk], bytes]) -> None:
        self._chunks, self._fetch = chunks, fetch
        self._ends = list(accumulate(chunk.size for chunk in chunks))
        self.size = self._ends[-1] if chunks else 0

    def read(self, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, as far as there are any."""
        end = min(end, self.size)
        found = []
        at = bisect_right(self._ends, start)
        while start < end:
            data = self._fetch(self._chunks[at])
            begin = self._ends[at] - len(data)
            found.append(data[start - begin : end - begin])
            start, at = self._ends[at], at + 1
        return b"".join(found)


class PeerlmFile(AbstractBufferedFile):
    """An open file. Whatever its name stands for meanwhile, it gives what it was, or fails."""

    def __init__(self, fs: PeerlmFileSystem, path: str, pieces: Pieces) -> None:
        self._pieces = pieces
        super().__init__(
            fs, path, "rb", block_size=CHUNK_BYTES, cache_type="none", size=pieces.size
        )

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._pieces.read(start, end)


def place_of(path: str) -> Place:
    run, _, rest = path.partition("/")
    name, _, inner = rest.partition("/")
    return Place(run, name, inner)


def _read_only(path: str) -> OSError:
    return OSError(errno.EROFS, READ_ONLY, path)
