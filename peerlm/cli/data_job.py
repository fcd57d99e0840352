"""A corpus that the swarm makes: begun here, and waited for.

What is to be made goes into the store as a job (`data.jobs`); whoever can read its source takes part (`node.jobs`). Here it is
only watched, so this process may end, and another wait for the same job.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli import words
from peerlm.cli.desk_here import Tell, progress
from peerlm.cli.leash import interruption
from peerlm.errors import ChunkCorrupt, ConfigError, StateError
from peerlm.store.layout import Layout
from peerlm.store.manifest import JOB_PREFIX, NAME, Kind, Manifest, manifest_hash
from peerlm.types import ObjectHash, printable

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client
    from peerlm.data.prepared import Job

LOOK_S = 0.5

ALONE_S = 4.0
"""Nodes have said why they cannot work on it, and no other has been looking into it for so long."""

NOBODY_S = 30.0
"""No node has looked into it for so long."""

SHOWN = 4
"""Nodes whose shares are shown."""


def shared(desk: Client, layout: Layout, url: str, name: str) -> Shared | None:
    """The way by the swarm; None: nobody else can read `url`."""
    from peerlm.data import jobs

    if not jobs.is_of_network(url):
        url = str(Path(url).absolute())
        try:
            jobs.require_may_read(url, _folders(layout), "URL")
        except ConfigError:
            return None
    if not NAME.fullmatch(JOB_PREFIX + name):
        raise ConfigError(
            f"{name!r} is too long for what is made together; choose a shorter --name"
        )
    return Shared(desk, url, name)


def _folders(layout: Layout) -> list[str]:
    from peerlm import config
    from peerlm.config import NodeSettings

    path = layout.node_settings
    if not path.exists():
        return []
    settings = config.read_toml(NodeSettings, path.read_text(encoding="utf-8"), str(path))
    return [folder for folder in settings.store.folders.split(":") if folder]


class Shared:
    """One corpus on its way. `url`: as other nodes read it."""

    def __init__(self, desk: Client, url: str, name: str) -> None:
        self._desk, self.url, self._name = desk, url, name
        self.job_name = JOB_PREFIX + name
        self._sizes: list[int] = []
        """Bytes of the source that each task stands for."""
        record = self._record(self.job_name)
        if record is not None and record["kind"] != Kind.JOB:
            raise StateError(
                f"the name {self.job_name} is taken ({record['kind']}, by node {record['writer'][:8]}): choose another "
                "--name, or make it on this node alone, with --here"
            )
        self.is_under_way = record is not None
        self.about = record["about"] if record else ""
        self._replicas = record["replicas"] if record else 0
        self._known, self._of = "", ""
        """The job that these sizes are of, and the sweep that it is in."""
        self._before = self._record(name)

    def _record(self, name: str) -> dict[str, Any] | None:
        return next((one for one in self._desk.names() if one["name"] == name), None)

    def require_same(self, asked: Job, replicas: int, about: str, *, replaces: bool) -> None:
        """Raises `StateError`: what is under way is not what was asked for. `asked`: how the text is to be read, its source aside."""
        from peerlm.data import jobs

        ends = f"choose another --name, or end it first: peerlm data rm {self.job_name}"
        if self.about != about:
            raise StateError(
                f"{self.job_name} is being made of something else, {self.about}: {ends}"
            )
        try:
            manifest, found = self._under_way()
        except ChunkCorrupt as error:
            raise StateError(f"{error}: {ends}") from None
        except StateError:
            if self._record(self.job_name) is None:
                return  # it is done just now, or removed: `wait` will see
            manifest, found = self._under_way()  # it is in its next sweep just now
        other = jobs.differences(found, asked)
        other += ["--replicas"] if self._replicas != replicas else []
        other += ["--replace"] if (manifest.meta.get("replaces") is True) != replaces else []
        if other:
            raise StateError(
                f"{self.job_name} is being made with other options ({', '.join(other)}): wait for it with the same, {ends}"
            )

    def _under_way(self) -> tuple[Manifest, Job]:
        manifest = self._desk.manifest(self.job_name)
        return manifest, self._read(manifest_hash(manifest.encode()))

    def _read(self, job_hash: ObjectHash) -> Job:
        from peerlm.cli.data_work import read_job

        return read_job(self._desk, self.job_name, job_hash)

    def begin(self, job: Job, replicas: int, about: str, *, replaces: bool) -> None:
        """Give it to the swarm. Raises: ConfigError, StateError."""
        from peerlm.cli.data_work import put_job

        manifest = put_job(self._desk, job, replaces=replaces)
        options = {"replicas": replicas, "about": about, "replaces": False}
        self._desk.publish(self.job_name, manifest, **options)
        self._know(manifest_hash(manifest.encode()), job)

    def _know(self, job_hash: ObjectHash, job: Job) -> None:
        from peerlm.data.prepared import Sweep, stored_bytes

        if self._of == Sweep.ENCODINGS != job.sweep:
            _say_encodings(job)
        self._known, self._of = job_hash.hex(), job.sweep
        self._sizes = [stored_bytes(job, number) for number in range(job.count)]

    def wait(self) -> tuple[dict[str, Any], Manifest]:
        """Until it has its name. Raises: ConfigError, no node can; StateError, it was removed, or nobody begins."""
        click.echo(
            f"{self.job_name}: all nodes that can read {printable(self.url)} make it, also without this command; "
            f"`peerlm data rm {self.job_name}` ends it",
            err=True,
        )
        goes_on = f"{self.job_name} goes on, and the same command waits for it again"
        with interruption(goes_on), progress(f"{self._name}:", in_bytes=True) as tell:
            self._watch(tell, time.monotonic, time.sleep)
        record = self._record(self._name)
        if record is None or record == self._before:
            raise StateError(f"{self.job_name} was removed before it was done")
        return record, self._desk.manifest(self._name)

    def _watch(
        self, tell: Tell, clock: Callable[[], float], sleep: Callable[[float], object]
    ) -> None:
        last_made = clock()
        while self._record(self.job_name) is not None:
            found = next(iter(self._desk.jobs(self.job_name)), None)
            if found is not None:
                if found["makers"] or found["preparing"]:
                    last_made = clock()
                else:
                    self._give_up_if(found["troubles"], clock() - last_made)
                self._tell(tell, found)
            sleep(LOOK_S)

    def _give_up_if(self, troubles: dict[str, str], idle_s: float) -> None:
        """End a job that no node can do."""
        if troubles and idle_s > ALONE_S:
            self._desk.remove(self.job_name)
            why = troubles.get(self._desk.status()["node"]) or next(iter(troubles.values()))
            raise ConfigError(f"no node can make {self._name}: {why}")
        if idle_s > NOBODY_S:
            self._desk.remove(self.job_name)
            raise StateError(
                f"no node has begun to make {self._name}: see store.preprocess in node.toml; --here makes it here"
            )

    def _tell(self, tell: Tell, found: dict[str, Any]) -> None:
        if self._known != found["manifest"]:
            job_hash = ObjectHash(bytes.fromhex(found["manifest"]))
            try:
                self._know(job_hash, self._read(job_hash))
            except StateError:
                return  # the next sweep has begun, or it cannot be had just now
        bits = b"".join(self._desk.done(self.job_name))
        done = sum(
            size
            for at, size in enumerate(self._sizes)
            if at // 8 < len(bits) and bits[at // 8] & 0x80 >> at % 8
        )
        tell(done, sum(self._sizes) or None, line_of(found))


def _say_encodings(job: Job) -> None:
    from peerlm.data import encodings

    click.echo(
        encodings_line(encodings.counted(encodings.of_all(job.source, job.encodings))), err=True
    )


def encodings_line(counts: dict[str, int]) -> str:
    said = ", ".join(f"{name} for {words.some(count, 'file')}" for name, count in counts.items())
    return f"encodings taken: {said or 'none'}"


SWEEPS = {"encodings": "encodings", "prints": "duplicates or a vocabulary"}
"""What is looked for in a sweep before that of tokens."""


def line_of(found: dict[str, Any]) -> str:
    """How far a job is: its tasks and tokens, and who made how many."""
    shares = sorted(found["made_by"].items(), key=lambda item: -item[1])
    told = ", ".join(f"{peer[:8]} {count}" for peer, count in shares[:SHOWN])
    more = f", {len(shares) - SHOWN} more" if len(shares) > SHOWN else ""
    before = SWEEPS.get(found.get("sweep", ""), "")
    of = f"{before}: " if before else ""
    of += f"{found['done']} of {words.some(found['tasks'], 'task')}"
    tokens = "" if before else f", {words.count(found['tokens'])} tokens"
    return f"{of}{tokens}" + (f" ({told}{more})" if told else "")
