"""Published weights through the command: a run that starts from them, and exports in their form."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from cli_scene import Cli, assert_one_line
from llama_scene import CONFIG, PLAN, edit, random_values, values_of, written

from peerlm.cli.plan import current_plan
from peerlm.config import with_changes
from peerlm.model.export import write_model
from peerlm.model.hf import open_hf
from peerlm.model.plan import fragments
from peerlm.model.stages import held_fragments
from peerlm.model.tensors import fragment_values
from peerlm.store import snapshot
from peerlm.store.layout import Layout
from peerlm.store.placed import read_placed

BYTES = with_changes(PLAN, {"data.vocab": 300}, "test")
"""A model with ids to spare: its tokenizer is `bytes`."""


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return written(tmp_path / "llama", BYTES)


def words_file(path: Path, vocab: int) -> bytes:
    import tokenizers

    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, vocab - 1)}, "</s>": vocab - 1}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(path))
    return path.read_bytes()


def test_a_llama_becomes_a_run_and_is_exported_to_the_last_bit(
    peerlm: Cli, tmp_path: Path, llama: Path
) -> None:
    state = ("--state", tmp_path / "node")
    fragments = ("--set", "mix.fragment_max=5000")
    outcome = peerlm("init", *state, "--from", f"hf:{llama}", "--tokenizer", "bytes", *fragments)
    assert outcome.code == 0, outcome
    plan = current_plan(Layout(tmp_path / "node")).plan
    assert (plan.model, plan.data.vocab) == (BYTES.model, 300)

    said = peerlm("export", tmp_path / "out", *state, "--format", "hf", "--check")
    assert said.code == 0, said
    assert said.out.rstrip().endswith("out/config.json")
    assert (tmp_path / "out" / CONFIG).read_bytes() == (llama / CONFIG).read_bytes()
    found = open_hf(tmp_path / "out")
    for mine, back in zip(random_values(BYTES), values_of(found, BYTES), strict=True):
        np.testing.assert_array_equal(mine, back)
    said = peerlm("generate", "To be", *state, "--tokens", "4")
    assert (said.out[:5], said.err) == ("To be", "")
    prompt = "x" * (plan.model.context + 3)
    said = peerlm("generate", prompt, *state, "--tokens", "4")
    context = plan.model.context
    line = f"the prompt has {context + 3} tokens; the model reads the last {context}"
    assert (said.code, said.err) == (0, f"peerlm: {line}\n")


def test_its_tokenizer_travels_with_it(peerlm: Cli, tmp_path: Path) -> None:
    file = words_file(tmp_path / "t.json", 60)
    llama = written(tmp_path / "llama", PLAN, file)
    state = ("--state", tmp_path / "node")
    assert peerlm("init", *state, "--from", f"hf:{llama}").code == 0
    plan = current_plan(Layout(tmp_path / "node")).plan
    assert plan.data.vocab == 64, "ids to spare are the model's"
    assert (tmp_path / "node" / "objects" / plan.data.tokenizer).read_bytes() == file
    assert peerlm("export", tmp_path / "out", *state, "--format", "hf").code == 0
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == file
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 59
    assert peerlm("generate", "w1 w2", *state, "--tokens", "4").code == 0
    outcome = peerlm("init", "--state", tmp_path / "n", "--from", f"hf:{llama}", "--tokenizer", "x")
    assert_one_line(outcome, 2, "--tokenizer", "--from", "has its own")


def test_a_long_context_is_cut_unless_it_is_asked_for(peerlm: Cli, tmp_path: Path) -> None:
    plan = with_changes(BYTES, {"model.context": 8192}, "test")
    llama = written(tmp_path / "llama", plan)
    given = ("--from", f"hf:{llama}", "--tokenizer", "bytes")
    for name, options, context in (("a", (), 1024), ("b", ("--set", "model.context=2_048"), 2048)):
        assert peerlm("init", "--state", tmp_path / name, *given, *options).code == 0
        assert current_plan(Layout(tmp_path / name)).plan.model.context == context


def test_ids_to_spare_may_need_a_wider_type_than_the_tokenizers(
    peerlm: Cli, tmp_path: Path
) -> None:
    from peerlm.data.shards import Corpus

    llama = written(tmp_path / "llama", with_changes(PLAN, {"data.vocab": 65_600}, "test"))
    state = ("--state", tmp_path / "n")
    assert peerlm("init", *state, "--from", f"hf:{llama}", "--tokenizer", "bytes").code == 0
    data = current_plan(Layout(tmp_path / "n")).plan.data
    Corpus.open([tmp_path / "n" / "objects" / shard for shard in data.shards], data.vocab)


@pytest.mark.parametrize(("wish", "held"), [("0", range(1)), ("1", range(1, 2)), ("auto", None)])
def test_what_the_first_node_does_not_hold_lies_beside_as_copies(
    peerlm: Cli, tmp_path: Path, llama: Path, wish: str, held: range | None
) -> None:
    stages = ("--set", "model.stages=2", "--host", wish)
    state = tmp_path / "node"
    said = peerlm(
        "init", "--state", state, "--from", f"hf:{llama}", "--tokenizer", "bytes", *stages
    )
    assert said.code == 0, said
    layout = Layout(state)
    plan = current_plan(layout).plan
    found = snapshot.load(layout).snapshot
    assert found is not None
    mine = {record.id for record in found.manifest.fragments}
    if held is None:  # it has room for all
        assert mine == {spec.id for spec in fragments(plan)}
        assert not layout.placement.exists()
        return
    assert mine == {spec.id for spec in held_fragments(plan, held)}
    placed = read_placed(layout.placement.read_bytes(), layout.placement, 2)
    assert placed.held == held
    tensors = open_hf(llama).tensors
    for spec in fragments(plan):
        assert (spec.id in mine) != (spec.id in placed.copies)
        if (copy := placed.copies.get(spec.id)) is not None:
            data = (layout.objects / copy.object_hash.hex()).read_bytes()
            assert blake3(data).digest() == copy.object_hash
            np.testing.assert_array_equal(
                np.frombuffer(data, np.float32), fragment_values(spec, tensors)
            )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("tokenizer.json: no such file", "--tokenizer")),
        (("--tokenizer", "words.json"), ("300 token ids", "301")),
        (("--tokenizer", "bytes", "--set", "model.tied=false"), ("model.tied", "--from")),
        (("--tokenizer", "bytes", "--set", "model.context=2"), ("model.context = 2",)),
        (("--tokenizer", "bytes", "--set", "model.heads=2"), ("model.heads", "--from")),
        (
            ("--tokenizer", "bytes", "--set", "model.stages=2", "--host", "none"),
            ("--host none", "weights"),
        ),
    ],
)
def test_what_does_not_go_with_it_is_one_line(
    peerlm: Cli,
    tmp_path: Path,
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    words_file(tmp_path / "words.json", 301)
    outcome = peerlm("init", "--state", "node", "--from", f"hf:{llama}", *options)
    assert_one_line(outcome, 2, *words)
    assert not Path("node").exists()


def test_what_is_wrong_with_a_folder_is_one_line(peerlm: Cli, tmp_path: Path, llama: Path) -> None:
    init = ("init", "--state", tmp_path / "node", "--tokenizer", "bytes", "--from")
    assert_one_line(peerlm(*init, "hf:nowhere"), 2, "nowhere/config.json", "no such file")
    edit(llama / CONFIG, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    assert_one_line(peerlm(*init, f"hf:{llama}"), 2, str(llama / CONFIG), "rope_scaling", "yarn")
    raw = bytearray((llama / "model.safetensors").read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    (llama / "model.safetensors").write_bytes(raw)
    edit(llama / CONFIG, rope_scaling=None)
    assert_one_line(peerlm(*init, f"hf:{llama}"), 2, str(llama), "output", "not finite")
    assert_one_line(peerlm(*init[:3], "--from", "gguf:nowhere"), 2, "nowhere: no such file")
    assert not (tmp_path / "node").exists()


def test_a_model_of_another_shape_or_in_the_way_is_one_line(
    peerlm: Cli, tmp_path: Path, llama: Path
) -> None:
    plan = with_changes(PLAN, {"model.blocks": "recurrent,attention", "data.vocab": 256}, "test")
    write_model(tmp_path / "own", plan, random_values(plan))
    state = ("--state", tmp_path / "node")
    assert peerlm("init", *state, "--from", tmp_path / "own").code == 0
    export = ("export", *state, "--force", "--format")
    outcome = peerlm(*export, "hf", tmp_path / "out")
    assert_one_line(outcome, 2, "model.blocks = recurrent, attention", "cannot be exported as hf")
    assert not (tmp_path / "out").exists()
    assert_one_line(peerlm(*export, "hf", tmp_path / "own"), 2, "another format")
    assert_one_line(peerlm(*export, "peerlm", llama), 2, "another format")
    (llama / "model.safetensors").unlink()
    outcome = peerlm("export", *state, "--format", "hf", llama)
    assert_one_line(outcome, 2, "holds a model already")


# ------------------------------------------------------------------------------- a real one

GGUF = os.environ.get("PEERLM_TEST_GGUF", "")
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
)
TOKENS = 64


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not GGUF, reason="PEERLM_TEST_GGUF names no GGUF file of a Llama")
def test_a_published_model_says_the_same_here_as_in_transformers(
    peerlm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch

    transformers = pytest.importorskip("transformers")
    state = ("--state", tmp_path / "node")
    assert peerlm("init", *state, "--from", f"gguf:{GGUF}").code == 0
    assert peerlm("export", tmp_path / "hf", *state, "--format", "hf", "--check").code == 0

    named = {"gguf_file": Path(GGUF).name, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(GGUF).parent, **named)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        Path(GGUF).parent, dtype=torch.float32, **named
    ).eval()
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    for prompt in PROMPTS:
        asked = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            ids = reference.generate(**asked, max_new_tokens=TOKENS, do_sample=False)[0]
            apart = exported(ids[None]).logits - reference(ids[None]).logits
        expected = prompt + tokenizer.decode(ids[asked["input_ids"].shape[1] :])
        expected = expected.removesuffix(tokenizer.eos_token)
        said = peerlm("generate", prompt, *state, "--temperature", "0", "--tokens", TOKENS)
        assert said.out == expected + "\n"
        assert apart.abs().max() < 1e-4
    shutil.rmtree(tmp_path / "node")
