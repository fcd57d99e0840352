"""Llama's shape in the words of others and in ours: config.json and `[model]`, names of tensors.

The language model here is Llama's when its blocks are pairs of attention and feed-forward: the same
pre-norm, the same rotary pairing half with half, the same SwiGLU, so weights cross without a change. What
`[model]` has no word for (scaled rotary positions, biases, windows, experts) would make another model of
the same weights, so it is refused, never passed over.

Pure: dictionaries in, dictionaries out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peerlm.config import INT_MAX, ModelSection, Plan, with_changes
from peerlm.errors import ConfigError
from peerlm.types import printable

PAIR = ("attention", "feedforward")

NAMES = {
    "attention": {
        "norm.weight": "input_layernorm.weight",
        "query.weight": "self_attn.q_proj.weight",
        "key.weight": "self_attn.k_proj.weight",
        "value.weight": "self_attn.v_proj.weight",
        "output.weight": "self_attn.o_proj.weight",
    },
    "feedforward": {
        "norm.weight": "post_attention_layernorm.weight",
        "gate.weight": "mlp.gate_proj.weight",
        "up.weight": "mlp.up_proj.weight",
        "down.weight": "mlp.down_proj.weight",
    },
}
"""Kind of a block → its parameters' names here and there."""

HEAD = "lm_head.weight"

DERIVED = ".rotary_emb.inv_freq"
"""End of the name of a tensor that older files hold and that follows from the configuration."""

ONLY: dict[str, tuple[Any, ...]] = {
    "architectures": (["LlamaForCausalLM"],),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (),
    "partial_rotary_factor": (1.0,),
    "num_local_experts": (),
    "quantization_config": (),
}
"""Key → the values that mean what we compute. Absent and null are among them."""

ROPE = ("rope_parameters", "rope_scaling")
"""Where new and old configurations say how rotary positions are scaled."""

PLAIN_ROPE = (("rope_type", "default"), ("type", "default"))

LAYERS_MAX = 1024
"""Published models have about a hundred; a plan has room for more blocks than this."""

SHOWN_CHARS_MAX = 100


def model_of(config: Mapping[str, Any], where: str) -> tuple[ModelSection, int]:
    """The model that a config.json describes, with its whole context; and its vocabulary.

    Raises:
        ConfigError: it is not Llama's shape, or something of it cannot be had here.
    """
    if config.get("model_type") != "llama":
        raise _refused(where, "model_type", config.get("model_type"), 'only "llama" can be had')
    for key, values in ONLY.items():
        value = config.get(key)
        if value is not None and value not in values:
            only = " or ".join(json.dumps(v) for v in (*values, None))
            raise _refused(where, key, value, f"only {only} can be had")
    layers = _whole(config, where, "num_hidden_layers")
    if layers > LAYERS_MAX:
        raise _refused(where, "num_hidden_layers", layers, f"at most {LAYERS_MAX}")
    dim, heads = (_whole(config, where, key) for key in ("hidden_size", "num_attention_heads"))
    head_dim = _whole(config, where, "head_dim", dim // heads or 1)
    if head_dim * heads != dim:
        raise _refused(
            where,
            "head_dim",
            head_dim,
            f"with num_attention_heads = {heads} it must be hidden_size / {heads}, of {dim}",
        )
    fields = {
        "model.blocks": PAIR * layers,
        "model.dim": dim,
        "model.heads": heads,
        "model.kv_heads": _whole(config, where, "num_key_value_heads", heads),
        "model.hidden": _whole(config, where, "intermediate_size"),
        "model.context": _whole(config, where, "max_position_embeddings", 2048),
        "model.tied": config.get("tie_word_embeddings") or False,
        "model.rope_base": _rope_base(config, where),
        "model.norm_eps": _number(where, "rms_norm_eps", config.get("rms_norm_eps") or 1e-6),
        "data.vocab": _whole(config, where, "vocab_size"),
    }
    plan = with_changes(Plan(), fields, where)
    return plan.model, plan.data.vocab


def config_of(model: ModelSection, vocab: int, end: int | None = None) -> dict[str, Any]:
    """The config.json of a model. `end`: the token behind a document.

    Raises:
        ConfigError: the model is not Llama's shape.
    """
    if model.blocks != PAIR * (len(model.blocks) // 2):
        blocks = ", ".join(model.blocks)
        shown = blocks if len(blocks) <= SHOWN_CHARS_MAX else blocks[:SHOWN_CHARS_MAX] + "…"
        raise ConfigError(
            f"model.blocks = {shown}: only pairs of attention and feedforward are Llama's shape; "
            "this model cannot be exported as hf"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": model.dim,
        "intermediate_size": model.hidden,
        "num_hidden_layers": len(model.blocks) // 2,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.dim // model.heads,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": model.tied,
        "bos_token_id": None,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }


def published_names(model: ModelSection) -> dict[str, str]:
    """Every parameter's name here → its name in published files."""
    names = {
        "embedding.weight": "model.embed_tokens.weight",
        "output.norm.weight": "model.norm.weight",
    }
    if not model.tied:
        names["output.head.weight"] = HEAD
    for index, kind in enumerate(model.blocks):
        for ours, theirs in NAMES[kind].items():
            names[f"blocks.{index}.{kind}.{ours}"] = f"model.layers.{index // 2}.{theirs}"
    return names


def _rope_base(config: Mapping[str, Any], where: str) -> float:
    base = config.get("rope_theta") or 10_000.0
    for key in ROPE:
        rope = config.get(key) or {}
        if not isinstance(rope, Mapping) or any(
            name != "rope_theta" and (name, value) not in PLAIN_ROPE for name, value in rope.items()
        ):
            raise _refused(where, key, rope, "scaled rotary positions cannot be had")
        base = rope.get("rope_theta") or base
    return _number(where, "rope_theta", base)


def _whole(config: Mapping[str, Any], where: str, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 1 <= value < INT_MAX:
        raise _refused(where, key, value, "must be a whole number, 1 or more")
    return value


def _number(where: str, key: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise _refused(where, key, value, "must be a number")
    return float(value)


def _refused(where: str, key: str, value: Any, why: str) -> ConfigError:
    text = json.dumps(value)
    shown = text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…"
    return ConfigError(f"{where}: {key} = {printable(shown)}: {why}")
