"""Nodes that make a corpus together: their cores, a clock, and processes that need some time for each task."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from blake3 import blake3
from store_scene import peer_of, sign

from peerlm import effects as fx
from peerlm.effects import Effect
from peerlm.events import ManifestRead
from peerlm.node.jobs import Jobs
from peerlm.node.register import Writing
from peerlm.node.survey import Survey
from peerlm.store.manifest import Kind
from peerlm.store.names import Names
from peerlm.types import Instant, ObjectHash, PeerId, WallTime
from peerlm.wire.message import JobShard, Message, NameRecord

JOB = ObjectHash(b"j" * 32)
"""In the sweep of tokens."""
FIRST = ObjectHash(b"f" * 32)
"""The sweep before."""
STEP_S = 0.25


def shards_of(task: int, job: ObjectHash = JOB) -> tuple[JobShard, ...]:
    """What a task becomes, whoever makes it: up to two shards."""
    of = "" if job == JOB else job.hex()
    return tuple(
        JobShard(blake3(f"{of}{task}/{i}".encode()).digest(), 1000 + task, 500 + i)
        for i in range(task % 3)
    )


@dataclass
class Node:
    jobs: Jobs
    names: Names
    disk: set[ObjectHash] = field(default_factory=set)
    is_up: bool = True
    has_process: bool = True
    lies: bool = False
    """It makes nothing, and says that it did; it also says that it has every chunk."""
    at: tuple[ObjectHash, int, float] | None = None
    """The task that its process is at, and until when. Behind the last: it concludes a sweep."""
    manifests: set[ObjectHash] = field(default_factory=set)
    """Of jobs, that are here."""
    made: list[int] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    kept: bytes = b""


class Swarm:
    """Nodes, a clock, names that all hear at once, and processes that need some time for each task."""

    def __init__(self, count: int, tasks: int = 60, seed: int = 1, task_s: float = 0.5) -> None:
        self.rng, self.now, self.tasks, self.task_s = (
            random.Random(seed),
            Instant(0.0),
            tasks,
            task_s,
        )
        self.nodes: dict[PeerId, Node] = {}
        self.queue: list[tuple[PeerId, PeerId, Message]] = []
        self.records: list[NameRecord] = []
        self.corpora: list[ObjectHash] = []
        self.messages = 0
        self.conclude_s = 0.5
        self.concluded: list[PeerId] = []
        self.has_files: set[PeerId] | None = None
        """Who has the files of the next job; None: all that need them."""
        for number in range(1, count + 1):
            self.add(peer_of(number))

    def add(
        self,
        peer: PeerId,
        kept: bytes | None = b"",
        on_disk: Iterable[ObjectHash] = (),
        manifests: Iterable[ObjectHash] = (),
    ) -> Node:
        names = Names()
        disk = set(on_disk)
        living = lambda: [e for e in names if e.record.manifest]  # noqa: E731

        def write(w: Writing, wall: WallTime, now: Instant) -> list[Effect]:
            lamport = names.next_lamport(w.name)
            self.tell_name(NameRecord(
                w.name, w.kind, w.manifest or b"", w.size, lamport, peer, wall, w.replicas, w.is_pinned, w.about
            ))  # fmt: skip
            if w.kind == Kind.CORPUS and w.manifest:
                self.corpora.append(w.manifest)
            return []

        jobs = Jobs(
            peer, may_make=True, names=living, has=disk.__contains__,
            survey=lambda hashes, _: (self.survey(list(hashes)), []), write=write,
            rng=random.Random(self.rng.random()), now=self.now, kept=kept,
        )  # fmt: skip
        self.nodes[peer] = Node(jobs, names, disk, kept=kept or b"", manifests=set(manifests))
        for record in self.records:
            names.merge(record, sign(record))
        self.know(peer)
        self.look_around()
        return self.nodes[peer]

    def survey(self, hashes: list[ObjectHash]) -> Survey:
        survey = Survey(0, hashes, (), ())
        up = [node for node in self.nodes.values() if node.is_up]
        survey.counts = [sum(h in node.disk for node in up) for h in hashes]
        return survey

    def tell_name(self, record: NameRecord) -> None:
        self.records.append(record)
        for node in self.nodes.values():
            node.names.merge(record, sign(record))

    def add_job(self, name: str = "job-plays", job: ObjectHash = JOB) -> None:
        self.tell_name(NameRecord(name, Kind.JOB, job, 9, 1, peer_of(1), 1.0, 2, False, "there"))
        for node in self.nodes.values():
            node.manifests.add(job)
        for peer in self.nodes:
            self.know(peer)

    def know(self, peer: PeerId) -> None:
        """Its manifests come from any node that has them."""
        node = self.nodes[peer]
        up = [other for other in self.nodes.values() if other.is_up]
        for record in [e.record for e in node.names if e.record.kind == Kind.JOB]:
            job = ObjectHash(record.manifest)
            if job and any(job in other.manifests for other in up):
                node.manifests.add(job)
                sweep = "prints" if job == FIRST else ""
                read = ManifestRead(job, (), tasks=self.tasks, sweep=sweep)
                self.perform(peer, node.jobs.read(read, self.now))

    def fetch(self) -> None:
        for peer, node in self.nodes.items():
            if node.is_up and any(
                e.record.kind == Kind.JOB
                and e.record.manifest
                and e.record.manifest not in node.manifests
                for e in node.names
            ):
                self.know(peer)

    def look_around(self) -> None:
        up = frozenset(peer for peer, node in self.nodes.items() if node.is_up)
        for peer in sorted(up):
            self.perform(peer, self.nodes[peer].jobs.nodes_are(up, self.now))

    def restart(self, *peers: PeerId) -> None:
        """They end at the same moment, and start again with what is on their disks."""
        before = {peer: self.nodes[peer] for peer in peers}
        for node in before.values():
            node.is_up = False
        self.queue.clear()
        for peer, node in before.items():
            self.add(peer, node.kept, node.disk, node.manifests).made = node.made

    def kill(self, peer: PeerId) -> None:
        self.nodes[peer].is_up = False
        self.look_around()

    # ------------------------------------------------------------------------------------ time

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.step()

    def run_to_end(self, limit_s: float = 600.0) -> None:
        while any(self.up(peer).jobs.standing() for peer in self.nodes if self.nodes[peer].is_up):
            assert self.now < limit_s, [n.jobs.standing() for n in self.nodes.values()]
            self.step()

    def up(self, peer: PeerId) -> Node:
        assert self.nodes[peer].is_up
        return self.nodes[peer]

    def step(self) -> None:
        self.now = Instant(self.now + STEP_S)
        self.fetch()
        for peer, node in list(self.nodes.items()):
            if node.is_up:
                if node.has_process:
                    self.work(peer, node)
                self.perform(peer, [*node.jobs.follow(self.now), *node.jobs.wake(self.now)])
        while self.queue:
            sender, to, message = self.queue.pop(0)
            if self.nodes[to].is_up:
                self.messages += 1
                self.perform(to, self.nodes[to].jobs.received(sender, message, self.now))
        for node in self.nodes.values():
            node.jobs.check()

    def work(self, peer: PeerId, node: Node) -> None:
        """Its process: one task at a time."""
        if node.at is not None:
            job, task, until = node.at
            if self.now < until:
                return
            node.at = None
            if task == self.tasks:
                self.conclude(peer, node)
                return
            if not node.lies:
                node.disk.update(ObjectHash(s.hash) for s in shards_of(task, job))
                node.made.append(task)
            node.jobs.made(job, task, 1, shards_of(task, job), self.now)
        job_hash = node.jobs.choose(self.now)
        if job_hash is None:
            return
        have = [other for other in self.has_files or () if self.nodes[other].is_up]
        if job_hash == JOB and self.has_files is not None and not have:
            self.perform(peer, node.jobs.failed(JOB, "an object is not here", self.now))
            return
        match node.jobs.next(job_hash, self.now):
            case int() as task:
                node.at = (job_hash, task, self.now + self.task_s * self.rng.uniform(0.5, 1.5))
            case "finish" if job_hash == FIRST:
                node.at = (job_hash, self.tasks, self.now + self.conclude_s)
            case "finish":
                rows = [s.hash for r in node.jobs.rows(job_hash) for s in r.shards]
                manifest = ObjectHash(blake3(b"".join(rows)).digest())
                wall = WallTime(1.0 + self.now)
                self.perform(peer, node.jobs.publish(job_hash, manifest, 5, wall, self.now))

    def conclude(self, peer: PeerId, node: Node) -> None:
        """Once all findings could be read."""
        up = [other.disk for other in self.nodes.values() if other.is_up]
        rows = node.jobs.rows(FIRST)
        if any(not any(s.hash in disk for disk in up) for r in rows for s in r.shards):
            node.jobs.look_again(FIRST, self.now)
        elif len(rows) == self.tasks:
            node.manifests.add(JOB)
            if self.has_files is not None:
                self.has_files.add(peer)
            self.concluded.append(peer)
            self.perform(peer, node.jobs.go_on(FIRST, JOB, 5, self.now))
            self.know(peer)

    def perform(self, peer: PeerId, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case fx.Send():
                    self.queue.append((peer, effect.peer, effect.message))
                case fx.Log():
                    self.nodes[peer].logs.append(effect.event)
                case fx.MakeShards():
                    pass
                case fx.Save(name="made", data=data):
                    self.nodes[peer].kept = data
                case _:
                    raise AssertionError(effect)

    def all_made(self) -> list[int]:
        return [task for node in self.nodes.values() for task in node.made]

    def living(self) -> list[str]:
        names = next(iter(self.nodes.values())).names
        return [e.record.name for e in names if e.record.manifest]


def expected(tasks: int = 60) -> ObjectHash:
    hashes = b"".join(s.hash for task in range(tasks) for s in shards_of(task))
    return ObjectHash(blake3(hashes).digest())
