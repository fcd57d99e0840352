"""What the demo's models are worth: are they one model, how well does it predict, what does it write?

Read from the files that the nodes wrote, after they have ended. Brings torch in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peerlm.cli.torch_here import build, text_after
from peerlm.cli.weights_here import from_folder
from peerlm.data.loader import Loader
from peerlm.data.shards import Corpus
from peerlm.model.export import read_model
from peerlm.store.layout import Layout
from peerlm.train.evaluate import evaluate
from peerlm.types import PeerId

PROMPT = "ROMEO:"
SAMPLE_TOKENS = 300
SAMPLE_TEMPERATURE = 0.6


def relative_spread(folders: Sequence[Path]) -> float:
    """The largest distance of a model from the mean of all, ÷ the mean's norm; fp64."""
    models = [np.concatenate(read_model(f)[1]).astype(np.float64) for f in folders]
    mean = np.mean(models, axis=0)
    largest = max(float(np.linalg.norm(model - mean)) for model in models)
    return largest / float(np.linalg.norm(mean))


def validation_loss(folder: Path, layout: Layout) -> float:
    """Of a written model on the held-out text that a node keeps, in nats per token."""
    weights = from_folder(folder)
    plan = weights.plan
    paths = [layout.objects / shard for shard in plan.data.shards]
    corpus = Corpus.open(paths, plan.data.vocab, plan.data.val_fraction)
    loader = Loader(corpus, plan, PeerId(bytes(16)), plan.run.rng_seed)
    batches = loader.validation_batches(plan.train.val_batches, plan.train.batch)
    return evaluate(build(weights), batches)


def sample(folder: Path) -> str:
    """The prompt and what the model makes of it."""
    weights = from_folder(folder)
    pieces = text_after(
        weights, PROMPT, SAMPLE_TOKENS, SAMPLE_TEMPERATURE, rng_seed=1, note=lambda _: None
    )
    return PROMPT + "".join(pieces)
