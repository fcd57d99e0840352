"""How a source is cut, so that any number of machines make the same of it in any order.

A file of text or of records is cut into *units*, each small enough that its tokens fit into one chunk of the store even
when every byte is a token. Unit k nominally begins at byte k × stride; it truly begins at the first line end within a
slack from there, or, in a line longer than that, before the next character. Records are never cut: theirs is the first
line end, however far. So a unit is found by reading near its two ends and nothing else, as Hadoop finds its input splits,
and a file that is one line of many gigabytes is read in bounded memory. Where units are cut depends on a file's content
alone: one that is read in order, because it is compressed or comes from a server without ranges, falls into the same
units.

A *task* is what one machine takes at once: one unit of a large file, or whole files. Whole are those that cannot be
taken apart without reading them, and small ones, which are gathered so that a folder of a million notes does not
become a million shards. A task gives no, one or several shards, in order; the corpus is the shards of all tasks, in the
order of tasks. Which tasks there are follows from a listing alone.

Pure: what is read is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from peerlm.data.sources import SourceFile

UNIT_BYTES = (2 << 20) - (64 << 10)
"""Most text of a unit; as byte tokens twice as much, which leaves room in a chunk for what is put between documents."""

SLACK_BYTES = 64 << 10
RECORD_BYTES_MAX = 64 << 20
FILES_MAX = 4096
"""Of a task: each is a request to some store, one after the other."""


class Grid(NamedTuple):
    """Where units nominally begin, and how far from there they may."""

    stride: int = UNIT_BYTES - SLACK_BYTES
    """Bytes."""
    slack: int = SLACK_BYTES
    """Bytes, fewer than a stride and more than a character has."""
    record_max: int = RECORD_BYTES_MAX
    """Bytes of the longest record: what must fit into memory."""


GRID = Grid()


class Task(NamedTuple):
    """One unit of the file number `first`, or, where `unit` is None, `files` whole files from there on."""

    first: int
    files: int = 1
    unit: int | None = None


class Unit(NamedTuple):
    offset: int
    """Of its first byte in the file, as it is after decompression."""
    data: bytes
    is_file: bool
    """The whole of a file that is no longer than a stride: may share a shard with its neighbours."""


class RecordTooLong(ValueError):
    """No line end for `Grid.record_max` bytes."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


Fetch = Callable[[int, int], bytes]
"""Bytes from, to of a file."""


def tasks(
    files: Sequence[SourceFile], splits: Callable[[SourceFile], bool], grid: Grid = GRID
) -> tuple[Task, ...]:
    """All tasks of a listing. `splits`: whether a file can be cut by seeking."""
    made: list[Task] = []
    first, size = 0, 0
    for index, file in enumerate(files):
        weight = grid.stride if file.size is None else file.size
        alone = weight > grid.stride and splits(file)
        full = size + weight > grid.stride or index - first == FILES_MAX
        if first < index and (alone or full):
            made.append(Task(first, index - first))
            first, size = index, 0
        size += weight
        if alone:
            made += [Task(index, unit=unit) for unit in range(-(-weight // grid.stride))]
            first, size = index + 1, 0
    if first < len(files):
        made.append(Task(first, len(files) - first))
    return tuple(made)


def sought(fetch: Fetch, size: int, number: int, records: bool, grid: Grid = GRID) -> Unit:
    """Unit `number` of a file of `size` bytes, which may be empty. Two or more fetches where a record is long.

    Raises:
        RecordTooLong: see there.
    """
    nominal, following = number * grid.stride, min((number + 1) * grid.stride, size)
    base = max(nominal - 1, 0)
    window = fetch(base, min(following + grid.slack + 1, size))
    ends = []
    for place in (nominal, following):
        while (end := boundary(window, base, size, place, records, grid)) is None:
            reached = base + len(window)
            if reached - place > grid.record_max:
                raise RecordTooLong(place)
            window += fetch(reached, min(reached + grid.stride, size))
        ends.append(end)
        if end >= following:
            ends.append(end)
            break
    start, end = ends[0], ends[1]
    return Unit(start, window[start - base : end - base], False)


def in_order(blocks: Iterable[bytes], records: bool, grid: Grid = GRID) -> Iterator[Unit]:
    """The units of a file that are not empty, from its bytes in order. Holds one unit, or one record.

    Raises:
        RecordTooLong: see there.
    """
    source = iter(blocks)
    held, base, size, place = bytearray(), 0, None, 0

    def fill(until: int) -> None:
        nonlocal size
        while size is None and base + len(held) < until:
            block = next(source, None)
            if block is None:
                size = base + len(held)
            else:
                held.extend(block)

    while size is None or base < size:
        place += grid.stride
        if place <= base:
            continue
        fill(place + grid.slack + 1)
        while (end := boundary(held, base, size, place, records, grid)) is None:
            if base + len(held) - place > grid.record_max:
                raise RecordTooLong(place)
            fill(base + len(held) + 1)
        data = bytes(held[: end - base])
        if data:
            yield Unit(base, data, base == 0 and end == size and end <= grid.stride)
        del held[: end - base]
        base = end


def boundary(
    window: bytes | bytearray, base: int, size: int | None, place: int, records: bool, grid: Grid
) -> int | None:
    """The first byte at or after `place` where a unit may begin; None if that is beyond the window.

    Args:
        window: What lies from byte `base` to beyond `place` + slack, or to the end of the file.
        size: Of the file; None if it goes on beyond the window.
    """
    if place == 0:
        return 0
    if size is not None and place >= size:
        return size
    reach = None if records else place + grid.slack - base
    if line_end := window.find(b"\n", place - 1 - base, reach) + 1:
        return base + line_end
    if records:
        return size if size == base + len(window) else None
    if size is not None and size <= place + grid.slack:
        return size
    for at in range(place, place + 4):  # a character has at most four bytes
        if window[at - base] & 0xC0 != 0x80:
            return at
    return place
