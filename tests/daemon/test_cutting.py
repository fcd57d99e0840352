"""A checkpoint's files, the weights bit by bit and the optimizer's state among them, from what several hosts have cut."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from peerlm import events
from peerlm.daemon.cutting import Cutting
from peerlm.data.records import FILE as PASSES_FILE
from peerlm.effects import MOMENTS, PASSES, CheckpointPart, CutFragments, WriteCheckpoint
from peerlm.errors import StateError
from peerlm.model.export import read_model
from peerlm.model.moments import FILE, MomentsFile, open_moments, read_moments, remembered
from peerlm.model.plan import fragments, parameter_shapes
from peerlm.store.manifest import Manifest, read_manifest
from peerlm.types import FragmentId, ObjectHash, PeerId
from tests.daemon.test_keeping import ALL, Scene

SLOT, ME = b"s" * 16, PeerId(b"m" * 16)


@dataclass
class Host:
    scene: Scene
    cutting: Cutting
    loop: asyncio.AbstractEventLoop
    posted: list[events.Event]

    def done(self) -> list[events.Event]:
        """What was posted until everything asked for is done."""
        self.scene.pool.submit(lambda: None).result()
        self.loop.run_until_complete(asyncio.sleep(0))
        found, self.posted[:] = list(self.posted), []
        return found

    def parts(self) -> list[CheckpointPart]:
        """Of all fragments that it holds, and of their moments."""
        ids = [spec.id for spec in self.scene.specs]
        wanted = (*ids, *(FragmentId(MOMENTS + i) for i in ids))
        effect = CutFragments(SLOT, wanted)
        self.cutting.cut(effect, self.scene.slow, self.scene.keeping)
        cut = [e for e in self.done() if isinstance(e, events.FragmentCut)]
        assert [event.fragment for event in cut] == list(wanted)
        return [CheckpointPart(e.fragment, e.version, e.chunks, ME) for e in cut]

    def written(self, parts: list[CheckpointPart]) -> tuple[Manifest, str]:
        weights = tuple(part for part in parts if part.fragment < MOMENTS)
        moments = tuple(part for part in parts if part.fragment >= MOMENTS)
        self.cutting.write(WriteCheckpoint(SLOT, 7, weights, b"", moments), self.scene.keeping)
        (made,) = [e for e in self.done() if isinstance(e, events.CheckpointWritten)]
        assert made.reason == ""
        return read_manifest(self.scene.objects.read_verified(made.manifest)), made.lacks

    def file(self, manifest: Manifest, path: str) -> bytes:
        file = manifest.file(path)
        assert file is not None
        chunks = manifest.chunks_of(file)
        return b"".join(self.scene.objects.read_verified(chunk.hash) for chunk in chunks)


@contextmanager
def hosting(folder: Path, held: range = ALL, **plan: object) -> Iterator[Host]:
    with ThreadPoolExecutor(1) as pool:
        scene, loop = Scene(folder, pool, held, **plan), asyncio.new_event_loop()
        posted: list[events.Event] = []
        cutting = Cutting(loop, posted.append, scene.objects, scene.keeping._run_id, scene.pool)
        yield Host(scene, cutting, loop, posted)
        loop.close()
        scene.state.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with hosting(tmp_path / "node") as host:
        yield host


def learn(host: Host) -> None:
    """Weights that no two fragments share."""
    for spec in host.scene.specs:
        phi = host.scene.slow.before_work(spec.id).phi
        phi[:] = np.random.default_rng(spec.id).standard_normal(len(phi), np.float32)
        phi[:3] = -0.0, 1e-42, np.inf


def kept(hosts: Sequence[Host]) -> set[Path]:
    return {path for host in hosts for path in host.scene.state.chunks.iterdir()}


@pytest.mark.parametrize("count", [1, 3])
def test_weights_that_hosts_of_stages_cut_are_one_model_bit_by_bit_and_twice_the_same_chunks(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerlm.daemon.cutting.CHUNK_BYTES", 1024)
    plan = {"model.blocks": ["feedforward"] * 3, "model.stages": count}
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(hosting(tmp_path / f"{stage}", range(stage, stage + 1), **plan))
            for stage in range(count)
        ]
        for host in hosts:
            learn(host)

        def made() -> Manifest:
            parts = (part for host in hosts for part in host.parts() if part.fragment < MOMENTS)
            return hosts[-1].written(sorted(parts, key=lambda part: part.fragment))[0]

        first, before = made(), kept(hosts)
        assert made() == first
        assert kept(hosts) == before, "what has not changed takes no room again"
        bytes_of = {path.name: path.read_bytes() for path in before}
        model = tmp_path / "model"
        model.mkdir()
        for file in first.files:
            chunks = [bytes_of[chunk.hash.hex()] for chunk in first.chunks_of(file)]
            (model / file.path).write_bytes(b"".join(chunks))
        read, values = read_model(model)
        assert read == hosts[0].scene.keeping.plan.plan
        phis = {s.id: h.scene.slow.fragment(s.id).phi for h in hosts for s in h.scene.specs}
        assert [v.tobytes() for v in values] == [phis[s.id].tobytes() for s in fragments(read)]
        tensors = load_file(model / "model.safetensors")
        shapes = parameter_shapes(read.model, read.data.vocab)
        assert {n: t.shape for n, t in tensors.items()} == {n: s for n, (_, s) in shapes.items()}
        assert first.meta["versions"] == [0] * len(phis)

        changed = hosts[0].scene.specs[0]
        hosts[0].scene.slow.before_work(changed.id).phi += 1.0
        second = made()
        new = {path.name for path in kept(hosts) - before}
        most = -(-4 * changed.size // 1024)
        assert len({c.hash for c in second.chunks} - {c.hash for c in first.chunks}) <= most
        assert 0 < len(new) <= most + 1, "chunks of what has changed, and the manifest"


def keep(host: Host) -> None:
    """As a worker does."""
    plan = host.scene.keeping.plan.plan
    counts, rng = remembered(plan), np.random.default_rng(1)
    file = MomentsFile(host.scene.state.moments, plan, counts)
    for name, (_, shape) in parameter_shapes(plan.model, plan.data.vocab).items():
        values = rng.random(counts[name] * int(np.prod(shape)), np.float32)
        file.write(name, 12, values)
    file.commit()


def test_what_a_worker_kept_is_a_file_of_the_checkpoint(host: Host, tmp_path: Path) -> None:
    keep(host)
    parts = host.parts()
    manifest, lacks = host.written(parts)
    assert lacks == ""
    assert host.file(manifest, FILE) == host.scene.state.moments.read_bytes()
    assert manifest.meta["optimizer"] == "muon"
    (tmp_path / FILE).write_bytes(host.file(manifest, FILE))
    plan = host.scene.keeping.plan.plan
    assert read_moments(open_moments(tmp_path / FILE, plan), "embedding.weight")[0] == 12


def test_without_it_a_checkpoint_is_as_it_was(host: Host) -> None:
    parts = host.parts()
    assert all(bool(part.chunks) is (part.fragment < MOMENTS) for part in parts)
    manifest, lacks = host.written([part for part in parts if part.fragment < MOMENTS])
    assert (lacks, manifest.file(FILE), "optimizer" in manifest.meta) == ("", None, False)


@pytest.mark.parametrize("how", ["short", "long", "none"])
def test_parts_that_do_not_fit_the_plan_are_left_out_with_the_reason(host: Host, how: str) -> None:
    keep(host)
    *parts, last = host.parts()
    chunks = {"short": last.chunks[1:], "long": (*last.chunks, last.chunks[0]), "none": ()}[how]
    manifest, lacks = host.written([*parts, replace(last, chunks=chunks)])
    assert "optimizer's state" in lacks
    assert manifest.file(FILE) is None
    assert manifest.file("model.safetensors") is not None


def test_why_the_disk_takes_nothing_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> ObjectHash:
        raise StateError("the disk is full")

    monkeypatch.setattr(host.scene.objects, "put_chunk", refuse)
    ids = [spec.id for spec in host.scene.specs]
    wanted = (*ids, FragmentId(MOMENTS + ids[0]))
    host.cutting.cut(CutFragments(SLOT, wanted), host.scene.slow, host.scene.keeping)
    told = [e for e in host.done() if isinstance(e, events.FragmentCut)]
    assert [e.reason for e in told] == ["the disk is full"] * len(ids) + [""], "no moments are kept"
    assert not any(e.chunks for e in told)


def test_a_damaged_file_is_nothing_to_give(host: Host) -> None:
    keep(host)
    path = host.scene.state.moments
    path.write_bytes(path.read_bytes()[:-3])
    assert not any(part.chunks for part in host.parts() if part.fragment >= MOMENTS)


def test_what_is_read_is_a_file_as_it_was_told_and_lineage_is_in_the_manifest(
    tmp_path: Path,
) -> None:
    with hosting(tmp_path / "node", **{"run.continues": "cd" * 32}) as host:
        parts = host.parts()
        host.cutting.cut(
            CutFragments(SLOT, (PASSES,), b"what is read"), host.scene.slow, host.scene.keeping
        )
        (told,) = [e for e in host.done() if isinstance(e, events.FragmentCut)]
        passes = CheckpointPart(told.fragment, told.version, told.chunks, ME)
        weights = tuple(part for part in parts if part.fragment < MOMENTS)
        host.cutting.write(
            WriteCheckpoint(SLOT, 7, weights, b"p" * 32, (), passes), host.scene.keeping
        )
        (made,) = [e for e in host.done() if isinstance(e, events.CheckpointWritten)]
        manifest = read_manifest(host.scene.objects.read_verified(made.manifest))
        assert host.file(manifest, PASSES_FILE) == b"what is read"
        assert manifest.meta["before"] == (b"p" * 32).hex()
        assert manifest.meta["continues"] == "cd" * 32
        assert PASSES_FILE not in [file.path for file in host.written(parts)[0].files]
        host.cutting.cut(CutFragments(SLOT, (PASSES,)), host.scene.slow, host.scene.keeping)
        (told,) = [e for e in host.done() if isinstance(e, events.FragmentCut)]
        assert told.chunks == (), "nothing is known"
