"""plan.toml: what the swarm agrees on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peerlm.config.fields import at_least, between, one_of, option

Scalar = str | int | float | bool

MODULE_KINDS = ("attention", "recurrent", "feedforward")


@dataclass(frozen=True, slots=True)
class RunSection:
    name: str = option(
        "plays",
        "Name of the run, for people.",
        allowed="1 to 64 characters",
        ok=lambda v: 1 <= len(v) <= 64,
    )
    rng_seed: int = at_least(0, 1, "Seed of initial weights, data order and sketches.")
    initial: str = one_of(
        "drawn",
        ("drawn", "given"),
        "Where the first weights come from: drawn by `rng_seed`, or given by the first node, as "
        "`peerlm init --from` has it, which sets this.",
    )
    token_budget: int = at_least(
        1,
        4_000_000,
        "The run is done when the swarm has trained on this many tokens in all; "
        "raise it with `peerlm plan set` to go on.",
        unit="tokens",
    )
    continues: str = option(
        "",
        "Hash of the manifest of the checkpoint that this run goes on from; `peerlm init --continue` sets it. Empty: it began by "
        "itself, or with another run's weights.",
        allowed="64 hex digits, lower case, or empty",
        ok=lambda v: re.fullmatch("([0-9a-f]{64})?", v) is not None,
    )
    checkpoint_optimizer: bool = option(
        False,
        "Checkpoints in the swarm's store have the inner optimizer's state too, of one host of each stage: 4 bytes more a "
        "parameter that Muon moves, 8 one of AdamW's.",
    )


@dataclass(frozen=True, slots=True)
class ModelSection:
    blocks: tuple[str, ...] = option(
        ("recurrent", "attention", "feedforward"),
        "Modules between the embedding and the output head, in order. Each is a residual block "
        "under RMSNorm.",
        allowed="a list of: " + ", ".join(MODULE_KINDS),
        ok=lambda v: len(v) >= 1 and all(kind in MODULE_KINDS for kind in v),
    )
    dim: int = at_least(8, 128, "Width of the residual stream.", unit="features")
    heads: int = at_least(1, 4, "Query heads of an attention block; must divide `dim`.")
    kv_heads: int = at_least(
        1, 2, "Key and value heads (grouped-query attention); must divide `heads`."
    )
    hidden: int = at_least(8, 352, "Inner width of a SwiGLU feed-forward block.", unit="features")
    cell: str = one_of("lstm", ("gru", "lstm"), "Recurrence of a recurrent block.")
    context: int = at_least(8, 128, "Tokens a model sees at once in training.", unit="tokens")
    tied: bool = option(
        True, "Output head shares the embedding's matrix. Untied, it is a module of its own."
    )
    rope_base: float = at_least(1.0, 10_000.0, "Base of the rotary position frequencies.")
    norm_eps: float = between(
        1e-12,
        0.1,
        1e-6,
        "Added to the mean square in every RMSNorm. Published models differ in it.",
    )
    stages: int = at_least(
        1,
        1,
        "Runs of modules that the model is cut into, so that a node need not hold all of them "
        "(host.stages in node.toml). At most as many as there are blocks. `peerlm init` takes `auto` too: as few as let "
        "each fit into what its machine offers.",
    )


@dataclass(frozen=True, slots=True)
class DataSection:
    source: str = option(
        "shipped",
        "Where the text came from: `shipped`, `local`, or an fsspec URL (file, "
        "directory, glob, http). With `local` each node trains on its own files "
        "(data.local in node.toml), which never leave it. In a living run: `swarm:NAME`, a corpus in the swarm's store, or "
        "several with a weight each, `swarm:plays*3+news*1`; `local` can be one of them.",
        allowed="non-empty",
        ok=bool,
    )
    tokenizer: str = option(
        "bytes",
        "`bytes`, or the path of a `tokenizers` JSON file at init; the plan then "
        "holds its hash and nodes fetch it from peers.",
        allowed="non-empty",
        ok=bool,
    )
    vocab: int = at_least(
        2, 256, "Number of token ids; set from the tokenizer at init.", unit="tokens"
    )
    shards: tuple[str, ...] = option(
        (),
        "Hashes (BLAKE3, hex) of the corpus objects, in order; set at init. Empty with `local`.",
        allowed="64 hex digits each, lower case",
        ok=lambda v: all(re.fullmatch("[0-9a-f]{64}", s) for s in v),
    )
    shard_tokens: tuple[int, ...] = option(
        (),
        "Tokens of each of `shards`, in order; set with them. Where it says nothing, as in a plan "
        "of an earlier release, nodes wait for all shards before they train.",
        unit="tokens",
        allowed="1 to 2^32 each",
        ok=lambda v: all(1 <= n < 1 << 32 for n in v),
    )
    parts: tuple[int, ...] = option(
        (),
        "How many of `shards` are each corpus', where `source` names several; set with it. None are `local`'s.",
        allowed="≥ 0 each",
        ok=lambda v: all(n >= 0 for n in v),
    )
    val_fraction: float = between(
        0.0, 0.5, 0.05, "Share of the corpus (of each corpus), at its end, held out for validation."
    )


@dataclass(frozen=True, slots=True)
class TrainSection:
    optimizer: str = one_of(
        "muon",
        ("muon", "adamw", "sgd"),
        "Inner optimizer. `muon` takes the matrices of "
        "the blocks; embedding, head, norms and vectors go to AdamW.",
    )
    lr: float = between(
        1e-6, 10.0, 0.008, "Peak learning rate of `optimizer` (for muon: of its matrices)."
    )
    adamw_lr: float = between(1e-6, 10.0, 0.008, "Peak learning rate of AdamW beside muon.")
    weight_decay: float = between(0.0, 1.0, 0.01, "Decoupled weight decay of matrices.")
    batch: int = at_least(1, 8, "Sequences in one inner step of one node.", unit="sequences")
    accumulate: int = at_least(1, 1, "Micro-batches an inner step is split into.")
    clip: float = at_least(0.0, 1.0, "Gradient norm is clipped to this; 0 turns it off.")
    warmup: float = between(
        0.0, 0.5, 0.02, "Share of the token budget over which the rate rises to its peak."
    )
    final_lr: float = between(
        0.0, 1.0, 0.02, "Learning rate at the budget, as a share of the peak (cosine)."
    )
    rewarm_steps: int = at_least(
        0,
        20,
        "Inner steps over which a worker that starts cold rises to the rate the schedule asks for.",
        unit="inner steps",
    )
    stream_forward: str = one_of(
        "int8", ("fp32", "fp16", "int8"), "Codec of the stream between stages."
    )
    stream_back: str = one_of("fp16", ("fp32", "fp16", "int8"), "Codec of its gradient.")
    val_every_s: float = at_least(
        1.0, 30.0, "Time between evaluations of the slow weights.", unit="s"
    )
    val_batches: int = at_least(1, 16, "Batches of the held-out split in one evaluation.")


@dataclass(frozen=True, slots=True)
class MixSection:
    algorithm: str = one_of(
        "outer_mix",
        ("outer_mix", "noloco", "adpsgd", "dgd", "local"),
        "How slow weights move; see docs/mixing.md.",
    )
    sampler: str = one_of(
        "uniform",
        ("uniform", "matching", "ring", "onepeer_exp", "base2", "latency_biased"),
        "Whom an outer step mixes with; see docs/mixing.md.",
    )
    inner_steps: int = at_least(
        1,
        20,
        "Inner steps between two outer steps of a fragment (H), to begin with. Larger means fewer bytes "
        "and more drift.",
        unit="inner steps",
    )
    bandwidth_share: float = between(
        0.0,
        1.0,
        0.5,
        "Share of a node's line that exchanges may take: it mixes as often as that carries, so each has an H "
        "of its own. 0: H stays `inner_steps`.",
    )
    inner_steps_min: int = at_least(
        1, 5, "H goes no lower, however fast the line, unless it began there.", unit="inner steps"
    )
    inner_steps_max: int = at_least(
        1,
        500,
        "H goes no higher, however slow the line, unless it began there.",
        unit="inner steps",
    )
    exchanges: int = between(
        0,
        16,
        1,
        "Exchanges started after each outer step of a fragment. log2 n of them "
        "come close to an exact average.",
    )
    spread_target: float = between(
        0.0,
        1.0,
        0.0,
        "While a fragment is farther from its partners than this, relatively, an outer step is followed by an exchange more "
        "for each factor of two. 0: never.",
    )
    settle_every: int = at_least(
        0,
        0,
        "Every so many outer steps of a fragment are followed by as many exchanges as come close to an average. 0: none.",
        unit="outer steps",
    )
    outer_momentum: float = between(
        0.0,
        0.99,
        0.0,
        "Outer momentum α. It multiplies what a step moves by 1/(1 − α); noloco is published with 0.5.",
    )
    momentum_warmup: int = at_least(
        0,
        0,
        "Outer steps of a fragment over which α rises from 0 to what it is to be.",
        unit="outer steps",
    )
    outer_lr: float = between(0.0, 2.0, 1.0, "Outer step size ν.")
    gamma: float = between(
        0.01,
        2.0,
        0.7,
        "Weight γ of progress and of the pull towards a partner in `noloco`, which takes no other; "
        "must be below 2(1 − α²).",
    )
    weight: float = between(
        0.01, 0.5, 0.5, "Share c of the difference each side moves in an exchange."
    )
    by_tokens: bool = option(
        False,
        "Give nodes weight in exchanges by the tokens they train on a second, so that a slow one is drawn to "
        "a fast one more than it draws.",
    )
    codec_request: str = one_of(
        "int8", ("fp32", "fp16", "int8"), "Encoding of the weights an initiator sends."
    )
    codec_reply: str = one_of(
        "int4", ("fp32", "fp16", "int8", "int4"), "Encoding of the difference that comes back."
    )
    clip_factor: float = at_least(
        0.5, 1.5, "Clip received differences at this many times their recent median norm."
    )
    fragment_max: int = at_least(1024, 4_000_000, "Largest fragment.", unit="parameters")
    settle_spread: float = between(
        1e-7, 0.1, 1e-3, "At the end nodes mix until their relative spread is below this."
    )
    settle_deadline_s: float = at_least(1.0, 120.0, "Longest time settling may take.", unit="s")


@dataclass(frozen=True, slots=True)
class SwarmSection:
    profile: str = one_of("lan", ("lan", "wan", "test"), "Timers of failure detection and gossip.")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is. Equal hashes mean equal plans, field by field."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    mix: MixSection = MixSection()
    swarm: SwarmSection = SwarmSection()


ADDED = {
    "data": ("parts", "shard_tokens"),
    "mix": ("momentum_warmup", "settle_every", "spread_target"),
    "run": ("checkpoint_optimizer", "continues"),
}
"""Fields that an earlier release does not know and refuses."""


PRESETS: dict[str, dict[str, Scalar | tuple[str, ...]]] = {
    "tiny": {},
    "small": {
        "model.dim": 320,
        "model.heads": 5,
        "model.kv_heads": 5,
        "model.hidden": 864,
        "model.blocks": ("attention", "feedforward") * 8,
        "model.context": 256,
        "train.lr": 0.006,
        "train.adamw_lr": 0.003,
        "train.final_lr": 0.1,
        "run.token_budget": 200_000_000,
    },
    "gpt-124m": {
        "model.dim": 768,
        "model.heads": 12,
        "model.kv_heads": 12,
        "model.hidden": 2048,
        "model.blocks": ("attention", "feedforward") * 12,
        "model.context": 1024,
        "train.accumulate": 4,
        "train.lr": 0.003,
        "train.adamw_lr": 0.0015,
        "train.weight_decay": 0.1,
        "train.final_lr": 0.1,
        "mix.inner_steps": 50,
        "run.token_budget": 2_500_000_000,
    },
}
"""Named starting points: differences from the defaults above, which are `tiny`.

`tiny` is tuned for minutes on CPU threads and a text of bytes: below one attention block an LSTM
learns far more in the same time than more attention blocks do.
"""
