"""Whether a model fits this machine at all, told before anything is made of it; and what the machine offers of itself."""

from __future__ import annotations

import shutil
import subprocess

import psutil

from peerlm.config import NodeSettings, Plan
from peerlm.errors import ConfigError
from peerlm.model.stages import held_parameters
from peerlm.types import Memory

BYTES_A_PARAMETER = 20
"""The least: φ and the outer momentum in the daemon, three regions that it shares with the worker. What the worker needs
besides may lie on a device of its own."""

OFFERED = 0.5
"""Of the host's memory that is free at the start, to stages: the rest is for what daemon and worker share, for activations,
and for everything else."""


OFFERED_OF_DEVICE = 0.8
"""Of a device's memory: the rest is for activations and for what libraries take."""

CACHED, CACHE_BYTES_MAX = 0.25, 1 << 30
"""Of the host's memory that is free when a stage server starts, to what it remembers of texts; and the most."""

ASK_S = 5.0


def memory_of(settings: NodeSettings) -> Memory:
    """What this machine offers for stages."""
    host = settings.host
    free = host.memory_bytes or int(OFFERED * psutil.virtual_memory().available)
    device = host.device_bytes or _free_of_device(settings.train.device)
    return Memory(device or None, free)


def cache_of_texts() -> int:
    """Bytes for what a stage server that starts now may remember of all texts."""
    return min(CACHE_BYTES_MAX, int(CACHED * psutil.virtual_memory().available))


def _free_of_device(device: str) -> int:
    """Bytes free on the NVIDIA device that is trained on, by its driver's own tool; 0 where there is none. No torch:
    it would take a part of them."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or not (tool := shutil.which("nvidia-smi")):
        return 0
    ask = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", number or "0"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=ASK_S, check=True)
        return int(OFFERED_OF_DEVICE * int(answer.stdout.split()[0]) * 2**20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def require_memory(plan: Plan, held: range, memory_bytes: int | None = None) -> None:
    """Of a node that holds these stages. Raises `ConfigError`. `memory_bytes`: of the machine; None: of this one."""
    has = psutil.virtual_memory().total if memory_bytes is None else memory_bytes
    parameters = held_parameters(plan, held)
    what = "a model" if len(held) == plan.model.stages else "a part"
    if BYTES_A_PARAMETER * parameters > has:
        raise ConfigError(
            f"{what} of {parameters:,} parameters takes {BYTES_A_PARAMETER * parameters / 1e9:,.1f} GB of memory at the "
            f"least, and this machine has {has / 1e9:,.1f} GB: lower model.dim or the number of model.blocks, or cut the "
            "model into more model.stages and let this node hold some of them (--host)"
        )
