"""`peerlm data add` of what the swarm makes: it gives the job to the store, and watches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import desk_scene
import pytest
from desk_scene import ME, OTHER, FakeDesk

from peerlm.cli import data_job
from peerlm.cli.data_job import ALONE_S, NOBODY_S, Shared, line_of, shared
from peerlm.cli.data_work import put_job, read_job
from peerlm.data.clean import Clean
from peerlm.data.encodings import AUTO
from peerlm.data.prepared import Job, Recipe, Sweep
from peerlm.data.sources import Source, SourceFile
from peerlm.errors import ConfigError, StateError
from peerlm.store.layout import Layout
from peerlm.store.manifest import Kind, of_files
from peerlm.types import ObjectHash

URL = "https://host/plays.txt"
JOB = Job(Source(URL, "URL", (SourceFile(URL, 5_000_000),)), tokenizer=b"{}")


def said(**changes: Any) -> dict[str, Any]:
    at = {"name": "job-plays", "tasks": 3, "done": 1, "tokens": 2_000_000, "made_by": {ME: 1}}
    more = {"manifest": "", "makers": [ME, OTHER], "troubles": {}, "preparing": 2}
    return {**at, **more, **changes}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def begun(desk: FakeDesk) -> Shared:
    way = Shared(desk, URL, "plays")  # type: ignore[arg-type]
    way.begin(JOB, 2, URL, replaces=False)
    return way


def watched(
    desk: FakeDesk, way: Shared, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[tuple[int, int | None, str]], Callable[[], object]]:
    clock, told = Clock(), []
    monkeypatch.setattr(data_job.time, "monotonic", clock)
    monkeypatch.setattr(data_job.time, "sleep", clock.sleep)

    class Bar:
        def __enter__(self) -> Callable[..., None]:
            return lambda *at: told.append(at)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(data_job, "progress", lambda *_, **__: Bar())
    return told, way.wait


def is_made(desk: FakeDesk) -> None:
    desk.remove("job-plays")
    desk.publish("plays", of_files(Kind.CORPUS, [], {"tokens": 5}), about=URL)


def test_the_job_is_in_the_store_as_others_read_it() -> None:
    desk = FakeDesk()
    begun(desk)
    record = desk.records["job-plays"]
    assert (record["kind"], record["replicas"], record["about"]) == ("job", 2, URL)
    manifest = desk.manifest("job-plays")
    assert manifest.meta == {"tasks": 3, "replaces": False, "sweep": "tokens"}
    job_hash = ObjectHash(bytes.fromhex(record["manifest"]))
    job = read_job(desk, "job-plays", job_hash)  # type: ignore[arg-type]
    assert (job.tasks, job.tokenizer) == (JOB.tasks, b"{}")
    with pytest.raises(StateError, match="something else"):
        read_job(desk, "job-plays", ObjectHash(b"x" * 32))  # type: ignore[arg-type]


def test_it_is_watched_until_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = FakeDesk(job_ends=is_made)
    way = begun(desk)
    job = desk.records["job-plays"]["manifest"]
    desk.jobs_said = [[said(manifest=job, done=done)] for done in (1, 2, 3)]
    told, wait = watched(desk, way, monkeypatch)
    record, manifest = wait()  # type: ignore[misc]
    assert record["name"] == "plays"
    assert manifest.kind == Kind.CORPUS
    assert told[0][:2] == (JOB.grid.stride, 5_000_000), "bytes of the task that is done"
    assert told[0][2] == f"1 of 3 tasks, 2 M tokens ({ME[:8]} 1)"


def test_another_command_waits_for_the_same_job(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = FakeDesk(job_ends=is_made)
    begun(desk)
    desk.jobs_said = [[said(manifest=desk.records["job-plays"]["manifest"])]] * 2
    again = Shared(desk, URL, "plays")  # type: ignore[arg-type]
    assert (again.is_under_way, again.about) == (True, URL)
    told, wait = watched(desk, again, monkeypatch)
    wait()
    assert told[0][1] == 5_000_000


def test_each_sweep_has_its_own_tasks_and_what_was_taken_for_which_encoding_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = FakeDesk(job_ends=is_made)
    files = (SourceFile("a.txt", 50), SourceFile("b.txt", 50), SourceFile("c.parquet", 50))
    job = Job(Source(URL, "URL", files), Recipe(AUTO), entries=300, sweep=Sweep.ENCODINGS)
    way = Shared(desk, URL, "plays")  # type: ignore[arg-type]
    way.begin(job, 2, URL, replaces=False)
    following = replace(job, sweep=Sweep.PRINTS, encodings={"b.txt": "cp1252"})
    manifest = put_job(desk, following, replaces=False)  # type: ignore[arg-type]
    first = desk.records["job-plays"]["manifest"]
    second = desk.publish("job-plays", manifest, replaces=True, about=URL)["manifest"]
    at = {"tasks": 1, "done": 1, "tokens": 0}
    desk.jobs_said = [
        [said(manifest=first, sweep="encodings", **at)],
        [said(manifest=second, sweep="prints", **at)],
        [said(manifest=second, sweep="prints", **at)],
    ]
    told, wait = watched(desk, way, monkeypatch)
    wait()
    assert [word for *_, word in told] == [
        f"encodings: 1 of 1 task ({ME[:8]} 1)",
        *[f"duplicates or a vocabulary: 1 of 1 task ({ME[:8]} 1)"] * 2,
    ]
    assert "encodings taken: cp1252 for 1 file, utf-8 for 1 file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"entries": 300}, "--tokenizer"),
        ({"recipe": Recipe(clean=Clean(exact=True))}, "--dedup"),
        ({"recipe": Recipe(clean=Clean("NFC", near=0.8))}, "--nfc or --nfkc, --near"),
    ],
)
def test_a_job_under_way_is_waited_for_with_the_same_options_alone(
    changes: dict[str, Any], said: str
) -> None:
    desk = FakeDesk()
    begun(desk)
    again = Shared(desk, URL, "plays")  # type: ignore[arg-type]
    asked = replace(JOB, source=Source(URL, "URL", ()), **changes)
    if not said:
        again.require_same(asked, 2, URL, replaces=False)
        said, asked = "--replicas, --replace", asked
    with pytest.raises(
        StateError, match=rf"other options \(.*{said}.*\).* data rm job-plays"
    ) as caught:
        again.require_same(asked, 3, URL, replaces=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(StateError, match="something else, https://host/plays"):
        again.require_same(asked, 2, "https://host/other", replaces=False)


def test_a_job_that_ends_while_it_is_looked_at_is_not_in_the_way() -> None:
    desk = FakeDesk()
    begun(desk)
    again = Shared(desk, URL, "plays")  # type: ignore[arg-type]
    is_made(desk)
    again.require_same(replace(JOB, entries=300), 2, URL, replaces=False)


def test_a_job_of_another_release_is_not_waited_for() -> None:
    desk = FakeDesk()
    begun(desk)
    listed = [("job.json", [desk_scene.chunk_of(b'{"format":"peerlm-job-1"}')])]
    desk.put(b'{"format":"peerlm-job-1"}')
    old = of_files(Kind.JOB, listed, {"tasks": 3, "replaces": False})
    desk.publish("job-plays", old, replaces=True, about=URL, replicas=2)
    again = Shared(desk, URL, "plays")  # type: ignore[arg-type]
    with pytest.raises(StateError, match=r"'peerlm-job-1', this peerlm reads .* data rm job-plays"):
        again.require_same(JOB, 2, URL, replaces=False)


def test_what_no_node_can_make_ends_with_the_reason_of_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    troubles = {OTHER: "no such bucket", ME: "access denied"}
    desk = FakeDesk(jobs_said=[[said(makers=[], troubles=troubles, preparing=0)]])
    _, wait = watched(desk, begun(desk), monkeypatch)
    with pytest.raises(ConfigError, match="no node can make plays: access denied"):
        wait()
    assert data_job.time.monotonic() > ALONE_S
    assert "job-plays" not in desk.records


def test_it_is_not_ended_while_a_node_still_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = [[said(makers=[], troubles={ME: "no"}, preparing=1)]] * 40
    desk = FakeDesk(jobs_said=[*looking, [said()]], job_ends=is_made)
    _, wait = watched(desk, begun(desk), monkeypatch)
    wait()


def test_where_nobody_takes_part_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = FakeDesk(jobs_said=[[said(makers=[], preparing=0)]])
    _, wait = watched(desk, begun(desk), monkeypatch)
    with pytest.raises(StateError, match=r"store\.preprocess"):
        wait()
    assert data_job.time.monotonic() > NOBODY_S


def test_a_job_that_somebody_removes_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = FakeDesk(jobs_said=[[said()]], job_ends=lambda d: d.remove("job-plays"))
    _, wait = watched(desk, begun(desk), monkeypatch)
    with pytest.raises(StateError, match="removed before it was done"):
        wait()


def test_only_what_others_can_read_goes_by_the_swarm(tmp_path: Path) -> None:
    layout, desk = Layout(tmp_path / "node"), FakeDesk()
    layout.root.mkdir()

    def way(url: str) -> Shared | None:
        return shared(desk, layout, url, "plays")  # type: ignore[arg-type]

    assert way(URL) is not None
    assert way(str(tmp_path)) is None
    assert way("memory://plays") is None
    assert way("shipped") is None
    layout.node_settings.write_text(f"[store]\nfolders = {json.dumps(str(tmp_path))}\n")
    found = way(str(tmp_path / "texts"))
    assert found is not None
    assert found.url == str(tmp_path / "texts")
    assert way("/etc") is None
    with pytest.raises(ConfigError, match="too long"):
        shared(desk, layout, URL, "x" * 93)  # type: ignore[arg-type]


def test_a_line_names_the_busiest() -> None:
    shares = {f"{i:032x}": i for i in range(1, 7)}
    line = line_of(said(made_by=shares))
    assert line.endswith("(00000000 6, 00000000 5, 00000000 4, 00000000 3, 2 more)")
