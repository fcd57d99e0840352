"""Servers of a text on this machine, for figures and tests: HTTP that breaks off or refuses, and S3 as moto plays it."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Protocol

import fsspec

FILE = "plays.txt"
"""What the web server has, unless it is said otherwise."""

PIECE_BYTES = 1 << 20
"""Of an answer, at once."""

BUCKET = "library"


# ------------------------------------------------------------------------------------------ HTTP


class Text(Protocol):
    """Bytes, which need not all be there at once."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


@dataclass
class Web:
    """What it has, and what it does to those who ask."""

    data: Text
    file: str = FILE
    url: str = ""
    ranges: bool = True
    breaks: int = 0
    """How many answers end half-way."""
    refuses: int = 0
    """Status of every answer, if not 0."""
    asked: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    pause_s: float = 0.0
    """Before each piece of an answer."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, web: Web, *args: object) -> None:
        self.web = web
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        web, size = self.web, len(self.web.data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        web.asked.append(asked[0] if asked else "")
        if web.refuses or self.path != f"/{web.file}":
            self.send_response(web.refuses or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, end = (int(asked[1]), int(asked[2]) + 1) if asked and web.ranges else (0, size)
        self.send_response(206 if asked and web.ranges else 200)
        self.send_header("Content-Length", str(end - start))
        if asked and web.ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if not with_body:
            return
        if web.breaks and end - start > 1:
            web.breaks -= 1
            self.close_connection = True
            end = start + (end - start) // 2
        for at in range(start, end, PIECE_BYTES):
            time.sleep(web.pause_s)
            self.wfile.write(web.data[at : min(at + PIECE_BYTES, end)])
            web.sent_bytes += min(PIECE_BYTES, end - at)


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Who has heard enough hangs up."""


@contextmanager
def web_of(data: Text, file: str = FILE) -> Iterator[Web]:
    web = Web(data, file)
    server = Server(("127.0.0.1", 0), partial(Handler, web))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    web.url = f"http://127.0.0.1:{server.server_port}/{file}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


# -------------------------------------------------------------------------------------------- S3


@contextmanager
def s3_here() -> Iterator[str]:
    """An S3 of this machine's; gives its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it would say each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def bucket_of(s3: str, data: bytes) -> Iterator[str]:
    """The text is there, and credentials are in the environment, also of what is started meanwhile; gives the URL of its folder."""
    import s3fs

    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
    ours = {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    os.environ.update(ours)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        fs = fsspec.filesystem("s3")
        fs.mkdirs(BUCKET, exist_ok=True)
        fs.pipe(f"{BUCKET}/plays/one.txt", data)
        yield f"s3://{BUCKET}/plays"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)
