"""Trials from a plan, whole nodes among them, and the rows that they come to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning_scene import plan_of

from peerlm.bench.kept import KeptTrials
from peerlm.bench.quality import Setting, Trial, live, rows_of
from peerlm.bench.quality import plan_of as plan_for
from peerlm.data import shards, tokenizer
from peerlm.errors import ConfigError


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    text = tmp_path / "text"
    text.write_text("a rose is a rose is a rose. " * 400)
    cut = shards.prepare(str(text), tokenizer.load("bytes", "test"), tmp_path / "shards")
    plan = plan_of(data__vocab=256, train__val_batches=1)
    paths = tuple(str(shard.path) for shard in cut)
    return Setting(plan, (paths,), nodes=2, tokens=3200, link="1gbit,1ms", speeds=(400.0,))


def trial(method: str, lr: float = 1.0, seed: int = 1, **changes: Any) -> Trial:
    named = tuple((key.replace("__", "."), value) for key, value in changes.items())
    return Trial(method, lr, named, seed)


def test_a_trial_has_its_own_plan(setting: Setting) -> None:
    plan = plan_for(setting, trial("noloco", 0.5, 3, mix__inner_steps=7))
    assert plan.mix.algorithm == "noloco"
    assert (plan.mix.inner_steps, plan.run.rng_seed, plan.run.token_budget) == (7, 3, 3200)
    assert plan.train.lr == setting.plan.train.lr / 2
    assert plan.train.adamw_lr == setting.plan.train.adamw_lr / 2
    with pytest.raises(ConfigError, match="diverge"):
        plan_for(setting, trial("noloco", mix__outer_momentum=0.9, mix__gamma=0.7))


@pytest.mark.parametrize("method", ["alone", "solo", "ddp", "local_sgd", "gasloc"])
def test_lockstep_trains_on_the_tokens_that_were_given(setting: Setting, method: str) -> None:
    found = live(setting, trial(method))
    share = 2 if method == "alone" else 1
    assert found["tokens"] == pytest.approx(3200 / share, rel=0.02)
    assert found["val_loss"] < 4.5
    assert found["curve"][-1] == [found["tokens"], found["val_loss"]]
    assert found["seconds"] >= (3200 if method == "solo" else 1600) / 400


def test_whole_nodes_train_the_plans_model_and_agree_in_the_end(setting: Setting) -> None:
    found = live(setting, trial("outer_mix"))
    assert found["tokens"] >= 3200
    assert found["val_loss"] < 4.5
    assert found["spread"] < 1e-3
    assert found["exchanges"] > 4
    assert found["bytes_per_node"] > 0


def outcome(loss: float, sent: float = 1000.0, spread: float = 0.0) -> dict[str, Any]:
    return {
        "tokens": 100,
        "val_loss": loss,
        "val_losses": [loss - 0.1, loss + 0.1],
        "spread": spread,
        "bytes_per_node": sent,
        "seconds": 5.0,
        "curve": [[100, loss]],
    }


def test_rows_put_seeds_together_and_know_the_best_rate_and_what_ddp_did() -> None:
    rows = rows_of(
        [
            (trial("ddp", 1), outcome(2.0, 8000)),
            (trial("ddp", 2), outcome(1.9, 8000)),
            (trial("outer_mix", 1, 1), outcome(2.0, 100, 1e-4)),
            (trial("outer_mix", 1, 2), outcome(2.2, 300, 1e-5)),
        ]
    )
    assert [(row["method"], row["lr"], row["best"]) for row in rows] == [
        ("ddp", 1, False),
        ("ddp", 2, True),
        ("outer_mix", 1, True),
    ]
    ours = rows[-1]
    assert (ours["seeds"], ours["val_loss_min"], ours["val_loss_max"]) == (2, 2.0, 2.2)
    assert ours["val_loss"] == pytest.approx(2.1)
    assert ours["val_losses"] == pytest.approx([2.0, 2.2])
    assert ours["spread"] == 1e-4
    assert ours["vs_ddp"] == pytest.approx(2.1 / 1.9 - 1)
    assert ours["fewer_bytes"] == pytest.approx(40)


def test_a_row_is_held_against_ddp_of_equal_changes_where_there_is_one() -> None:
    rows = rows_of(
        [
            (trial("ddp", train__batch=4), outcome(2.0)),
            (trial("ddp", train__batch=8), outcome(1.0)),
            (trial("gasloc", train__batch=4), outcome(2.0)),
            (trial("gasloc", mix__inner_steps=5), outcome(2.0)),
        ]
    )
    assert [row["vs_ddp"] for row in rows[2:]] == [0.0, 1.0]


@pytest.mark.parametrize("first", [True, False])
def test_a_loss_that_is_no_number_is_nobodys_best(first: bool) -> None:
    good, bad = (trial("ddp", 1), outcome(2.0)), (trial("ddp", 9), outcome(float("nan")))
    rows = rows_of([bad, good] if first else [good, bad])
    of = {row["lr"]: row for row in rows}
    assert (of[1]["best"], of[9]["best"]) == (True, False)
    assert (of[1]["vs_ddp"], of[9]["vs_ddp"]) == (0.0, None)


def test_without_ddp_there_is_nothing_to_hold_it_against() -> None:
    (row,) = rows_of([(trial("solo"), outcome(2.0, 0.0))])
    assert (row["vs_ddp"], row["fewer_bytes"]) == (None, None)


def test_what_is_kept_is_found_again_by_an_equal_trial_alone(
    setting: Setting, tmp_path: Path
) -> None:
    file = tmp_path / "kept.jsonl"
    KeptTrials(file, setting).keep(trial("ddp"), outcome(2.0))
    with file.open("a") as end:
        end.write('{"trial": {"method": "ddp"')  # the power went
    kept = KeptTrials(file, setting)
    assert kept.found(trial("ddp")) == outcome(2.0)
    assert kept.found(trial("ddp", seed=2)) is None
    assert kept.found(trial("ddp", mix__inner_steps=3)) is None

    assert KeptTrials(file, replace(setting, tokens=3201)).found(trial("ddp")) is None


def test_a_line_cut_short_costs_the_next_one_nothing(setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    file.write_text('{"trial": {"method": "ddp"')
    KeptTrials(file, setting).keep(trial("ddp"), outcome(2.0))
    assert KeptTrials(file, setting).found(trial("ddp")) == outcome(2.0)


@pytest.mark.parametrize("method", ["ddp", "outer_mix"])
def test_a_text_for_each_node_has_a_loss_of_its_own(
    setting: Setting, tmp_path: Path, method: str
) -> None:
    text = tmp_path / "other"
    text.write_text("0123456789 " * 1000)
    cut = shards.prepare(str(text), tokenizer.load("bytes", "test"), tmp_path / "others")
    local = replace(setting.plan, data=replace(setting.plan.data, source="local"))
    both = (*setting.shards, tuple(str(shard.path) for shard in cut))
    found = live(replace(setting, plan=local, shards=both), trial(method))
    first, second = found["val_losses"]
    assert first != second
    assert found["val_loss"] == pytest.approx((first + second) / 2, rel=1e-4)


def test_curves_are_plain_numbers(setting: Setting) -> None:
    found = live(setting, trial("ddp"))
    assert all(type(value) in (int, float) for value in np.ravel(found["curve"]).tolist())
