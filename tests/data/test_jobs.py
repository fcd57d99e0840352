"""Jobs as others may send them: what is read is what was written, and nothing that nobody should read is read."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peerlm.data import jobs, versions
from peerlm.data.clean import Clean
from peerlm.data.jobs import (
    JOB_FILE,
    LEFT_OUT_FILE,
    differences,
    encode,
    is_of_network,
    listed_here,
    read,
    require_may_read,
)
from peerlm.data.prepared import Job, Recipe, Sweep
from peerlm.data.sources import Source, SourceFile, listed
from peerlm.data.units import Grid
from peerlm.errors import ChunkCorrupt, ConfigError

WHERE = "job-plays"

JOB = Job(
    Source("s3://bucket/plays", WHERE, (SourceFile("bucket/plays/a.txt", 5_000_000),)),
    Recipe("utf-16", "words", Clean("NFC", exact=True, near=0.8)),
    b"{}",
    70_000,
    {1: frozenset((4, 2))},
    Grid(1_000_000, 1000, 1 << 20),
    versions={"Unicode": "14.0.0"},
)


def changed(**fields: Any) -> dict[str, bytes]:
    """The job's files with another `job.json`."""
    files = encode(JOB)
    return files | {JOB_FILE: json.dumps(json.loads(files[JOB_FILE]) | fields).encode()}


def test_what_is_read_is_what_was_written() -> None:
    again = read(encode(JOB), WHERE)
    assert again == JOB
    assert again.tasks == JOB.tasks
    assert encode(again) == encode(JOB)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "peerlm-job-1"),
        ("format", "peerlm-job-9"),
        ("sweep", "guesses"),
        ("sweep", None),
        ("entries", -1),
        ("entries", 1 << 40),
        ("versions", ["tokenizers"]),
        ("versions", {"tokenizers": 9}),
        ("versions", {"tokenizers": "9" * 100}),
        ("files", [["a.txt", 5, True]]),
        ("files", [["a.txt", 5, True, 7]]),
        ("files", [["a.txt", 5, True, "v" * 200]]),
        ("url", 7),
        ("url", "s3://" + "x" * 5000),
        ("files", []),
        ("files", [["a.txt", -1, True, ""]]),
        ("files", [["a.txt", 1 << 49, True, ""]]),
        ("files", [["a.txt", 1.5, True, ""]]),
        ("files", [["a.txt", 5, 1, ""]]),
        ("files", [["a" * 5000, 5, True, ""]]),
        ("files", 5),
        ("encoding", "rot13"),
        ("encoding", None),
        ("text_field", "x" * 300),
        ("clean", ["NFX", True, False, 0.0]),
        ("clean", ["", True, False, float("nan")]),
        ("clean", ["", True]),
        ("vocab", True),
        ("vocab", 1 << 40),
        ("grid", [1, 1, 1]),
        ("grid", [1 << 40, 1000, 1000]),
        ("grid", [1_000_000, 1000, 1 << 40]),
        ("grid", "abc"),
    ],
)
def test_what_is_no_job_is_refused_in_one_line(field: str, value: Any) -> None:
    with pytest.raises(ChunkCorrupt, match="not a job") as caught:
        read(changed(**{field: value}), WHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "numbers",
    [[1], [1, 2, 4], [1, 0], [2, 1, 4, 1, 1, 4], [1, 1, 4, 1, 1, 4], [1, 1 << 31, 4]],
)
def test_duplicates_of_no_task_or_cut_off_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ChunkCorrupt, match="not a job"):
        read(encode(JOB) | {LEFT_OUT_FILE: np.array(numbers, "<u4").tobytes()}, WHERE)
    with pytest.raises(ChunkCorrupt, match="not a job"):
        read(encode(JOB) | {LEFT_OUT_FILE: b"abcde"}, WHERE)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ChunkCorrupt):
        read({JOB_FILE: data}, WHERE)


@pytest.mark.parametrize(
    ("bound", "value", "why"),
    [
        ("FILES_MAX", 0, "1 files, and 0"),
        ("TASKS_MAX", 1, "1 tasks, and 0"),
        ("BYTES_MAX", 12, "4 duplicates to leave out, and 3"),
        ("BYTES_MAX", 100, "the names of 1 files take"),
    ],
)
def test_what_is_too_much_to_be_told_is_said_as_it_is(
    bound: str, value: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, bound, value)
    with pytest.raises(ConfigError, match=f"{why}.*--here"):
        encode(JOB)


def test_in_which_options_two_jobs_differ() -> None:
    assert differences(JOB, replace(JOB, left_out={}, sweep=Sweep.PRINTS)) == []
    recipe = replace(JOB.recipe, clean=Clean("NFC", exact=False, near=0.8), text_field="body")
    assert differences(JOB, replace(JOB, recipe=recipe)) == ["--field", "--dedup"]
    assert differences(JOB, replace(JOB, tokenizer=None, vocab=0)) == ["--tokenizer"]
    trained = replace(JOB, entries=300)
    assert differences(trained, replace(trained, tokenizer=None, sweep=Sweep.PRINTS)) == []
    assert differences(trained, replace(trained, entries=301)) == ["--tokenizer"]


def test_a_node_with_other_libraries_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(JOB, tokenizer=None)
    job = replace(job, versions=versions.of(job))
    assert job.versions.keys() == {"Unicode", "fingerprints", "datasketch"}
    monkeypatch.setattr("unicodedata.unidata_version", "3.2.0")
    with pytest.raises(ConfigError, match=r"made with Unicode .* has 3\.2\.0") as caught:
        versions.require_same(job)
    assert "\n" not in str(caught.value)
    versions.require_same(replace(job, recipe=replace(job.recipe, clean=Clean())))
    other = replace(job, sweep=Sweep.PRINTS, versions={"datasketch": "1.0"})
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"with Unicode \? and"):
        versions.require_same(other)


def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", version)
    with pytest.raises(ConfigError, match=r"pip install 'peerlm\[dedup\]'"):
        versions.of(JOB)


@pytest.mark.parametrize(
    ("url", "is_so"),
    [
        ("https://host/plays.txt", True),
        ("s3://bucket/*.txt?", True),
        ("hf://datasets/a/b", True),
        ("abfs://box@account/plays", True),
        ("https://host/plays.txt?signature=abc", False),
        ("https://me:secret@host/plays.txt", False),
        ("hdfs://me:secret@host/plays.txt", False),
        ("http://169.254.169.254/latest/meta-data", False),
        ("http://[fe80::1]/keys", False),
        ("http://[fd00:ec2::254]/latest/meta-data", False),
        ("http://[fe80:0:0:0:0:0:0:1]/keys", False),
        ("http://2852039166/latest/meta-data", False),
        ("http://0xa9fea9fe/", False),
        ("http://2852039167.example/", True),
        ("http://metadata.google.internal/keys", False),
        ("http://metadata.google.internal./keys", False),
        ("file:///etc", False),
        ("/etc", False),
        ("memory://plays", False),
        ("local:///etc", False),
        ("shipped", False),
        ("simplecache::https://host/plays.txt", False),
        ("zip://*.txt::file:///etc/secret.zip", False),
        ("github://org:repo@main/x", False),
        ("http://[x", False),
    ],
)
def test_what_all_nodes_can_read_and_may_know(url: str, is_so: bool) -> None:
    assert is_of_network(url) == is_so


@pytest.mark.parametrize(
    ("host", "is_so"),
    [
        ("fe80::1", True),
        ("fe80::1%eth0", True),
        ("::ffff:169.254.169.254", True),
        ("169.254.43518", True),
        ("0251.0376.0251.0376", True),
        ("169.254.169.254.", True),
        ("169%2e254.169.254", True),
        ("①⑥⑨.254.169.254", True),
        ("169。254。169。254", True),
        ("metadata.google.internal.", True),
        ("fd00:ec2::254", True),
        ("fd00:0ec2:0:0:0:0:0:254", True),
        ("fd20:ce::254", True),
        ("100.100.100.200", True),
        ("0x64.0x64.0x64.0xc8", True),
        ("::ffff:168.63.129.16", True),
        ("192.0.0.192", True),
        ("fd00:ec3::254", False),
        ("100.100.100.201", False),
        ("2001:db8::1", False),
        ("10.0.0.1", False),
        ("169.253.0.1", False),
        ("bücher.example", False),
        ("a\0b\ud800", False),
        ("", False),
    ],
)
def test_what_knows_one_machine_alone_is_seen_however_it_is_written(host: str, is_so: bool) -> None:
    assert jobs._is_of_one_machine(host) == is_so


def test_a_node_reads_only_below_its_folders_for_others(tmp_path: Path) -> None:
    open_, closed = tmp_path / "open", tmp_path / "closed"
    for folder in (open_, closed):
        folder.mkdir()
        (folder / "a.txt").write_text("text")
    folders = (str(open_),)
    require_may_read(str(open_ / "a.txt"), folders, WHERE)
    for url in (
        str(closed), f"{open_}/../closed", f"file://{open_}", "shipped", f"{open_}/a.txt::x",
        str(tmp_path), f"{open_}-not", "http://[x", f"{open_}/a\0b",
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="reads nothing below"):
            require_may_read(url, folders, WHERE)
    (open_ / "way").symlink_to(closed)
    with pytest.raises(ConfigError, match="reads nothing below"):
        require_may_read(f"{open_}/way", folders, WHERE)
    (open_ / "b.txt").symlink_to(closed / "a.txt")
    with pytest.raises(ConfigError, match="leads out"):
        listed_here(Job(listed(str(open_), WHERE)), folders)


def test_the_source_must_be_the_same_here(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    job = Job(listed(str(tmp_path), WHERE))
    listed_here(job, (str(tmp_path),))
    (tmp_path / "a.txt").write_text("other text")
    with pytest.raises(ConfigError, match="10 bytes on this node and had 4"):
        listed_here(job, (str(tmp_path),))
    (tmp_path / "b.txt").write_text("more")
    with pytest.raises(ConfigError, match="1 files were listed"):
        listed_here(job, (str(tmp_path),))


def test_a_change_of_the_same_size_is_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("text")
    job = Job(listed(str(tmp_path), WHERE))
    assert job.source.files[0].version
    file.write_text("next")
    os.utime(file, (1, 1))
    with pytest.raises(ConfigError, match=r"a\.txt is another version on this node") as caught:
        listed_here(job, (str(tmp_path),))
    assert "\n" not in str(caught.value)
    unknown = (replace(job.source.files[0], version=""),)
    listed_here(replace(job, source=replace(job.source, files=unknown)), (str(tmp_path),))
