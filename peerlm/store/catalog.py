"""What this node should keep of the swarm's store: what it must fetch, and what it may drop.

It knows chunks from manifests, with the number of replicas that each is wanted in; the nodes that store, and which of them
are away; and what lies on this node's disk. Who owns what follows from the first two alone (`owners`), so nodes that know the
same need not talk about it. A chunk is *due* here if this node is one of its owners, or stands in for one. What is due
and not here is *wanted*, *urgent* if owners of it are away and at most one that has it can be left: then no ceiling on repair
should hold it up. What is here and known but not due is *surplus*; whether and when it is dropped is for others to
say, who can ask the owners whether they have it. What is here and in no manifest that is known is *unreferenced*.

Pure: no clock, no files, no network. With 250,000 chunks and 200 nodes a first set of nodes, or a manifest of
all of that, takes about a second; one node more or less some hundredths; what concerns a single chunk next to nothing. A manifest
may be learnt in steps of some hundredths (`Catalog.learn`); nothing of it counts before the last.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from peerlm.store.manifest import Chunk
from peerlm.store.owners import Counts, Rows, StoreNode, Table, Tables, empty_table
from peerlm.store.rendezvous import Field, Places, keys_of
from peerlm.types import ObjectHash, PeerId

__all__ = [
    "CHUNKS_MAX",
    "REPLICAS_MAX",
    "STEP",
    "Catalog",
    "Learning",
    "StoreNode",
    "Summary",
    "Want",
]

REPLICAS_MAX = 64
"""Whoever asks for more replicas gets these: memory grows with the most that any chunk has."""


CHUNKS_MAX = 5_000_000
"""Of all manifests together, equal ones within one counted once: what is known of each takes some 300 bytes of memory. A
manifest beyond it is not looked at, and what is in no other is not kept by this node: 20 terabytes are."""


STEP = 4096
"""Chunks of a manifest that are learnt at once: some hundredths of a second with 200 nodes."""


class Want(NamedTuple):
    hash: ObjectHash
    size: int
    """Bytes, as a manifest says."""
    is_urgent: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """Of chunks that are in a manifest; each counts once."""

    chunks_known: int
    bytes_known: int
    due: int
    due_bytes: int
    held_due: int
    """Due and here."""
    lacking: int
    lacking_bytes: int
    """Due and not here."""
    surplus: int
    urgent: int
    """Of those lacking."""
    replicas_possible: int
    """The most replicas that a chunk is wanted in, or live nodes that store, if they are fewer."""


class Catalog:
    """What one node knows of the store."""

    def __init__(self, me: PeerId, tables: Tables | None = None) -> None:
        """`tables`: shared with others, so that what they have worked out is found there."""
        self._me = me
        self._tables = tables
        self._history = bytes(32)
        self._manifests: dict[ObjectHash, tuple[Rows, int]] = {}
        self._rows: dict[ObjectHash, int] = {}
        self._hashes: list[ObjectHash | None] = []
        """By row; None: the row is free."""
        self._free: list[int] = []
        self._keys = np.zeros(0, np.uint64)
        self._sizes = np.zeros(0, np.int64)
        self._replicas: Counts = np.zeros(0, np.int16)
        """0 where a row is free."""
        self._references = np.zeros(0, np.int32)
        """Manifests that list the row's chunk."""
        self._here = np.zeros(0, bool)
        self._due = np.zeros(0, bool)
        self._leaving: deque[Rows] = deque()
        """What no manifest lists any more."""
        self._strays: dict[ObjectHash, None] = {}
        """Here, and in no manifest."""
        self._table = empty_table()
        self._places: dict[PeerId, int] = {}
        """Of each node in the table; none of one that stores nothing."""
        self._place: int | None = None
        """Of this node."""
        self._my_key = keys_of([ObjectHash(blake3(me).digest())])[0]
        self._queue: list[tuple[int, bool]] | None = None
        """Rows that are wanted, and whether they are urgent; some may be here by now. None: to be made."""
        self._done = 0
        """So many at its head are here."""

    # ------------------------------------------------------------------------------- who is there

    def nodes_are(self, nodes: Sequence[StoreNode]) -> None:
        """The stable set: live nodes that store, and those away for less than the patience, this one among them."""
        given = tuple(nodes)
        if given != self._table.given:
            table = self._found(given)
            self._set(table or self._table.with_nodes(self._keys, self._replicas, given))

    # ---------------------------------------------------------------------------- what there is

    def know(self, manifest: ObjectHash, chunks: Sequence[Chunk], replicas: int) -> None:
        """From now on its chunks, and whatever else is listed with them, are to be held by `replicas` nodes each.
        A second call for a manifest says in how many it is wanted now."""
        learning = self.learn(manifest, chunks, replicas)
        while not learning.step():
            pass

    def learn(
        self, manifest: ObjectHash, chunks: Sequence[tuple[ObjectHash, int]], replicas: int
    ) -> Learning:
        """`know`, in steps. One at a time: what is begun is to be ended, or given up, before the next. Not where tables are
        shared, unless step follows step."""
        replicas = min(replicas, REPLICAS_MAX)
        assert replicas > 0, replicas
        return Learning(self, manifest, chunks, replicas)

    def forget(self, manifest: ObjectHash) -> None:
        """It is to be held no longer; what no other manifest lists is unreferenced from now on."""
        self.let_go(manifest)
        while self.is_untidy:
            self.tidy()

    def let_go(self, manifest: ObjectHash) -> None:
        """As `forget`, but what no other manifest lists is unreferenced by and by, as `tidy` comes to it."""
        if manifest not in self._manifests:
            return
        rows, _ = self._manifests.pop(manifest)
        self._references[rows] -= 1
        before = self._replicas[rows]
        self._replicas[rows] = 0
        for others, replicas in self._manifests.values():
            self._replicas[others] = np.maximum(self._replicas[others], replicas)
        doomed = rows[self._references[rows] == 0]
        self._leaving.extend(doomed[at : at + STEP] for at in range(0, len(doomed), STEP))
        lowered = rows[self._replicas[rows] < before]
        self._rows_changed(lowered, b"forget" + manifest)

    @property
    def is_untidy(self) -> bool:
        return bool(self._leaving)

    def tidy(self) -> list[ObjectHash]:
        """Some more of what was let go; what of it is here is told."""
        rows = self._leaving.popleft()
        left = [r for r in rows.tolist() if not self._references[r] and self._hashes[r] is not None]
        gone = np.array(left, np.int64)
        loose = self._named(gone[self._here[gone]])
        self._remove(gone)
        return loose

    def lists(self, manifest: ObjectHash, object_hash: ObjectHash) -> bool:
        """Whether it is in this manifest, which is known."""
        known, row = self._manifests.get(manifest), self._rows.get(object_hash)
        if known is None or row is None:
            return False
        at = int(np.searchsorted(known[0], row))
        return at < len(known[0]) and bool(known[0][at] == row)

    def is_known_in(self, manifest: ObjectHash, replicas: int) -> bool:
        """Whether it is to be held in so many."""
        return manifest in self._manifests and self._manifests[manifest][1] == replicas

    def knows(self, manifest: ObjectHash) -> bool:
        return manifest in self._manifests

    def chunks_of(self, manifest: ObjectHash) -> list[ObjectHash] | None:
        """Different ones; None: it is not known."""
        known = self._manifests.get(manifest)
        return None if known is None else self._named(known[0])

    @property
    def manifests(self) -> set[ObjectHash]:
        return set(self._manifests)

    @property
    def rows(self) -> int:
        """Chunks that are known, or being learnt."""
        return len(self._rows) - sum(map(len, self._leaving))

    def replicas(self, object_hash: ObjectHash) -> int:
        """How many nodes should hold it; 0: it is in no manifest that is known."""
        row = self._rows.get(object_hash)
        return 0 if row is None else int(self._replicas[row])

    def make_room(self, count: int) -> None:
        """Of `Learning`: free rows, so many at least."""
        more = max(0, count - len(self._free))
        if not more:
            return
        self._free.extend(range(len(self._hashes), len(self._hashes) + more))
        self._hashes.extend([None] * more)
        self._keys = _longer(self._keys, more)
        self._sizes = _longer(self._sizes, more)
        self._replicas = _longer(self._replicas, more)
        self._references = _longer(self._references, more)
        self._here = _longer(self._here, more)
        self._due = _longer(self._due, more)
        self._table = self._table.with_rows(self._keys, self._replicas, np.zeros(0, np.int64))

    def take_rows(self, chunks: Sequence[tuple[ObjectHash, int]]) -> Rows:
        """Of `Learning`: the rows of different chunks, new ones where they have none, and a reference to each more. Those are
        nobody's yet."""
        known = self._rows
        new = {name: size for name, size in chunks if name not in known}
        taken = self._free[len(self._free) - len(new) :]
        del self._free[len(self._free) - len(new) :]
        if new:
            self._keys[taken] = keys_of(list(new))
            self._sizes[taken] = list(new.values())
        for object_hash, row in zip(new, taken, strict=True):
            known[object_hash], self._hashes[row] = row, object_hash
            if object_hash in self._strays:
                del self._strays[object_hash]
                self._here[row] = True
        rows = self._different([np.array([known[name] for name, _ in chunks], np.int64)])
        self._references[rows] += 1
        return rows

    def give_rows_back(self, rows: Rows) -> None:
        """Of `Learning`: what `take_rows` gave; what nothing else lists is gone."""
        self._references[rows] -= 1
        self._remove(rows[self._references[rows] == 0])

    def owners_to_be(
        self, manifest: ObjectHash, rows: Rows, replicas: int
    ) -> tuple[Field, Rows, Places]:
        """Of `Learning`: which of these rows will be wanted more or less often, and who will own them if nodes stay as they
        are."""
        is_known = manifest in self._manifests
        raised = rows if is_known else rows[self._replicas[rows] < replicas]
        field = self._table.field
        return field, raised, field.first(self._keys[raised], replicas)

    def learnt(
        self,
        manifest: ObjectHash,
        parts: Sequence[Rows],
        replicas: int,
        ready: Sequence[tuple[Field, Rows, Places]],
    ) -> None:
        """Of `Learning`: from now on it counts."""
        self.let_go(manifest)
        for part in parts:
            self._references[part] -= 1
        rows = self._different(parts)
        self._references[rows] += 1
        self._manifests[manifest] = rows, replicas
        raised = rows[self._replicas[rows] < replicas]
        self._replicas[raised] = replicas
        how = b"know" + manifest + replicas.to_bytes(2, "little")
        self._rows_changed(raised, how, [r for r in ready if r[0] is self._table.field])

    def _different(self, parts: Sequence[Rows]) -> Rows:
        """Each once, ascending."""
        is_there = np.zeros(len(self._keys), bool)
        for rows in parts:
            is_there[rows] = True
        return np.flatnonzero(is_there)

    def _remove(self, rows: Rows) -> None:
        self._strays |= dict.fromkeys(self._named(rows[self._here[rows]]))
        for object_hash in self._named(rows):
            del self._rows[object_hash]
        for row in rows.tolist():
            self._hashes[row] = None
        self._here[rows] = False
        self._free.extend(rows.tolist())

    def _rows_changed(
        self, changed: Rows, how: bytes, ready: Sequence[tuple[Field, Rows, Places]] = ()
    ) -> None:
        """`ready`: owners of some of them, of a field that still holds."""
        self._history = blake3(self._history + how).digest()
        table = self._found(self._table.given)
        if table is None:
            known = [(rows, places) for _, rows, places in ready]
            table = self._table.with_rows(self._keys, self._replicas, changed, known)
        self._set(table)

    def _found(self, nodes: tuple[StoreNode, ...]) -> Table | None:
        return self._tables.find(self._history, nodes) if self._tables else None

    def _set(self, table: Table) -> None:
        if self._tables:
            self._tables.keep(self._history, table)
        self._table, self._queue = table, None
        self._places = {site.peer: place for place, site in enumerate(table.field.sites)}
        self._place = self._places.get(self._me)
        self._due = np.zeros(len(self._keys), bool)
        if self._place is not None:
            for places in table.owners:
                self._due |= places == self._place
            stood_for = (table.stand_ins == self._place).any(axis=0)
            self._due[table.critical[stood_for]] = True

    # ------------------------------------------------------------------------------ what is here

    def kept(self, object_hash: ObjectHash) -> None:
        """It lies on our disk, whole and verified."""
        if (row := self._rows.get(object_hash)) is None:
            self._strays[object_hash] = None
        else:
            self._here[row] = True

    def lost(self, object_hash: ObjectHash) -> None:
        """It was removed, or is damaged."""
        if (row := self._rows.get(object_hash)) is None:
            self._strays.pop(object_hash, None)
        else:
            self._here[row] = False
            self._queue = None

    # ---------------------------------------------------------------------------- what follows

    def owners(self, object_hash: ObjectHash) -> tuple[PeerId, ...]:
        """Who should hold it, in order; nobody, if no manifest lists it."""
        if (row := self._rows.get(object_hash)) is None:
            return ()
        sites = self._table.field.sites
        return tuple(sites[place].peer for place in self._table.owners_of(row))

    def sources(self, object_hash: ObjectHash) -> tuple[PeerId, ...]:
        """All live nodes that store but this one, likeliest first: owners, who stands in for them, and then by hashing,
        as who was an owner before stands there. Also of objects that no manifest lists."""
        table = self._table
        first: list[int] = []
        if (row := self._rows.get(object_hash)) is not None:
            first = [*table.owners_of(row), *table.stand_ins_of(row)]
        places = dict.fromkeys([*first, *table.field.order(keys_of([object_hash])[0]).tolist()])
        peers = (table.field.sites[place].peer for place in places if table.is_live[place])
        return tuple(peer for peer in peers if peer != self._me)

    def is_due(self, object_hash: ObjectHash) -> bool:
        """Whether we should hold it."""
        row = self._rows.get(object_hash)
        return row is not None and bool(self._due[row])

    def is_one_more(self, object_hash: ObjectHash, maker: PeerId) -> bool:
        """Whether a copy here, although due, would be one more than is wanted while `maker` has one that is not due there. Of
        all owners only the last one has that."""
        row, place = self._rows.get(object_hash), self._places.get(maker)
        if row is None or place is None or not self._table.is_live[place]:
            return False
        owners = self._table.owners_of(row)
        is_last = bool(owners) and owners[-1] == self._place and not self._table.away[row]
        return is_last and place not in owners and len(owners) == int(self._replicas[row])

    def wanted(self, limit: int, without: Container[ObjectHash] = ()) -> list[Want]:
        """What is due here and not here, and not among `without`, urgent ones first; at most `limit`."""
        return list(islice(self.each_wanted(without), limit))

    def each_wanted(self, without: Container[ObjectHash] = ()) -> Iterator[Want]:
        """The same, one after the other. Nothing else may be done with the catalog until they have been taken.

        Each node has an order of its own beyond that, so that not all owners of something new ask for it at once: who comes
        later can have it from who came first.
        """
        if self._queue is None:
            self._queue, self._done = self._in_order(), 0
        queue = self._queue
        while self._done < len(queue) and self._here[queue[self._done][0]]:
            self._done += 1
        for at in range(self._done, len(queue)):
            row, is_urgent = queue[at]
            object_hash = self._hashes[row]
            if object_hash in without:
                continue
            if not self._here[row] and object_hash is not None:
                yield Want(object_hash, int(self._sizes[row]), is_urgent)

    def _in_order(self) -> list[tuple[int, bool]]:
        rows = np.flatnonzero(self._due & ~self._here)
        urgent, left = self._urgent(rows)
        order = np.lexsort((self._keys[rows] ^ self._my_key, left, ~urgent))
        return list(zip(rows[order].tolist(), urgent[order].tolist(), strict=True))

    def _urgent(self, rows: Rows) -> tuple[npt.NDArray[np.bool_], Counts]:
        """Of rows that are not here: whether they are urgent, and how many live owners may have them."""
        table = self._table
        left = table.live[rows].copy()
        if self._place is not None and table.is_live[self._place]:
            left -= (table.owners[:, rows] == self._place).any(axis=0)
        return (table.away[rows] > 0) & (left <= np.minimum(1, self._replicas[rows] - 1)), left

    def surplus(self) -> list[ObjectHash]:
        """Here, in a manifest, and not due here."""
        return self._named(np.flatnonzero(self._here & ~self._due & (self._replicas > 0)))

    def some_held(self, count: int, rng: random.Random) -> list[ObjectHash]:
        """Of what is due here and here, so many at most, drawn by lot."""
        rows = np.flatnonzero(self._here & self._due)
        some = rng.sample(range(len(rows)), min(count, len(rows)))
        return self._named(rows[some])

    def unreferenced(self) -> list[ObjectHash]:
        """Here, and in no manifest that is known."""
        return list(self._strays)

    @property
    def lacking(self) -> int:
        """How many are due here and not here: of `summary`, and a hundredth of its time."""
        return int(np.count_nonzero(self._due & ~self._here))

    def summary(self) -> Summary:
        known, due = self._replicas > 0, self._due
        lacking = np.flatnonzero(due & ~self._here)
        live = int(self._table.is_live.sum())
        return Summary(
            chunks_known=int(known.sum()),
            bytes_known=int(self._sizes[known].sum()),
            due=int(due.sum()),
            due_bytes=int(self._sizes[due].sum()),
            held_due=int((due & self._here).sum()),
            lacking=len(lacking),
            lacking_bytes=int(self._sizes[lacking].sum()),
            surplus=int((self._here & ~due & known).sum()),
            urgent=int(self._urgent(lacking)[0].sum()),
            replicas_possible=min(int(self._replicas.max(initial=0)), live),
        )

    def _named(self, rows: Rows) -> list[ObjectHash]:
        return [name for row in rows.tolist() if (name := self._hashes[row]) is not None]


class Learning:
    """A manifest that is being taken in. After each `step` anything else may be done with the catalog, but for another one."""

    def __init__(
        self,
        catalog: Catalog,
        manifest: ObjectHash,
        chunks: Sequence[tuple[ObjectHash, int]],
        replicas: int,
    ) -> None:
        self._catalog, self.manifest, self._replicas = catalog, manifest, replicas
        self._chunks, self._at = chunks, 0
        self._parts: list[Rows] = []
        self._ready: list[tuple[Field, Rows, Places]] = []
        self._is_done = catalog.is_known_in(manifest, replicas)
        if not self._is_done:
            catalog.make_room(len(chunks))

    def step(self) -> bool:
        """Some more of it. True: that was all."""
        if self._is_done:
            return True
        part = self._chunks[self._at : self._at + STEP]
        if part:
            rows = self._catalog.take_rows(part)
            self._parts.append(rows)
            self._ready.append(self._catalog.owners_to_be(self.manifest, rows, self._replicas))
            self._at += len(part)
        if self._at < len(self._chunks):
            return False
        self._catalog.learnt(self.manifest, self._parts, self._replicas, self._ready)
        self._is_done, self._parts = True, []
        return True

    def give_up(self) -> None:
        """It is not wanted any more."""
        for rows in self._parts:
            self._catalog.give_rows_back(rows)
        self._is_done, self._parts = True, []


def _longer(array: npt.NDArray[Any], more: int) -> npt.NDArray[Any]:
    return np.concatenate([array, np.zeros(more, array.dtype)])
