"""Who should hold which chunk, as a table that never changes: another set of nodes or chunks makes another table.

A chunk's *owners* are the first R of the *stable set*, nodes that live or have been away for less than the patience: so who
reboots keeps its chunks, and nothing moves. That leaves a chunk alone when several of its owners are away. One with at
most one live owner left (of R = 1: with none) is *critical*: then the owners that it would have if those who are away
were gone hold it at once, besides. They are its *stand-ins*, and if the others do not come back, they are its owners later
on, so nothing they have fetched was in vain.

A chunk's row stays where it is; a row with no replicas to be is free. What follows from a change is worked out for the
rows that it can touch and no others: a death touches what the dead one owned, a newcomer what it is nearer to than one
of the owners (see `rendezvous` for why it is no more). What comes out is the same as if all were made anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from peerlm.store.rendezvous import Field, Keys, Places, Site
from peerlm.types import PeerId

Counts = npt.NDArray[np.int16]
Rows = npt.NDArray[np.int64]

NOBODY = -1
"""Where fewer nodes than replicas are wanted for a chunk or are there. As an index it means the last, which is kept free for it."""

GONE = -2

TABLES_KEPT = 8


class StoreNode(NamedTuple):
    """A node of the stable set, as its vitals say and membership sees it."""

    peer: PeerId
    capacity: int
    """Bytes; nodes are due chunks in proportion. 0: none."""
    label: str
    """What it fails together with; empty: it fails alone."""
    is_live: bool
    """False: away, but for less than the patience."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns are rows of the catalog, places those in `field`."""

    given: tuple[StoreNode, ...]
    """What this follows from, as it came."""
    field: Field
    is_live: npt.NDArray[np.bool_]
    """Of each place, and False at the end, for nobody."""
    owners: Places
    """(most replicas × rows), in order; `NOBODY` after the last."""
    live: Counts
    away: Counts
    """Owners of each row that live, that do not."""
    critical: Rows
    """Ascending."""
    stand_ins: Places
    """(most replicas × critical rows), in order, with `NOBODY` here and there."""

    def with_nodes(self, keys: Keys, replicas: Counts, nodes: Sequence[StoreNode]) -> Table:
        """For another stable set, the same rows."""
        given = tuple(nodes)
        storing = {node.peer: node for node in given if node.capacity > 0}
        field = Field([Site(n.peer, float(n.capacity), n.label) for n in storing.values()])
        if field.sites == self.field.sites:
            field, owners = self.field, self.owners
        else:
            owners, rows = _carried_over(self, field, keys, replicas)
            _fill(owners, field, keys, replicas, rows)
        is_live = np.array([storing[site.peer].is_live for site in field.sites] + [False], bool)
        return _with_stand_ins(given, field, is_live, owners, keys, replicas)

    def with_rows(
        self,
        keys: Keys,
        replicas: Counts,
        changed: Rows,
        ready: Sequence[tuple[Rows, Places]] = (),
    ) -> Table:
        """For rows that are new or are wanted more or less often, the same nodes. `ready`: the first nodes (`Field.first`) of
        some of them, worked out before; what is not for as many as are wanted now is not looked at."""
        owners = _resized(self.owners, _width(self.field, replicas), len(keys))
        left = np.zeros(len(keys), bool)
        left[changed] = True
        for rows, places in ready:
            fits = left[rows] & (np.minimum(replicas[rows], len(self.field)) == len(places))
            owners[:, rows[fits]] = NOBODY
            owners[: len(places), rows[fits]] = places[:, fits]
            left[rows[fits]] = False
        _fill(owners, self.field, keys, replicas, np.flatnonzero(left))
        return _with_stand_ins(self.given, self.field, self.is_live, owners, keys, replicas)

    def owners_of(self, row: int) -> list[int]:
        """Places, in order."""
        return [place for place in self.owners[:, row].tolist() if place != NOBODY]

    def stand_ins_of(self, row: int) -> list[int]:
        """Places; none of a row that is not critical."""
        at = int(np.searchsorted(self.critical, row))
        if at == len(self.critical) or self.critical[at] != row:
            return []
        return [place for place in self.stand_ins[:, at].tolist() if place != NOBODY]


def empty_table() -> Table:
    none = np.zeros(0, np.int16)
    owners = np.zeros((0, 0), np.int32)
    return Table(
        (), Field(()), np.zeros(1, bool), owners, none, none, np.zeros(0, np.int64), owners
    )


class Tables:
    """Tables made lately, by what they follow from. Catalogs of one process that know the same chunks, as in a simulation,
    may share one of these: then each table is made once. It changes nothing of what they say."""

    def __init__(self) -> None:
        self._made: deque[tuple[bytes, Table]] = deque(maxlen=TABLES_KEPT)

    def find(self, history: bytes, nodes: tuple[StoreNode, ...]) -> Table | None:
        """`history`: of all that rows follow from (`Catalog.know` and `forget`)."""
        for known, table in reversed(self._made):
            if known == history and table.given == nodes:
                return table
        return None

    def keep(self, history: bytes, table: Table) -> None:
        if self.find(history, table.given) is not table:
            self._made.append((history, table))


# --------------------------------------------------------------------------------------- making


def _width(field: Field, replicas: Counts) -> int:
    return min(int(replicas.max(initial=0)), len(field))


def _resized(owners: Places, width: int, rows: int) -> Places:
    """A copy of as much of it as fits, the rest nobody."""
    resized = np.full((width, rows), NOBODY, np.int32)
    both = np.s_[: min(width, owners.shape[0]), : min(rows, owners.shape[1])]
    resized[both] = owners[both]
    return resized


def _fill(owners: Places, field: Field, keys: Keys, replicas: Counts, rows: Rows) -> None:
    """Work out `rows` of the table anew."""
    wanted = replicas[rows]
    for count in np.unique(wanted).tolist():
        of_count = rows[wanted == count]
        owners[:, of_count] = NOBODY
        if count and len(field):
            found = field.first(keys[of_count], count)
            owners[: len(found), of_count] = found


def _carried_over(table: Table, field: Field, keys: Keys, replicas: Counts) -> tuple[Places, Rows]:
    """The owners in places of another `field`, and the rows that must be worked out anew."""
    most, rows = int(replicas.max(initial=0)), len(keys)
    owners = np.full((_width(field, replicas), rows), NOBODY, np.int32)
    place_of = {site: place for place, site in enumerate(field.sites)}
    moved = np.array([place_of.get(s, GONE) for s in table.field.sites] + [NOBODY], np.int32)
    stayed = moved[moved >= 0]
    newcomers = np.setdiff1d(np.arange(len(field)), stayed)
    domains = len(np.unique(field.domains[stayed]))
    if (
        len(stayed) < most
        or len(newcomers) > len(field) // 4
        or (len(newcomers) and domains < min(most, field.domain_count))
    ):
        return owners, np.arange(rows)
    width = min(len(owners), len(table.owners))
    owners[:width] = moved[table.owners[:width]]
    touched = (owners == GONE).any(axis=0)
    if len(newcomers):
        touched |= _nearer(field, keys, owners, newcomers)
    return owners, np.flatnonzero(touched)


def _nearer(
    field: Field, keys: Keys, owners: Places, newcomers: Iterable[int]
) -> npt.NDArray[np.bool_]:
    """Of each row, whether one of the newcomers is nearer than the farthest owner."""
    farthest = np.full(len(keys), -np.inf)
    for places in owners:
        distances = field.distances(keys, np.maximum(places, 0))
        np.maximum(farthest, np.where(places >= 0, distances, -np.inf), out=farthest)
    nearer = np.zeros(len(keys), bool)
    for place in newcomers:
        nearer |= field.distances(keys, np.full(len(keys), place, np.int32)) <= farthest
    return nearer


def _with_stand_ins(
    given: tuple[StoreNode, ...],
    field: Field,
    is_live: npt.NDArray[np.bool_],
    owners: Places,
    keys: Keys,
    replicas: Counts,
) -> Table:
    live = is_live[owners].sum(axis=0, dtype=np.int16)
    if is_live[:-1].all():
        away = np.zeros(len(keys), np.int16)
    else:
        away = ((owners != NOBODY).sum(axis=0) - live).astype(np.int16)
    critical = np.flatnonzero((away > 0) & (live <= np.minimum(1, replicas - 1)))
    stand_ins = np.full((len(owners), len(critical)), NOBODY, np.int32)
    if len(critical):
        places = np.flatnonzero(is_live)
        living = Field([field.sites[place] for place in places])
        _fill(stand_ins, living, keys[critical], replicas[critical], np.arange(len(critical)))
        stand_ins = np.append(places, NOBODY).astype(np.int32)[stand_ins]
        for places in owners[:, critical]:
            stand_ins[stand_ins == places] = NOBODY
    return Table(given, field, is_live, owners, live, away, critical, stand_ins)
