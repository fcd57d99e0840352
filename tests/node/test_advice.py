"""When a node says that its batch is small: once it knows, and when that has changed."""

from __future__ import annotations

from peerlm.effects import Log
from peerlm.node.advice import Advice


def said(advice: Advice, batch: int, scale: float | None) -> str:
    effects = advice.look(batch, scale)
    assert all(isinstance(effect, Log) and effect.event == "batch" for effect in effects)
    return " ".join(str(dict(effect.fields)["advice"]).split()[-1] for effect in effects)


def test_nothing_is_said_before_it_is_known_and_nothing_twice() -> None:
    advice = Advice()
    assert said(advice, 1024, None) == ""
    assert said(advice, 1024, 900.0) == "enough"
    assert said(advice, 1024, 1100.0) == ""


def test_it_is_said_that_losses_have_fallen_and_larger_batches_would_do() -> None:
    advice = Advice()
    found = [said(advice, 1000, scale) for scale in (2000.0, 4100.0, 3900.0, 3100.0, 2900.0)]
    assert found == ["enough", "less", "", "", "enough"]


def test_another_batch_is_another_question() -> None:
    advice = Advice()
    assert [said(advice, batch, 9000.0) for batch in (1000, 8000, 8000)] == ["less", "enough", ""]
