"""Corpora over real lines: a server of files that breaks off, and S3 as moto plays it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

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


@dataclass
class Web:
    """What it does to those who ask."""

    url: str = ""
    ranges: bool = True
    breaks: int = 0
    """How many answers end half-way."""
    refuses: int = 0
    """Status of every answer, if not 0."""
    asked: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, web: Web, *args: object) -> None:
        self.web = web
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        web = self.web
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        web.asked.append(asked[0] if asked else "")
        if web.refuses or self.path != "/plays.txt":
            self.send_response(web.refuses or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, end = (int(asked[1]), int(asked[2]) + 1) if asked and web.ranges else (0, len(TEXT))
        data = TEXT[start:end]
        self.send_response(206 if asked and web.ranges else 200)
        self.send_header("Content-Length", str(len(data)))
        if asked and web.ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(TEXT)}")
        self.end_headers()
        if not body:
            return
        if web.breaks and len(data) > 1:
            web.breaks -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Who has heard enough hangs up."""


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    server = Server(("127.0.0.1", 0), partial(Handler, web))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    web.url = f"http://127.0.0.1:{server.server_port}/plays.txt"
    yield web
    server.shutdown()
    server.server_close()


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
    """A bucket with the text, in an S3 of this machine's; tells its address."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "ENDPOINT_URL": s3,
        "ACCESS_KEY_ID": "somebody",
        "SECRET_ACCESS_KEY": "secret",
        "EC2_METADATA_DISABLED": "true",
        "DEFAULT_REGION": "us-east-1",
        "CONFIG_FILE": "/dev/null",
        "SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    fs = fsspec.filesystem("s3")
    fs.mkdirs("library", exist_ok=True)
    fs.pipe("library/plays/one.txt", TEXT)
    yield "s3://library/plays"
    s3fs.S3FileSystem.clear_instance_cache()


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
