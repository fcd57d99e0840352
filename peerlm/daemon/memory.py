"""Whether a model fits this machine at all: told before anything is made of it."""

from __future__ import annotations

import psutil

from peerlm.config import Plan
from peerlm.errors import ConfigError
from peerlm.model.plan import parameter_count

BYTES_A_PARAMETER = 20
"""The least: φ and the outer momentum in the daemon, three regions that it shares with the worker. What the worker needs
besides may lie on a device of its own."""


def require_memory(plan: Plan, memory_bytes: int | None = None) -> None:
    """Raises `ConfigError`. `memory_bytes`: of the machine; None: of this one."""
    has = psutil.virtual_memory().total if memory_bytes is None else memory_bytes
    parameters = parameter_count(plan.model, plan.data.vocab)
    if BYTES_A_PARAMETER * parameters > has:
        raise ConfigError(
            f"a model of {parameters:,} parameters takes {BYTES_A_PARAMETER * parameters / 1e9:,.1f} GB of memory at the "
            f"least, and this machine has {has / 1e9:,.1f} GB: lower model.dim or the number of model.blocks"
        )
