"""Validation loss: how well weights predict text nobody trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from peerlm.model.model import LanguageModel
from peerlm.train.device import device_of, mixed_precision, to_device


@torch.no_grad()
def evaluate(model: LanguageModel, batches: Iterable[NDArray[np.int64]]) -> float:
    """Mean loss in nats a token over batches of (B, T + 1) ids; nan when there are none.

    The model is left in the mode (training or not) it was found in.
    """
    device, was_training = device_of(model), model.training
    model.eval()
    nats, tokens = 0.0, 0
    try:
        for batch in batches:
            tokens_BT1 = to_device(batch, device)
            with mixed_precision(device):
                loss = model.loss(tokens_BT1)
            predicted = tokens_BT1[:, 1:].numel()
            nats += loss.item() * predicted
            tokens += predicted
    finally:
        model.train(was_training)
    return nats / tokens if tokens else float("nan")
