"""Folders of Llama's shape: what is written is read again, and whatever is wrong is named in one line."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from llama_scene import CONFIG, INDEX, PLAN, edit, random_values, shard, values_of, written

from peerlm.config import with_changes
from peerlm.errors import ConfigError, StateError
from peerlm.model.hf import open_hf, write_hf
from peerlm.model.plan import fragments

WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "llama")


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_hf(folder)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path, tied: bool, sharded: bool) -> None:
    changes = {"model.tied": tied, "model.norm_eps": 1e-5, "model.rope_base": 5e4}
    plan = with_changes(PLAN, changes, "test")
    folder = written(tmp_path / "out", plan)
    if sharded:
        shard(folder)
    found = open_hf(folder)
    assert (found.model, found.vocab) == (plan.model, plan.data.vocab)
    for mine, theirs in zip(random_values(plan), values_of(found, plan), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_half_precision_is_read_without_torch(folder: Path) -> None:
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    safetensors.numpy.save_file(
        {name: value.astype(np.float16) for name, value in tensors.items()}, folder / WEIGHTS
    )
    for exact, read in zip(random_values(PLAN), values_of(open_hf(folder), PLAN), strict=True):
        np.testing.assert_array_equal(exact.astype(np.float16).astype(np.float32), read)
    code = "import sys, peerlm.model.hf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bfloat16_is_the_upper_half_of_fp32(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    for entry in header.values():
        if "dtype" in entry:
            entry["dtype"] = "BF16"
            entry["data_offsets"] = [at // 2 for at in entry["data_offsets"]]
    text = json.dumps(header).encode()
    upper = np.frombuffer(raw[8 + length :], "<u2")[1::2]
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + upper.tobytes())
    for exact, read in zip(random_values(PLAN), values_of(open_hf(folder), PLAN), strict=True):
        np.testing.assert_array_equal((exact.view(np.uint32) & 0xFFFF0000).view(np.float32), read)


# ---------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2"}, ('model_type = "qwen2"', '"llama"')),
        ({"model_type": None}, ("model_type = null",)),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            ("architectures", "Classification"),
        ),
        ({"hidden_act": "gelu"}, ('hidden_act = "gelu"', '"silu"')),
        ({"attention_bias": True}, ("attention_bias = true",)),
        ({"mlp_bias": True}, ("mlp_bias = true",)),
        ({"sliding_window": 4096}, ("sliding_window = 4096",)),
        ({"num_local_experts": 8}, ("num_local_experts = 8",)),
        ({"quantization_config": {"bits": 4}}, ("quantization_config",)),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ("rope_scaling", "llama3")),
        ({"rope_scaling": {"type": "linear"}}, ("rope_scaling", "linear")),
        ({"rope_scaling": {"rope_type": ["default"]}}, ("rope_scaling",)),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}}, ("rope_parameters", "factor")),
        ({"rope_parameters": 3}, ("rope_parameters = 3",)),
        ({"rope_theta": "much"}, ('rope_theta = "much"', "number")),
        ({"rope_theta": float("nan")}, ("model.rope_base = nan", "finite")),
        ({"rms_norm_eps": True}, ("rms_norm_eps = true",)),
        ({"hidden_size": None}, ("hidden_size = null", "whole number")),
        ({"hidden_size": -32}, ("hidden_size = -32",)),
        ({"vocab_size": 64.0}, ("vocab_size = 64.0",)),
        ({"num_hidden_layers": 10**9}, ("num_hidden_layers = 1000000000", "at most")),
        ({"head_dim": 16}, ("head_dim = 16", "hidden_size / 4")),
        ({"num_key_value_heads": 3}, ("model.kv_heads = 3",)),
        ({"tie_word_embeddings": "yes"}, ("model.tied = 'yes'",)),
    ],
)
def test_what_cannot_be_had_is_named_with_its_key_and_value(
    folder: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    edit(folder / CONFIG, **changes)
    refused(folder, str(folder / CONFIG), *words)


def test_older_and_newer_configurations_say_the_same(folder: Path) -> None:
    edit(
        folder / CONFIG,
        rope_theta=None,
        rope_parameters={"rope_theta": 5e4, "rope_type": "default"},
    )
    assert open_hf(folder).model == replace(PLAN.model, rope_base=5e4)
    edit(folder / CONFIG, rope_parameters=None, rope_theta=3e4, head_dim=None)
    assert open_hf(folder).model == replace(PLAN.model, rope_base=3e4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", ("not valid JSON",)),
        (b"[" * 100_000, ("not valid JSON",)),
        (b"\xff\xfe\x00", ("not valid JSON",)),
        (b"[]", ("must be a JSON object",)),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", ("not valid JSON",)),
    ],
)
def test_a_configuration_that_is_none(folder: Path, content: bytes, words: tuple[str, ...]) -> None:
    (folder / CONFIG).write_bytes(content)
    refused(folder, CONFIG, *words)


def test_missing_files_are_named(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "config.json: no such file")
    (folder / WEIGHTS).unlink()
    refused(folder, "model.safetensors: no such file")


# ------------------------------------------------------------------------------------- tensors


def test_a_missing_an_extra_a_misshapen_and_an_integer_tensor(folder: Path) -> None:
    whole = safetensors.numpy.load_file(folder / WEIGHTS)
    cases: list[tuple[dict[str, np.ndarray], tuple[str, ...]]] = [
        ({n: v for n, v in whole.items() if n != UP}, (f"{UP} is missing", "[48, 32]")),
        ({**whole, "model.layers.2.x": np.zeros(1, np.float32)}, ("model.layers.2.x is none of",)),
        ({**whole, UP: whole[UP].T.copy()}, (f"{UP} is F32[32, 48]", "[48, 32]")),
        ({**whole, UP: whole[UP].astype(np.int8)}, (f"{UP} is I8[48, 32]", "BF16")),
    ]
    for tensors, words in cases:
        safetensors.numpy.save_file(tensors, folder / WEIGHTS)
        refused(folder, WEIGHTS, *words)


def test_a_tied_head_may_be_there_twice_but_not_be_another(folder: Path) -> None:
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)
    assert open_hf(folder).model.tied
    tensors["lm_head.weight"][3, 3] += 1
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)
    refused(folder, "lm_head.weight differs", "tie_word_embeddings")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-4],
        lambda raw: raw + b"\0\0\0\0",
        lambda raw: raw[:100],
        lambda raw: b"",
        lambda raw: b"\xff" * 8 + raw[8:],
        lambda raw: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    ],
    ids=["cut", "longer", "header cut", "empty", "header too long", "pickle"],
)
def test_a_damaged_file_is_no_safetensors_file(
    folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    (folder / WEIGHTS).write_bytes(damage((folder / WEIGHTS).read_bytes()))
    refused(folder, WEIGHTS, "not a safetensors file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_pickle_is_never_opened(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder / name)
    refused(folder, name, "pickle", "convert the model to safetensors")


# --------------------------------------------------------------------------------------- index


def test_an_index_names_files_of_its_folder_alone(folder: Path) -> None:
    shard(folder)
    whole = json.loads((folder / INDEX).read_text())["weight_map"]
    (folder.parent / "two.safetensors").write_bytes((folder / "two.safetensors").read_bytes())
    for file in ("../two.safetensors", "/etc/passwd", "a/../two.safetensors", "two.bin", "", "x\0"):
        changed = {n: file if f == "two.safetensors" else f for n, f in whole.items()}
        edit(folder / INDEX, weight_map=changed)
        refused(folder, INDEX, "weight_map names", "in the same folder")


def test_an_index_that_is_wrong_about_its_files(folder: Path) -> None:
    shard(folder)
    whole = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map=[1])
    refused(folder, INDEX, "no weight_map")
    other = {"one.safetensors": "two.safetensors"}.get(whole[UP], "one.safetensors")
    edit(folder / INDEX, weight_map={**whole, UP: other})
    refused(folder, INDEX, f"{UP} in '{other}'", f"is in '{whole[UP]}'")
    edit(folder / INDEX, weight_map={n: f for n, f in whole.items() if n != UP})
    refused(folder, INDEX, UP)
    edit(folder / INDEX, weight_map=whole)
    (folder / "two.safetensors").unlink()
    refused(folder, "two.safetensors: no such file")


# ------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    "blocks", ["recurrent,feedforward", "attention", "feedforward,attention", "attention,attention"]
)
def test_only_pairs_of_attention_and_feedforward_can_be_written(
    tmp_path: Path, blocks: str
) -> None:
    plan = with_changes(PLAN, {"model.blocks": blocks}, "test")
    with pytest.raises(ConfigError, match=r"model\.blocks = .*cannot be exported as hf"):
        write_hf(tmp_path / "out", plan, random_values(plan), None, {})
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_the_old_model_whole(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    plan = with_changes(PLAN, {"model.rope_base": 7e4}, "test")

    def values() -> Any:
        yield from random_values(plan)[:2]
        raise StateError("the disk is full")

    with pytest.raises(StateError):
        write_hf(folder, plan, values(), b"{}", {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_no_more_than_a_fragment_is_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    plan = with_changes(
        PLAN, {"data.vocab": 20_000, "model.dim": 256, "mix.fragment_max": 200_000}, "test"
    )
    part = 4 * max(spec.size for spec in fragments(plan))
    zeros = (np.zeros(spec.size, np.float32) for spec in fragments(plan))
    tracemalloc.start()
    try:
        write_hf(tmp_path / "out", plan, zeros, None, {})
        for values in values_iter(tmp_path / "out", plan):
            assert values.nbytes <= part
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * part < (tmp_path / "out" / WEIGHTS).stat().st_size / 5


def values_iter(folder: Path, plan: Any) -> Any:
    from peerlm.model.tensors import fragment_values

    found = open_hf(folder)
    return (fragment_values(spec, found.tensors) for spec in fragments(plan))
