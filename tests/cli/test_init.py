"""`peerlm init`: what a run's first folder holds, and what bad input gets."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from cli_scene import SMALL, Cli, assert_one_line

from peerlm.cli.plan import current_plan
from peerlm.cli.settings_text import render_node_settings
from peerlm.cli.state import read_run
from peerlm.config import NodeSettings, Plan, read_toml, to_dict, with_changes
from peerlm.identity import chain, files
from peerlm.model.export import write_model
from peerlm.model.moments import FILE, MomentsFile, remembered
from peerlm.model.plan import fragments, parameter_shapes
from peerlm.store import snapshot
from peerlm.store.layout import Layout, StateDirectory
from peerlm.types import Role, WallTime

TEXT = "To be, or not to be, that is the question.\n" * 500


def test_a_founded_folder_holds_a_verified_node_of_its_own_run(founded: Path) -> None:
    run, root, keys = read_run(Layout(founded)), files.read_root(founded), files.read_keys(founded)
    assert root is not None
    assert keys is not None
    assert run.run_id == root.run_id
    assert run.node_id == keys.peer_id
    links = files.read_chain_file(founded)
    assert links is not None
    in_ten_years = WallTime(founded.stat().st_mtime + 10 * 365 * 86_400)
    verified = chain.read_chain(links, root.public_key, run.run_id)
    assert verified.roles == frozenset(Role)
    assert verified.certs_until > in_ten_years
    assert (founded / "origin").exists()


def test_its_plan_names_the_text_it_holds(founded: Path) -> None:
    signed = current_plan(Layout(founded))
    assert signed.revision == 1
    assert signed.plan.model.dim == 16
    assert signed.plan.data.shards
    for shard in signed.plan.data.shards:
        assert (founded / "objects" / shard).is_file()


def test_secrets_are_the_owners_alone(founded: Path) -> None:
    assert founded.stat().st_mode & 0o777 == 0o700
    for secret in ("identity", "root", "inviter"):
        assert (founded / secret).stat().st_mode & 0o777 == 0o600


def test_a_second_run_in_the_same_folder_is_refused(peerlm: Cli, founded: Path) -> None:
    before = (founded / "identity").read_bytes()
    run = read_run(Layout(founded)).run_id.hex()[:8]
    assert_one_line(peerlm("init", "--state", founded), 3, "already holds a node of run", run)
    assert (founded / "identity").read_bytes() == before


def test_a_folder_in_use_is_refused(peerlm: Cli, tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "node"):
        assert_one_line(peerlm("init", "--state", tmp_path / "node"), 3, "in use by process")


@pytest.mark.parametrize(("offered", "stages"), [(1_000_000_000, 1), (120_000, 2)])
def test_a_plan_is_cut_into_as_few_stages_as_fit(
    peerlm: Cli, tmp_path: Path, offered: int, stages: int
) -> None:
    state = ("--state", tmp_path / "node")
    cut = ("--set", "model.stages=auto", "--set-node", f"host.memory_bytes={offered}")
    done = peerlm("init", *state, *SMALL, *cut)
    assert done.code == 0, done
    assert f"model.stages = {stages}: each fits into the" in done.err
    assert current_plan(Layout(tmp_path / "node")).plan.model.stages == stages
    assert 'stages = "auto"' in (tmp_path / "node" / "node.toml").read_text()


def test_a_module_that_does_not_fit_alone_is_one_line(peerlm: Cli, tmp_path: Path) -> None:
    cut = ("--set", "model.stages=auto", "--set-node", "host.memory_bytes=100")
    outcome = peerlm("init", "--state", tmp_path / "node", *SMALL, *cut)
    assert_one_line(outcome, 2, "alone takes")
    assert not (tmp_path / "node" / "node.toml").exists()


def test_own_text_a_name_and_changed_fields_reach_the_plan(peerlm: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    outcome = peerlm(
        "init",
        *("--state", tmp_path / "node", "--name", "prince", "--data", tmp_path / "*.txt", *SMALL),
        *("--set", "mix.inner_steps=50", "--set", "model.blocks=recurrent,feedforward"),
        *("--set", "run.token_budget=5_000_000"),
    )
    assert outcome.code == 0, outcome
    plan = current_plan(Layout(tmp_path / "node")).plan
    assert plan.run.name == "prince"
    assert plan.run.token_budget == 5_000_000
    assert plan.mix.inner_steps == 50
    assert plan.model.blocks == ("recurrent", "feedforward")
    assert "run prince" in outcome.out


def test_a_tokenizer_becomes_an_object_and_sets_the_vocabulary(peerlm: Cli, tmp_path: Path) -> None:
    import tokenizers

    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"be": 0, "to": 1, "?": 2}, unk_token="?")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "t.json"))
    outcome = peerlm("init", "--state", tmp_path / "n", "--tokenizer", tmp_path / "t.json", *SMALL)
    assert outcome.code == 0, outcome
    data = current_plan(Layout(tmp_path / "n")).plan.data
    assert data.vocab == 3
    kept = (tmp_path / "n" / "objects" / data.tokenizer).read_bytes()
    assert kept == (tmp_path / "t.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--data", "nowhere/*.txt"), 2, ("nowhere/*.txt", "no files match")),
        (("--data", "empty.txt"), 2, ("empty.txt",)),
        (("--data", "latin.txt"), 2, ("latin.txt", "UTF-8")),
        (("--data", "short.txt"), 2, ("short.txt", "shorter than one batch", "needed")),
        (("--data", "swarm:plays*3+news"), 2, ("keeps nothing yet", "peerlm plan set")),
        (("--set", "data.source=swarm:plays"), 2, ("keeps nothing yet", "swarm:plays")),
        (("--host", "none"), 2, ("--host none", "makes its weights")),
        (("--data", "local"), 2, ("data.local",)),
        (("--data", "local", "--set-node", "data.local=nowhere.txt"), 2, ("nowhere.txt",)),
        (("--tokenizer", "short.txt"), 2, ("short.txt", "not a `tokenizers` JSON file")),
        (("--from", "nowhere"), 2, ("nowhere", "no such file")),
        (("--set", "model.dim=102"), 2, ("model.dim = 102", "model.heads")),
        (("--set", "model.size=3"), 2, ("no field 'model.size'",)),
        (("--set", "mix.inner_steps=many"), 2, ("mix.inner_steps = 'many'", "must be int")),
        (("--set", "data.vocab=3"), 2, ("data.vocab", "--tokenizer")),
        (("--set-node", "network.port=99999"), 2, ("network.port = 99999", "0 to 65533")),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    peerlm: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("short.txt").write_text("brief")
    Path("latin.txt").write_bytes("müde".encode("latin-1") * 9000)
    assert_one_line(peerlm("init", "--state", "node", *options), code, *words)
    assert not Path("node").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_named(peerlm: Cli, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_one_line(peerlm("init", "--state", tmp_path / "node"), 3, "permission denied")


def test_a_file_in_the_place_of_the_folder_is_named(peerlm: Cli, tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    assert_one_line(peerlm("init", "--state", tmp_path / "node"), 3, str(tmp_path / "node"))


# ------------------------------------------------------------------------------- --from a model


def test_an_exported_model_is_where_a_new_run_starts(peerlm: Cli, tmp_path: Path) -> None:
    plan = with_changes(Plan(), {"model.dim": 16, "model.heads": 2, "model.hidden": 24}, "test")
    rng = np.random.default_rng(1)
    values = [rng.normal(size=f.size).astype(np.float32) for f in fragments(plan)]
    write_model(tmp_path / "model", plan, values)

    outcome = peerlm("init", "--state", tmp_path / "node", "--from", tmp_path / "model")

    assert outcome.code == 0, outcome
    layout = Layout(tmp_path / "node")
    signed = current_plan(layout)
    assert signed.plan.model == plan.model
    loaded = snapshot.load(layout)
    assert loaded.snapshot is not None
    manifest = loaded.snapshot.manifest
    assert manifest.contents.plan_hash == signed.plan_hash
    assert manifest.contents.swarm_tokens == 0
    for record, expected in zip(manifest.fragments, values, strict=True):
        found = np.empty_like(expected)
        snapshot.read_array(loaded.snapshot.open(), record.phi, found)
        assert np.array_equal(found, expected)
    assert "optimizer.safetensors: there is none" in outcome.err
    assert not layout.moments.exists()


@pytest.mark.parametrize("how", ["whole", "cut", "of another optimizer"])
def test_a_run_begins_with_a_checkpoints_optimizer_or_says_why_not(
    peerlm: Cli, tmp_path: Path, how: str
) -> None:
    plan = with_changes(Plan(), {"model.dim": 16, "model.heads": 2, "model.hidden": 24}, "test")
    write_model(tmp_path, plan, [np.zeros(f.size, np.float32) for f in fragments(plan)])
    kept, counts = MomentsFile(tmp_path / FILE, plan, remembered(plan)), remembered(plan)
    for name, (_, shape) in parameter_shapes(plan.model, plan.data.vocab).items():
        kept.write(name, 3, np.ones(counts[name] * int(np.prod(shape)), np.float32))
    kept.commit()
    given = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(given[: -1 if how == "cut" else None])
    sets = ("--set", "train.optimizer=adamw") if how == "of another optimizer" else ()
    outcome = peerlm("init", "--state", tmp_path / "node", "--from", tmp_path, *sets)
    assert outcome.code == 0, outcome
    (line,) = [line for line in outcome.err.splitlines() if "optimizer" in line]
    layout = Layout(tmp_path / "node")
    if how == "whole":
        assert "the state of 17 parameters" in line
        assert layout.moments.read_bytes() == given
    else:
        assert line.startswith("the optimizer begins empty: ")
        assert not layout.moments.exists()


def test_a_model_and_another_shape_do_not_go_together(peerlm: Cli, tmp_path: Path) -> None:
    outcome = peerlm("init", "--state", tmp_path / "n", "--from", tmp_path, "--set", "model.dim=32")
    assert_one_line(outcome, 2, "model.dim", "--from")


# ------------------------------------------------------------------------------------ node.toml


def test_node_toml_explains_every_field_and_means_the_defaults() -> None:
    text = render_node_settings(NodeSettings(), frozenset())
    assert read_toml(NodeSettings, text, "test") == NodeSettings()
    unwrapped = " ".join(line.removeprefix("# ") for line in text.splitlines())
    for section in dataclasses.fields(NodeSettings()):
        for field in dataclasses.fields(getattr(NodeSettings(), section.name)):
            assert field.metadata["doc"] in unwrapped, field.name
            assert f"# {field.name} = " in text


def test_taking_a_comment_sign_away_sets_a_field() -> None:
    text = render_node_settings(NodeSettings(), frozenset())
    uncommented = text.replace("# port = 7700", "port = 7800")
    assert read_toml(NodeSettings, uncommented, "test").network.port == 7800


def test_all_its_commented_lines_would_be_read() -> None:
    text = render_node_settings(NodeSettings(), frozenset())
    names = {name for section in to_dict(NodeSettings()).values() for name in section}
    lines = [
        line.removeprefix("# ") if line.removeprefix("# ").partition(" =")[0] in names else line
        for line in text.splitlines()
    ]
    assert read_toml(NodeSettings, "\n".join(lines), "test") == NodeSettings()


def test_set_node_sets_and_a_later_one_keeps_what_a_person_wrote(
    peerlm: Cli, tmp_path: Path
) -> None:
    from peerlm.cli.settings_text import change_node_settings, read_node_settings

    node = tmp_path / "node"
    options = ("--set-node", "train.pace_tokens_s=500", "--set-node", "network.port=0")
    assert peerlm("init", "--state", node, *SMALL, *options).code == 0
    layout = Layout(node)
    assert read_node_settings(layout).train.pace_tokens_s == 500.0
    edited = layout.node_settings.read_text().replace("port = 0", "port = 7801  # the office's")
    layout.node_settings.write_text(edited)
    change_node_settings(layout, {"limits.threads": "3", "train.device": "cpu"}, "--set-node")
    settings = read_node_settings(layout)
    assert (settings.limits.threads, settings.train.device) == (3, "cpu")
    assert settings.network.port == 7801
    assert "# the office's" in layout.node_settings.read_text()
