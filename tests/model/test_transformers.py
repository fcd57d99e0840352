"""What transformers makes of a model, and what we make of it, are the same: its folders here, ours there, and GGUF."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from llama_scene import PLAN, built, random_values, values_of, written

from peerlm.config import with_changes
from peerlm.errors import ConfigError
from peerlm.model import gguf as ours
from peerlm.model.hf import open_hf
from peerlm.model.model import LanguageModel

CLOSE = 1e-4
IDS_BT = torch.arange(2 * 16).view(2, 16) * 7 % 64


@pytest.fixture(scope="module")
def transformers() -> Iterator[ModuleType]:
    """Importing it takes seconds: once for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TQDM_DISABLE", "1")
        yield pytest.importorskip("transformers", reason="pip install 'peerlm[hf]'")


def theirs(transformers: ModuleType, **changes: Any) -> Any:
    """A small Llama with random weights, norms too."""
    shape = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    }
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1 if parameter.dim() > 1 else 1.0, 0.2)
    return model.eval()


def read(folder: Path) -> LanguageModel:
    found = open_hf(folder)
    plan = with_changes(PLAN, {"data.vocab": found.vocab}, "test")
    plan = type(plan)(model=found.model, data=plan.data, mix=plan.mix)
    return built(plan, values_of(found, plan))


@torch.no_grad()
def assert_same_logits(mine: LanguageModel, other: Any) -> None:
    expected = other(IDS_BT).logits
    assert expected.std() > 0.1, "logits that differ"
    torch.testing.assert_close(mine(IDS_BT), expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rms_norm_eps": 1e-2},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "num_hidden_layers": 3},
    ],
    ids=["tied", "untied, another base", "a key for each query", "one key for all"],
)
def test_a_folder_of_theirs_gives_the_same_logits(
    transformers: ModuleType, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = theirs(transformers, **changes)
    model.save_pretrained(tmp_path)
    assert_same_logits(read(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_of_half_precision_gives_the_same_logits(
    transformers: ModuleType, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = theirs(transformers).to(dtype)
    model.save_pretrained(tmp_path)
    assert_same_logits(read(tmp_path), model.float())


def test_a_folder_of_many_files_gives_the_same_logits(
    transformers: ModuleType, tmp_path: Path
) -> None:
    model = theirs(transformers)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_logits(read(tmp_path), model)


@pytest.mark.parametrize("tied", [True, False])
def test_what_we_write_is_a_llama_to_them(
    transformers: ModuleType, tmp_path: Path, tied: bool
) -> None:
    changes = {"model.tied": tied, "model.norm_eps": 1e-3, "model.rope_base": 5e4}
    plan = with_changes(PLAN, changes, "test")
    folder = written(tmp_path / "out", plan)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert not any(told.values()), told
    assert_same_logits(built(plan, random_values(plan)), model.eval())


def test_there_and_back_changes_no_bit(transformers: ModuleType, tmp_path: Path) -> None:
    folder = written(tmp_path / "ours")
    transformers.LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    found = open_hf(tmp_path / "theirs")
    assert found.model == PLAN.model
    for mine, back in zip(random_values(PLAN), values_of(found, PLAN), strict=True):
        np.testing.assert_array_equal(mine, back)


def test_our_tokenizer_file_says_the_same_to_them(transformers: ModuleType, tmp_path: Path) -> None:
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator(["to be, or not to be"] * 9, trainer)
    folder = written(tmp_path / "out", tokenizer=inner.to_str().encode())
    text = "To be , or\n\tnot  to be. Été!"
    found = transformers.AutoTokenizer.from_pretrained(folder)
    ids = inner.encode(text).ids
    assert found(text)["input_ids"] == ids
    assert found.decode(ids) == text


# ---------------------------------------------------------------------------------------- GGUF

TOKENS = ["!!", *(chr(33 + i) for i in range(63))]


def gguf_file(path: Path, tied: bool = False, **changes: Any) -> Path:
    """A small Llama in GGUF. `changes`: keys below `llama.` or tensors (arrays; None: left out) by name."""
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, changes.pop("architecture", "llama"))
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5e4)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(64)
    if tokens := changes.pop("tokens", TOKENS):
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_merges(["! !"])
    shapes = {
        "token_embd": (64, 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (48, 32),
        "blk.0.ffn_up": (48, 32),
        "blk.0.ffn_down": (32, 48),
        **({} if tied else {"output": (64, 32)}),
    }
    tensors = {f"{n}.weight": rng.normal(0, 0.2, s).astype(np.float32) for n, s in shapes.items()}
    for name, value in changes.items():
        if isinstance(value, np.ndarray):
            tensors[name] = value
        elif value is None:
            del tensors[name]
        elif isinstance(value, str):
            writer.add_string(f"llama.{name}", value)
        else:
            writer.add_uint32(f"llama.{name}", value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_gives_the_logits_that_they_get_of_it(
    transformers: ModuleType, tmp_path: Path, tied: bool
) -> None:
    file = gguf_file(tmp_path / "m.gguf", tied)
    (tmp_path / "out").mkdir()
    ours.convert(file, tmp_path / "out")
    mine = read(tmp_path / "out")
    assert (mine.output.head is None) == tied
    other = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype="float32"
    )
    assert_same_logits(mine, other.eval())
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "qwen2"}, ("general.architecture = qwen2",)),
        ({"rope.scaling.type": "yarn"}, ("llama.rope.scaling.type = yarn",)),
        ({"expert_count": 8}, ("llama.expert_count = 8",)),
        ({"rope_freqs.weight": np.ones(4, np.float32)}, ("rope_freqs.weight", "rotary")),
        ({"blk.0.attn_q.bias": np.ones(32, np.float32)}, ("blk.0.attn_q.bias", "biases")),
        ({"blk.0.ffn_up.weight": None}, ("tensor blk.0.ffn_up.weight is missing",)),
        ({"token_embd.weight": None}, ("tensor token_embd.weight is missing",)),
        (
            {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)},
            ("blk.0.attn_q_norm.weight: no tensor",),
        ),
        (
            {"blk.1.attn_norm.weight": np.ones(32, np.float32)},
            ("blk.1.attn_norm.weight: no tensor", "block_count = 1"),
        ),
        ({"tokens": TOKENS[1:]}, ("cannot be read as GGUF",)),
        ({"tokens": None}, ("tokenizer.ggml.model",)),
    ],
)
def test_what_they_would_pass_over_in_silence_is_refused(
    transformers: ModuleType, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    gguf_refused(gguf_file(tmp_path / "m.gguf", **changes), *words)


def test_a_damaged_gguf_file_is_one_line(transformers: ModuleType, tmp_path: Path) -> None:
    whole = gguf_file(tmp_path / "m.gguf").read_bytes()
    for cut in (b"", b"GGUF", whole[:200], whole[:-100], b"rubbish" * 99, b"\xff" * len(whole)):
        (tmp_path / "m.gguf").write_bytes(cut)
        gguf_refused(tmp_path / "m.gguf", "cannot be read as GGUF")
    gguf_refused(tmp_path / "none.gguf", "no such file")


def test_without_the_libraries_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "m.gguf").touch()
    monkeypatch.setitem(sys.modules, "transformers", None)
    gguf_refused(tmp_path / "m.gguf", "pip install 'peerlm[hf]'")


def gguf_refused(file: Path, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ours.convert(file, file.parent)
    line = str(caught.value)
    assert "\n" not in line
    for word in (str(file) if file.exists() else "", *words):
        assert word in line, line
