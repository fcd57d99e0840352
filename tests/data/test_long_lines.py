"""One line of hundreds of megabytes takes the memory of a few units, whichever way it is read; as a record it is given up."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from peerlm.data import findings, making
from peerlm.data.clean import Clean
from peerlm.data.prepared import Job, Made, Recipe
from peerlm.data.sources import listed
from peerlm.data.units import RECORD_BYTES_MAX, UNIT_BYTES
from peerlm.errors import ConfigError

BLOCK = b"to be or not to " * (1 << 16)
LINE_BYTES = 160 * len(BLOCK)

HELD_BYTES = 24 * UNIT_BYTES
"""A quarter of the line: a unit as bytes, as text before and after cleaning, as tokens, as a shard, and the next one's."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same line plain, compressed, and as a file of records."""
    folder = tmp_path_factory.mktemp("line")
    with (
        (folder / "line.txt").open("wb") as plain,
        gzip.open(folder / "line.txt.gz", "wb", compresslevel=1) as packed,
    ):
        for _ in range(LINE_BYTES // len(BLOCK)):
            plain.write(BLOCK)
            packed.write(BLOCK)
    (folder / "line.jsonl").hardlink_to(folder / "line.txt")
    (folder / "line.jsonl.gz").hardlink_to(folder / "line.txt.gz")
    return folder


def job_of(path: Path, clean: Clean) -> Job:
    return Job(listed(str(path), "URL"), Recipe("utf-8", "text", clean))


def tokens_of(job: Job) -> int:
    job = making.settled(findings.begun(job), processes=0)
    made = making.shards(job, processes=0)
    return sum(part.tokens for part in made if isinstance(part, Made))


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_line_is_cut_and_never_held(folder: Path) -> None:
    found: list[int] = []
    peak = peak_bytes(lambda: found.append(tokens_of(job_of(folder / "line.txt", Clean()))))
    assert found == [LINE_BYTES]
    assert peak < HELD_BYTES < LINE_BYTES / 3


@pytest.mark.slow
def test_nor_is_it_where_it_is_compressed_and_duplicates_are_looked_for(folder: Path) -> None:
    """What was left out does not matter here: the line says the same again and again."""
    job = job_of(folder / "line.txt.gz", Clean(exact=True))
    assert peak_bytes(lambda: tokens_of(job)) < HELD_BYTES


@pytest.mark.parametrize("name", ["line.jsonl", "line.jsonl.gz"])
def test_a_record_as_long_is_given_up_and_it_is_said_where(folder: Path, name: str) -> None:
    def give_up() -> None:
        with pytest.raises(ConfigError, match=rf"{name} has a record of more") as caught:
            tokens_of(job_of(folder / name, Clean()))
        assert "\n" not in str(caught.value)

    assert peak_bytes(give_up) < 2.5 * RECORD_BYTES_MAX
