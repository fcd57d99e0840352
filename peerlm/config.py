"""Settings: one frozen dataclass per owner, one line of documentation per field.

There are two files. `plan.toml` is what the swarm agrees on: it is signed by the run's root, hashed,
and carries a revision. `node.toml` is this machine's own: paths, ports, limits; it is never hashed
and never leaves the machine. Both are read strictly: an unknown section or field, a wrong type or a
value out of range is a `ConfigError` that names the field, the value and what is allowed.

Every field carries its meaning, unit and effect in its metadata, so the commented files that
`peerlm init` writes and docs/settings.md come from here and cannot drift.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_type_hints

from peerlm.errors import ConfigError

Scalar = str | int | float | bool
T = TypeVar("T")
Check = Callable[[Any], object]

_HINTS: dict[type[Any], Mapping[str, Any]] = {}

INT_MAX = 2**62
"""Every whole number fits a signed plan and a message."""

DOTS_MAX = 64
"""In one line of a settings file; ours have two. A key of n parts costs `tomllib` n² memory."""

SHOWN_CHARS_MAX = 120
"""Of a wrong value, in the line that complains of it."""


def option(
    default: Any, doc: str, *, unit: str = "", allowed: str = "", ok: Check | None = None
) -> Any:
    """A documented field. `allowed` is the sentence a person sees when `ok(value)` is false."""
    metadata = {"doc": doc, "unit": unit, "allowed": allowed, "ok": ok}
    if isinstance(default, tuple):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def one_of(default: str, choices: tuple[str, ...], doc: str) -> Any:
    return option(default, doc, allowed="one of " + ", ".join(choices), ok=lambda v: v in choices)


def at_least(minimum: float, default: float, doc: str, *, unit: str = "") -> Any:
    return option(default, doc, unit=unit, allowed=f"≥ {minimum}", ok=lambda v: v >= minimum)


def between(low: float, high: float, default: float, doc: str, *, unit: str = "") -> Any:
    return option(
        default, doc, unit=unit, allowed=f"{low} to {high}", ok=lambda v: low <= v <= high
    )


# ---------------------------------------------------------------------------------- plan.toml

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
        "(host.stages in node.toml). At most as many as there are blocks.",
    )


@dataclass(frozen=True, slots=True)
class DataSection:
    source: str = option(
        "shipped",
        "Where the text came from: `shipped`, `local`, or an fsspec URL (file, "
        "directory, glob, http). With `local` each node trains on its own files "
        "(data.local in node.toml), which never leave it.",
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
    val_fraction: float = between(
        0.0, 0.5, 0.05, "Share of the corpus, at its end, held out for validation."
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
    outer_momentum: float = between(
        0.0,
        0.99,
        0.0,
        "Outer momentum α. It multiplies what a step moves by 1/(1 − α); noloco is published with 0.5.",
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


# ---------------------------------------------------------------------------------- node.toml


@dataclass(frozen=True, slots=True)
class NetworkSection:
    host: str = option("", "Interface address to listen on; empty means all.")
    port: int = between(
        0,
        65_533,
        7700,
        "Base port: introduction on it, control on the next, bulk on the one "
        "after. 0 picks free ports. If the default is taken and no port was asked for, free ones "
        "are picked.",
    )
    advertise: str = option(
        "",
        "Address peers should dial; empty means found out (the outgoing interface). Set it behind "
        "NAT or when a name should be used.",
    )
    upload_bytes_s: int = at_least(
        0, 0, "Ceiling on bulk bytes sent; 0 means none.", unit="bytes/s"
    )
    download_bytes_s: int = at_least(
        0, 0, "Ceiling on bulk bytes fetched; 0 means none.", unit="bytes/s"
    )
    bulk_security: str = one_of(
        "aead",
        ("aead", "plain"),
        "`aead` encrypts every bulk chunk (AES-256-GCM). `plain` "
        "only hashes: for networks you trust wholly.",
    )


@dataclass(frozen=True, slots=True)
class LimitsSection:
    disk_bytes: int = at_least(
        0,
        0,
        "Most the state directory may hold; 0 means no limit. Snapshots are skipped, "
        "and said so, when they would pass it.",
        unit="bytes",
    )
    memory_bytes: int = at_least(
        0,
        0,
        "The worker may use at most this much address space on the host; 0 means no limit.",
        unit="bytes",
    )
    threads: int = between(
        0,
        4096,
        0,
        "CPU threads of the worker; 0 means the cores divided by the nodes on this host.",
    )
    snapshot_every_s: float = at_least(
        1.0, 30.0, "Time between snapshots: what a `kill -9` of all nodes can lose.", unit="s"
    )


@dataclass(frozen=True, slots=True)
class LocalTrainSection:
    device: str = option(
        "auto",
        "`auto`, `cpu`, `cuda`, `cuda:N` or `mps`.",
        allowed="auto, cpu, cuda, cuda:N, mps",
        ok=lambda v: v in ("auto", "cpu", "cuda", "mps") or v.startswith("cuda:"),
    )
    pace_tokens_s: float = at_least(
        0.0, 0.0, "Never train faster than this; 0 means as fast as it goes.", unit="tokens/s"
    )
    local_workers: int = between(
        1,
        64,
        1,
        "Processes that train together as this one node, with a CUDA device each, or on the processor. "
        "Each takes `train.batch` sequences in an inner step; gradients are averaged over all. Linux only.",
    )
    compile: bool = option(False, "Run the model through torch.compile.")
    enabled: bool = option(True, "False: be a member that stores and donates, but never trains.")


@dataclass(frozen=True, slots=True)
class HostSection:
    stages: str = option(
        "all",
        "Stages of the model that this node holds and trains: `all`, one (`0`), a run (`1-2`), or `auto`: it "
        "decides by itself, by what it offers and what the swarm lacks. Whoever holds stage 0 reads the text.",
        allowed="non-empty",
        ok=bool,
    )
    sessions: int = at_least(
        0,
        32,
        "Texts of the swarm's members that this node advances at once through the stages it holds, if it has the "
        "role serve; 0: none.",
    )
    memory_bytes: int = at_least(
        0, 0, "Offered with `auto`, of the host; 0 means half of what is free.", unit="bytes"
    )
    device_bytes: int = at_least(
        0, 0, "The same of a device with memory of its own; 0 means none.", unit="bytes"
    )


@dataclass(frozen=True, slots=True)
class LocalDataSection:
    local: str = option(
        "",
        "This node's own text when the plan says data.source = local: an fsspec URL, file, directory "
        "or glob. It is read here and never leaves the machine.",
    )


@dataclass(frozen=True, slots=True)
class ControlSection:
    group: str = option(
        "", "Unix group that may use status, pause and stop; empty means only the owner."
    )
    log_level: str = one_of(
        "info", ("debug", "info", "warning", "error"), "How much the daemon writes to its log."
    )


@dataclass(frozen=True, slots=True)
class PageSection:
    enabled: bool = option(
        True, "Serve the page, `/status`, `/metrics`, `/healthz` and `/readyz` over HTTP."
    )
    host: str = option(
        "127.0.0.1",
        "Interface address to serve on; empty means all. Who can reach it can read what `peerlm status` "
        "says, and nothing more: there is no password.",
    )
    port: int = between(
        0,
        65_535,
        7703,
        "Port to serve on; 0 picks a free one. If the default is taken a free one is picked; `status` says "
        "which.",
    )


WRITERS = ("csv", "tensorboard", "wandb")


@dataclass(frozen=True, slots=True)
class ObserveSection:
    writers: tuple[str, ...] = option(
        (),
        "Other tools that get this node's curves. `tensorboard` and `wandb` need the package of that name.",
        allowed="a list of: " + ", ".join(WRITERS),
        ok=lambda v: len(set(v)) == len(v) and all(writer in WRITERS for writer in v),
    )
    folder: str = option(
        "curves",
        "Folder of their files; one that does not start with / is below the state folder. Several nodes "
        "of one user may share it.",
        allowed="non-empty",
        ok=bool,
    )
    every_s: float = at_least(
        1.0, 10.0, "Time between two points; none is written in which nothing is new.", unit="s"
    )


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What this machine decides for itself."""

    network: NetworkSection = NetworkSection()
    limits: LimitsSection = LimitsSection()
    train: LocalTrainSection = LocalTrainSection()
    host: HostSection = HostSection()
    data: LocalDataSection = LocalDataSection()
    control: ControlSection = ControlSection()
    page: PageSection = PageSection()
    observe: ObserveSection = ObserveSection()


# ------------------------------------------------------------------------ reading and changing


def to_dict(settings: Plan | NodeSettings) -> dict[str, dict[str, Any]]:
    """Sections of plain values, in the order they are declared."""
    return {
        section.name: {
            f.name: getattr(getattr(settings, section.name), f.name)
            for f in fields(getattr(settings, section.name))
        }
        for section in fields(settings)
    }


def from_dict(kind: type[T], raw: Mapping[str, Any], where: str) -> T:
    """Build and check a `Plan` or `NodeSettings`. `where` names the source in errors.

    Raises:
        ConfigError: unknown section or field, wrong type, value out of range.
    """
    hints = _hints(kind)
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: must be a table of sections, not {_shown(raw)}")
    unknown = sorted(str(name) for name in raw if name not in hints)
    if unknown:
        raise ConfigError(
            f"{where}: unknown section [{_cut(unknown[0])}]; sections are {', '.join(hints)}"
        )
    settings = kind(
        **{name: _section(hints[name], raw.get(name, {}), where, name) for name in hints}
    )
    if isinstance(settings, Plan):
        _check_plan(settings, where)
    return settings


def read_toml(kind: type[T], text: str, where: str) -> T:
    """Parse and check a settings file. Raises `ConfigError` with the line of a syntax error."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > DOTS_MAX and not line.lstrip().startswith("#"):
            raise ConfigError(f"{where}: line {number} has more than {DOTS_MAX} dots")
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is no TOML error
        raise ConfigError(f"{where}: not valid TOML: {_cut(str(error))}") from None
    return from_dict(kind, raw, where)


def with_changes(settings: T, changes: Mapping[str, Any], where: str) -> T:
    """A copy with dotted fields changed (`{"mix.inner_steps": 50}`); text is parsed by field type."""
    raw = to_dict(settings)  # type: ignore[arg-type]
    for dotted, value in changes.items():
        section, _, name = dotted.partition(".")
        if section not in raw or name not in raw[section]:
            raise ConfigError(f"{where}: no field {_shown(dotted)}; see `peerlm plan show`")
        kind = _hints(_hints(type(settings))[section])[name]
        raw[section][name] = (
            _parse(kind, value, f"{where}: {dotted}") if isinstance(value, str) else value
        )
    return from_dict(type(settings), raw, where)


def preset(name: str) -> Plan:
    """The named starting plan. Raises `ConfigError` naming the presets there are."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; presets are {', '.join(PRESETS)}")
    return with_changes(Plan(), PRESETS[name], f"preset {name}")


def differences(ours: Plan, theirs: Plan) -> list[str]:
    """One line for each field in which two plans differ: `mix.inner_steps: 20 here, 50 there`."""
    a, b = to_dict(ours), to_dict(theirs)
    return [
        f"{section}.{name}: {a[section][name]!r} here, {b[section][name]!r} there"
        for section in a
        for name in a[section]
        if a[section][name] != b[section][name]
    ]


def _hints(kind: type[Any]) -> Mapping[str, Any]:
    """Types of the fields; worked out once, since a simulation reads the settings of many nodes."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _section(kind: type[Any], raw: Any, where: str, section: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: [{section}] must be a table, not {_shown(raw)}")
    hints = _hints(kind)
    values = {}
    for name, value in raw.items():
        if name not in hints:
            raise ConfigError(
                f"{where}: unknown field {section}.{_cut(str(name))}; "
                f"[{section}] has {', '.join(hints)}"
            )
        values[name] = _typed(hints[name], value, f"{where}: {section}.{name}")
    built = kind(**values)
    for f in fields(built):
        ok, value = f.metadata["ok"], getattr(built, f.name)
        if ok is not None and not ok(value):
            raise ConfigError(
                f"{where}: {section}.{f.name} = {_shown(value)}: must be {f.metadata['allowed']}"
            )
    return built


def _typed(kind: Any, value: Any, where: str) -> Any:
    if kind in (int, float) and type(value) is int and abs(value) >= INT_MAX:
        raise ConfigError(f"{where} = {_shown(value)}: must be below 2^62")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if (
        kind == tuple[str, ...]
        and isinstance(value, list | tuple)
        and all(isinstance(v, str) for v in value)
    ):
        return tuple(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} = {value!r}: must be finite")
    if kind in (int, float, str, bool) and type(value) is kind:
        return value
    name = "list of strings" if kind == tuple[str, ...] else kind.__name__
    raise ConfigError(f"{where} = {_shown(value)}: must be {name}")


def _parse(kind: Any, text: str, where: str) -> Any:
    if kind is str:
        return text
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.strip("[]").split(",") if part.strip())
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return kind(text.replace("_", "")) if kind in (int, float) else _typed(kind, text, where)
    except ValueError:
        raise ConfigError(f"{where} = {_shown(text)}: must be {kind.__name__}") from None


def _shown(value: Any) -> str:
    """A wrong value for a person's eyes: one line, and not all of it when it is long."""
    try:
        return _cut(repr(value))
    except (ValueError, RecursionError):  # an int of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__} too large to show"


def _cut(text: str) -> str:
    """On one line, of a bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS_MAX else line[:SHOWN_CHARS_MAX] + "…"


def _check_plan(plan: Plan, where: str) -> None:
    """Rules that span fields."""
    m, t, alpha, gamma = plan.model, plan.train, plan.mix.outer_momentum, plan.mix.gamma
    if m.dim % m.heads:
        raise ConfigError(
            f"{where}: model.dim = {m.dim} is not a multiple of model.heads = {m.heads}"
        )
    if m.heads % m.kv_heads:
        raise ConfigError(
            f"{where}: model.heads = {m.heads} is not a multiple of model.kv_heads = {m.kv_heads}"
        )
    if (m.dim // m.heads) % 2:
        raise ConfigError(
            f"{where}: model.dim / model.heads = {m.dim // m.heads} must be even for rotary positions"
        )
    if m.stages > len(m.blocks):
        raise ConfigError(
            f"{where}: model.stages = {m.stages}: model.blocks has {len(m.blocks)}, and each stage "
            "takes one at least"
        )
    if plan.mix.algorithm == "noloco" and gamma >= 2 * (1 - alpha**2):
        raise ConfigError(
            f"{where}: mix.gamma = {gamma} makes noloco diverge with mix.outer_momentum = {alpha}: "
            f"must be below 2(1 - {alpha}²) = {2 * (1 - alpha**2):.3g}"
        )
    if plan.mix.inner_steps_min > plan.mix.inner_steps_max:
        raise ConfigError(
            f"{where}: mix.inner_steps_min = {plan.mix.inner_steps_min} is above "
            f"mix.inner_steps_max = {plan.mix.inner_steps_max}"
        )
    if t.batch % t.accumulate:
        raise ConfigError(
            f"{where}: train.batch = {t.batch} is not a multiple of train.accumulate = {t.accumulate}"
        )
