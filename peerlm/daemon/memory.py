"""Whether a model fits this machine at all, told before anything is made of it; and what the machine offers of itself.

What is offered is read again and again while the daemon runs: a part of what would be free if it and its processes held
nothing, so that a stage that is held does not count as taken by somebody else. What follows from that is
`swarm.offering`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import Callable

import psutil

from peerlm.config import NodeSettings, Plan
from peerlm.errors import ConfigError
from peerlm.events import Event, MemoryRead
from peerlm.model.stages import NOTHING, held_parameters
from peerlm.serve.guests import cache_of
from peerlm.types import Memory

BYTES_A_PARAMETER = 20
"""The least: φ and the outer momentum in the daemon, three regions that it shares with the worker. What the worker needs
besides may lie on a device of its own."""

OFFERED = 0.5
"""Of the host's memory that is free, to stages: the rest is for what daemon and worker share, for activations,
and for everything else."""

OFFERED_OF_DEVICE = 0.8
"""Of a device's memory: the rest is for activations and for what libraries take."""

ASK_S = 5.0

READ_S = 60.0
"""Between two readings of what is free: they cost a process each where there is a device."""


def memory_of(settings: NodeSettings, held: Memory = NOTHING) -> Memory:
    """What this machine offers for stages. `held`: what those take that are held already, where its driver does not say."""
    host, device = settings.host, settings.host.device_bytes
    free = host.memory_bytes
    if not free:
        free = int(OFFERED * (psutil.virtual_memory().available + _bytes_of(_ours())))
    if not device:
        device = _offered_of_device(settings.train.device, held.device or 0)
    return Memory(device or None, free)


async def keep_reading(
    settings: NodeSettings, held: Callable[[], Memory], post: Callable[[Event], None]
) -> None:
    """Tell the node what the machine offers, until cancelled; nothing where its owner has said all of it. `held`: see `memory_of`."""
    loop = asyncio.get_running_loop()
    while not (settings.host.memory_bytes and settings.host.device_bytes):
        await asyncio.sleep(READ_S)
        post(MemoryRead(await loop.run_in_executor(None, memory_of, settings, held())))


def cache_of_texts() -> int:
    """Bytes for what a stage server that starts now may remember of all texts in the host's memory."""
    return cache_of(psutil.virtual_memory().available)


def _ours() -> list[psutil.Process]:
    """This process, and those that it has begun."""
    me = psutil.Process()
    with contextlib.suppress(psutil.Error):
        return [me, *me.children(recursive=True)]
    return [me]


def _bytes_of(processes: list[psutil.Process]) -> int:
    """What they have of the host's memory; what they share counts once where the system says so."""
    taken = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            full = process.memory_full_info()
            taken += getattr(full, "pss", full.rss)
    return taken


def _offered_of_device(device: str, held: int) -> int:
    """Of the NVIDIA device that is trained on, by its driver's own tool; 0 where there is none. No torch: it would take
    a part of it. Inside a container the driver does not name our processes: then they have what is `held`."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or not (tool := shutil.which("nvidia-smi")):
        return 0
    try:
        ask = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        free = int(_answer([*ask, "-i", number or "0"]).split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0
    return int(OFFERED_OF_DEVICE * (free + (_taken_of_device(tool, number or "0") or held)))


def _taken_of_device(tool: str, number: str) -> int:
    """Bytes that our processes have of it, as far as the driver says."""
    ask, taken = [tool, "--query-compute-apps=pid,used_gpu_memory"], 0
    ours = {process.pid for process in _ours()}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for line in _answer([*ask, "--format=csv,noheader,nounits", "-i", number]).splitlines():
            pid, _, mib = (part.strip() for part in line.partition(","))
            if pid.isdecimal() and mib.isdecimal() and int(pid) in ours:
                taken += int(mib) * 2**20
    return taken


def _answer(ask: list[str]) -> str:
    return subprocess.run(ask, capture_output=True, text=True, timeout=ASK_S, check=True).stdout


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
