"""Fragments into and out of a model: flat fp32 numpy arrays on one side, parameters on the other.

The daemon's slow weights and the worker's fast weights meet through these functions. They
work in place, under no_grad, on whatever device the model is; values are never cast but to fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peerlm.errors import ConfigError
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


def copy_in_finite(model: nn.Module, spec: FragmentSpec, values: Values) -> None:
    """`copy_in`. Raises `ConfigError` where a value is no finite number: no text could come of it."""
    if not np.isfinite(values).all():
        raise ConfigError(f"weights of {spec.name} are not finite")
    copy_in(model, spec, values)


@torch.no_grad()
def add_in(model: nn.Module, spec: FragmentSpec, delta: Values) -> None:
    """Add `delta`, fp32 of length `spec.size`, to the fragment's parameters."""
    for mine, theirs in _pairs(model, spec, delta):
        mine.add_(theirs.to(mine.device))


def slices_of(model: nn.Module, spec: FragmentSpec) -> list[Tensor]:
    """Flat views of the parameters that the fragment is made of, in its order."""
    parameters = dict(model.named_parameters())
    return [parameters[p.tensor].view(-1)[p.start : p.stop] for p in spec.slices]


def _pairs(model: nn.Module, spec: FragmentSpec, values: Values) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of each slice: in the model, and in the array."""
    assert values.shape == (spec.size,), (spec.name, values.shape, spec.size)
    assert values.dtype == np.float32, (spec.name, values.dtype)
    slices = slices_of(model, spec)
    parts = torch.from_numpy(_writable(values)).split([mine.numel() for mine in slices])
    yield from zip(slices, parts, strict=True)


def _writable(values: Values) -> Values:
    """torch refuses to see read-only memory (a mapped snapshot) without a warning."""
    return values if values.flags.writeable else values.copy()
