"""`peerlm data work`: the process that makes token shards for jobs of the swarm; daemons start it (`daemon.preparing`).

It asks its daemon for a job and for tasks, one for each core, and puts what it makes into this node's store: shards, or what is
found out of the source before (`data.findings`). When all is there it may be told to conclude that. It decides
nothing: a source that cannot be read, or is not what the job says, is told to the daemon, which takes no part then. So is
whatever else goes wrong with a job: it comes from somebody else, and others wait behind it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from peerlm.cli import memory
from peerlm.cli.chunk_writing import Writer
from peerlm.cli.state import state_option
from peerlm.errors import ChunkCorrupt, ConfigError, StateError
from peerlm.store.layout import Layout
from peerlm.types import ObjectHash, printable

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client
    from peerlm.data.prepared import Job
    from peerlm.store.manifest import Chunk, Manifest

NICENESS = 10

POLL_S = 0.5

IDLE_S = 10.0
"""Without a job for so long it ends."""

READ_S = 60.0

KNOWN_BYTES_MAX = 256 << 20
"""Of the files of all jobs that are remembered; as much as those of one may have."""


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
        self._known: dict[ObjectHash, Asked] = {}
        """The one that was worked on last is the last."""

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
            self._make(job_hash, self._asked(name, job_hash))
        except (NoDaemon, SystemExit, KeyboardInterrupt):
            raise
        except (ConfigError, ChunkCorrupt, StateError) as error:
            self._desk.failed(job_hash, str(error))
        except BaseException as error:  # a panic of a library in Rust is no Exception
            traceback.print_exc()
            reason = (str(error).splitlines() or [""])[-1]
            self._desk.failed(
                job_hash, f"{name}: {type(error).__name__}: {printable(reason[-200:])}"
            )

    def _asked(self, name: str, job_hash: ObjectHash) -> Asked:
        """As the swarm has it, once this node has found the same source, and has the same libraries. Remembered, for all jobs that a
        node follows: when its name stands for the next sweep's job it cannot be read any more, and may have to be concluded again."""
        from peerlm.data import jobs, versions

        asked = self._known.pop(job_hash, None)
        if asked is None:
            asked = read_asked(self._desk, name, job_hash)
            versions.require_same(asked.job)
            jobs.listed_here(asked.job, self._folders)
        self._known[job_hash] = asked
        while len(self._known) > 1 and self._are_too_many():
            del self._known[next(iter(self._known))]
        return asked

    def _are_too_many(self) -> bool:
        from peerlm.node.jobs import JOBS_MAX  # it follows so many, and as many that are over

        size = sum(asked.size_bytes for asked in self._known.values())
        return len(self._known) > 2 * JOBS_MAX or size > KNOWN_BYTES_MAX

    def _make(self, job_hash: ObjectHash, asked: Asked) -> None:
        from peerlm.data import making
        from peerlm.data.prepared import Done
        from peerlm.data.shards import ShardFact

        tasks = Tasks(self._desk, job_hash)
        first = next(tasks, None)
        if tasks.word == "finish":
            self._finish(job_hash, asked)
        if first is None:
            return
        made: dict[int, list[tuple[Future[Chunk], int]]] = {}
        with Writer(self._layout) as writer:
            for part in making.shards(asked.job, chain([first], tasks)):
                if isinstance(part, Done):
                    put = made.pop(part.task, [])
                    facts = [ShardFact(*chunk.result(), tokens) for chunk, tokens in put]
                    if not self._desk.made(job_hash, part.task, part.documents, facts):
                        return
                else:
                    chunk = writer.put(part.data)
                    made.setdefault(part.task, []).append((chunk, part.tokens))

    def _finish(self, job_hash: ObjectHash, asked: Asked) -> None:
        from peerlm.data import jobs
        from peerlm.data.prepared import Sweep

        job = asked.job
        rows = self._desk.rows(job_hash)
        if [row[0] for row in rows] != list(range(job.count)):
            return  # a node has gone meanwhile
        jobs.listed_here(
            job, self._folders
        )  # what was changed while it was read would be two versions
        if job.sweep is Sweep.TOKENS:
            self._desk.name_corpus(job_hash, self._corpus(job, rows))
        else:
            self._conclude(job_hash, asked, rows)

    def _corpus(self, job: Job, rows: list[Any]) -> Manifest:
        from peerlm.data.shards import ShardFact, corpus_manifest

        facts = [
            ShardFact(ObjectHash(h), size, n) for _, _, shards in rows for h, size, n in shards
        ]
        documents = sum(row[1] for row in rows)
        manifest, parts = corpus_manifest(facts, job.tokenizer, job.vocab_made, documents)
        for data in parts:
            self._desk.put(data)
        return manifest

    def _conclude(self, job_hash: ObjectHash, asked: Asked, rows: list[Any]) -> None:
        """The job of the next sweep takes the name."""
        from peerlm.data import findings

        job = asked.job
        reading = -1

        def found() -> Iterator[Iterator[bytes]]:
            nonlocal reading
            for task, _, pieces in rows:
                reading = task
                yield self._pieces(pieces)

        kept = partial(memory.require_for_duplicates, where=job.source.where)
        try:
            following = findings.concluded(job, found(), kept)
        except Unread:
            self._desk.look_again(job_hash)
            return
        except ChunkCorrupt as error:
            self._desk.false(job_hash, reading, str(error))
            return
        self._desk.name_corpus(job_hash, put_job(self._desk, following, replaces=asked.replaces))

    def _pieces(self, listed: list[Any]) -> Iterator[bytes]:
        for object_hash, size, _ in listed:
            try:
                yield self._desk.read(ObjectHash(object_hash), size, READ_S)
            except StateError as error:
                raise Unread(str(error)) from None


class Asked(NamedTuple):
    """A job as its manifest has it."""

    job: Job
    replaces: bool
    """What is made of it takes its name from whatever has it."""
    size_bytes: int
    """Of its files."""


class Unread(Exception):
    """What another has found cannot be had from it any more."""


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


def put_job(desk: Client, job: Job, *, replaces: bool) -> Manifest:
    """All of it into this node's store, but for its name. `replaces`: what is made of it takes its name from whatever has it.
    Raises: ConfigError, it is too much to share out; StateError."""
    from peerlm.data import jobs
    from peerlm.store.manifest import CHUNK_BYTES, Chunk, Kind, of_files

    listed = []
    for path, data in jobs.encode(job).items():
        parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        listed.append((path, [Chunk(desk.put(part), len(part)) for part in parts]))
    meta = {"tasks": job.count, "replaces": replaces, "sweep": str(job.sweep)}
    return of_files(Kind.JOB, listed, meta)


def read_job(desk: Client, name: str, job_hash: ObjectHash) -> Job:
    """Raises: ChunkCorrupt, it is no job; StateError, it cannot be had now."""
    return read_asked(desk, name, job_hash).job


def read_asked(desk: Client, name: str, job_hash: ObjectHash) -> Asked:
    """Raises as `read_job` does."""
    from peerlm.data import jobs
    from peerlm.store.manifest import manifest_hash

    manifest = desk.manifest(name, READ_S)
    if manifest_hash(manifest.encode()) != job_hash:
        raise StateError(f"{name} stands for something else by now")
    found = {path: data for path in jobs.FILES if (data := _file(desk, manifest, path, name))}
    if jobs.JOB_FILE not in found:
        raise ChunkCorrupt(f"{name}: it has no {jobs.JOB_FILE}")
    job = jobs.read(found, name)
    said = manifest.meta.get("tasks"), manifest.meta.get("sweep")
    if said != (job.count, job.sweep):
        raise ChunkCorrupt(f"{name}: {job.count} tasks for {job.sweep}, and not what it says")
    replaces = manifest.meta.get("replaces") is True
    return Asked(job, replaces, sum(map(len, found.values())))


def _file(desk: Client, manifest: Manifest, path: str, name: str) -> bytes | None:
    from peerlm.data import jobs

    file = manifest.file(path)
    if file is None:
        return None
    chunks = manifest.chunks_of(file)
    if sum(chunk.size for chunk in chunks) > jobs.BYTES_MAX:
        raise ChunkCorrupt(f"{name}: {path} is too large")
    return b"".join(desk.read(chunk.hash, chunk.size, READ_S) for chunk in chunks)
