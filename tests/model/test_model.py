"""The torch model: its names, its determinism, causality, and decoding with state."""

from __future__ import annotations

import pytest
import torch

from peerlm import config
from peerlm.config import ModelSection
from peerlm.errors import ConfigError
from peerlm.model.generate import choose, generate
from peerlm.model.model import LanguageModel
from peerlm.model.plan import parameter_count, parameter_shapes

VOCAB = 37
SMALL = {"dim": 16, "heads": 4, "kv_heads": 2, "hidden": 24, "context": 8}
MODELS = {
    "attention tied": ModelSection(blocks=("attention", "feedforward") * 2, **SMALL),
    "attention untied": ModelSection(blocks=("attention", "feedforward"), tied=False, **SMALL),
    "gru": ModelSection(blocks=("recurrent", "feedforward"), cell="gru", **SMALL),
    "lstm untied": ModelSection(blocks=("recurrent",) * 2, cell="lstm", tied=False, **SMALL),
    "hybrid": ModelSection(blocks=("recurrent", "attention", "feedforward"), cell="gru", **SMALL),
}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(5))


def built(model: ModelSection, rng_seed: int = 1) -> LanguageModel:
    language_model = LanguageModel(model, VOCAB)
    language_model.initialise(rng_seed)
    return language_model.eval()


@pytest.fixture(params=MODELS, ids=list(MODELS))
def model(request: pytest.FixtureRequest) -> ModelSection:
    return MODELS[request.param]


def test_the_plan_states_exactly_the_models_parameters(model: ModelSection) -> None:
    stated = [(name, shape) for name, (_, shape) in parameter_shapes(model, VOCAB).items()]
    actual = [(name, tuple(p.shape)) for name, p in LanguageModel(model, VOCAB).named_parameters()]
    assert stated == actual


@pytest.mark.parametrize(
    ("preset", "vocab", "low", "high"),
    [
        ("tiny", 256, 0.3e6, 1e6),
        ("small", 256, 8e6, 13e6),
        ("gpt-124m", 50_257, 115e6, 135e6),
    ],
)
def test_presets_have_the_sizes_they_promise(
    preset: str, vocab: int, low: float, high: float
) -> None:
    assert low < parameter_count(config.preset(preset).model, vocab) < high


def test_the_same_seed_draws_the_same_weights(model: ModelSection) -> None:
    first, again, other = (built(model, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_every_weight_is_drawn_finite_and_the_first_guess_is_nearly_uniform(
    model: ModelSection,
) -> None:
    language_model = LanguageModel(model, VOCAB)
    for parameter in language_model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    language_model.initialise(1)
    loss = language_model.loss(tokens(4, 9))
    assert loss.item() == pytest.approx(torch.log(torch.tensor(float(VOCAB))).item(), abs=0.3)


def test_every_parameter_gets_a_gradient(model: ModelSection) -> None:
    language_model = built(model)
    language_model.loss(tokens(4, 9)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in language_model.parameters())


def test_no_token_sees_the_future(model: ModelSection) -> None:
    language_model, seen = built(model), tokens(1, 8)
    changed = seen.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % VOCAB
    before, after = language_model(seen), language_model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_attention_tells_places_apart() -> None:
    language_model = built(MODELS["attention tied"])
    ahead, swapped = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 1, 3]])
    assert not torch.allclose(language_model(ahead)[0, -1], language_model(swapped)[0, -1])


def test_decoding_with_state_gives_the_same_logits(model: ModelSection) -> None:
    language_model, text_BT = built(model), tokens(2, 8)
    prompt, state = language_model.advance(text_BT[:, :3], None)
    pieces = [prompt]
    for place in range(3, 8):
        logits_BTV, state = language_model.advance(text_BT[:, place : place + 1], state)
        pieces.append(logits_BTV)
    torch.testing.assert_close(torch.cat(pieces, dim=1), language_model(text_BT))


def test_decoding_goes_on_past_the_context_with_bounded_memory() -> None:
    language_model = built(MODELS["hybrid"])
    _, state = language_model.advance(tokens(1, 8), None)
    for _ in range(20):
        logits_BTV, state = language_model.advance(tokens(1, 1), state)
    assert logits_BTV.isfinite().all()
    assert state[1].position == 28
    assert state[1].keys_BKSE.size(2) == 8


def test_a_seed_generates_the_same_text_and_another_seed_another(model: ModelSection) -> None:
    language_model = built(model)
    texts = [list(generate(language_model, [1, 2], 20, 1.0, 0, seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert all(0 <= token < VOCAB for token in texts[0])


def test_a_prompt_may_be_longer_than_the_context() -> None:
    language_model = built(MODELS["attention tied"])
    long = tokens(30).tolist()
    assert list(generate(language_model, long, 4, 0.0)) == list(
        generate(language_model, long[-8:], 4, 0.0)
    )


@pytest.mark.parametrize(
    ("prompt", "says"), [([], "prompt is empty"), ([1, VOCAB], "37 is outside")]
)
def test_a_prompt_that_cannot_be_read_is_refused(prompt: list[int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        generate(built(MODELS["gru"]), prompt, 1)


def test_top_k_never_chooses_below_the_k_likeliest() -> None:
    logits_V, generator = torch.tensor([0.0, 3.0, 2.0, 1.0]), torch.Generator().manual_seed(1)
    assert {choose(logits_V, 5.0, 2, generator) for _ in range(100)} == {1, 2}
    assert choose(logits_V, 0.0, 0, generator) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-7, 1e-4, 0.01])
def test_a_tiny_temperature_draws_the_likeliest(temperature: float) -> None:
    logits_V, generator = torch.tensor([-3e38, 3.0, 2.0, 3e38]), torch.Generator().manual_seed(1)
    assert choose(logits_V, temperature, 0, generator, top_p=0.9) == 3
