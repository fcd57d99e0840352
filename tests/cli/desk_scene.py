"""A desk of the swarm's store without a daemon: chunks in a dictionary, and as many nodes as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from blake3 import blake3

from peerlm.daemon.desk_client import Surveyed
from peerlm.errors import StateError
from peerlm.store.manifest import Chunk, Kind, Manifest, manifest_hash, of_files, read_manifest
from peerlm.types import ObjectHash

ME, OTHER = "aa" * 16, "bb" * 16


def chunk_of(data: bytes) -> Chunk:
    return Chunk(ObjectHash(blake3(data).digest()), len(data))


def node(name: str, **changes: Any) -> dict[str, Any]:
    offer = {"capacity_bytes": 10**9, "used_bytes": 10**6, "label": "", "is_live": True}
    return {"id": name, **offer, "lacking": 0, **changes}


@dataclass
class FakeDesk:
    """What `desk_client.Client` does. `open` is a new connection to it."""

    chunks: dict[ObjectHash, bytes] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(default_factory=lambda: [node(ME), node(OTHER)])
    copies: Callable[[ObjectHash], int] = lambda wanted: 2
    lost: set[ObjectHash] = field(default_factory=set)
    silent: list[str] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)
    scrubs: dict[str, Any] = field(
        default_factory=lambda: {"checked": 3, "damaged": 1, "seconds": 2.0, "at": 5.0}
    )
    checks: Callable[[int], dict[str, Any]] = lambda here: {
        "here": here,
        "unknown": here,
        "oldest": None,
    }
    is_old: bool = False
    """Of the release before."""
    wall: float = 1.0
    put_bytes: int = 0
    reads: list[ObjectHash] = field(default_factory=list)
    connections: int = 0
    repairs: int = 0

    def open(self, *_: object) -> FakeDesk:
        self.connections += 1
        return self

    def close(self) -> None:
        self.connections -= 1

    def __enter__(self) -> FakeDesk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    jobs_said: list[list[dict[str, Any]]] = field(default_factory=list)
    """What it says of jobs, one answer after the other; the last again and again."""
    job_ends: Callable[[FakeDesk], None] = lambda desk: None
    """What happens when all has been said."""

    # ------------------------------------------------------------------------------- what it does

    def jobs(self, name: str = "") -> list[dict[str, Any]]:
        if len(self.jobs_said) == 1:
            self.job_ends(self)
        return self.jobs_said.pop(0) if len(self.jobs_said) > 1 else self.jobs_said[0]

    def done(self, name: str) -> list[bytes]:
        return [b"\x80"]

    def put(self, data: bytes) -> ObjectHash:
        chunk = chunk_of(bytes(data))
        self.put_bytes += 0 if chunk.hash in self.chunks else chunk.size
        self.chunks[chunk.hash] = bytes(data)
        return chunk.hash

    def read(self, wanted: ObjectHash, size: int, timeout_s: float = 60.0) -> bytes:
        self.reads.append(wanted)
        if wanted in self.lost or wanted not in self.chunks:
            raise StateError(f"object {wanted.hex()[:8]} is not here")
        assert len(self.chunks[wanted]) == size
        return self.chunks[wanted]

    def publish(self, name: str, manifest: Manifest, **options: Any) -> dict[str, Any]:
        assert all(chunk.hash in self.chunks for chunk in manifest.chunks)
        encoded = manifest.encode()
        known = self.records.get(name)
        if known and known["manifest"] != manifest_hash(encoded).hex() and not options["replaces"]:
            raise StateError(f"the name {name} is taken")
        self.chunks[manifest_hash(encoded)] = encoded
        self.records[name] = {
            "name": name,
            "kind": str(manifest.kind),
            "manifest": manifest_hash(encoded).hex(),
            "manifest_bytes": len(encoded),
            "replicas": options.get("replicas", 3),
            "is_pinned": options.get("is_pinned", False),
            "about": options.get("about", ""),
            "writer": ME,
            "written_at": self.wall,
            "verified_at": None,
            "verified_missing": None,
        }
        return self.records[name]

    def names(self) -> list[dict[str, Any]]:
        return list(self.records.values())

    def manifest(self, name: str, timeout_s: float = 60.0) -> Manifest:
        if name not in self.records:
            raise StateError(f"the swarm's store has nothing of the name {name}")
        return read_manifest(self.chunks[ObjectHash(bytes.fromhex(self.records[name]["manifest"]))])

    def survey(self, hashes: Sequence[ObjectHash]) -> Surveyed:
        counts = [0 if wanted in self.lost else self.copies(wanted) for wanted in hashes]
        return Surveyed(counts, self.silent, {ME: sum(n > 0 for n in counts)})

    def checked(self, hashes: Sequence[ObjectHash]) -> dict[str, Any]:
        return self.checks(len(hashes))

    def verified(self, manifest: ObjectHash, missing: int) -> None:
        if self.is_old:
            raise StateError("the store's desk does not know 'verified' with these arguments")
        for record in self.records.values():
            if record["manifest"] == manifest.hex():
                record |= {"verified_at": self.wall, "verified_missing": missing}

    def remove(self, name: str) -> None:
        del self.records[name]

    def pin(self, name: str, is_pinned: bool) -> None:
        self.manifest(name)
        self.records[name]["is_pinned"] = is_pinned

    def checkpoint(self, name: str = "", *, is_pinned: bool = False) -> str:
        listed = [
            ("model.safetensors", [Chunk(self.put(d), len(d)) for d in (b"w" * 50, b"v" * 50)])
        ]
        made = of_files(Kind.CHECKPOINT, listed, {"tokens": 7, "before": "ab" * 32})
        name = name or "checkpoint-000000000007"
        self.publish(name, made, is_pinned=is_pinned, replaces=True)
        return name

    def status(self) -> dict[str, Any]:
        numbers = ("chunks_known", "bytes_known", "due", "due_bytes", "held_due", "lacking")
        more = ("lacking_bytes", "surplus", "urgent", "replicas_possible")
        return {
            "node": ME,
            "may_write": True,
            "capacity_bytes": 10**9,
            "used_bytes": 10**6,
            "names": len(self.records),
            "chunks": dict.fromkeys((*numbers, *more), 0),
            "unread": 0,
            "pulling": 0,
            "unfound": 0,
            "is_full": False,
            "trouble": "",
            "checkpoints_kept_back": "",
            "distrusted": [],
            "distrust": {},
            "nodes": self.nodes,
            "lost": 0,
            "hedged_bytes": 0,
            "scrubbed": {},
            **self.said,
        }

    def repair(self) -> None:
        self.repairs += 1

    def scrub(self, progress: Callable[..., None]) -> dict[str, Any]:
        progress(3, 3)
        return self.scrubs

    # ------------------------------------------------------------------------------------ scenery

    def has(self, name: str, files: Iterable[tuple[str, Sequence[bytes]]]) -> Manifest:
        """Files of these chunks are in the store under a name."""
        listed = [(path, [Chunk(self.put(d), len(d)) for d in parts]) for path, parts in files]
        manifest = of_files(Kind.FILES, listed, {})
        self.publish(name, manifest, replaces=True)
        self.put_bytes = 0
        return manifest


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    """Whoever opens the desk gets this one."""
    fake = FakeDesk()
    monkeypatch.setattr("peerlm.daemon.desk_client.Client", fake.open)
    monkeypatch.setattr("peerlm.cli.state.require_daemon", lambda layout: None)
    monkeypatch.setattr("peerlm.cli.desk_here.require_daemon", lambda layout: None)
    return fake
