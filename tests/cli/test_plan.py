"""`peerlm plan`: what it shows, and what a living run can be told to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_scene import Cli, FakeDaemon, assert_one_line

from peerlm.cli import desk_here
from peerlm.cli.plan import current_plan
from peerlm.cli.state import read_run
from peerlm.data.shards import corpus_manifest, shard_bytes, shard_fact
from peerlm.errors import ConfigError
from peerlm.identity.root import verify_plan
from peerlm.store.layout import Layout
from peerlm.store.manifest import Manifest


def test_plan_show_is_toml_that_means_the_plan(peerlm: Cli, founded: Path) -> None:
    from peerlm.config import Plan, read_toml

    plan = current_plan(Layout(founded)).plan
    for options in ((), ("--explain",)):
        assert (
            read_toml(Plan, peerlm("plan", "show", "--state", founded, *options).out, "t") == plan
        )
    whole = json.loads(peerlm("plan", "show", "--json", "--state", founded).out)
    assert whole["revision"] == 1
    assert whole["plan"]["model"]["dim"] == 16


def test_plan_set_hands_the_next_revision_to_the_daemon(peerlm: Cli, daemon: FakeDaemon) -> None:
    outcome = peerlm("plan", "set", "run.token_budget=7", "--state", daemon.layout.root)
    assert outcome.code == 0, outcome
    here = read_run(daemon.layout)
    (args,) = [args for command, args in daemon.asked if command == "new_plan"]
    assert "the run ends" in outcome.err, "the swarm is beyond it"
    signed = verify_plan(bytes.fromhex(args["plan"]), here.root_public_key, here.run_id)
    assert (signed.revision, signed.plan.run.token_budget) == (2, 7)
    assert current_plan(daemon.layout).revision == 1, "the daemon writes it, not we"


def test_plan_set_without_a_daemon_writes_it(peerlm: Cli, founded: Path) -> None:
    assert peerlm("plan", "set", "train.lr=0.5", "--state", founded).code == 0
    signed = current_plan(Layout(founded))
    assert (signed.revision, signed.plan.train.lr) == (2, 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.dim=32", ("model.dim", "another run")),
        ("mix.fragment_max=5000", ("mix.fragment_max",)),
        ("data.vocab=300", ("data.vocab",)),
        ("data.source=texts/", ("only go on with text in its own store", "swarm:NAME")),
        ("run.name=x", ("run.name",)),
        ("train.lr=-1", ("train.lr = -1.0",)),
        ("train.batch=100_000_000", ("shorter than one batch", "tokens to train on")),
        ("data.val_fraction=0.000001", ("shorter than one batch of validation",)),
        ("train.rate=1", ("no field 'train.rate'",)),
        ("run.token_budget=4_000_000", ("nothing is changed",)),
    ],
)
def test_plan_set_refuses_what_a_living_run_cannot_do(
    peerlm: Cli, founded: Path, change: str, words: tuple[str, ...]
) -> None:
    assert_one_line(peerlm("plan", "set", change, "--state", founded), 2, *words)


class Desk:
    """Stands in for a daemon that has one corpus in the store."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def manifest(self, name: str) -> Manifest:
        assert name == "laws"
        return self._manifest


def test_plan_set_takes_hashes_and_sizes_of_shards_from_the_store(
    peerlm: Cli, founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [np.arange(n, dtype=np.uint16) % 256 for n in (5000, 5000, 70)]
    facts = [shard_fact(shard_bytes(ids, 256), len(ids)) for ids in pieces]
    manifest, _ = corpus_manifest(facts, None, 256, documents=3)
    monkeypatch.setattr(desk_here, "open_desk", lambda layout: Desk(manifest))
    change = "data.source=swarm:laws"
    assert peerlm("plan", "set", change, "--state", founded).code == 0
    data = current_plan(Layout(founded)).plan.data
    assert data.shards == tuple(fact.hash.hex() for fact in facts)
    assert data.shard_tokens == (5000, 5000, 70)

    wrong = replace(manifest, meta={**manifest.meta, "tokens": 10_071})
    monkeypatch.setattr(desk_here, "open_desk", lambda layout: Desk(wrong))
    words = ("10071 tokens", "room for 10070")
    assert_one_line(peerlm("plan", "set", change, "--state", founded), 2, *words)


def test_plan_set_without_the_root_key_says_where_to_go(peerlm: Cli, founded: Path) -> None:
    (founded / "root").unlink()
    outcome = peerlm("plan", "set", "train.lr=1", "--state", founded)
    assert_one_line(outcome, 2, "root key", "not on this machine")


def test_a_refusal_of_the_daemon_is_passed_on(peerlm: Cli, daemon: FakeDaemon) -> None:
    daemon.answers["new_plan"] = ConfigError("revision 2 is known already")
    outcome = peerlm("plan", "set", "train.lr=1", "--state", daemon.layout.root)
    assert_one_line(outcome, 1, "revision 2 is known already")
