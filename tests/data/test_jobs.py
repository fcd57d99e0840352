"""Jobs as others may send them: what is read is what was written, and nothing that nobody should read is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peerlm.data import jobs
from peerlm.data.clean import Clean
from peerlm.data.jobs import encode, is_of_network, listed_here, read, require_may_read
from peerlm.data.prepared import Job, Recipe
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
)


def test_what_is_read_is_what_was_written() -> None:
    again = read(encode(JOB), b"{}", WHERE)
    assert again == JOB
    assert again.tasks == JOB.tasks
    assert encode(again) == encode(JOB)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "peerlm-job-9"),
        ("url", 7),
        ("url", "s3://" + "x" * 5000),
        ("files", []),
        ("files", [["a.txt", -1, True]]),
        ("files", [["a.txt", 1 << 49, True]]),
        ("files", [["a.txt", 1.5, True]]),
        ("files", [["a.txt", 5, 1]]),
        ("files", [["a" * 5000, 5, True]]),
        ("files", 5),
        ("encoding", "rot13"),
        ("encoding", None),
        ("text_field", "x" * 300),
        ("clean", ["NFX", True, False, 0.0]),
        ("clean", ["", True, False, float("nan")]),
        ("clean", ["", True]),
        ("vocab", True),
        ("vocab", 1 << 40),
        ("left_out", [[1, [-1]]]),
        ("left_out", {"a": 1}),
        ("grid", [1, 1, 1]),
        ("grid", [1 << 40, 1000, 1000]),
        ("grid", [1_000_000, 1000, 1 << 40]),
        ("grid", "abc"),
    ],
)
def test_what_is_no_job_is_refused_in_one_line(field: str, value: Any) -> None:
    body = json.loads(encode(JOB)) | {field: value}
    with pytest.raises(ChunkCorrupt, match="not a job") as caught:
        read(json.dumps(body).encode(), None, WHERE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ChunkCorrupt):
        read(data, None, WHERE)


def test_more_files_than_can_be_told_are_not_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FILES_MAX", 0)
    with pytest.raises(ConfigError, match="--here"):
        encode(JOB)


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
        ("http://metadata.google.internal/keys", False),
        ("file:///etc", False),
        ("/etc", False),
        ("memory://plays", False),
        ("local:///etc", False),
        ("shipped", False),
        ("simplecache::https://host/plays.txt", False),
        ("zip://*.txt::file:///etc/secret.zip", False),
        ("github://org:repo@main/x", False),
    ],
)
def test_what_all_nodes_can_read_and_may_know(url: str, is_so: bool) -> None:
    assert is_of_network(url) == is_so


def test_a_node_reads_only_below_its_folders_for_others(tmp_path: Path) -> None:
    open_, closed = tmp_path / "open", tmp_path / "closed"
    for folder in (open_, closed):
        folder.mkdir()
        (folder / "a.txt").write_text("text")
    folders = (str(open_),)
    require_may_read(str(open_ / "a.txt"), folders, WHERE)
    for url in (
        str(closed), f"{open_}/../closed", f"file://{open_}", "shipped", f"{open_}/a.txt::x",
        str(tmp_path), f"{open_}-not",
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
