"""Settings: what is read strictly, said in one line, changed by name and compared field by field."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from peerlm import config
from peerlm.config import NodeSettings, Plan
from peerlm.errors import ConfigError


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_an_empty_file_is_all_defaults() -> None:
    assert config.read_toml(Plan, "", "plan.toml") == Plan()
    assert config.read_toml(NodeSettings, "", "node.toml") == NodeSettings()


@pytest.mark.parametrize("kind", [Plan, NodeSettings])
def test_settings_survive_their_own_dictionary(kind: Any) -> None:
    assert config.from_dict(kind, config.to_dict(kind()), "here") == kind()


@pytest.mark.parametrize("kind", [Plan, NodeSettings])
def test_every_field_is_documented_and_its_default_allowed(kind: Any) -> None:
    for section in dataclasses.fields(kind):
        for field in dataclasses.fields(getattr(kind(), section.name)):
            where = f"{section.name}.{field.name}"
            assert field.metadata["doc"], where
            assert field.metadata["ok"] is None or field.metadata["allowed"], where
            value = getattr(getattr(kind(), section.name), field.name)
            assert field.metadata["ok"] is None or field.metadata["ok"](value), where


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[nonsense]\n", "unknown section [nonsense]; sections are run, model"),
        ("[mix]\nspeed = 1\n", "unknown field mix.speed; [mix] has algorithm"),
        ("mix = 3\n", "[mix] must be a table, not 3"),
        ("[mix]\ninner_steps = '20'\n", "mix.inner_steps = '20': must be int"),
        ("[mix]\ninner_steps = 20.0\n", "mix.inner_steps = 20.0: must be int"),
        ("[mix]\ninner_steps = true\n", "mix.inner_steps = True: must be int"),
        ("[mix]\ninner_steps = 0\n", "mix.inner_steps = 0: must be ≥ 1"),
        ("[mix]\nouter_momentum = 1.0\n", "mix.outer_momentum = 1.0: must be 0.0 to 0.99"),
        ("[mix]\nouter_momentum = nan\n", "mix.outer_momentum = nan: must be finite"),
        ("[run]\ntoken_budget = 4611686018427387904\n", "run.token_budget = 46116"),
        ("[train]\nclip = 1e400\n", "train.clip = inf: must be finite"),
        ("[train]\nclip = inf\n", "train.clip = inf: must be"),
        (
            "[mix]\nalgorithm = 'magic'\n",
            "mix.algorithm = 'magic': must be one of outer_mix, noloco",
        ),
        ("[model]\nblocks = []\n", "model.blocks = (): must be a list of: attention"),
        (
            "[model]\nblocks = ['attention', 3]\n",
            "model.blocks = ['attention', 3]: must be list of",
        ),
        ("[model]\nblocks = ['moe']\n", "model.blocks = ('moe',): must be a list of"),
        ("[model]\ntied = 1\n", "model.tied = 1: must be bool"),
        ("[run]\nname = ''\n", "run.name = '': must be 1 to 64 characters"),
        ("[run]\ntoken_budget = 0\n", "run.token_budget = 0: must be ≥ 1"),
        ("[data]\nshards = ['abc']\n", "data.shards = ('abc',): must be 64 hex digits each"),
        ("[data]\nshards = ['" + 64 * "g" + "']\n", "must be 64 hex digits each"),
        ("[data]\nshard_tokens = [1]\n", "data.shard_tokens has 1 entries, data.shards has 0"),
        ("[data]\nshard_tokens = [1, 0]\n", "data.shard_tokens = (1, 0): must be 1 to 2^32 each"),
        ("[data]\nshard_tokens = ['1']\n", "data.shard_tokens = ['1']: must be list of whole"),
        ("[data]\nshard_tokens = [true]\n", "must be list of whole numbers"),
        ("[model]\ndim = 100\nheads = 3\n", "model.dim = 100 is not a multiple of model.heads = 3"),
        ("[model]\nkv_heads = 3\n", "model.heads = 4 is not a multiple of model.kv_heads = 3"),
        ("[model]\ndim = 12\nheads = 4\n", "model.dim / model.heads = 3 must be even"),
        ("[train]\naccumulate = 3\n", "is not a multiple of train.accumulate = 3"),
        ("[mix\n", "not valid TOML: Expected"),
    ],
)
def test_a_wrong_plan_is_refused_with_field_and_value(text: str, says: str) -> None:
    line = refusal(config.read_toml, Plan, text, "plan.toml")
    assert line.startswith("plan.toml: ")
    assert says in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[network]\nport = 65534\n", "network.port = 65534: must be 0 to 65533"),
        (
            "[network]\nbulk_security = 'none'\n",
            "network.bulk_security = 'none': must be one of aead",
        ),
        ("[train]\ndevice = 'tpu'\n", "train.device = 'tpu': must be auto, cpu"),
        ("[limits]\nthreads = -1\n", "limits.threads = -1: must be 0 to 4096"),
        ("[mix]\n", "unknown section [mix]; sections are network, limits"),
    ],
)
def test_wrong_node_settings_are_refused_alike(text: str, says: str) -> None:
    assert says in refusal(config.read_toml, NodeSettings, text, "node.toml")


@pytest.mark.parametrize(
    "text",
    [
        "[run]\nrng_seed = " + "9" * 5000,
        "[run]\nrng_seed = 0x" + "f" * 5000,
        "[run]\nname = [0x" + "f" * 5000 + "]",
        "[run]\nname = '" + "x" * 5000 + "'",
        "[run]\nname = " + "[" * 3000 + "]" * 3000,
        "run = " + "{run = " * 3000 + "1" + "}" * 3000,
        "a" + ".a" * 100_000 + " = 1",
        "[" + "x" * 5000 + "]",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_too_large_or_too_deep_is_refused_with_a_short_line(text: str) -> None:
    assert len(refusal(config.read_toml, Plan, text, "plan.toml")) < 400


def test_whole_numbers_pass_where_fractions_are_asked() -> None:
    plan = config.read_toml(Plan, "[train]\nlr = 1\n", "plan.toml")
    assert plan.train.lr == 1.0
    assert type(plan.train.lr) is float


def test_text_is_parsed_by_the_fields_type() -> None:
    changes = {
        "mix.inner_steps": "50",
        "run.token_budget": "2_000_000",
        "train.lr": "1e-3",
        "model.tied": "False",
        "run.name": "true",
        "model.blocks": "[recurrent, feedforward]",
        "data.val_fraction": 0,
    }
    plan = config.with_changes(Plan(), changes, "--set")
    assert plan.mix.inner_steps == 50
    assert plan.run.token_budget == 2_000_000
    assert plan.train.lr == 1e-3
    assert plan.model.tied is False
    assert plan.run.name == "true"
    assert plan.model.blocks == ("recurrent", "feedforward")
    assert plan.data.val_fraction == 0.0
    assert Plan().mix.inner_steps == 20, "the original is as it was"


@pytest.mark.parametrize(
    ("dotted", "value", "says"),
    [
        ("mix.speed", "1", "no field 'mix.speed'"),
        ("mix", "1", "no field 'mix'"),
        ("", "1", "no field ''"),
        ("mix.inner_steps", "many", "mix.inner_steps = 'many': must be int"),
        ("mix.inner_steps", "1.5", "mix.inner_steps = '1.5': must be int"),
        ("mix.inner_steps", "", "mix.inner_steps = '': must be int"),
        ("train.lr", "nan", "train.lr = nan: must be"),
        ("train.lr", "fast", "train.lr = 'fast': must be float"),
        ("model.tied", "yes", "model.tied = 'yes': must be bool"),
        ("mix.inner_steps", -3, "mix.inner_steps = -3: must be ≥ 1"),
        ("mix.inner_steps", None, "mix.inner_steps = None: must be int"),
        ("model.heads", "3", "model.dim = 128 is not a multiple of model.heads = 3"),
    ],
)
def test_a_change_that_cannot_be_is_refused(dotted: str, value: Any, says: str) -> None:
    line = refusal(config.with_changes, Plan(), {dotted: value}, "--set")
    assert line.startswith("--set: ")
    assert says in line


def test_differences_name_every_field_that_differs() -> None:
    ours = Plan()
    assert config.differences(ours, Plan()) == []
    theirs = config.with_changes(ours, {"mix.inner_steps": 50, "run.name": "odes"}, "x")
    assert config.differences(ours, theirs) == [
        "run.name: 'plays' here, 'odes' there",
        "mix.inner_steps: 20 here, 50 there",
    ]
    assert config.differences(theirs, ours)[1] == "mix.inner_steps: 50 here, 20 there"


@pytest.mark.parametrize("name", config.PRESETS)
def test_presets_are_whole_plans(name: str) -> None:
    plan = config.preset(name)
    assert plan.model.dim % plan.model.heads == 0
    assert config.from_dict(Plan, config.to_dict(plan), name) == plan
    assert not any(
        isinstance(value, float) and not math.isfinite(value)
        for section in config.to_dict(plan).values()
        for value in section.values()
    )


def test_an_unknown_preset_names_those_there_are() -> None:
    assert refusal(config.preset, "huge") == "no preset 'huge'; presets are tiny, small, gpt-124m"
