"""`peerlm plan set data.source=swarm:…` of several corpora: what the plan then says, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_scene import Cli, assert_one_line
from desk_scene import FakeDesk, desk

from peerlm.cli.plan import current_plan
from peerlm.config.mixture import CORPORA_MAX
from peerlm.data.shards import corpus_manifest, shard_bytes, shard_fact
from peerlm.store.layout import Layout
from peerlm.store.manifest import Kind, of_files

__all__ = ["desk"]


def add(desk: FakeDesk, name: str, shards: int = 1, tokens: int = 20_000, **meta: Any) -> list[str]:
    """A corpus of bytes; the hashes of its shards."""
    import numpy as np

    ids = [np.full(tokens, ord(name[0]) + n, np.uint32) for n in range(shards)]
    made = [shard_fact(shard_bytes(part, 256), tokens) for part in ids]
    manifest, _ = corpus_manifest(made, None, 256, 1)
    files = [(f.path, manifest.chunks_of(f)) for f in manifest.files]
    desk.chunks.update({chunk.hash: b"" for chunk in manifest.chunks})
    desk.publish(name, of_files(Kind.CORPUS, files, {**manifest.meta, **meta}))
    return [fact.hash.hex() for fact in made]


def test_a_mixture_lists_the_shards_of_each(peerlm: Cli, founded: Path, desk: FakeDesk) -> None:
    plays, news = add(desk, "plays", 2), add(desk, "news", 3)
    source = "swarm:plays*3+news"
    done = peerlm("plan", "set", f"data.source={source}", "--state", founded)
    assert done.code == 0, done.err
    assert f'data.source = "{source}"' in done.out
    data = current_plan(Layout(founded)).plan.data
    assert (data.source, data.shards, data.parts) == (source, (*plays, *news), (2, 3))
    assert peerlm("plan", "set", "data.source=swarm:news", "--state", founded).code == 0
    data = current_plan(Layout(founded)).plan.data
    assert (data.source, data.shards, data.parts) == ("swarm:news", tuple(news), ())


def test_each_nodes_own_text_is_named_beside_the_others_and_has_no_shards(
    peerlm: Cli, founded: Path, desk: FakeDesk
) -> None:
    plays, news = add(desk, "plays", 2), add(desk, "news")
    source = "swarm:plays*0.5+local*0.3+news*0.2"
    done = peerlm("plan", "set", f"data.source={source}", "--state", founded)
    assert done.code == 0, done.err
    data = current_plan(Layout(founded)).plan.data
    assert (data.source, data.shards, data.parts) == (source, (*plays, *news), (2, 0, 1))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("swarm:plays*0+news", ("weight of plays is '0'", "above 0", "do not name it")),
        ("swarm:plays*-1+news", ("weight of plays is '-1'", "above 0")),
        ("swarm:plays*nan+news", ("weight of plays is 'nan'", "such as 3 or 0.25")),
        ("swarm:plays*inf+news", ("weight of plays is 'inf'",)),
        ("swarm:plays*+news", ("weight of plays is ''",)),
        ("swarm:plays*1e3+news", ("weight of plays is '1e3'",)),
        ("swarm:plays*0.0000001+news", ("weight of plays", "six digits")),
        ("swarm:plays*3+plays", ("plays is named twice", "one weight")),
        ("swarm:plays+", ("no name", "NAME*3+NAME*1")),
        ("swarm:", ("no name", "swarm:NAME")),
        ("swarm:plays+Big News", ("'Big News' is no name", "peerlm data ls")),
        ("swarm:plays+swarm:news", ("'swarm:news'", "but at the beginning")),
        ("swarm:plays+shipped", ("shipped is no corpus", "peerlm data add")),
        ("swarm:plays+local+local", ("local is named twice", "one weight")),
        ("local", ("only go on with text in its own store", "swarm:NAME")),
        ("local+swarm:plays", ("only go on with text in its own store", "swarm:NAME")),
        ("swarm:plays+gone", ("nothing of the name gone",)),
        ("swarm:plays+same", ("same: is the same text as plays", "the weight of both")),
        ("swarm:plays+wide", ("wide: made with vocab 50000, the run's is 256", "--tokenizer")),
        ("swarm:plays+words", ("words: made with tokenizer", "the run's is bytes")),
        ("swarm:plays+short", ("'short' is shorter than one batch", "use more text")),
        ("swarm:" + "+".join(f"n{i}" for i in range(CORPORA_MAX + 1)), ("at most 16",)),
    ],
)
def test_what_cannot_be_mixed_is_one_line(
    peerlm: Cli, founded: Path, desk: FakeDesk, source: str, words: tuple[str, ...]
) -> None:
    add(desk, "plays")
    add(desk, "news")
    desk.records["same"] = {**desk.records["plays"], "name": "same"}
    add(desk, "wide", vocab=50_000)
    add(desk, "words", tokenizer="ab" * 32)
    add(desk, "short", tokens=100)
    outcome = peerlm("plan", "set", f"data.source={source}", "--state", founded)
    assert_one_line(outcome, 3 if "gone" in source else 2, *words)
    assert current_plan(Layout(founded)).revision == 1


def test_what_cuts_the_shards_is_not_set_by_hand(peerlm: Cli, founded: Path) -> None:
    outcome = peerlm("plan", "set", "data.parts=1,2", "--state", founded)
    assert_one_line(outcome, 2, "data.parts cannot change")
