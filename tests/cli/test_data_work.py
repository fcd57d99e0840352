"""`peerlm data work` at the end of a sweep: the job of the next takes the name, or it is said why not."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from desk_scene import FakeDesk

from peerlm.cli import data_work, memory
from peerlm.cli.data_work import Work, put_job, read_job
from peerlm.daemon.control import NoDaemon
from peerlm.data import clean, findings, jobs, making, versions
from peerlm.data.clean import Clean
from peerlm.data.prepared import Job, Made, Recipe, Sweep
from peerlm.data.sources import listed
from peerlm.errors import StateError
from peerlm.store.layout import Layout
from peerlm.store.manifest import Manifest, manifest_hash
from peerlm.types import ObjectHash

NAME = "job-plays"


@dataclass
class Desk(FakeDesk):
    """All tasks of one job are made, and it is this node's to finish it."""

    made: list[Any] = field(default_factory=list)
    named: list[Manifest] = field(default_factory=list)
    looked_again: int = 0
    why: list[str] = field(default_factory=list)
    falses: list[tuple[int, str]] = field(default_factory=list)

    def next_task(self, job: ObjectHash) -> str:
        return "finish"

    def rows(self, job: ObjectHash) -> list[Any]:
        return self.made

    def name_corpus(self, job: ObjectHash, manifest: Manifest) -> None:
        self.named.append(manifest)

    def look_again(self, job: ObjectHash) -> None:
        self.looked_again += 1

    def false(self, job: ObjectHash, task: int, why: str) -> None:
        self.falses.append((task, why))

    def failed(self, job: ObjectHash, why: str) -> None:
        self.why.append(why)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jsonl").write_text('{"text": "some words"}\n' * (number + 1))
    return folder


def ready(folder: Path) -> tuple[Desk, Job, ObjectHash]:
    desk = Desk()
    recipe = Recipe(clean=Clean(exact=True))
    job = findings.begun(Job(listed(str(folder), "URL"), recipe, entries=300))
    job = replace(job, versions=versions.of(job))
    manifest = put_job(desk, job, replaces=True)  # type: ignore[arg-type]
    desk.publish(NAME, manifest, replicas=2)
    for number in range(job.count):
        pieces = [p.data for p in findings.findings(job, number) if isinstance(p, Made)]
        desk.made.append([number, 1, [[desk.put(data), len(data), 0] for data in pieces]])
    return desk, job, manifest_hash(manifest.encode())


def finish(desk: Desk, folder: Path, job_hash: ObjectHash) -> None:
    Work(desk, Layout(folder.parent), (str(folder),))._work_on(NAME, job_hash)  # type: ignore[arg-type]


def test_the_job_of_the_next_sweep_is_the_one_that_a_node_alone_finds(folder: Path) -> None:
    desk, job, job_hash = ready(folder)
    finish(desk, folder, job_hash)
    assert desk.why == []
    (manifest,) = desk.named
    assert manifest.meta == {"tasks": 1, "replaces": True, "sweep": "tokens"}
    desk.publish(NAME, manifest, replaces=True)
    after = read_job(desk, NAME, manifest_hash(manifest.encode()))  # type: ignore[arg-type]
    assert jobs.encode(after) == jobs.encode(making.settled(job, processes=0))
    assert (after.sweep, after.left_out) == (Sweep.TOKENS, {0: frozenset(range(1, 6))})


def test_a_next_job_that_went_with_who_wrote_it_is_written_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, _, job_hash = ready(folder)
    work = Work(desk, Layout(folder.parent), (str(folder),))  # type: ignore[arg-type]
    work._asked(NAME, job_hash)

    def manifest(*_: object) -> Manifest:
        raise StateError("what the name stands for is on no live node")

    monkeypatch.setattr(desk, "manifest", manifest)
    work._work_on(NAME, job_hash)
    assert desk.why == []
    assert [m.meta["replaces"] for m in desk.named] == [True]


@pytest.mark.parametrize("most", [data_work.KNOWN_BYTES_MAX, 1])
def test_jobs_that_are_worked_on_in_turn_are_all_remembered_up_to_a_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(data_work, "KNOWN_BYTES_MAX", most)
    desk, job, job_hash = ready(folder)
    other = put_job(desk, replace(job, entries=301), replaces=False)  # type: ignore[arg-type]
    desk.publish("job-other", other, replicas=2)
    work = Work(desk, Layout(folder.parent), (str(folder),))  # type: ignore[arg-type]
    work._asked(NAME, job_hash)
    assert work._asked("job-other", manifest_hash(other.encode())).job.entries == 301
    del desk.records[NAME]
    work._work_on(NAME, job_hash)
    assert (len(desk.named), len(desk.why)) == ((1, 0) if most > 1 else (0, 1))


def test_no_more_jobs_are_remembered_than_a_node_follows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerlm.node.jobs.JOBS_MAX", 1)
    desk, job, _ = ready(folder)
    work = Work(desk, Layout(folder.parent), (str(folder),))  # type: ignore[arg-type]
    hashes = []
    for entries in (301, 302, 303):
        manifest = put_job(desk, replace(job, entries=entries), replaces=False)  # type: ignore[arg-type]
        desk.publish(NAME, manifest, replicas=2, replaces=True)
        hashes.append(manifest_hash(manifest.encode()))
        work._asked(NAME, hashes[-1])
        work._asked(NAME, hashes[0])
    assert list(work._known) == [hashes[2], hashes[0]]


def test_findings_that_cannot_be_had_any_more_are_looked_for_again(folder: Path) -> None:
    desk, _, job_hash = ready(folder)
    desk.lost.add(desk.made[-1][2][0][0])
    finish(desk, folder, job_hash)
    assert (desk.looked_again, desk.named, desk.why) == (1, [], [])


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("data", [b"\x03", b""])
def test_damaged_findings_are_not_believed_and_the_job_goes_on(
    folder: Path, task: int, data: bytes
) -> None:
    desk, job, job_hash = ready(folder)
    assert job.is_vocabulary(1)
    desk.made[task][2] = [[desk.put(data), len(data), 0]] if data else []
    finish(desk, folder, job_hash)
    assert (desk.why, len(desk.named)) == ([], 0 if data or task else 1), "no prints are none"
    assert [number for number, _ in desk.falses] == [task] * (1 - len(desk.named))
    assert all("\n" not in why for _, why in desk.falses)


def test_one_who_finds_more_fingerprints_than_there_are_documents_is_not_believed_and_the_job_ends(
    folder: Path,
) -> None:
    desk, _, job_hash = ready(folder)
    true, data = desk.made[0][2], b"\x01" + b"e" * 16
    desk.made[0][2] = [[desk.put(data * 1000), 17_000, 0]] * 16_384
    finish(desk, folder, job_hash)
    ((task, why),) = desk.falses
    assert (task, desk.why, desk.named) == (0, [], [])
    assert "no findings of a task are so large" in why
    desk.made[0][2] = true
    finish(desk, folder, job_hash)
    assert (desk.why, len(desk.named)) == ([], 1)


def test_what_was_written_anew_meanwhile_is_no_corpus(folder: Path) -> None:
    desk, _, job_hash = ready(folder)
    work = Work(desk, Layout(folder.parent), (str(folder),))  # type: ignore[arg-type]
    work._asked(NAME, job_hash)
    file = folder / "2.jsonl"
    file.write_text(file.read_text().replace("some", "none"))
    os.utime(file, (1, 1))
    work._work_on(NAME, job_hash)
    (why,) = desk.why
    assert "2.jsonl is another version on this node" in why
    assert desk.named == []


@pytest.mark.parametrize("error", [ValueError, AssertionError, BaseException])
def test_whatever_goes_wrong_with_a_job_is_said_and_the_next_one_has_its_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    desk, _, job_hash = ready(folder)

    def listed_here(*_: object) -> None:
        raise error("Traceback:\nit was\x1b this")

    monkeypatch.setattr(jobs, "listed_here", listed_here)
    finish(desk, folder, job_hash)
    assert desk.why == [f"job-plays: {error.__name__}: it was\ufffd this"]


def test_a_daemon_that_is_gone_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, _, job_hash = ready(folder)

    def gone(job: ObjectHash) -> str:
        raise NoDaemon("it hung up")

    monkeypatch.setattr(desk, "next_task", gone)
    with pytest.raises(NoDaemon):
        finish(desk, folder, job_hash)
    assert desk.why == []


def test_too_little_memory_is_said_and_another_may_try(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, _, job_hash = ready(folder)
    monkeypatch.setattr(clean, "KEPT_TOLD", 1)
    monkeypatch.setattr(memory, "free_bytes", lambda: 5)
    finish(desk, folder, job_hash)
    (why,) = desk.why
    assert "5 B of memory are free here" in why
    assert "\n" not in why
