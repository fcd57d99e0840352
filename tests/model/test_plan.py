"""The plan's arithmetic: fragments cover every parameter once, and respect modules and sizes."""

from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm import config
from peerlm.errors import ConfigError
from peerlm.mix.sketch import SKETCH_SIZE
from peerlm.model.plan import FRAGMENTS_MAX, fragments, modules, parameter_count, parameter_shapes
from peerlm.wire.codec import FRAME_BYTES_MAX, encode
from peerlm.wire.message import FragmentOffer, StateGive

model_sections = st.builds(
    config.ModelSection,
    blocks=st.lists(st.sampled_from(config.MODULE_KINDS), min_size=1, max_size=6).map(tuple),
    dim=st.sampled_from([8, 16, 48]),
    heads=st.sampled_from([1, 2, 4]),
    kv_heads=st.just(1),
    hidden=st.integers(8, 100),
    cell=st.sampled_from(["gru", "lstm"]),
    tied=st.booleans(),
)


def plan_of(
    model: config.ModelSection, fragment_max: int = 4_000_000, vocab: int = 256
) -> config.Plan:
    return config.Plan(
        model=model,
        data=config.DataSection(vocab=vocab),
        mix=config.MixSection(fragment_max=fragment_max),
    )


def test_modules_are_named_by_place_and_kind() -> None:
    model = config.ModelSection(blocks=("recurrent", "attention", "feedforward"))
    assert modules(model) == (
        "embedding",
        "blocks.0.recurrent",
        "blocks.1.attention",
        "blocks.2.feedforward",
        "output",
    )


@given(model_sections, st.integers(1024, 20_000), st.integers(2, 500))
def test_fragments_cover_every_parameter_once_in_order(
    model: config.ModelSection, fragment_max: int, vocab: int
) -> None:
    specs = fragments(plan_of(model, fragment_max, vocab))
    expected_next: dict[str, int] = {}
    for spec in specs:
        for piece in spec.slices:
            assert piece.start == expected_next.get(piece.tensor, 0)
            assert piece.start < piece.stop
            expected_next[piece.tensor] = piece.stop
    shapes = parameter_shapes(model, vocab)
    assert list(expected_next) == list(shapes)
    assert expected_next == {name: prod(shape) for name, (_, shape) in shapes.items()}
    assert [spec.id for spec in specs] == list(range(len(specs)))
    assert sum(spec.size for spec in specs) == parameter_count(model, vocab)


@given(model_sections, st.integers(1024, 20_000))
def test_fragments_stay_in_one_module_and_below_the_limit(
    model: config.ModelSection, fragment_max: int
) -> None:
    shapes = parameter_shapes(model, 256)
    for spec in fragments(plan_of(model, fragment_max)):
        assert 0 < spec.size <= fragment_max
        assert spec.size == sum(piece.stop - piece.start for piece in spec.slices)
        assert {shapes[piece.tensor][0] for piece in spec.slices} == {spec.module}


def test_a_large_module_is_split_evenly_and_its_parts_are_numbered() -> None:
    model = config.ModelSection(blocks=("feedforward",), dim=64, hidden=100)
    parts = [s for s in fragments(plan_of(model, 5000)) if s.module == "blocks.0.feedforward"]
    assert [part.name for part in parts] == [f"blocks.0.feedforward:{i}" for i in range(4)]
    assert max(part.size for part in parts) - min(part.size for part in parts) <= 1


def test_more_fragments_than_can_be_offered_are_no_plan() -> None:
    model = config.ModelSection(blocks=("feedforward",) * 4, dim=1024, hidden=4096)
    with pytest.raises(
        ConfigError, match=r"fragments, and a node can offer 2500 .* make it 4"
    ) as found:
        fragments(plan_of(model, 4096 * 2))
    enough = int(str(found.value).rpartition(" ")[2])
    assert len(fragments(plan_of(model, enough))) <= FRAGMENTS_MAX


def test_an_offer_of_as_many_fragments_as_there_may_be_fits_a_message() -> None:
    offer = FragmentOffer(1_000_000, 2**62, b"h" * 32, 2**32, (0.1,) * SKETCH_SIZE)
    assert (
        len(encode(StateGive(b"p" * 32, 2**62, True, (offer,) * FRAGMENTS_MAX))) <= FRAME_BYTES_MAX
    )


def test_the_plan_does_not_need_torch() -> None:
    code = "import sys, peerlm.model.plan;sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
