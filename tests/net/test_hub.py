"""A corpus by `hf://`, from a server that speaks as much of the hub of Hugging Face as its library asks for."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
from fsspec.registry import _registry
from test_sources import TEXT, complaint, hash_of

from peerlm.data.sources import listed

COMMIT = "c0ffee" * 6 + "c0de"
URL = "hf://datasets/org/plays"
TOKEN = "hf_of_a_friend"


@dataclass
class Hub:
    """One repository, `org/plays`, and what it does to those who ask."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False
    """Its files are; that they are there, it says."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of each file that was asked for."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args: object) -> None:
        self.hub = hub
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        path, hub = urlsplit(self.path).path, self.hub
        knows = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if hub.is_private and not knows:
            return self.fail(401, "RepoNotFound")
        if re.fullmatch("/api/datasets/org/plays(/revision/main)?", path):
            return self.say({"id": "org/plays", "sha": COMMIT, "private": False, "siblings": []})
        if tree := re.fullmatch("/api/datasets/org/plays/tree/main(/.*)?", path):
            return self.say(self.tree((tree[1] or "/")[1:], "recursive=true" in self.path))
        if found := re.fullmatch("/datasets/org/plays/resolve/main/(.*)", path):
            if hub.is_gated and not knows:
                return self.fail(403, "GatedRepo")
            return self.give(found[1])
        return self.fail(404, "RepoNotFound")

    def tree(self, below: str, is_deep: bool) -> list[dict[str, object]]:
        found: dict[str, dict[str, object]] = {}
        for path, data in self.hub.files.items():
            if below and not path.startswith(below + "/"):
                continue
            folder, slash, _ = path[len(below) :].lstrip("/").partition("/")
            if slash:
                whole = f"{below}/{folder}".lstrip("/")
                found[whole] = {"type": "directory", "path": whole, "oid": COMMIT, "size": 0}
            if is_deep or not slash:
                found[path] = {"type": "file", "path": path, "oid": COMMIT, "size": len(data)}
        return [*found.values()]

    def give(self, path: str) -> None:
        data, wanted = self.hub.files[path], self.headers.get("Range") or ""
        self.hub.asked.append((path, wanted))
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        start, end = (int(span[1]), int(span[2]) + 1) if span else (0, len(data))
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"} if span else {}
        self.send(206 if span else 200, data[start:end], headers)

    def say(self, what: object) -> None:
        self.send(200, json.dumps(what).encode(), {"Content-Type": "application/json"})

    def fail(self, status: int, why: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": why, "X-Error-Message": "not for you"})

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Named by HF_ENDPOINT, for this process and those that it starts; nobody is logged in."""
    library = pytest.importorskip("huggingface_hub", reason="pip install 'peerlm[hub]'")
    constants = importlib.import_module("huggingface_hub.constants")
    hub = Hub(files={"one.txt": TEXT, "more/.hidden.txt": b"no", "notes/readme.md": b"# no play"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    usual = constants.ENDPOINT  # as the variables were when it was imported
    for name, value in list(vars(constants).items()):
        if isinstance(value, str) and value.startswith(usual):
            monkeypatch.setattr(constants, name, value.replace(usual, hub.url))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    library.HfFileSystem.clear_instance_cache()
    yield hub
    library.HfFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


def test_the_same_text_from_a_file_and_from_a_hub_is_the_same_corpus(
    hub: Hub, tmp_path: Path
) -> None:
    file = tmp_path / "plays.txt"
    file.write_bytes(TEXT)
    expected = hash_of(str(file))
    assert hash_of(f"{URL}/one.txt") == expected
    assert hash_of(f"{URL}/*.txt") == expected
    assert hash_of(f"{URL}@main/one.txt", processes=2) == expected
    assert {path for path, _ in hub.asked} == {"one.txt"}
    assert all(wanted for _, wanted in hub.asked), "parts of it"
    files = {"plays/one.txt": TEXT, "plays/.git/two.txt": b"no", "other.txt": b"no"}
    hub.files = files
    sys.modules["huggingface_hub"].HfFileSystem.clear_instance_cache()
    assert hash_of(f"{URL}/plays") == expected


def test_no_more_of_a_file_is_asked_for_than_a_part(hub: Hub) -> None:
    source = listed(f"{URL}/one.txt", "data add")
    (file,) = source.files
    assert (file.size, file.ranges) == (len(TEXT), True)
    hash_of(f"{URL}/one.txt")
    spans = [tuple(map(int, span[6:].split("-"))) for _, span in hub.asked]
    assert sum(last + 1 - first for first, last in spans) < 1.6 * len(TEXT), spans


def test_what_is_not_there_or_not_for_everybody(hub: Hub) -> None:
    assert "no such file or directory" in complaint(f"{URL}/two.txt")
    message = complaint("hf://datasets/org/poems/one.txt")
    assert "not found" in message
    assert "private or gated needs HF_TOKEN" in message
    hub.is_gated = True
    message = complaint(f"{URL}/one.txt")
    assert "access denied" in message
    assert "set HF_TOKEN" in message


def test_a_token_opens_what_is_private(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.is_private = True
    assert "needs HF_TOKEN" in complaint(f"{URL}/one.txt")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    sys.modules["huggingface_hub"].HfFileSystem.clear_instance_cache()
    assert listed(f"{URL}/one.txt", "data add").size_bytes == len(TEXT)


def test_without_its_package_it_says_which_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(_registry, "hf", raising=False)
    assert "pip install 'peerlm[hub]'" in complaint(f"{URL}/one.txt")
