"""A node's own text as one of several: its share, read by that node alone, and called so that nobody tells of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from peerlm.config import Plan, with_changes
from peerlm.config.mixture import has_own, parse
from peerlm.data.mixture import Mixture
from peerlm.data.passes import is_own, own_text_of, text_of
from peerlm.data.records import Record, decode, encode, parts_of
from peerlm.data.shards import shard_bytes
from peerlm.errors import ConfigError
from peerlm.types import PeerId

A, B, C = (PeerId(letter * 16) for letter in (b"a", b"b", b"c"))
VOCAB = 1 << 20
SIZES = {"plays": 1500, "news": 900}


def shard(folder: Path, first: int, tokens: int) -> Path:
    """A token is its own place, from `first` on."""
    path = folder / f"{first:064x}"
    path.write_bytes(shard_bytes(np.arange(first, first + tokens, dtype=np.uint32), VOCAB))
    return path


@pytest.fixture
def shared(tmp_path: Path) -> list[Path]:
    return [shard(tmp_path, 10_000 * n, tokens) for n, tokens in enumerate(SIZES.values())]


@pytest.fixture
def own(tmp_path: Path) -> list[Path]:
    """Of one node: it begins at 20,000."""
    return [shard(tmp_path, 20_000, 300), shard(tmp_path, 20_300, 100)]


def plan_of(source: str, shared: list[Path], parts: tuple[int, ...], **changes: object) -> Plan:
    said = {
        "train.batch": 4,
        "model.context": 8,
        "data.vocab": VOCAB,
        "data.source": source,
        "data.shards": [path.name for path in shared],
        "data.shard_tokens": [*SIZES.values()][: len(shared)],
        "data.parts": parts,
        "data.val_fraction": 0.0,
        **changes,
    }
    return with_changes(Plan(), said, "test")


def texts_in(mixture: Mixture, batches: int) -> Counter[int]:
    """Rows drawn of each text."""
    rows = [row for _ in range(batches) for row in mixture.next_batch()]
    return Counter(int(row[0]) // 10_000 for row in rows)


SOURCE = "swarm:plays*3+local*2+news*5"


@pytest.fixture
def plan(shared: list[Path]) -> Plan:
    return plan_of(SOURCE, shared, (1, 0, 1))


def test_own_text_has_its_share_and_who_has_none_draws_it_from_the_others(
    plan: Plan, shared: list[Path], own: list[Path]
) -> None:
    with_own = Mixture.open([*shared, *own], plan, A, 4)
    assert with_own.shares == (0.3, 0.2, 0.5)
    assert texts_in(with_own, 25) == {0: 30, 2: 20, 1: 50}
    without = Mixture.open(shared, plan, B, 4)
    assert without.shares == (3 / 8, 5 / 8)
    assert texts_in(without, 20) == {0: 30, 1: 50}


def test_all_of_own_text_is_read_here_however_many_are_there(
    plan: Plan, shared: list[Path], own: list[Path]
) -> None:
    mixture = Mixture.open([*shared, *own], plan, A, 4)
    mixture.set_members([A, B, C])
    rows: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while len(rows[2]) < 43:  # the windows of one pass over 400 tokens
        for row in mixture.next_batch():
            rows[int(row[0]) // 10_000].append(int(row[0]))
    assert len(set(rows[2][:43])) == 43, "each window of it once before any comes again"
    assert len(rows[0]) / len(rows[2]) == pytest.approx(1.5, abs=0.1)


def test_it_goes_on_where_it_was_with_the_same_rows_in_the_same_order(
    plan: Plan, shared: list[Path], own: list[Path]
) -> None:
    def opened() -> Mixture:
        return Mixture.open([*shared, *own], plan, A, 4)

    first = opened()
    for _ in range(33):
        first.next_batch()
    read = first.told()
    assert [is_own(text) for text in read.texts] == [False, True, False]
    lanes: list[list[tuple[int, ...]]] = [[], [], []]
    for at in range(0, len(read.lanes), 4):
        lanes[read.lanes[at]].append(read.lanes[at + 1 : at + 4])
    kept = [
        Record(loader.passes, [type(loader.lanes()[0])(*lane) for lane in of_text])
        for loader, of_text in zip(first._loaders, lanes, strict=True)
    ]
    again = opened()
    again.go_on(*decode(encode(kept, read.order)))
    for _ in range(40):
        assert (again.next_batch() == first.next_batch()).all()


def test_while_shards_are_to_come_own_text_is_read_with_what_is_there(
    plan: Plan, shared: list[Path], own: list[Path]
) -> None:
    mixture = Mixture.open([*shared, *own], plan, A, 4, absent=[0])
    assert mixture.has_batch()
    drawn = Counter[int]()
    while drawn.total() < 80 and mixture.has_batch():
        drawn += texts_in(mixture, 1)
    assert drawn[0] == 0
    assert drawn[2] * 5 == pytest.approx(drawn[1] * 2, abs=8)
    mixture.absent_are([])
    assert texts_in(mixture, 5)[0] > 0


def test_its_name_says_that_it_is_own_and_of_which_text(plan: Plan) -> None:
    told = parts_of(plan)
    assert [(part.name, part.is_own) for part in told] == [
        ("plays", False),
        ("local", True),
        ("news", False),
    ]
    names = (*plan.data.shards, "x", "y")
    (_, here, _) = parts_of(plan, names)
    assert here.places == range(2, 4)
    assert here.text == own_text_of(["x", "y"], plan) != own_text_of(["x"], plan)
    assert not is_own(text_of(["x", "y"], plan))
    assert [part.name for part in parts_of(plan, plan.data.shards)] == ["plays", "news"]
    alone = with_changes(
        plan,
        {"data.source": "local", "data.shards": [], "data.shard_tokens": [], "data.parts": []},
        "test",
    )
    (only,) = parts_of(alone, ["x", "y"])
    assert only.text == here.text, "the same text, alone or with others"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("local", True),
        ("shipped", False),
        ("swarm:plays+local*3", True),
        ("swarm:plays+news", False),
        ("swarm:local", False),
    ],
)
def test_which_sources_name_own_text(source: str, named: bool) -> None:
    assert has_own(source) == named


@pytest.mark.parametrize("parts", [(1, 1), (1, 0), (2, 0), (0, 2), (), (1, 0, 1, 0)])
def test_own_text_has_no_shards_in_the_plan(shared: list[Path], parts: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.parts = .* does not cut 2 shards"):
        plan_of(SOURCE, shared, parts)


def test_shipped_text_cannot_be_mixed_and_own_text_has_one_weight() -> None:
    with pytest.raises(ConfigError, match="shipped is no corpus that can be mixed"):
        parse("swarm:plays+shipped", "here")
    with pytest.raises(ConfigError, match="local is named twice"):
        parse("swarm:plays+local*2+local", "here")
