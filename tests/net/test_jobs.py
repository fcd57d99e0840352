"""A corpus made by real nodes from one server of files, one of them killed in the middle of it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import fsspec
import psutil
import pytest
from swarm import PEERLM, Node, Swarm, assert_refused, environment, init, peerlm, succeed, wait_for

from peerlm.daemon.desk_client import Client
from peerlm.data import making
from peerlm.data.prepared import Done, Job
from peerlm.data.shards import corpus_manifest, shard_fact
from peerlm.data.sources import listed
from peerlm.errors import StateError
from peerlm.node.made import read_made
from peerlm.store.manifest import manifest_hash
from peerlm.types import PeerId

pytestmark = pytest.mark.timeout(120)

STORE = {
    "train.enabled": "false",
    "page.enabled": "false",
    "store.bytes": "500_000_000",
    "store.repair_after_s": "2",
    "store.repair_bytes_s": "0",
    "store.checkpoint_every_s": "0",
}

TEXT = "".join(f"line {number} of a text that is no poem\n" for number in range(500_000)).encode()


def letters() -> bytes:
    """Records of which many have come before, or nearly so, and a few with signs beyond ASCII."""
    chance = random.Random(5)
    words = [f"{number:x}honorificabilitudinitatibus" * 2 for number in range(40)]
    texts = [" ".join(chance.choices(words, k=40)) for _ in range(1400)]
    picked = chance.choices(texts, k=1600)
    picked += [f"{text} Grüße" for text in chance.choices(texts, k=300)]
    return "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in picked).encode()


TEXTS = {"/plays.txt": TEXT, "/letters.jsonl": letters()}

TASKS = 10

SERVED = Semaphore(0)
"""So many parts of the text are given out; who asks for more waits."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(has_body=False)

    def do_GET(self) -> None:
        self.answer(has_body=True)

    def answer(self, *, has_body: bool) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        text = TEXTS.get(self.path, b"")
        start, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(text))
        data = text[start:end]
        if len(data) > 1000 and has_body:
            SERVED.acquire()
        self.send_response((206 if asked else 200) if data else 404)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{len(text)}"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(text)}")
        self.end_headers()
        if has_body:
            self.wfile.write(data)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/plays.txt"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    swarm = Swarm(tmp_path_factory.mktemp("jobs"))
    founder = swarm.node()
    init(founder.folder, "--name", f"jobs-{os.getpid()}", **STORE)
    founder.up()
    founder.wait(lambda s: s["address"], "the founder can be dialled")
    token = swarm.invite("--address", "127.0.0.1:1")
    for _ in range(2):
        swarm.join(founder, token, **STORE)
    for node in swarm.nodes:
        wait_for(partial(_sees, node, 3), "it sees all that offer room")
    yield swarm.nodes
    swarm.close()


def _sees(node: Node, count: int) -> bool:
    try:
        with Client(node.layout) as desk:
            return sum(other["is_live"] for other in desk.status()["nodes"]) == count
    except StateError:
        return False


def adding(node: Node, *command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PEERLM, "data", "add", *map(str, command), "--state", str(node.folder)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def job_of(node: Node) -> dict[str, Any]:
    with Client(node.layout) as desk:
        return next(iter(desk.jobs()), {})


def record_of(node: Node, name: str) -> dict[str, Any]:
    with Client(node.layout) as desk:
        return next((record for record in desk.names() if record["name"] == name), {})


def expected(vocab: int) -> str:
    """The manifest's hash as one process makes it."""
    fsspec.filesystem("memory").pipe("/jobs/plays.txt", TEXT)
    job = Job(listed("memory://jobs/plays.txt", "URL"), vocab=vocab)
    parts = list(making.shards(job, processes=0))
    facts = [shard_fact(part.data, part.tokens) for part in parts if not isinstance(part, Done)]
    documents = sum(part.documents for part in parts if isinstance(part, Done))
    manifest, _ = corpus_manifest(facts, None, job.vocab_made, documents)
    return manifest_hash(manifest.encode()).hex()


def makers_of(node: Node) -> list[psutil.Process]:
    assert node.process is not None
    found = psutil.Process(node.process.pid).children()
    return [child for child in found if "work" in child.cmdline()]


def one_more(nodes: list[Node]) -> Node | None:
    """Give out a part of the text. Returns a node other than the first that has made a task, once there is one."""
    made = job_of(nodes[0]).get("made_by", {})
    found = next((node for node in nodes[1:] if node.id in made), None)
    if found is None and sum(made.values()) < TASKS - 2:
        SERVED.release()
    return found


def test_three_make_it_and_one_is_killed_and_so_is_who_asked_for_it(
    nodes: list[Node], url: str
) -> None:
    asking = adding(nodes[0], url, "--name", "plays")
    wait_for(lambda: len(job_of(nodes[0]).get("makers", ())) == 3, "all three take part")
    victim = wait_for(lambda: one_more(nodes), "another than the first has made something")
    other = next(node for node in nodes[1:] if node is not victim)
    shown = succeed("data", "ls", "--state", other.folder)
    assert re.search(rf"job-plays: [1-9] of {TASKS} tasks, .* 3 nodes at it", shown), shown
    asking.send_signal(signal.SIGINT)
    _, said = asking.communicate(timeout=30)
    assert "job-plays goes on" in said
    orphans = makers_of(victim)
    assert orphans
    victim.kill()
    wait_for(lambda: not any(map(psutil.Process.is_running, orphans)), "they end with the daemon")
    SERVED.release(1000)
    again = adding(other, url, "--name", "plays")
    out, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert "durable: 2 nodes" in out
    record = record_of(nodes[0], "plays")
    with Client(nodes[0].layout) as desk:
        manifest = desk.manifest("plays")
    assert record["manifest"] == expected(manifest.meta["vocab"])
    assert record["about"] == url
    assert not record_of(other, "job-plays")
    for node in (nodes[0], other):
        wait_for(lambda node=node: not makers_of(node), "the process has ended")


@pytest.mark.slow
def test_all_are_killed_at_once_and_go_on_with_what_was_made(nodes: list[Node], url: str) -> None:
    while SERVED.acquire(blocking=False):
        pass
    running = [node for node in nodes if node.is_running]
    asking = adding(running[0], url, "--name", "verses")

    def some_are_kept() -> set[int]:
        if job_of(running[0]).get("done", 0) < TASKS // 2 and SERVED._value < 2:
            SERVED.release()
        kept = [read_made(n.layout.made.read_bytes(), PeerId(bytes.fromhex(n.id)))
                for n in running if n.layout.made.exists()]  # fmt: skip
        tasks = {task for jobs in kept for results in jobs.values() for task in results}
        return tasks if len(tasks) >= 3 else set()

    before = wait_for(some_are_kept, "some tasks are made, and that is kept")
    for node in running:
        node.kill()
    asking.kill()
    asking.communicate(timeout=30)
    for node in running:
        node.up()
    for node in running:
        wait_for(partial(_sees, node, len(running)), "it is there again, and sees the others")
    wait_for(lambda: job_of(running[0]).get("done", 0) >= len(before), "they know what they made")
    assert job_of(running[0])["done"] < TASKS
    SERVED.release(1000)
    done = succeed("data", "add", url, "--name", "verses", "--state", running[0].folder)
    assert "verses" in done
    assert record_of(running[0], "verses")["manifest"] == record_of(running[0], "plays")["manifest"]


@pytest.mark.timeout(300)
def test_what_is_looked_for_before_is_shared_too_and_outlives_who_asked_and_a_node(
    nodes: list[Node], url: str
) -> None:
    while SERVED.acquire(blocking=False):
        pass
    for node in nodes:
        if not node.is_running:
            node.up()
    for node in nodes:
        wait_for(partial(_sees, node, 3), "it sees all that offer room")
    url = url.replace("plays.txt", "letters.jsonl")
    assert listed(url, "URL").files[0].version == str(len(TEXTS["/letters.jsonl"]))
    options = ("--dedup", "--near", "0.8", "--encoding", "auto", "--tokenizer", "train:400")
    asking = adding(nodes[0], url, "--name", "letters", *options)
    first = wait_for(lambda: job_of(nodes[0]), "the job is there before anything was read")
    assert (first["sweep"], first["done"]) == ("encodings", 0)
    asking.kill()
    asking.communicate(timeout=30)
    other = peerlm("data", "add", url, "--name", "letters", "--dedup", "--state", nodes[1].folder)
    assert_refused(
        other, 3, "job-letters", "--encoding, --near, --tokenizer", "data rm job-letters"
    )

    def another_has_found_some() -> Node | None:
        job = job_of(nodes[0])
        found = [n for n in nodes[1:] if job.get("sweep") == "prints" and n.id in job["made_by"]]
        if not found and SERVED._value < 1:
            SERVED.release()
        return found[0] if found else None

    victim = wait_for(another_has_found_some, "another than the first has found something", 100)
    shown = succeed("data", "ls", "--state", nodes[0].folder)
    assert re.search(r"job-letters: duplicates or a vocabulary: [1-9] of \d tasks \(", shown), shown
    victim.kill()
    SERVED.release(1000)
    again = adding(nodes[0], url, "--name", "letters", *options)
    _, said = again.communicate(timeout=150)
    assert again.returncode == 0, said
    alone = ("--name", "letters-alone", "--here", "--wait", "0", *options)
    succeed("data", "add", url, *alone, "--state", nodes[0].folder)
    made, here = (record_of(nodes[0], name)["manifest"] for name in ("letters", "letters-alone"))
    assert made == here
    with Client(nodes[0].layout) as desk:
        assert 800 < desk.manifest("letters").meta["documents"] < 1400


def test_what_nobody_can_read_ends_in_one_line_and_leaves_no_job(
    nodes: list[Node], tmp_path: Path
) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n')
    changed = nodes[0].layout.node_settings
    before = changed.read_text()
    changed.write_text(
        before + f'\n[store]\nfolders = "{tmp_path}"\n'
        if "[store]" not in before
        else before.replace("[store]", f'[store]\nfolders = "{tmp_path}"', 1)
    )
    done = peerlm("data", "add", tmp_path, "--name", "notes", "--state", nodes[0].folder)
    changed.write_text(before)
    assert_refused(done, 2, "no node can make notes", "store.folders")
    assert not record_of(nodes[0], "job-notes")
