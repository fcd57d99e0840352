"""Whether a model fits this machine at all, told before anything is made of it; and what the machine offers of itself."""

from __future__ import annotations

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


def memory_of(settings: NodeSettings) -> Memory:
    """What this machine offers for stages."""
    host = settings.host
    free = host.memory_bytes or int(OFFERED * psutil.virtual_memory().available)
    return Memory(host.device_bytes or None, free)


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
