"""`peerlm data work`: the process that makes token shards for jobs of the swarm; daemons start it (`daemon.preparing`).

It asks its daemon for a job and for tasks, one for each core, and puts what it makes into this node's store. It decides
nothing: a source that cannot be read, or is not what the job says, is told to the daemon, which takes no part then.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

import click

from peerlm.cli.chunk_writing import Writer
from peerlm.cli.state import state_option
from peerlm.errors import ChunkCorrupt, ConfigError, StateError
from peerlm.store.layout import Layout
from peerlm.types import ObjectHash

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client
    from peerlm.data.prepared import Job
    from peerlm.store.manifest import Chunk, Manifest

NICENESS = 10

POLL_S = 0.5

IDLE_S = 10.0
"""Without a job for so long it ends."""

READ_S = 60.0


@click.command(hidden=True)
@click.option("--parent", type=int, required=True, help="The daemon.")
@click.option("--folders", default="", help="Folders that may be read, as store.folders.")
@state_option
def work(layout: Layout, parent: int, folders: str) -> None:
    """Make token shards for jobs of the swarm, for the daemon that has started this."""
    from peerlm.daemon.control import NoDaemon
    from peerlm.daemon.desk_client import Client
    from peerlm.train.limits import die_with

    if not die_with(parent):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.nice(NICENESS)
    with suppress(NoDaemon), Client(layout) as desk:
        Work(desk, layout, tuple(filter(None, folders.split(os.pathsep)))).run()


class Work:
    """Of one node, until it has been idle."""

    def __init__(self, desk: Client, layout: Layout, folders: tuple[str, ...]) -> None:
        self._desk, self._layout, self._folders = desk, layout, folders
        self._known: tuple[ObjectHash, Job] | None = None

    def run(self) -> None:
        """Raises: NoDaemon, it is gone."""
        idle_at = time.monotonic() + IDLE_S
        while time.monotonic() < idle_at:
            found = self._desk.work()
            if found is not None:
                self._work_on(*found)
                idle_at = time.monotonic() + IDLE_S
            time.sleep(POLL_S)

    def _work_on(self, name: str, job_hash: ObjectHash) -> None:
        from peerlm.daemon.control import NoDaemon

        try:
            self._make(job_hash, self._job(name, job_hash))
        except NoDaemon:
            raise
        except (ConfigError, ChunkCorrupt, StateError) as error:
            self._desk.failed(job_hash, str(error))

    def _job(self, name: str, job_hash: ObjectHash) -> Job:
        """As the swarm has it, once this node has found the same source."""
        from peerlm.data import jobs

        if self._known is None or self._known[0] != job_hash:
            job = read_job(self._desk, name, job_hash)
            jobs.listed_here(job, self._folders)
            self._known = (job_hash, job)
        return self._known[1]

    def _make(self, job_hash: ObjectHash, job: Job) -> None:
        from peerlm.data import making
        from peerlm.data.prepared import Done
        from peerlm.data.shards import ShardFact

        tasks = Tasks(self._desk, job_hash)
        first = next(tasks, None)
        if tasks.word == "finish":
            self._finish(job_hash, job)
        if first is None:
            return
        made: dict[int, list[tuple[Future[Chunk], int]]] = {}
        with Writer(self._layout) as writer:
            for part in making.shards(job, chain([first], tasks)):
                if isinstance(part, Done):
                    put = made.pop(part.task, [])
                    facts = [ShardFact(*chunk.result(), tokens) for chunk, tokens in put]
                    if not self._desk.made(job_hash, part.task, part.documents, facts):
                        return
                else:
                    chunk = writer.put(part.data)
                    made.setdefault(part.task, []).append((chunk, part.tokens))

    def _finish(self, job_hash: ObjectHash, job: Job) -> None:
        from peerlm.data.shards import ShardFact, corpus_manifest

        rows = self._desk.rows(job_hash)
        if [row[0] for row in rows] != list(range(len(job.tasks))):
            return  # a node has gone meanwhile
        facts = [
            ShardFact(ObjectHash(h), size, n) for _, _, shards in rows for h, size, n in shards
        ]
        documents = sum(row[1] for row in rows)
        manifest, parts = corpus_manifest(facts, job.tokenizer, job.vocab_made, documents)
        for data in parts:
            self._desk.put(data)
        self._desk.name_corpus(job_hash, manifest)


class Tasks:
    """Numbers of tasks as the daemon gives them out. Where it ends it may go on later: it is asked anew each time."""

    def __init__(self, desk: Client, job_hash: ObjectHash) -> None:
        self._desk, self._job_hash = desk, job_hash
        self.word = ""
        """Why there was none."""

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        found = self._desk.next_task(self._job_hash)
        if isinstance(found, int):
            return found
        self.word = found
        raise StopIteration


def read_job(desk: Client, name: str, job_hash: ObjectHash) -> Job:
    """Raises: ChunkCorrupt, it is no job; StateError, it cannot be had now."""
    from peerlm.data import jobs
    from peerlm.store.manifest import manifest_hash

    manifest = desk.manifest(name, READ_S)
    if manifest_hash(manifest.encode()) != job_hash:
        raise StateError(f"{name} stands for something else by now")
    body = _file(desk, manifest, jobs.JOB_FILE, name)
    if body is None:
        raise ChunkCorrupt(f"{name}: it has no {jobs.JOB_FILE}")
    tokenizer = _file(desk, manifest, jobs.TOKENIZER_FILE, name)
    job = jobs.read(body, tokenizer, name)
    if manifest.meta.get("tasks") != len(job.tasks):
        raise ChunkCorrupt(f"{name}: {len(job.tasks)} tasks, and not as many as it says")
    return job


def _file(desk: Client, manifest: Manifest, path: str, name: str) -> bytes | None:
    from peerlm.data import jobs

    file = manifest.file(path)
    if file is None:
        return None
    chunks = manifest.chunks_of(file)
    if sum(chunk.size for chunk in chunks) > jobs.BYTES_MAX:
        raise ChunkCorrupt(f"{name}: {path} is too large")
    return b"".join(desk.read(chunk.hash, chunk.size, READ_S) for chunk in chunks)
