"""What a name in the swarm stands for: files, as a list of chunks.

A *chunk* is an object (`store.objects`) of at most 4 MiB; a *manifest* lists chunks in order, and says which of them
make which file. It tells nothing of who made it, when, or where its bytes came from, so the same content has the same
manifest everywhere, and equal chunks of two manifests are kept once. Its hash is its identity: whoever signs the hash
(`store.names`) has signed every byte.

Four kinds. A *corpus*: token shards, each a chunk and a file of its own, and the tokenizer's file. A *checkpoint*:
slow weights as a safetensors file, and what a run needs to begin with them. *Files*: bytes as they were. A *job*: what a
corpus is to be made of, and how (`data.jobs`), for as long as it is being made.

Pure bytes in and out. A manifest that comes from elsewhere is checked before anything of it is believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from blake3 import blake3

from peerlm.errors import ChunkCorrupt
from peerlm.types import ObjectHash, printable

FORMAT = "peerlm-manifest-1"

FILE = "manifest.json"
"""Beside a checkpoint's files where they were copied out of the store: what they are of, for a run that goes on from there."""

CHUNK_BYTES = 4 << 20
"""Most bytes of a chunk. All but a file's last have so many, unless the file is cut by what it means."""

MANIFEST_BYTES_MAX = 64 << 20
"""Some 800,000 chunks: three terabytes."""

PATH_CHARS_MAX = 512

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
"""What a thing in the swarm's store may be called."""


JOB_PREFIX = "job-"
"""Before the name of what a job makes."""

TASKS_MAX = 1_000_000
"""Of a job."""

SWEEPS = ("encodings", "prints")
"""What a job may be about before it is about tokens: what is found out of the source (`data.findings`)."""


class Kind(StrEnum):
    CORPUS = "corpus"
    CHECKPOINT = "checkpoint"
    FILES = "files"
    JOB = "job"


class Chunk(NamedTuple):
    hash: ObjectHash
    size: int
    """Bytes."""


class File(NamedTuple):
    """`length` chunks from `first`, one after the other."""

    path: str
    """Below the name, with `/` between folders."""
    first: int
    length: int


NOBODY = -1
"""In place of a maker's number, of chunks of which it is not said who made them."""


@dataclass(frozen=True, slots=True)
class Manifest:
    kind: Kind
    chunks: tuple[Chunk, ...]
    files: tuple[File, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Of JSON's types. What it says depends on the kind."""

    @property
    def size_bytes(self) -> int:
        return sum(chunk.size for chunk in self.chunks)

    def file(self, path: str) -> File | None:
        return next((f for f in self.files if f.path == path), None)

    def chunks_of(self, file: File) -> tuple[Chunk, ...]:
        return self.chunks[file.first : file.first + file.length]

    def encode(self) -> bytes:
        """The one encoding of it: the JSON of its fields in order, without spaces."""
        chunks = ",".join([f'["{name.hex()}",{size}]' for name, size in self.chunks])
        files = ",".join([_encoded(list(file)) for file in self.files])
        rest = _encoded({"format": FORMAT, "kind": self.kind, "meta": dict(self.meta)})
        return f'{{"chunks":[{chunks}],"files":[{files}],{rest[1:]}'.encode()


def manifest_hash(encoded: bytes) -> ObjectHash:
    return ObjectHash(blake3(encoded).digest())


def of_files(
    kind: Kind, files: Iterable[tuple[str, Iterable[Chunk]]], meta: Mapping[str, Any]
) -> Manifest:
    """A manifest of files in order, each with its chunks."""
    chunks: list[Chunk] = []
    listed = []
    for path, parts in files:
        first = len(chunks)
        chunks.extend(parts)
        listed.append(File(path, first, len(chunks) - first))
    return Manifest(kind, tuple(chunks), tuple(listed), meta)


def read_manifest(encoded: bytes) -> Manifest:
    """Raises `ChunkCorrupt`: not a manifest, or not the one encoding of it.

    It is read entry by entry, none in more than microseconds: on a thread it leaves the others their turns, which a
    library's call for all of it would not. 800,000 chunks take about two seconds.
    """
    if len(encoded) > MANIFEST_BYTES_MAX:
        raise ChunkCorrupt(f"a manifest of {len(encoded)} bytes; at most {MANIFEST_BYTES_MAX}")
    try:
        text = encoded.decode("ascii")
        chunks, at = _read_chunks(text)
        files, at = _read_files(text, at)
        if any(file.first + file.length > len(chunks) for file in files):
            raise ValueError("a file of chunks that are not listed")
        if len({file.path for file in files}) < len(files):
            raise ValueError("two files of one path")
        kind, meta = _read_rest(text, at)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ChunkCorrupt(f"not a manifest: {printable(repr(error)[:200])}") from None
    return Manifest(kind, tuple(chunks), tuple(files), meta)


_CHUNK = re.compile(r'\["([0-9a-f]{64})",([1-9][0-9]{0,6})\]([],])')
_READER = json.JSONDecoder()


def _encoded(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _past(text: str, at: int, expected: str) -> int:
    if not text.startswith(expected, at):
        raise ValueError(f"no {expected!r} at byte {at}, or another encoding of it")
    return at + len(expected)


def _read_chunks(text: str) -> tuple[list[Chunk], int]:
    at = _past(text, 0, '{"chunks":[')
    chunks: list[Chunk] = []
    if text.startswith("]", at):
        return chunks, at + 1
    from_hex, add, match = bytes.fromhex, chunks.append, _CHUNK.match
    while found := match(text, at):
        name, size, follows = found.groups()
        add(Chunk(ObjectHash(from_hex(name)), _size(int(size))))
        at = found.end()
        if follows == "]":
            return chunks, at
    raise ValueError(f"no hash and size of a chunk: {text[at : at + 100]!r}")


def _read_files(text: str, at: int) -> tuple[list[File], int]:
    at = _past(text, at, ',"files":[')
    files: list[File] = []
    if text.startswith("]", at):
        return files, at + 1
    while True:
        entry, end = _READER.raw_decode(text, at)
        path, first, length = entry
        files.append(File(path_below(path), _count(first), _count(length)))
        at = _past(text, at, _encoded(entry))
        assert at == end, "one entry, one encoding"
        if text.startswith("]", at):
            return files, at + 1
        at = _past(text, at, ",")


def _read_rest(text: str, at: int) -> tuple[Kind, dict[str, Any]]:
    at = _past(text, at, ",")
    rest = "{" + text[at:]
    body = json.loads(rest)
    if body["format"] != FORMAT:
        raise ValueError(f"its format is {str(body['format'])[:60]!r}, this peerlm reads {FORMAT}")
    if not isinstance(body["meta"], dict) or len(body) != 3:
        raise ValueError("other fields than a manifest's")
    if _encoded(body) != rest:
        raise ValueError("another encoding of it")
    return Kind(body["kind"]), body["meta"]


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{str(value)[:80]} is no count")
    return value


def _size(value: int) -> int:
    if value > CHUNK_BYTES:
        raise ValueError(f"{value} is no size of a chunk")
    return value


def path_below(value: object) -> str:
    """A file's path in a manifest: relative, and nothing that leads out of the folder it is put in. Raises `ValueError`."""
    if not isinstance(value, str) or not 0 < len(value) <= PATH_CHARS_MAX:
        raise ValueError("a path is missing, or too long")
    parts = value.split("/")
    if any(part in ("", ".", "..") for part in parts) or printable(value) != value:
        raise ValueError(f"{value[:80]!r} is no path below a name")
    return value
