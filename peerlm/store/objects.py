"""Objects: bytes known by their hash, whoever they come from.

A corpus shard and a fragment of a snapshot are pulled, checked and served in the same way. Shards
lie in a directory, one file each, named by their BLAKE3; fragments stay where they are, as regions
of a snapshot's data file. A file under its name is a promise kept: bytes are hashed before they
are renamed to it.

What the node keeps for the swarm's store, chunks and manifests, lies on a shelf of its own
(`store.shelf`): `chunks/` beside `objects/`. Both are looked up alike, but what is in `chunks/` is
only removed by `drop_chunk` and `condemn_chunks`, or when it is damaged. Something may lie on both.

An object comes from one donor, piece by piece in any order, and counts only when all of it has
arrived and hashes to its name. A pull that is cut short starts again from nothing, here or after a
restart: objects are small (a fragment is at most some 16 MB), and what is never resumed needs no
record of what was received, and leaves no doubt about who sent a wrong byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from blake3 import blake3

from peerlm.errors import ChunkCorrupt, StateError, Vanished, WireError
from peerlm.store.disk import AtomicFile, Bytes, ReadFile
from peerlm.store.layout import Layout
from peerlm.store.manifest import CHUNK_BYTES as CHUNK_BYTES_MAX
from peerlm.store.manifest import MANIFEST_BYTES_MAX
from peerlm.store.room import Room
from peerlm.store.shelf import Shelf, damaged
from peerlm.store.snapshot import Region, Snapshot
from peerlm.types import ObjectHash, short
from peerlm.wire.frame import CHUNK_BYTES

PIECE_BYTES = CHUNK_BYTES
"""An object is pulled in frames of the bulk plane; the last piece is what is left."""

KEPT_BYTES_MAX = MANIFEST_BYTES_MAX
"""Of what is kept for the store: it is read in one piece to be checked."""


KEPT_MAX = 6
"""Pieces of memory for chunks that are kept for the next ones."""


class _Place(NamedTuple):
    file: ReadFile
    offset: int
    size_bytes: int


class Objects:
    """All objects this node can serve. Reading and pulling are safe from any thread."""

    def __init__(self, layout: Layout, disk_limit_bytes: int = 0) -> None:
        """Finds the files that are there. Raises: StateError."""
        self._own, self._kept = Shelf(layout.objects), Shelf(layout.chunks)
        self._room = Room(layout.root, disk_limit_bytes, (self._own, self._kept))
        self._snapshots: dict[int, dict[ObjectHash, _Place]] = {}
        self._lent = _Lent()
        self._verified: dict[ObjectHash, tuple[int, ...]] = {}
        """What was hashed by `verify`, and how its file was then."""

    def has(self, object_hash: ObjectHash) -> bool:
        return (
            object_hash in self._own
            or object_hash in self._kept
            or any(object_hash in places for places in tuple(self._snapshots.values()))
        )

    def has_chunk(self, object_hash: ObjectHash) -> bool:
        """Whether it is kept for the store."""
        return object_hash in self._kept

    def size_bytes(self, object_hash: ObjectHash) -> int:
        """Raises: StateError when the object is not here."""
        for shelf in (self._own, self._kept):
            if (size := shelf.size(object_hash)) is not None:
                return size
        return self._place(object_hash).size_bytes

    @property
    def files(self) -> tuple[ObjectHash, ...]:
        """Objects that have a file of their own, but for what is kept for the store."""
        return tuple(object_hash for object_hash, _ in self._own.sizes)

    @property
    def chunks(self) -> tuple[tuple[ObjectHash, int], ...]:
        """(hash, bytes) of what is kept for the store, chunks and manifests."""
        return self._kept.sizes

    def path(self, object_hash: ObjectHash) -> Path:
        """Where the object's own file lies, or would lie."""
        is_kept_alone = object_hash in self._kept and object_hash not in self._own
        return (self._kept if is_kept_alone else self._own).path(object_hash)

    # --------------------------------------------------------------------------------- serving

    def read(self, object_hash: ObjectHash, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, as a peer asked for them.

        Raises:
            WireError: the object does not reach that far.
            StateError: the object is not here (any more), or cannot be read.
        """
        place = self._place(object_hash)
        if offset < 0 or length < 0 or offset + length > place.size_bytes:
            raise WireError(
                f"bytes {offset}+{length} of object {short(object_hash)}: "
                f"it has {place.size_bytes} bytes"
            )
        return place.file.read_at(place.offset + offset, length)

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
            raise damaged(object_hash, place.file)

    def read_verified(self, object_hash: ObjectHash, *, from_device: bool = False) -> bytes:
        """The whole object, checked; what is kept for the store is looked at first.

        Args:
            from_device: not from what the kernel remembers of the file, where no rot shows.

        Raises:
            ChunkCorrupt: it was damaged; its file is removed, or never read again.
            Vanished: it was here and is not any more, or cannot be read any more.
            StateError: it is not here, or cannot be read now.
        """
        for shelf in (self._kept, self._own):
            if object_hash in shelf:
                return shelf.read(object_hash, from_device=from_device)
        out = bytearray(self.size_bytes(object_hash))
        self.read_into(object_hash, memoryview(out))
        return bytes(out)

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
        if object_hash not in self._own:
            self._write(self._own, object_hash, data)
        return object_hash

    def put_chunk(self, data: Bytes) -> ObjectHash:
        """Keep a chunk or a manifest for the store; on return it is durable. Returns its name. Raises: StateError."""
        _require_size(len(data))
        object_hash = ObjectHash(blake3(data).digest())
        if not self._kept.is_there(object_hash):
            self._write(self._kept, object_hash, data)
        return object_hash

    def _write(self, shelf: Shelf, object_hash: ObjectHash, data: Bytes) -> None:
        size_bytes = len(data)
        self._room.take(size_bytes, _WHAT)
        try:
            if shelf is self._kept and self._is_linked(object_hash, size_bytes):
                return
            shelf.write(object_hash, data)
        finally:
            self._room.give_back(size_bytes)

    def _is_linked(self, object_hash: ObjectHash, size_bytes: int) -> bool:
        """What is an object here already, undamaged, gets a second name instead of a second file."""
        if self._own.size(object_hash) != size_bytes:
            return False
        try:
            self._own.read(object_hash)
        except (ChunkCorrupt, StateError):
            return False
        return self._kept.link(self._own.path(object_hash), object_hash, size_bytes)

    def begin(self, object_hash: ObjectHash, size_bytes: int, is_chunk: bool = False) -> Partial:
        """Room for an object about to be pulled. `is_chunk`: it is kept for the store.

        Raises: StateError when there is none.
        """
        if is_chunk:
            _require_size(size_bytes)
        self._room.take(size_bytes, _WHAT)
        try:
            shelf = self._kept if is_chunk else self._own
            return Partial(shelf, self._room, object_hash, size_bytes)
        except BaseException:
            self._room.give_back(size_bytes)
            raise

    def await_chunk(self, object_hash: ObjectHash, size_bytes: int) -> Arriving:
        """Room for a chunk about to be pulled into memory. Raises: StateError when there is none."""
        _require_size(size_bytes)
        self._room.take(size_bytes, _WHAT)
        return Arriving(self._kept, self._room, object_hash, size_bytes, self._lent)

    def verify(self, object_hash: ObjectHash, *, anew: bool = True) -> None:
        """Hash the object's own file; one that has changed is removed. Unless `anew` it is left at a look at the file
        while that is as it was when it was last hashed, by this process.

        Raises:
            ChunkCorrupt: it had changed; fetch it again.
            StateError: it is not here, or cannot be read.
        """
        place = self._place(object_hash)
        stamp = (place.offset, place.size_bytes, *place.file.stamp)
        if not anew and self._verified.get(object_hash) == stamp:
            return
        self._verified.pop(object_hash, None)
        if place.file.hash(place.offset, place.size_bytes) == object_hash:
            self._verified[object_hash] = stamp
        else:
            for shelf in (self._own, self._kept):
                shelf.remove_damaged(object_hash, place.file)
            raise damaged(object_hash, place.file)

    def remove(self, object_hash: ObjectHash) -> None:
        """Remove the object's own file, if there is one; not what is kept for the store. Raises: StateError."""
        self._verified.pop(object_hash, None)
        self._own.remove(object_hash)

    def drop_chunk(self, object_hash: ObjectHash) -> None:
        """Keep it for the store no more. Raises: StateError."""
        self._kept.remove(object_hash)

    def condemn_chunks(self, hashes: Iterable[ObjectHash]) -> None:
        """They are kept for the store no more, from this moment; `remove_condemned` removes their files later, but for what
        is put again before."""
        for object_hash in hashes:
            self._kept.condemn(object_hash)

    def remove_condemned(self, hashes: Iterable[ObjectHash]) -> None:
        """Raises: StateError."""
        self._kept.remove_condemned(hashes)

    def _place(self, object_hash: ObjectHash) -> _Place:
        for shelf in (self._own, self._kept):
            if object_hash in shelf:
                try:
                    file = shelf.open(object_hash)
                except Vanished:
                    if shelf is self._own and object_hash in self._kept:
                        continue
                    raise
                return _Place(file, 0, file.size_bytes)
        for places in tuple(self._snapshots.values()):  # another thread may register
            if object_hash in places:
                return places[object_hash]
        raise StateError(f"object {short(object_hash)} is not kept here")


_WHAT = "an object"


def _require_size(size_bytes: int) -> None:
    if size_bytes > KEPT_BYTES_MAX:
        raise StateError(
            f"{size_bytes} bytes are too many for the store to keep in one piece; at most {KEPT_BYTES_MAX}"
        )


class Partial:
    """An object on its way in. Ends in `finish` or `discard`; a dead owner's is swept at start."""

    def __init__(self, shelf: Shelf, room: Room, object_hash: ObjectHash, size_bytes: int) -> None:
        """Takes over `size_bytes` of `room`. Raises: StateError."""
        self._shelf, self._room = shelf, room
        self._file = AtomicFile(shelf.path(object_hash), size_bytes=size_bytes)
        self._taken_bytes = [size_bytes]
        """Of the room; popped by whoever gives up first."""
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
            self._shelf.keep(self._file, self.object_hash)
        finally:
            self.discard()

    def discard(self) -> None:
        """Give up what was received. May be called again, and after `finish`."""
        self._file.abort()
        with suppress(IndexError):
            self._room.give_back(self._taken_bytes.pop())


class _Lent:
    """Memory of chunks on their way in: fresh memory costs more than what it is for. Any thread may lend and take back."""

    def __init__(self) -> None:
        self._kept: list[memoryview] = []

    def lend(self, size_bytes: int) -> memoryview:
        """Of so many bytes at least, of whatever was in them."""
        if CHUNK_BYTES_MAX // 2 < size_bytes <= CHUNK_BYTES_MAX:
            with suppress(IndexError):
                return self._kept.pop()
            return np.empty(CHUNK_BYTES_MAX, np.uint8).data
        return np.empty(size_bytes, np.uint8).data

    def take_back(self, memory: memoryview) -> None:
        """Nobody writes there any more."""
        if len(memory) == CHUNK_BYTES_MAX and len(self._kept) < KEPT_MAX:
            self._kept.append(memory)


class Arriving:
    """A chunk on its way in, in memory until all of it is there: it is small, and so it is hashed where it came to lie and
    written in one piece. Ends in `finish` or `discard`.

    values: where its bytes belong.
    """

    def __init__(
        self, shelf: Shelf, room: Room, object_hash: ObjectHash, size_bytes: int, lent: _Lent
    ) -> None:
        """Takes over `size_bytes` of `room`."""
        self._shelf, self._room, self._name, self._lent = shelf, room, object_hash, lent
        self._taken_bytes = [size_bytes]
        self._memory = lent.lend(size_bytes)
        self.values = self._memory[:size_bytes]

    def finish(self) -> None:
        """Check what has come and keep it, durably.

        Raises:
            ChunkCorrupt: it is not what its name says.
            StateError: the disk refuses.
        """
        try:
            if blake3(self.values).digest() != self._name:
                raise ChunkCorrupt(f"object {short(self._name)} does not hash to its name")
            self._shelf.write(self._name, self.values)
            self._lent.take_back(
                self._memory
            )  # only here: all of it came, so nobody writes there any more
        finally:
            self.discard()

    def discard(self) -> None:
        """May be called again, and after `finish`."""
        with suppress(IndexError):
            self._room.give_back(self._taken_bytes.pop())
