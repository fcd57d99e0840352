"""Slow weights on disk: one data file, and a manifest that makes it count.

A snapshot's data is a plain safetensors file holding, for every fragment, φ and the outer momentum
m in fp32. Its manifest says whose weights they are, at which token count, where each lies in the
file and what it must hash to. The data is made durable first, the manifest last: a snapshot exists
from the instant its manifest does, so a death at any byte leaves the last one committed. Two are
kept, because a disk can also rot. Every byte of a snapshot is under a hash: the manifest under one
of its own, the safetensors header and each array under one in the manifest.

φ of a fragment is hashed by itself, so that it is at the same time an object a peer can pull
(`store.objects`). Arrays are written, hashed and read where they are, in blocks, never copied
whole. This file decides when nothing is written; it never decides when to write.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from peerlm.errors import ChunkCorrupt, StateError
from peerlm.store import disk
from peerlm.store.disk import AtomicFile, Bytes, ReadFile
from peerlm.store.layout import Layout
from peerlm.types import FragmentId, ObjectHash, PeerId, RunId, WallTime, printable

Array = NDArray[np.float32]

FORMAT = "peerlm-snapshot-1"
"""Changes when an older peerlm could not read a snapshot rightly."""

SNAPSHOTS_KEPT = 2
"""The newest, and the one before in case the newest cannot be read."""

MANIFEST_BYTES_MAX = 64 << 20
_ITEM_BYTES = 4
_NAME = re.compile(r"snapshot-(\d{8,})\.(safetensors|manifest)")

assert sys.byteorder == "little", "safetensors files are little-endian; so must be the machine"


class Shaped(Protocol):
    """What a plan says of a fragment (`model.plan.FragmentSpec` fits): `size` in elements."""

    @property
    def id(self) -> FragmentId: ...
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class FragmentState:
    """Slow weights of one fragment, shape (size,) each. They must not change while written."""

    id: FragmentId
    version: int
    phi: Array
    momentum: Array
    sketch: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a snapshot says besides the weights."""

    run_id: RunId
    plan_hash: bytes
    plan_revision: int
    tokens: Mapping[tuple[PeerId, int], int]
    """(peer, boot epoch) → tokens it trained on: the swarm's grow-only count."""
    own_tokens: int
    epoch: int
    """Boot epoch of the node that wrote it."""
    wall: WallTime
    final: bool = False
    """The run is settled: these are the finished weights."""

    @property
    def swarm_tokens(self) -> int:
        return sum(self.tokens.values())


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes `offset` to `offset + size` of the data file, and their BLAKE3."""

    offset: int
    size: int
    hash: ObjectHash


@dataclass(frozen=True, slots=True)
class FragmentRecord:
    """Where one fragment lies. `phi.hash` names it as an object others can pull."""

    id: FragmentId
    name: str
    version: int
    phi: Region
    momentum: Region
    sketch: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    number: int
    contents: Contents
    header: Region
    fragments: tuple[FragmentRecord, ...]
    file_name: str
    file_size: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A committed snapshot."""

    manifest: Manifest
    path: Path
    """Of the data file."""
    trouble: str = ""
    """Why an older one could not be removed."""

    def open(self) -> ReadFile:
        """The data file, readable even after the snapshot is removed. Raises: StateError."""
        return ReadFile(self.path)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """`snapshot` is None when there is none that can be used; `notes` are lines for a person."""

    snapshot: Snapshot | None
    notes: tuple[str, ...]
    damaged: tuple[int, ...]
    """Numbers of snapshots that were passed over; `remove` them once another is in use."""


# ------------------------------------------------------------------------------------- writing


def write(
    layout: Layout,
    contents: Contents,
    shapes: Sequence[Shaped],
    states: Iterable[FragmentState],
    disk_limit_bytes: int = 0,
) -> Snapshot:
    """Commit a new snapshot; then remove all but the newest two.

    Args:
        shapes: every fragment, in the order in which `states` gives them.
        states: taken one at a time, so a caller may copy one fragment at a time.
        disk_limit_bytes: most the state directory may hold, this snapshot included, before an older
            one is removed; 0 means no limit.

    Raises:
        StateError: no room, or the disk refuses; earlier snapshots are as they were.
    """
    sweep(layout)
    number = max(_files(layout), default=0) + 1
    path = _data_path(layout, number)
    header = _safetensors_header(shapes, {"format": FORMAT, "run": contents.run_id.hex()})
    needed = len(header) + 2 * _ITEM_BYTES * sum(shape.size for shape in shapes)
    manifest_about = 4096 + 2048 * len(shapes) + 64 * len(contents.tokens)
    disk.check_room(layout.root, needed + manifest_about, disk_limit_bytes, "a snapshot")

    with AtomicFile(path) as file:
        header_region = _append(file, header)
        records = tuple(
            _write_fragment(file, shape, state) for shape, state in zip(shapes, states, strict=True)
        )
        assert file.size_bytes == needed, f"wrote {file.size_bytes} bytes, announced {needed}"
    manifest = Manifest(number, contents, header_region, records, path.name, needed)
    disk.write_atomic(_manifest_path(layout, number), _encode(manifest))

    trouble = ""
    for old in _committed(layout)[:-SNAPSHOTS_KEPT]:
        try:
            remove(layout, old)
        except StateError as error:  # the new one is written all the same
            trouble = str(error)
    return Snapshot(manifest, path, trouble)


def newest(layout: Layout) -> int:
    """Number of the newest that is committed, 0 if there is none; nothing is checked. Raises: StateError."""
    return max(_committed(layout), default=0)


def remove(layout: Layout, number: int) -> None:
    """Remove one snapshot; its manifest first, so a death in between leaves only litter."""
    disk.remove(_manifest_path(layout, number))
    disk.remove(_data_path(layout, number))


def sweep(layout: Layout) -> None:
    """Remove what interrupted writes and removals left. Raises: StateError."""
    disk.sweep(layout.snapshots)
    for number, kinds in _files(layout).items():
        if "manifest" not in kinds:
            disk.remove(_data_path(layout, number))


def _safetensors_header(shapes: Sequence[Shaped], metadata: dict[str, str]) -> bytes:
    tensors: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for shape in shapes:
        for kind in ("phi", "momentum"):
            end = offset + _ITEM_BYTES * shape.size
            tensors[f"{kind}.{shape.name}"] = {
                "dtype": "F32",
                "shape": [shape.size],
                "data_offsets": [offset, end],
            }
            offset = end
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_fragment(file: AtomicFile, shape: Shaped, state: FragmentState) -> FragmentRecord:
    assert state.id == shape.id, f"fragment {state.id} came where {shape.id} was due"
    return FragmentRecord(
        id=shape.id,
        name=shape.name,
        version=state.version,
        phi=_append(file, _as_bytes(state.phi, shape)),
        momentum=_append(file, _as_bytes(state.momentum, shape)),
        sketch=tuple(state.sketch),
    )


def _as_bytes(values: Array, shape: Shaped) -> memoryview:
    assert values.shape == (shape.size,), f"{shape.name}: {values.shape} is not ({shape.size},)"
    assert values.dtype == np.float32, f"{shape.name}: {values.dtype} is not float32"
    return values.data.cast("B")


def _append(file: AtomicFile, data: Bytes) -> Region:
    offset, digest, rest = file.size_bytes, blake3(), memoryview(data)
    for start in range(0, len(rest), disk.BLOCK_BYTES):
        block = rest[start : start + disk.BLOCK_BYTES]
        digest.update(block)
        file.write(block)
    return Region(offset, len(rest), ObjectHash(digest.digest()))


# ------------------------------------------------------------------------------------- reading


def load(layout: Layout) -> LoadResult:
    """The newest snapshot all of whose bytes are as they were written.

    Changes nothing on disk, so it may run beside a daemon. Whatever is wrong with one snapshot is
    a line in `notes`, and the one before is tried.
    """
    notes: list[str] = []
    damaged: list[int] = []
    for number in reversed(_committed(layout)):
        try:
            snapshot = _verified(layout, number)
        except (StateError, ChunkCorrupt) as error:
            notes.append(f"snapshot {number} cannot be used: {error}")
            damaged.append(number)
            continue
        if damaged:
            tokens = snapshot.manifest.contents.swarm_tokens
            notes.append(f"going on from snapshot {number}, taken at {tokens} tokens of the swarm")
        return LoadResult(snapshot, tuple(notes), tuple(damaged))
    return LoadResult(None, tuple(notes), tuple(damaged))


def read_array(file: ReadFile, region: Region, out: Array) -> None:
    """Fill `out`, a contiguous array of `region.size` bytes, and check it against its hash.

    Raises:
        ChunkCorrupt: the bytes have changed since the snapshot was written.
        StateError: they cannot be read.
    """
    view = out.data.cast("B")
    assert len(view) == region.size, f"{len(view)} bytes for a region of {region.size}"
    file.read_into(region.offset, view)
    if blake3(view).digest() != region.hash:
        raise ChunkCorrupt(f"{file.path}: bytes {region.offset}+{region.size} have changed")


def _verified(layout: Layout, number: int) -> Snapshot:
    path = _manifest_path(layout, number)
    manifest = _decode(disk.read_file(path, MANIFEST_BYTES_MAX), path)
    if manifest.number != number or manifest.file_name != _data_path(layout, number).name:
        raise ChunkCorrupt(f"{path} belongs to snapshot {manifest.number}")
    file = ReadFile(_data_path(layout, number))
    if file.size_bytes != manifest.file_size:
        raise ChunkCorrupt(f"{file.path} has {file.size_bytes} bytes, not {manifest.file_size}")
    _verify_region(file, manifest.header, "the header")
    for record in manifest.fragments:
        _verify_region(file, record.phi, f"φ of {record.name}")
        _verify_region(file, record.momentum, f"momentum of {record.name}")
    return Snapshot(manifest, file.path)


def _verify_region(file: ReadFile, region: Region, what: str) -> None:
    if file.hash(region.offset, region.size) != region.hash:
        raise ChunkCorrupt(f"{file.path}: {what} does not have the hash its manifest gives")


# ------------------------------------------------------------------------------------ manifest


def _encode(manifest: Manifest) -> bytes:
    """A line with the BLAKE3 of the rest, then JSON."""
    c = manifest.contents
    body = {
        "format": FORMAT,
        "number": manifest.number,
        "run_id": c.run_id.hex(),
        "plan_hash": c.plan_hash.hex(),
        "plan_revision": c.plan_revision,
        "tokens": [[peer.hex(), epoch, n] for (peer, epoch), n in sorted(c.tokens.items())],
        "own_tokens": c.own_tokens,
        "epoch": c.epoch,
        "wall": c.wall,
        "final": c.final,
        "file": {"name": manifest.file_name, "size": manifest.file_size},
        "header": _region_to_json(manifest.header),
        "fragments": [
            {
                "id": record.id,
                "name": record.name,
                "version": record.version,
                "phi": _region_to_json(record.phi),
                "momentum": _region_to_json(record.momentum),
                "sketch": record.sketch,
            }
            for record in manifest.fragments
        ],
    }
    text = json.dumps(body, allow_nan=False).encode()
    return blake3(text).hexdigest().encode() + b"\n" + text


def _decode(data: bytes, path: Path) -> Manifest:
    checksum, _, text = data.partition(b"\n")
    if blake3(text).hexdigest().encode() != checksum:
        raise ChunkCorrupt(f"{path} does not have the checksum in its first line")
    try:
        body = json.loads(text)
        if body["format"] != FORMAT:
            theirs = printable(str(body["format"])[:60])
            raise StateError(f"{path} is of format {theirs}, this peerlm reads {FORMAT}")
        return _manifest_from_json(body)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        why = printable(repr(error)[:200])
        raise ChunkCorrupt(f"{path} is not a manifest: {why}") from error


def _manifest_from_json(body: dict[str, Any]) -> Manifest:
    contents = Contents(
        run_id=RunId(bytes.fromhex(body["run_id"])),
        plan_hash=bytes.fromhex(body["plan_hash"]),
        plan_revision=body["plan_revision"],
        tokens={(PeerId(bytes.fromhex(peer)), epoch): n for peer, epoch, n in body["tokens"]},
        own_tokens=body["own_tokens"],
        epoch=body["epoch"],
        wall=body["wall"],
        final=body["final"],
    )
    fragments = tuple(
        FragmentRecord(
            id=raw["id"],
            name=raw["name"],
            version=raw["version"],
            phi=_region_from_json(raw["phi"]),
            momentum=_region_from_json(raw["momentum"]),
            sketch=tuple(raw["sketch"]),
        )
        for raw in body["fragments"]
    )
    header, file = _region_from_json(body["header"]), body["file"]
    return Manifest(body["number"], contents, header, fragments, file["name"], file["size"])


def _region_to_json(region: Region) -> dict[str, object]:
    return {"offset": region.offset, "size": region.size, "blake3": region.hash.hex()}


def _region_from_json(raw: dict[str, Any]) -> Region:
    return Region(raw["offset"], raw["size"], ObjectHash(bytes.fromhex(raw["blake3"])))


# --------------------------------------------------------------------------------------- names


def _data_path(layout: Layout, number: int) -> Path:
    return layout.snapshots / f"snapshot-{number:08}.safetensors"


def _manifest_path(layout: Layout, number: int) -> Path:
    return layout.snapshots / f"snapshot-{number:08}.manifest"


def _files(layout: Layout) -> dict[int, set[str]]:
    """Snapshot number → which of its files are there, in ascending order."""
    found: dict[int, set[str]] = {}
    with disk.explained("list", layout.snapshots):
        names = sorted(path.name for path in layout.snapshots.glob("snapshot-*"))
    for name in names:
        if match := _NAME.fullmatch(name):
            found.setdefault(int(match[1]), set()).add(match[2])
    return dict(sorted(found.items()))


def _committed(layout: Layout) -> list[int]:
    """Numbers of committed snapshots, oldest first."""
    return [number for number, kinds in _files(layout).items() if "manifest" in kinds]
