"""Fragments into and out of a model: flat fp32 numpy arrays on one side, parameters on the other.

The daemon's slow weights and the worker's fast weights meet through these three functions. They
work in place, under no_grad, on whatever device the model is; values are never cast but to fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peerlm.model.plan import FragmentSpec

Values = NDArray[np.float32]


@torch.no_grad()
def copy_out(model: nn.Module, spec: FragmentSpec, out: Values) -> None:
    """Write the fragment's parameters to `out`, fp32 of length `spec.size`."""
    for mine, theirs in _pairs(model, spec, out):
        theirs.copy_(mine)


@torch.no_grad()
def copy_in(model: nn.Module, spec: FragmentSpec, values: Values) -> None:
    """Set the fragment's parameters to `values`, fp32 of length `spec.size`."""
    for mine, theirs in _pairs(model, spec, values):
        mine.copy_(theirs)


@torch.no_grad()
def add_in(model: nn.Module, spec: FragmentSpec, delta: Values) -> None:
    """Add `delta`, fp32 of length `spec.size`, to the fragment's parameters."""
    for mine, theirs in _pairs(model, spec, delta):
        mine.add_(theirs.to(mine.device))


def _pairs(model: nn.Module, spec: FragmentSpec, values: Values) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of each slice: in the model, and in the array."""
    assert values.shape == (spec.size,), (spec.name, values.shape, spec.size)
    assert values.dtype == np.float32, (spec.name, values.dtype)
    parameters = dict(model.named_parameters())
    flat = torch.from_numpy(_writable(values))
    offset = 0
    for piece in spec.slices:
        length = piece.stop - piece.start
        mine = parameters[piece.tensor].view(-1)[piece.start : piece.stop]
        yield mine, flat[offset : offset + length]
        offset += length


def _writable(values: Values) -> Values:
    """torch refuses to see read-only memory (a mapped snapshot) without a warning."""
    return values if values.flags.writeable else values.copy()
