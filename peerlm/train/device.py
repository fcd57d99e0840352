"""Which device a worker trains on, what is free there, and in what precision it computes."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peerlm.errors import DeviceLost


def choose_device(setting: str, name: str = "train.device") -> torch.device:
    """The device that `train.device` in node.toml asks for, or what else is called `name`; `auto` takes cuda, then mps,
    then cpu.

    Raises:
        DeviceLost: the device asked for by name is not there.
    """
    if setting == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        raise DeviceLost(
            f"{name} = {setting!r}: no such device; use auto, cpu, cuda, cuda:N or mps"
        ) from None
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if found <= (device.index or 0):
            raise DeviceLost(
                f"{name} = {setting!r}: torch {torch.__version__} sees "
                f"{found or 'no'} CUDA device{'' if found == 1 else 's'}; use auto or cpu"
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceLost(f"{name} = {setting!r}: this machine has no Metal device; use auto or cpu")
    return device


def device_of_rank(setting: str, rank: int, size: int) -> torch.device:
    """The device of one of `size` local workers: a CUDA device each, from the one that is named on, or
    the processor for all. Raises `DeviceLost`: there are not so many."""
    first = choose_device(setting)
    if first.type == "cpu":
        return first
    if first.type != "cuda":
        raise DeviceLost(f"train.local_workers = {size}: {first.type} cannot be shared; use 1")
    index, found = (first.index or 0) + rank, torch.cuda.device_count()
    if index >= found:
        raise DeviceLost(
            f"train.local_workers = {size}: torch sees {found} CUDA devices, and each takes one; use fewer"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def use_threads(count: int) -> None:
    """So many processor threads for everything that this process computes from now on."""
    torch.set_num_threads(count)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def to_device(tokens: NDArray[np.int64], device: torch.device) -> Tensor:
    """On CUDA without waiting for what the device does already."""
    there = torch.from_numpy(np.ascontiguousarray(tokens))
    if device.type == "cuda":
        return there.pin_memory().to(device, non_blocking=True)
    return there.to(device)


def free_bytes(device: torch.device) -> int | None:
    """Of its own memory; None: it has the host's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bf16 autocast where it pays: on CUDA. Weights and gradients stay fp32 everywhere."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()
