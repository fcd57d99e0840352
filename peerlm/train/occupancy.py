"""How much of a step an accelerator computes, by torch's profiler: what it does not compute it waits."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def synchronise(device: torch.device) -> None:
    """Wait until everything that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def idle_share(device: torch.device, work: Callable[[], None]) -> float | None:
    """Share of the time of `work` in which no kernel and no copy ran on the device; None on a processor."""
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    synchronise(device)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        began = time.perf_counter()
        work()
        synchronise(device)
        seconds = time.perf_counter() - began
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    )
    return max(0.0, 1.0 - _covered(spans) / 1e6 / seconds)


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of sorted spans: what runs at once on two streams counts once."""
    covered, until = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered
