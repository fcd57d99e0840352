"""Objects: bytes known by their hash, whoever they come from.

A corpus shard and a fragment of a snapshot are pulled, checked and served in the same way. Shards
lie in a directory, one file each, named by their BLAKE3; fragments stay where they are, as regions
of a snapshot's data file. A file under its name is a promise kept: bytes are hashed before they
are renamed to it.

An object comes from one donor, piece by piece in any order, and counts only when all of it has
arrived and hashes to its name. A pull that is cut short starts again from nothing, here or after a
restart: objects are small (a fragment is at most some 16 MB), and what is never resumed needs no
record of what was received, and leaves no doubt about who sent a wrong byte.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from peerlm.errors import ChunkCorrupt, StateError, WireError
from peerlm.store import disk
from peerlm.store.disk import AtomicFile, Bytes, Layout, ReadFile
from peerlm.store.snapshot import Region, Snapshot
from peerlm.types import ObjectHash, short
from peerlm.wire.frame import CHUNK_BYTES

PIECE_BYTES = CHUNK_BYTES
"""An object is pulled in frames of the bulk plane; the last piece is what is left."""

_NAME = re.compile(r"[0-9a-f]{64}")


class _Place(NamedTuple):
    file: ReadFile
    offset: int
    size_bytes: int


class Objects:
    """All objects this node can serve. Reading and pulling are safe from any thread."""

    def __init__(self, layout: Layout, disk_limit_bytes: int = 0) -> None:
        """Finds the files that are there. Raises: StateError."""
        self._layout = layout
        self._disk_limit_bytes = disk_limit_bytes
        self._sizes: dict[ObjectHash, int] = {}
        self._snapshots: dict[int, dict[ObjectHash, _Place]] = {}
        with disk.explained("list", layout.objects):
            for path in sorted(layout.objects.iterdir()):
                if _NAME.fullmatch(path.name):
                    self._sizes[ObjectHash(bytes.fromhex(path.name))] = path.stat().st_size

    def has(self, object_hash: ObjectHash) -> bool:
        return object_hash in self._sizes or any(
            object_hash in places for places in tuple(self._snapshots.values())
        )

    def size_bytes(self, object_hash: ObjectHash) -> int:
        """Raises: StateError when the object is not here."""
        if object_hash in self._sizes:
            return self._sizes[object_hash]
        return self._place(object_hash).size_bytes

    @property
    def files(self) -> tuple[ObjectHash, ...]:
        """Objects that have a file of their own."""
        return tuple(self._sizes)

    def path(self, object_hash: ObjectHash) -> Path:
        """Where the object's own file lies, or would lie."""
        return self._layout.objects / object_hash.hex()

    # --------------------------------------------------------------------------------- serving

    def read(self, object_hash: ObjectHash, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, as a peer asked for them.

        Raises:
            WireError: the object does not reach that far.
            StateError: the object is not here (any more), or cannot be read.
        """
        out = bytearray(max(length, 0))
        place = self._place(object_hash)
        if offset < 0 or length < 0 or offset + length > place.size_bytes:
            raise WireError(
                f"bytes {offset}+{length} of object {short(object_hash)}: "
                f"it has {place.size_bytes} bytes"
            )
        place.file.read_into(place.offset + offset, memoryview(out))
        return bytes(out)

    def read_into(self, object_hash: ObjectHash, out: memoryview) -> None:
        """The whole object into `out`, a writable view of as many bytes, checked once more.

        Raises:
            ChunkCorrupt: it no longer hashes to its name, or is of another size.
            StateError: it is not here, or cannot be read.
        """
        place = self._place(object_hash)
        if len(out) != place.size_bytes:
            raise ChunkCorrupt(
                f"object {short(object_hash)} has {place.size_bytes} bytes, not {len(out)}"
            )
        place.file.read_into(place.offset, out)
        if blake3(out).digest() != object_hash:
            raise ChunkCorrupt(f"object {short(object_hash)} in {place.file.path} has changed")

    def register_snapshot(self, snapshot: Snapshot) -> None:
        """Serve a snapshot's fragments, until `retire_snapshot`, even if it is removed meanwhile.

        Raises: StateError.
        """
        file = snapshot.open()

        def place(region: Region) -> _Place:
            return _Place(file, region.offset, region.size)

        self._snapshots[snapshot.manifest.number] = {
            region.hash: place(region)
            for record in snapshot.manifest.fragments
            for region in (record.phi, record.momentum)
        }

    def retire_snapshot(self, number: int) -> None:
        """Serve it no more; its space is free once the last reader is done."""
        self._snapshots.pop(number, None)

    @property
    def registered_snapshots(self) -> tuple[int, ...]:
        """Numbers, oldest registration first."""
        return tuple(self._snapshots)

    # --------------------------------------------------------------------------------- keeping

    def put(self, data: Bytes) -> ObjectHash:
        """Keep bytes of our own; returns their name. Raises: StateError."""
        object_hash = ObjectHash(blake3(data).digest())
        if object_hash not in self._sizes:
            disk.check_room(self._layout.root, len(data), self._disk_limit_bytes, "an object")
            disk.write_atomic(self.path(object_hash), data)
            self._sizes[object_hash] = len(data)
        return object_hash

    def begin(self, object_hash: ObjectHash, size_bytes: int) -> Partial:
        """Room for an object about to be pulled. Raises: StateError when there is none."""
        disk.check_room(self._layout.root, size_bytes, self._disk_limit_bytes, "an object")
        return Partial(self, object_hash, size_bytes)

    def verify(self, object_hash: ObjectHash) -> None:
        """Hash the object's own file again; one that has changed is removed.

        Raises:
            ChunkCorrupt: it had changed; fetch it again.
            StateError: it is not here, or cannot be read.
        """
        place = self._place(object_hash)
        if place.file.hash(place.offset, place.size_bytes) != object_hash:
            self.remove(object_hash)
            raise ChunkCorrupt(f"object {short(object_hash)} in {place.file.path} has changed")

    def remove(self, object_hash: ObjectHash) -> None:
        """Remove the object's own file, if there is one. Raises: StateError."""
        self._sizes.pop(object_hash, None)
        disk.remove(self.path(object_hash))

    def _place(self, object_hash: ObjectHash) -> _Place:
        if object_hash in self._sizes:
            file = ReadFile(self.path(object_hash))
            return _Place(file, 0, file.size_bytes)
        for places in tuple(self._snapshots.values()):  # another thread may register
            if object_hash in places:
                return places[object_hash]
        raise StateError(f"object {short(object_hash)} is not kept here")

    def _finished(self, object_hash: ObjectHash, size_bytes: int) -> None:
        self._sizes[object_hash] = size_bytes


class Partial:
    """An object on its way in. Ends in `finish` or `discard`; a dead owner's is swept at start."""

    def __init__(self, objects: Objects, object_hash: ObjectHash, size_bytes: int) -> None:
        self._objects = objects
        self._file = AtomicFile(objects.path(object_hash), size_bytes=size_bytes)
        self._pieces: set[int] = set()
        self.object_hash = object_hash
        self.size_bytes = size_bytes
        self.received_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Every byte has arrived; whether they are the right ones, `finish` tells."""
        return self.received_bytes == self.size_bytes

    def write_at(self, offset: int, data: Bytes) -> None:
        """Take one piece, in any order; a piece that was here before is ignored.

        Raises:
            WireError: not a whole piece of this object.
            StateError: the disk refuses.
        """
        piece, rest = divmod(offset, PIECE_BYTES)
        due = min(PIECE_BYTES, self.size_bytes - offset)
        if rest or offset < 0 or due <= 0 or len(data) != due:
            raise WireError(
                f"{len(data)} bytes at {offset} are no piece of object {short(self.object_hash)} "
                f"of {self.size_bytes} bytes"
            )
        if piece not in self._pieces:
            self._file.write_at(offset, data)
            self._pieces.add(piece)
            self.received_bytes += due

    def finish(self) -> None:
        """Check the object and keep it, durably.

        Raises:
            ChunkCorrupt: bytes are missing or wrong; all of it was discarded.
            StateError: the disk refuses; all of it was discarded.
        """
        try:
            if not self.is_complete:
                raise ChunkCorrupt(
                    f"object {short(self.object_hash)} ended after {self.received_bytes} of "
                    f"{self.size_bytes} bytes"
                )
            if self._file.hash() != self.object_hash:
                raise ChunkCorrupt(f"object {short(self.object_hash)} does not hash to its name")
            self._file.commit()
            self._objects._finished(self.object_hash, self.size_bytes)
        finally:
            self.discard()

    def discard(self) -> None:
        """Give up what was received. May be called again, and after `finish`."""
        self._file.abort()
