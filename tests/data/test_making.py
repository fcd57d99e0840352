import itertools
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from peerlm.data import findings, making, prepared
from peerlm.data.clean import Clean
from peerlm.data.prepared import Done, Job, Made, Recipe
from peerlm.data.shards import corpus_manifest, shard_fact
from peerlm.data.sources import listed
from peerlm.data.units import Grid
from peerlm.data.vocabulary import entries_asked, sample, trained
from peerlm.errors import ConfigError
from peerlm.store.manifest import manifest_hash
from peerlm.types import ObjectHash

WHERE = "data add"


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Several tasks: two large files, some small ones, one that is compressed."""
    import gzip

    folder = tmp_path_factory.mktemp("plays")
    chance = random.Random(1)
    words = ["thou", "art", "the", "king", "and", "I", "am", "é€😀", "thing"]
    lines = [" ".join(chance.choices(words, k=9)) + "\n" for _ in range(2000)]
    text = "".join(lines)
    (folder / "a.txt").write_text(text)
    (folder / "b.txt.gz").write_bytes(gzip.compress(text.encode(), 1))
    (folder / "c.txt").write_text(text[::-1])
    for number in range(9):
        (folder / f"d{number}.txt").write_text(lines[number])
    return Job(listed(str(folder), WHERE), grid=Grid(30_000, 1000))


@pytest.fixture(scope="module")
def tokenizer(plays: Job) -> bytes:
    return trained(plays, 300)


def hash_of(job: Job, parts: Iterator[Made | Done]) -> ObjectHash:
    facts, documents = {}, 0
    for part in parts:
        match part:
            case Made():
                facts[part.task, part.number] = shard_fact(part.data, part.tokens)
            case Done():
                documents += part.documents
    in_order = [facts[place] for place in sorted(facts)]
    manifest, _ = corpus_manifest(in_order, job.tokenizer, job.vocab_made, documents)
    return manifest_hash(manifest.encode())


def test_however_many_make_it_and_in_whatever_order_it_is_the_same(
    plays: Job, tokenizer: bytes
) -> None:
    job = replace(plays, tokenizer=tokenizer)
    count = len(job.tasks)
    assert count == 8
    alone = hash_of(job, making.shards(job, processes=0))
    backwards = making.shards(job, reversed(range(count)), processes=0)
    by_two = making.shards(job, processes=2)
    shares = [making.shards(job, range(n, count, 5), processes=0) for n in (3, 0, 4, 1, 2)]
    by_five = itertools.chain.from_iterable(shares)
    assert {hash_of(job, parts) for parts in (backwards, by_two, by_five)} == {alone}


def test_progress_ends_at_all_of_the_source(plays: Job) -> None:
    told: list[tuple[int, int]] = []
    made = [
        part
        for part in making.shards(plays, processes=0, progress=lambda *done: told.append(done))
        if isinstance(part, Made)
    ]
    assert told == sorted(told)
    assert told[-1] == (plays.source.size_bytes, sum(part.tokens for part in made))


def test_a_process_that_is_killed_is_replaced_and_nothing_is_made_twice(plays: Job) -> None:
    alone = hash_of(plays, making.shards(plays, processes=0))
    killed = []

    def parts() -> Iterator[Made | Done]:
        for part in making.shards(plays, processes=1):
            if not killed:
                killed.append(kill_one())
            yield part

    assert hash_of(plays, parts()) == alone
    assert killed
    assert multiprocessing.active_children() == []


def kill_one() -> int:
    child = multiprocessing.active_children()[0]
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.pid


def test_a_task_whose_processes_are_killed_twice_is_given_up_with_a_clear_line(
    plays: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = making._Makers._started

    def doomed(self: making._Makers[Made | Done]) -> making._Maker[Made | Done]:
        maker = started(self)
        maker.process.kill()
        return maker

    monkeypatch.setattr(making._Makers, "_started", doomed)
    with pytest.raises(ConfigError, match=r"a\.txt: the process .* ended 2 times \(SIGKILL\)"):
        list(making.shards(plays, processes=1))
    assert multiprocessing.active_children() == []


def test_what_is_wrong_with_a_source_is_said_by_the_process_that_sees_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    job = Job(listed(str(tmp_path), WHERE))
    with pytest.raises(ConfigError, match=r"^data add: .*a\.txt is not UTF-8 at byte 3"):
        list(making.shards(job, processes=1))
    assert multiprocessing.active_children() == []


def test_who_stops_listening_ends_the_processes(plays: Job) -> None:
    parts = making.shards(plays, processes=2)
    next(parts)
    assert multiprocessing.active_children()
    parts.close()
    assert multiprocessing.active_children() == []


def test_what_only_this_process_has_is_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making._Makers, "_started", forbidden)
    fsspec.filesystem("memory").pipe("/alone/a.txt", b"text " * 600_000)
    job = Job(listed("memory://alone", WHERE))
    assert len(list(making.shards(job, processes=4))) == 4


def forbidden(*_: object) -> None:
    raise AssertionError("a process was started")


def test_tasks_are_asked_for_only_when_a_process_is_free(
    plays: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def numbers() -> Iterator[int]:
        for number in (5, 2):
            asked.append(number)
            yield number

    done = [p.task for p in making.shards(plays, numbers(), processes=0) if isinstance(p, Done)]
    assert done == asked == [5, 2]


def test_duplicates_are_left_out_whoever_looks_for_them(plays: Job) -> None:
    job = replace(plays, recipe=Recipe(clean=Clean(exact=True)))
    hashes = set()
    for processes in (0, 2):
        second = making.settled(findings.begun(job), processes)
        hashes.add(hash_of(second, making.shards(second, processes=0)))
    assert len(hashes) == 1


# -------------------------------------------------------------------------------- vocabularies


def test_a_vocabulary_is_the_same_every_time(plays: Job, tokenizer: bytes) -> None:
    codec = prepared.tokenizer_of(tokenizer)
    assert codec.vocab == 300
    assert codec.end == 0
    text = "thou art the king, naïve 😀 thing\n"
    assert codec.decode(codec.encode(text)) == text
    assert len(codec.encode(text)) < len(text)
    assert trained(plays, 300) == tokenizer


def test_a_sample_is_from_all_over_the_source_and_bounded(
    plays: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peerlm.data import vocabulary

    monkeypatch.setattr(vocabulary, "TASK_BYTES", 1000)
    monkeypatch.setattr(vocabulary, "SAMPLE_BYTES", 4000)
    texts = list(sample(plays))
    assert [len(text) for text in texts] == [1000] * 4
    assert len(set(texts)) == 4


@pytest.mark.parametrize(
    ("spec", "entries"), [("train:8192", 8192), ("bytes", None), ("a/train:9", None)]
)
def test_asking_for_a_vocabulary(spec: str, entries: int | None) -> None:
    assert entries_asked(spec) == entries


@pytest.mark.parametrize("spec", ["train:", "train:many", "train:-1", "train:256", "train:9999999"])
def test_asking_for_no_number_of_entries(spec: str) -> None:
    with pytest.raises(ConfigError, match="257 to 1048576 entries"):
        entries_asked(spec)
