"""`peerlm init --from CHECKPOINT --continue`: what of a run goes on, and what bad input gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from cli_scene import SMALL, Cli, assert_one_line
from desk_scene import FakeDesk, desk

from peerlm.cli.main import main
from peerlm.cli.plan import current_plan
from peerlm.config import Plan, differences
from peerlm.data.passes import Passes
from peerlm.data.records import FILE as PASSES
from peerlm.data.records import Record, decode, encode, parts_of
from peerlm.model.export import PLAN, WEIGHTS, write_model
from peerlm.model.moments import FILE as MOMENTS
from peerlm.model.moments import MomentsFile, remembered
from peerlm.model.plan import fragments, parameter_shapes
from peerlm.store import snapshot
from peerlm.store.layout import Layout
from peerlm.store.manifest import FILE, Chunk, Kind, manifest_hash, of_files
from peerlm.store.placed import read_placed
from peerlm.types import ObjectHash, PeerId

__all__ = ["desk"]

TEXT = "To be, or not to be, that is the question.\n" * 500
RUN = "ab" * 16
TOKENS = 1_234_567
FRAGMENTS = ("--set", "mix.fragment_max=2000")


@dataclass
class Kept:
    """A checkpoint in a folder, and the text of its run."""

    folder: Path
    text: Path
    plan: Plan
    values: list[np.ndarray[Any, np.dtype[np.float32]]]
    manifest: bytes = b""

    def list_files(self, **meta: object) -> None:
        """Its manifest, of what is in the folder now."""
        files = [path for path in sorted(self.folder.iterdir()) if path.name != FILE]
        chunks = [(p.name, [_chunk(p.read_bytes())]) for p in files]
        versions = list(range(5, 5 + len(self.values)))
        told = {"run": RUN, "tokens": TOKENS, "versions": versions, "before": "", **meta}
        encoded = of_files(Kind.CHECKPOINT, chunks, told).encode()
        self.manifest = manifest_hash(encoded)
        (self.folder / FILE).write_bytes(encoded)

    def write(self, plan: Plan) -> None:
        self.plan = plan
        about = {"run": RUN, "tokens": str(TOKENS)}
        write_model(self.folder, plan, self.values, metadata=about)
        record = Passes(parts_of(plan)[0].text, 10, 3)
        record.add(3, 0b111)
        (self.folder / PASSES).write_bytes(encode([Record(record)]))
        self.list_files()


def _chunk(data: bytes) -> Chunk:
    return Chunk(ObjectHash(blake3(data).digest()), len(data))


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `kept` copies."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("plays.txt").write_text(TEXT)
        begun = ["init", "--state", "old", "--data", "plays.txt", *SMALL, *FRAGMENTS]
        assert main(begun) == 0
    plan = current_plan(Layout(folder / "old")).plan
    Kept(folder / "checkpoint", folder / "plays.txt", plan, values_of(plan)).write(plan)
    return folder


def values_of(plan: Plan) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=f.size).astype(np.float32) for f in fragments(plan)]


@pytest.fixture
def kept(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Of a run that has begun with a text of its own, named as seen from here."""
    shutil.copytree(_made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    plan = current_plan(Layout(tmp_path / "old")).plan
    name = manifest_hash((tmp_path / "checkpoint" / FILE).read_bytes())
    return Kept(tmp_path / "checkpoint", tmp_path / "plays.txt", plan, values_of(plan), name)


def goes_on(peerlm: Cli, kept: Kept, *options: object) -> tuple[Layout, str]:
    """The new node's folder, and what was said of it."""
    layout = Layout(kept.folder.with_name("node"))
    done = peerlm("init", "--state", layout.root, "--from", kept.folder, "--continue", *options)
    assert done.code == 0, done
    return layout, done.out + done.err


def refused(peerlm: Cli, kept: Kept, *words: str, options: tuple[object, ...] = ()) -> None:
    node = kept.folder.with_name("node")
    done = peerlm("init", "--state", node, "--from", kept.folder, "--continue", *options)
    assert_one_line(done, 2, *words)
    assert not node.exists()


def begun(layout: Layout) -> snapshot.Manifest:
    found = snapshot.load(layout).snapshot
    assert found is not None
    return found.manifest


# ---------------------------------------------------------------------------------- what goes on


def test_plan_tokens_weights_and_place_in_the_text_go_on(peerlm: Cli, kept: Kept) -> None:
    layout, said = goes_on(peerlm, kept)
    plan = current_plan(layout).plan
    assert {line.partition(":")[0] for line in differences(kept.plan, plan)} == {
        "run.initial",
        "run.continues",
    }
    assert plan.run.continues == kept.manifest.hex()
    manifest = begun(layout)
    assert manifest.contents.tokens == {(PeerId(bytes.fromhex(RUN)), 0): TOKENS}
    assert manifest.contents.own_tokens == 0
    assert [r.version for r in manifest.fragments] == list(range(5, 5 + len(kept.values)))
    for record, expected in zip(manifest.fragments, kept.values, strict=True):
        assert record.phi.hash == blake3(expected.tobytes()).digest()
    ((passes, lanes),), _ = decode(layout.passes.read_bytes())
    assert (passes.lowest, passes.bits(3), list(lanes)) == (3, 0b111, [])
    assert all((layout.objects / shard).is_file() for shard in plan.data.shards)
    assert f"goes on with run plays ({RUN[:8]}) after 1,234,567 tokens" in said
    assert "in pass 3, 30.0% read" in said
    assert "optimizer.safetensors: there is none" in said


def test_what_a_living_run_may_change_and_its_cut_can_change(peerlm: Cli, kept: Kept) -> None:
    sets = ("--set", "model.stages=2", "--set", "mix.fragment_max=1024", "--set", "train.lr=0.01")
    layout, _ = goes_on(peerlm, kept, *sets, "--name", "again", "--host", "0")
    plan = current_plan(layout).plan
    assert (plan.model.stages, plan.train.lr, plan.run.name) == (2, 0.01, "again")
    mine = begun(layout).fragments
    placed = read_placed(layout.placement.read_bytes(), layout.placement, 2)
    assert len(mine) + len(placed.copies) == len(fragments(plan)) > len(kept.values)
    assert {r.version for r in mine} | {c.version for c in placed.copies.values()} == {5}
    assert decode(layout.passes.read_bytes())[0][0].passes.lowest == 3


def test_the_optimizer_goes_on_unless_a_byte_of_it_is_wrong(peerlm: Cli, kept: Kept) -> None:
    moments, counts = MomentsFile(kept.folder / MOMENTS, kept.plan, remembered(kept.plan)), remembered(kept.plan)  # fmt: skip
    for name, (_, shape) in parameter_shapes(kept.plan.model, kept.plan.data.vocab).items():
        moments.write(name, 3, np.ones(counts[name] * int(np.prod(shape)), np.float32))
    moments.commit()
    kept.list_files()
    layout, said = goes_on(peerlm, kept)
    given = (kept.folder / MOMENTS).read_bytes()
    assert "the optimizer begins with" in said
    assert layout.moments.read_bytes() == given
    (kept.folder / MOMENTS).write_bytes(given[:-1] + bytes([given[-1] ^ 1]))
    done = peerlm("init", "--state", kept.folder.with_name("n2"), "--from", kept.folder, "--continue")  # fmt: skip
    assert "the optimizer begins empty: " in done.err
    assert f"is not what {FILE} says" in done.err
    assert not Layout(kept.folder.with_name("n2")).moments.exists()


def test_a_folder_without_a_manifest_says_how_far_the_run_was(peerlm: Cli, kept: Kept) -> None:
    (kept.folder / FILE).unlink()
    layout, said = goes_on(peerlm, kept)
    assert begun(layout).contents.swarm_tokens == TOKENS
    assert current_plan(layout).plan.run.continues == ""
    assert f"{FILE}: there is none" in said
    assert "the text is read from its beginning: what of it was read is not known" in said
    assert not layout.passes.exists()


@pytest.mark.parametrize("how", ["cut", "gone", "no record"])
def test_without_its_place_in_the_text_a_run_reads_it_from_the_beginning(
    peerlm: Cli, kept: Kept, how: str
) -> None:
    path = kept.folder / PASSES
    match how:
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "gone":
            path.unlink()
        case _:
            path.write_bytes(b"nonsense")
            kept.list_files()
    layout, said = goes_on(peerlm, kept)
    assert "the text is read from its beginning: " in said
    assert str(path) in said
    assert not layout.passes.exists()
    assert begun(layout).contents.swarm_tokens == TOKENS


# ---------------------------------------------------------------------------------------- the text


def test_text_that_was_in_the_lost_store_comes_from_a_copy(
    peerlm: Cli, kept: Kept, tmp_path: Path
) -> None:
    data = replace(kept.plan.data, source="swarm:plays")
    kept.write(replace(kept.plan, data=data))
    refused(peerlm, kept, "data.source = swarm:plays", "peerlm data get", "--data")
    copies = tmp_path / "copy" / "plays"
    copies.mkdir(parents=True)
    (copies / "README").write_text("not a shard")
    for number, shard in enumerate(data.shards):
        given = (tmp_path / "old" / "objects" / shard).read_bytes()
        (copies / f"shard-{number:05}.tokens").write_bytes(given)
    layout, said = goes_on(peerlm, kept, "--data", tmp_path / "copy")
    plan = current_plan(layout).plan
    assert plan.data == data
    assert all((layout.objects / shard).is_file() for shard in data.shards)
    assert "plays in pass 3" in said


def test_a_copy_that_lacks_a_shard_is_one_line(peerlm: Cli, kept: Kept, tmp_path: Path) -> None:
    data, lacking = kept.plan.data, "cd" * 32
    twice = replace(data, shards=(*data.shards, lacking), shard_tokens=2 * data.shard_tokens)
    kept.write(replace(kept.plan, data=twice))
    where = tmp_path / "old" / "objects"
    refused(peerlm, kept, "1 of the 2 shards", lacking[:16], options=("--data", where))


def test_text_that_has_changed_is_one_line_and_may_be_gone_on_with(peerlm: Cli, kept: Kept) -> None:
    kept.text.write_text(TEXT + "Another line.\n")
    refused(peerlm, kept, kept.text.name, "no longer the text", "--data")
    layout, said = goes_on(peerlm, kept, "--data", kept.text)
    plan = current_plan(layout).plan
    assert plan.data.shards != kept.plan.data.shards
    assert "the text is read from its beginning: it is another" in said
    assert begun(layout).contents.swarm_tokens == TOKENS


def test_the_same_text_elsewhere_is_the_same_text(peerlm: Cli, kept: Kept, tmp_path: Path) -> None:
    moved = kept.text.rename(tmp_path / "moved.txt")
    refused(peerlm, kept, "data.source", kept.text.name, "no such file")
    layout, said = goes_on(peerlm, kept, "--data", moved)
    assert current_plan(layout).plan.data == kept.plan.data
    assert "in pass 3" in said


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "model.dim=32"), ("--set model.dim", "--continue")),
        (("--set", "model.context=64"), ("--set model.context", "--continue")),
        (("--set", "run.rng_seed=7"), ("--set run.rng_seed", "--continue")),
        (("--set", "data.source=shipped"), ("--set data.source", "--data")),
        (("--set", "model.stages=9"), ("model.stages = 9",)),
        (("--set", "run.token_budget=1_000_000"), ("1,000,000", "1,234,567", "raise it")),
        (("--preset", "tiny"), ("--preset", "--continue")),
        (("--tokenizer", "bytes"), ("--tokenizer", "has its own")),
        (("--data", "swarm:plays"), ("swarm:plays", "keeps nothing yet")),
        (("--data", "nowhere.txt"), ("--data", "nowhere.txt", "no such file")),
        (("--set", "train.batch=1000"), ("shorter than one batch",)),
        (("--host", "none"), ("--host none",)),
    ],
)
def test_flags_that_contradict_the_checkpoint_are_one_line(
    peerlm: Cli, kept: Kept, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    refused(peerlm, kept, *words, options=options)


def damage(kept: Kept, how: str) -> None:
    weights, plan, manifest = (kept.folder / name for name in (WEIGHTS, PLAN, FILE))
    whole = weights.read_bytes()
    match how:
        case "cut":
            weights.write_bytes(whole[:-4])
        case "one bit":
            weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "weights gone":
            weights.unlink()
        case "of another model":
            other = [values + 1 for values in kept.values]
            write_model(kept.folder, kept.plan, other, metadata={"run": RUN, "tokens": "1"})
        case "another plan":
            plan.write_text(plan.read_text().replace("lr = 0.008", "lr = 0.009", 1))
        case "half a manifest":
            manifest.write_bytes(manifest.read_bytes()[:-20])
        case "manifest of files":
            manifest.write_bytes(of_files(Kind.FILES, [], {}).encode())
        case "manifest of nothing":
            manifest.write_bytes(of_files(Kind.CHECKPOINT, [], {}).encode())
        case _:
            raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", (WEIGHTS, "bytes", "copy the checkpoint anew")),
        ("one bit", (WEIGHTS, f"is not what {FILE} says")),
        ("weights gone", (WEIGHTS, "no such file")),
        ("of another model", (WEIGHTS, FILE)),
        ("another plan", (PLAN, FILE)),
        ("half a manifest", (FILE, "not a manifest")),
        ("manifest of files", (FILE, "of no checkpoint")),
        ("manifest of nothing", (FILE, f"lists no {WEIGHTS}")),
    ],
)
def test_a_damaged_checkpoint_is_one_line(
    peerlm: Cli, kept: Kept, how: str, words: tuple[str, ...]
) -> None:
    damage(kept, how)
    refused(peerlm, kept, *words)


@pytest.mark.parametrize(
    "meta",
    [{"run": 7}, {"run": "xy"}, {"tokens": -1}, {"tokens": "9"}, {"tokens": 2**60}, {"tokens": True}],
)  # fmt: skip
def test_a_manifest_that_does_not_say_how_far_the_run_was_is_one_line(
    peerlm: Cli, kept: Kept, meta: Mapping[str, object]
) -> None:
    kept.list_files(**meta)
    refused(peerlm, kept, FILE, "does not say of which run it is")


def test_versions_that_are_no_counts_are_one_line(peerlm: Cli, kept: Kept) -> None:
    kept.list_files(versions=[1, "2"])
    refused(peerlm, kept, "versions", "must be counts")


def test_what_is_no_checkpoint_is_one_line(peerlm: Cli, kept: Kept, tmp_path: Path) -> None:
    node = ("--state", tmp_path / "node", "--continue")
    assert_one_line(peerlm("init", *node), 2, "--continue", "--from DIR")
    assert_one_line(peerlm("init", *node, "--from", "hf:somewhere"), 2, "--from hf:somewhere")
    assert_one_line(peerlm("init", *node, "--from", tmp_path), 2, str(tmp_path / PLAN), "no such file")  # fmt: skip
    write_model(tmp_path / "bare", kept.plan, kept.values)
    said = ("does not say of which run", "without --continue")
    assert_one_line(peerlm("init", *node, "--from", tmp_path / "bare"), 2, *said)
    assert not (tmp_path / "node").exists()


# --------------------------------------------------------------------- what is copied out of a store


def test_a_checkpoint_is_copied_with_its_manifest(
    peerlm: Cli, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("peerlm.cli.chunk_reading.open_desk", lambda layout: desk)
    name = desk.checkpoint("kept")
    assert peerlm("checkpoint", "get", name, tmp_path / "got").code == 0
    assert peerlm("checkpoint", "export", name, f"file://{tmp_path}/out").code == 0
    for folder in ("got", "out"):
        encoded = (tmp_path / folder / FILE).read_bytes()
        assert manifest_hash(encoded).hex() == desk.records[name]["manifest"]
        assert json.loads(encoded)["meta"]["before"] == "ab" * 32
