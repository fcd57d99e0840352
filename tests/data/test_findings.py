"""What is found out of a source before tokens are made: the same whoever finds it, and refused where it is damaged."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from peerlm.data import clean, findings, jobs, making, versions
from peerlm.data.clean import Clean, Fingerprint
from peerlm.data.findings import begun, concluded, packed, unpacked
from peerlm.data.prepared import Done, Job, Made, Recipe, Sweep, stored_bytes
from peerlm.data.sources import Source, SourceFile, listed
from peerlm.data.units import Grid
from peerlm.errors import ChunkCorrupt, ConfigError

WHERE = "job-plays"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some files with the same paragraphs, and such that are nearly the same, in two encodings."""
    folder = tmp_path_factory.mktemp("texts")
    chance = random.Random(3)
    words = [
        "thou",
        "art",
        "the",
        "king",
        "and",
        "I",
        "am",
        "no",
        "thing",
        "that",
        "was",
        "ever",
        "said",
        "to",
        "be",
        "so",
    ]
    paragraphs = [" ".join(chance.choices(words, k=40)) for _ in range(30)]
    for number in range(4):
        picked = chance.choices(paragraphs, k=20)
        picked += [f"{one} indeed" for one in chance.choices(paragraphs, k=5)]
        (folder / f"f{number}.txt").write_text("\n\n".join(picked))
    (folder / "g.txt").write_bytes(
        "für größere Bücher über Möbel, schöne Türen und Schlösser aus Köln\n".encode("cp1252")
    )
    return str(folder)


def everything(url: str) -> Job:
    recipe = Recipe("auto", clean=Clean("NFC", exact=True, near=0.7))
    job = Job(listed(url, WHERE), recipe, entries=300, grid=Grid(3000, 500))
    return begun(replace(job, versions=versions.of(job)))


def by_tasks(job: Job, order: Iterable[int]) -> list[list[bytes]]:
    """As nodes would find it, a task each, and tell each other."""
    found: dict[int, list[bytes]] = {}
    for number in order:
        told = jobs.read(jobs.encode(job), WHERE)
        parts = list(findings.findings(told, number))
        found[number] = [part.data for part in parts if isinstance(part, Made)]
        (done,) = (part for part in parts if isinstance(part, Done))
        assert (done.shards, done.size_bytes) == (len(found[number]), stored_bytes(job, number))
    return [found[number] for number in sorted(found)]


def test_by_tasks_in_any_order_the_same_job_comes_of_it_as_alone(source: str) -> None:
    alone = making.settled(everything(source), processes=0)
    job, sweeps = everything(source), []
    while job.sweep is not Sweep.TOKENS:
        sweeps.append((job.sweep, job.count))
        order = random.Random(7).sample(range(job.count), job.count)
        job = concluded(job, by_tasks(job, order))
    assert jobs.encode(job) == jobs.encode(alone)
    assert [sweep for sweep, _ in sweeps] == [Sweep.ENCODINGS, Sweep.PRINTS]
    assert sweeps[1][1] == job.count + 1, "the vocabulary is one more"
    assert job.encodings.keys() == {job.source.files[4].path}
    assert sum(map(len, job.left_out.values())) > 60
    assert job.tokenizer


def test_only_what_is_asked_for_is_looked_for(source: str) -> None:
    plain = Job(listed(source, WHERE))
    assert begun(plain).sweep is Sweep.TOKENS
    words = begun(replace(plain, entries=300))
    assert (words.sweep, words.count, words.is_vocabulary(0)) == (Sweep.PRINTS, 1, True)
    assert words.path_of(0) == words.source.files[0].path
    only = begun(replace(plain, recipe=Recipe("auto")))
    assert concluded(only, by_tasks(only, range(only.count))).sweep is Sweep.TOKENS


def test_many_fingerprints_of_a_task_are_several_chunks(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(everything(source), sweep=Sweep.PRINTS, encodings={})
    job = replace(job, source=replace(job.source, files=job.source.files[:4]))
    whole = by_tasks(job, range(job.count - 1))
    monkeypatch.setattr(findings, "CHUNK_BYTES", 3000)
    cut = by_tasks(job, range(job.count - 1))
    assert max(len(piece) for pieces in cut for piece in pieces) <= 3000
    assert sum(map(len, cut)) > sum(map(len, whole))
    assert [list(unpacked(p, WHERE)) for p in cut] == [list(unpacked(p, WHERE)) for p in whole]


PRINTS = [Fingerprint(), Fingerprint(b"e" * 16), Fingerprint(b"f" * 16, b"n" * 512)]


def test_fingerprints_come_back_as_they_were() -> None:
    assert list(unpacked([b"".join(map(packed, PRINTS)), packed(PRINTS[1])], WHERE)) == [
        *PRINTS,
        PRINTS[1],
    ]


@pytest.mark.parametrize("data", [b"\x01", b"\x02" + b"x" * 100, b"\x03", b"\x00\xff"])
def test_damaged_fingerprints_are_one_line(data: bytes) -> None:
    with pytest.raises(ChunkCorrupt, match="job-plays: no fingerprints"):
        list(unpacked([data], WHERE))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b'["rot13"]', b"[" * 5000, b'["utf-8", "utf-8"]', b"\xff"]
)
def test_damaged_encodings_are_one_line(source: str, data: bytes) -> None:
    job = everything(source)
    with pytest.raises(ChunkCorrupt, match="no encodings") as caught:
        concluded(job, [[data]] * job.count)
    assert "\n" not in str(caught.value)


def test_what_one_task_has_too_many_is_not_what_another_lacks() -> None:
    source = Source("/none", WHERE, tuple(SourceFile(f"{n}.txt", 9) for n in range(3)))
    job = begun(Job(source, Recipe("auto"), grid=Grid(20, 5)))
    assert [task.files for task in job.tasks] == [2, 1]
    found = [[b'["utf-8"]'], [b'["utf-8", "utf-8"]']]
    read: list[int] = []
    with pytest.raises(ChunkCorrupt, match="job-plays: no encodings"):
        concluded(job, (read.append(n) or one for n, one in enumerate(found)))  # type: ignore[func-returns-value]
    assert read == [0], "whoever asked knows which one it was"
    assert concluded(job, reversed(found)).sweep is Sweep.TOKENS


def test_what_is_no_vocabulary_is_not_taken_for_one(source: str) -> None:
    job = begun(Job(listed(source, WHERE), entries=300))
    for data in ([], [b"{}"]):
        with pytest.raises(ChunkCorrupt, match="not a `tokenizers` JSON file"):
            concluded(job, [data])


def test_a_vocabulary_of_any_size_is_not_taken(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "TOKENIZER_BYTES_MAX", 10)
    job = begun(Job(listed(source, WHERE), entries=300))
    with pytest.raises(ChunkCorrupt, match="no findings of a task are so large"):
        concluded(job, [[b"123456", b"789012"]])


def test_encodings_of_any_size_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "NAMES_BYTES_MAX", 10)
    source = Source("/none", WHERE, (SourceFile("a.txt", 9),))
    job = begun(Job(source, Recipe("auto")))
    read: list[int] = []
    pieces = (read.append(n) or b"[     " for n in range(16_384))  # type: ignore[func-returns-value]
    with pytest.raises(ChunkCorrupt, match="no findings of a task are so large"):
        concluded(job, [pieces])
    assert read == [0, 1]


def test_more_fingerprints_than_a_source_has_room_for_are_not_read() -> None:
    source = Source("/none", WHERE, (SourceFile("a.jsonl", 80), SourceFile("b.jsonl", None)))
    job = begun(Job(source, Recipe(clean=Clean(exact=True)), grid=Grid(64, 16)))
    assert [task.unit for task in job.tasks] == [0, 1, None]
    assert findings.prints_bytes_max(job, 0) == (64 + 16) // 8 * 17
    one, read = packed(PRINTS[1]), list[int]()
    pieces = (read.append(n) or one for n in range(16_384))  # type: ignore[func-returns-value]
    with pytest.raises(ChunkCorrupt, match="no findings of a task are so large"):
        concluded(job, [pieces, [], []])
    assert read == list(range(11))
    assert concluded(job, [[one] * 10, [], [one] * 100]).left_out[2] == frozenset(range(100))


@pytest.mark.parametrize(("name", "count"), [("a.jsonl", 1000), ("a.jsonl.gz", 500)])
def test_as_many_documents_as_a_file_has_room_for_are_compared(
    tmp_path: Path, name: str, count: int
) -> None:
    text = b'{"":"a"}\n' * count
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    recipe = Recipe(text_field="", clean=Clean(exact=True))
    job = begun(Job(listed(str(tmp_path), WHERE), recipe, grid=Grid(3000, 500)))
    after = concluded(job, by_tasks(job, range(job.count)))
    assert sum(map(len, after.left_out.values())) == count - 1


def test_far_too_many_documents_for_a_files_size_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "UNPACKED", 1)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"":"a"}\n' * 1000))
    recipe = Recipe(text_field="", clean=Clean(exact=True))
    job = begun(Job(listed(str(tmp_path), WHERE), recipe, grid=Grid(3000, 500)))
    with pytest.raises(ConfigError, match=r"a\.jsonl\.gz, or .* more documents .* size") as caught:
        by_tasks(job, [0])
    assert "\n" not in str(caught.value)


def test_whoever_looks_for_duplicates_hears_how_many_it_remembers_and_may_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clean, "KEPT_TOLD", 2)
    told: list[int] = []
    prints = [Fingerprint(bytes((number % 5,)) * 16) for number in range(20)]
    clean.duplicates([(0, prints)], Clean(exact=True), told.append)
    assert told == list(range(2, 21, 2)), (
        "the numbers of those that are left out are remembered too"
    )

    def stop(kept: int) -> None:
        raise ConfigError("too many")

    with pytest.raises(ConfigError, match="too many"):
        clean.duplicates([(0, prints)], Clean(exact=True), stop)


def test_hardly_any_memory_left_is_one_line_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from peerlm.cli import memory

    memory.require_for_duplicates(4096, WHERE)
    monkeypatch.setattr(memory, "free_bytes", lambda: 1 << 20)
    with pytest.raises(ConfigError, match=r"after 4,096 .* --dedup alone, a node with") as caught:
        memory.require_for_duplicates(4096, WHERE)
    assert "\n" not in str(caught.value)
