"""Corpora over real lines: a server of files that breaks off, and S3 as moto plays it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import aiohttp
import fsspec
import pytest

from bench.served import Web, bucket_of, s3_here, web_of
from peerlm.data import making, sources
from peerlm.data.prepared import Done, Job, Made
from peerlm.data.shards import corpus_manifest, shard_fact
from peerlm.data.sources import listed
from peerlm.data.units import Grid, Task
from peerlm.errors import ConfigError
from peerlm.store.manifest import manifest_hash
from peerlm.types import ObjectHash

WHERE = "data add"
TEXT = "".join(f"line {number} é€😀 of some length\n" for number in range(9000)).encode()
SMALL = Grid(100_000, 1000)


def hash_of(url: str, processes: int = 0) -> ObjectHash:
    job = Job(listed(url, WHERE), grid=SMALL)
    facts, documents = {}, 0
    for part in making.shards(job, processes=processes):
        match part:
            case Made():
                facts[part.task, part.number] = shard_fact(part.data, part.tokens)
            case Done():
                documents += part.documents
    in_order = [facts[place] for place in sorted(facts)]
    manifest, _ = corpus_manifest(in_order, None, job.vocab_made, documents)
    return manifest_hash(manifest.encode())


def complaint(url: str) -> str:
    with pytest.raises(ConfigError) as caught:
        hash_of(url)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def expected() -> ObjectHash:
    fsspec.filesystem("memory").pipe("/expected/plays.txt", TEXT)
    return hash_of("memory://expected/plays.txt")


# ---------------------------------------------------------------------------- a server that breaks


@pytest.fixture
def web() -> Iterator[Web]:
    with web_of(TEXT) as web:
        yield web


def test_parts_are_asked_for_by_several_processes(web: Web, expected: ObjectHash) -> None:
    assert hash_of(web.url, processes=2) == expected
    assert len([asked for asked in web.asked if asked]) > 3


@pytest.mark.parametrize("ranges", [True, False])
def test_a_line_that_breaks_a_few_times(web: Web, expected: ObjectHash, ranges: bool) -> None:
    web.ranges, web.breaks = ranges, 3
    assert hash_of(web.url) == expected
    assert web.breaks == 0


@pytest.mark.parametrize("ranges", [True, False])
def test_a_line_that_breaks_again_and_again(web: Web, ranges: bool) -> None:
    web.ranges, web.breaks = ranges, 1000
    message = complaint(web.url)
    assert f"{web.url}: cannot be read" in message
    assert f"{sources.TRIES} tries" in message


def test_a_server_without_ranges_is_read_in_order(web: Web, expected: ObjectHash) -> None:
    web.ranges = False
    assert Job(listed(web.url, WHERE), grid=SMALL).tasks == (Task(0),)
    assert hash_of(web.url) == expected


def test_an_answer_may_take_as_long_as_it_comes(
    web: Web, expected: ObjectHash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own patience is for all of an answer."""
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    monkeypatch.setattr("bench.served.PIECE_BYTES", len(TEXT) // 10)
    web.ranges, web.pause_s = False, 0.1
    fs, _ = sources.file_system(web.url)
    assert fs.client_kwargs["timeout"].sock_read == sources.SILENT_S
    assert hash_of(web.url) == expected
    assert web.asked.count("") <= 3, "it is not begun anew"


def test_what_a_server_refuses(web: Web) -> None:
    assert "not found" in complaint(web.url.replace("plays", "poems"))
    web.refuses = 403
    assert "403" in complaint(web.url)
    web.refuses = 500
    assert "500" in complaint(web.url)


# --------------------------------------------------------------------------------------------- S3


LEFT_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""The library leaves its sessions to the collector, which complains whenever it comes by."""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3_here() as address:
        yield address


@pytest.fixture
def bucket(s3: str) -> Iterator[str]:
    with bucket_of(s3, TEXT) as url:
        yield url


@LEFT_OPEN
def test_s3(bucket: str, expected: ObjectHash) -> None:
    assert {hash_of(f"{bucket}/one.txt"), hash_of(bucket), hash_of(f"{bucket}/*.txt")} == {expected}
    assert hash_of(bucket, processes=2) == expected
    assert "not found" in complaint(f"{bucket}/absent.txt")
    assert "no files match" in complaint(f"{bucket}/*.csv")


@LEFT_OPEN
def test_the_same_text_from_a_file_from_http_and_from_s3_is_the_same_corpus(
    tmp_path: Path, web: Web, bucket: str
) -> None:
    file = tmp_path / "plays.txt"
    file.write_bytes(TEXT)
    found = {url: hash_of(url) for url in (str(file), web.url, f"{bucket}/one.txt")}
    assert len(found) == 3
    assert len(set(found.values())) == 1, found
    file.write_bytes(TEXT + b"!")
    assert hash_of(str(file)) not in found.values()


@LEFT_OPEN
def test_s3_without_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    message = complaint(f"{bucket}/one.txt")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message


@LEFT_OPEN
def test_s3_with_bad_credentials(bucket: str, s3: str) -> None:
    """From here on it looks at who asks."""
    import requests

    requests.post(f"{s3}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()
    try:
        message = complaint(f"{bucket}/one.txt")
    finally:
        requests.post(f"{s3}/moto-api/reset-auth", data=b"1000000", timeout=10)
    assert "access denied" in message
    assert "set AWS_ACCESS_KEY_ID" in message
