import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.data import units
from peerlm.data.sources import SourceFile
from peerlm.data.units import GRID, Grid, RecordTooLong, Task, Unit

texts = st.text(st.sampled_from("ab é€😀\n"), min_size=1, max_size=300).map(str.encode)
grids = st.builds(
    lambda slack, more, most: Grid(slack + more, slack, most),
    st.integers(4, 20),
    st.integers(4, 60),
    st.just(10_000),
)


def sought(raw: bytes, records: bool, grid: Grid) -> list[Unit]:
    """Every unit by itself, in an order of no meaning."""
    count = -(-len(raw) // grid.stride)
    order = random.Random(1).sample(range(count), count)
    found = {k: units.sought(lambda a, b: raw[a:b], len(raw), k, records, grid) for k in order}
    return [found[k] for k in range(count)]


def dribbled(raw: bytes, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    at = 0
    while at < len(raw):
        step = chance.randint(1, 40)
        yield raw[at : at + step]
        at += step


@settings(max_examples=60)
@given(texts, grids, st.booleans())
def test_units_cover_every_byte_once(raw: bytes, grid: Grid, records: bool) -> None:
    found = sought(raw, records, grid)
    assert b"".join(unit.data for unit in found) == raw
    assert [u.offset for u in found] == list(
        itertools.accumulate((len(u.data) for u in found[:-1]), initial=0)
    )


@settings(max_examples=60)
@given(texts, grids)
def test_a_unit_of_text_is_text_and_no_longer_than_stride_and_slack(raw: bytes, grid: Grid) -> None:
    for unit in sought(raw, False, grid):
        unit.data.decode()
        assert len(unit.data) <= grid.stride + grid.slack + 3


@settings(max_examples=60)
@given(texts, grids)
def test_a_record_is_in_the_unit_in_which_it_begins(raw: bytes, grid: Grid) -> None:
    for number, unit in enumerate(sought(raw, True, grid)):
        lines = unit.data.splitlines(keepends=True)
        begins = itertools.accumulate((len(line) for line in lines[:-1]), initial=unit.offset)
        for _, at in zip(lines, begins, strict=True) if lines else ():
            assert number * grid.stride <= at < (number + 1) * grid.stride


@settings(max_examples=60)
@given(texts, grids, st.booleans(), st.integers(0, 99))
def test_read_in_order_a_file_falls_into_the_same_units(
    raw: bytes, grid: Grid, records: bool, seed: int
) -> None:
    streamed = list(units.in_order(dribbled(raw, seed), records, grid))
    by_seeking = [unit for unit in sought(raw, records, grid) if unit.data]
    assert [u[:2] for u in streamed] == [u[:2] for u in by_seeking]
    assert [u.is_file for u in streamed] == [len(raw) <= grid.stride] * len(streamed)


def test_text_is_cut_at_a_line_end_within_the_slack_and_else_before_a_character() -> None:
    grid = Grid(10, 5)
    raw = b"0123456789ab\nrest of it is long" + "é".encode() * 20
    cut = [unit.data for unit in sought(raw, False, grid)]
    assert cut[0] == b"0123456789ab\n"
    assert [len(part) for part in cut[1:]] == [7, 10, 11, 10, 10, 10, 0]  # one after a whole é


def test_a_line_end_right_before_a_unit_is_its_beginning() -> None:
    assert [u.data for u in sought(b"123456789\nabc\n", False, Grid(10, 5))] == [
        b"123456789\n",
        b"abc\n",
    ]


def test_a_little_rest_belongs_to_the_unit_before() -> None:
    assert [u.data for u in sought(b"x" * 12, False, Grid(10, 5))] == [b"x" * 12, b""]


def test_what_is_no_utf_8_is_cut_somewhere_and_complained_of_later() -> None:
    raw = b"\x80" * 100
    assert b"".join(u.data for u in sought(raw, False, Grid(10, 5))) == raw


def test_a_unit_within_a_long_record_is_empty() -> None:
    raw = b"a\n" + b"b" * 45 + b"\nc\n"
    assert [u.data for u in sought(raw, True, Grid(10, 5))] == [raw[:48], b"", b"", b"", b"c\n"]


@pytest.mark.parametrize("by_seeking", [True, False])
def test_a_record_that_does_not_end_is_given_up_before_it_fills_the_memory(
    by_seeking: bool,
) -> None:
    grid = Grid(10, 5, record_max=100)
    raw = b"x" * 1000
    with pytest.raises(RecordTooLong):
        sought(raw, True, grid) if by_seeking else list(
            units.in_order(dribbled(raw, 0), True, grid)
        )


def test_a_unit_is_read_near_its_place_only() -> None:
    asked = []

    def fetch(start: int, end: int) -> bytes:
        asked.append((start, end))
        return b"x" * (end - start)

    unit = units.sought(fetch, 10 << 30, 3000, False)
    assert asked == [(3000 * GRID.stride - 1, 3001 * GRID.stride + GRID.slack + 1)]
    assert len(unit.data) == GRID.stride


# ------------------------------------------------------------------------------------- tasks


def files(*sizes: int | None) -> list[SourceFile]:
    return [SourceFile(f"f{number}", size) for number, size in enumerate(sizes)]


def test_large_files_are_taken_apart_and_small_ones_gathered() -> None:
    grid = Grid(100, 10)
    listing = files(30, 60, 20, 250, 5, 5, 100, 101)
    assert units.tasks(listing, lambda _: True, grid) == (
        Task(0, 2),
        Task(2),
        *(Task(3, unit=unit) for unit in range(3)),
        Task(4, 2),
        Task(6),
        *(Task(7, unit=unit) for unit in range(2)),
    )


def test_what_cannot_be_taken_apart_is_one_task_however_large() -> None:
    grid = Grid(100, 10)
    assert units.tasks(files(30, 1000, 1000, 3, None, 4), lambda _: False, grid) == (
        *(Task(0), Task(1), Task(2), Task(3), Task(4), Task(5)),
    )


def test_a_task_has_not_too_many_files() -> None:
    made = units.tasks(files(*[1] * 10_000), lambda _: True)
    assert [task.files for task in made] == [units.FILES_MAX, units.FILES_MAX, 10_000 - 2 * 4096]


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 350)), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_every_file_is_in_the_tasks_once_in_order(sizes: list[int | None], can: list[bool]) -> None:
    grid = Grid(100, 10)
    listing = files(*sizes)
    splits = {file.path: can[number] for number, file in enumerate(listing)}
    seen = []
    for task in units.tasks(listing, lambda file: splits[file.path], grid):
        if task.unit in (None, 0):
            seen += list(range(task.first, task.first + task.files))
        if task.unit is not None:
            assert task.files == 1
    assert seen == list(range(len(listing)))


def test_a_unit_of_byte_tokens_fits_a_chunk() -> None:
    from peerlm.data.shards import shard_tokens_max

    assert GRID.stride + GRID.slack + 3 <= shard_tokens_max(256)
