"""Shared memory: slots of the right size that do not touch, and nothing left behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from peerlm.config import preset, with_changes
from peerlm.model.plan import fragments
from peerlm.train import shared
from peerlm.train.shared import SharedMemory

PLAN = with_changes(
    preset("tiny"), {"mix.fragment_max": 10_007, "model.dim": 24, "model.hidden": 33}, "here"
)
FRAGMENTS = fragments(PLAN)


@pytest.fixture
def descriptor():  # type: ignore[no-untyped-def]
    descriptor = shared.allocate(FRAGMENTS)
    yield descriptor
    os.close(descriptor)


def regions(memory: SharedMemory) -> list[shared.Slots]:
    return [memory.boundary, memory.correction, memory.slow]


def test_every_fragment_has_a_slot_of_its_own_in_each_region(descriptor: int) -> None:
    memory = SharedMemory(descriptor, FRAGMENTS)
    slots = [slot for region in regions(memory) for slot in region.values()]
    assert [slot.size for slot in slots] == [f.size for f in FRAGMENTS] * 3
    for number, slot in enumerate(slots, start=1):
        slot[:] = number
    assert all((slot == number).all() for number, slot in enumerate(slots, start=1))


def test_slots_begin_on_cache_lines(descriptor: int) -> None:
    memory = SharedMemory(descriptor, FRAGMENTS)
    assert any(f.size % 16 for f in FRAGMENTS)
    assert all(slot.ctypes.data % shared.ALIGN == 0 for r in regions(memory) for slot in r.values())


def test_both_sides_see_the_same_numbers(descriptor: int) -> None:
    ours, theirs = SharedMemory(descriptor, FRAGMENTS), SharedMemory(descriptor, FRAGMENTS)
    ours.correction[1][:] = np.arange(FRAGMENTS[1].size)
    assert np.array_equal(theirs.correction[1], np.arange(FRAGMENTS[1].size))


def test_memory_outlives_its_descriptor_and_goes_with_its_views() -> None:
    descriptor = shared.allocate(FRAGMENTS)
    memory = SharedMemory(descriptor, FRAGMENTS)
    os.close(descriptor)
    kept = memory.slow[0]
    del memory
    kept[:] = 1.0
    assert "memfd:peerlm" in Path("/proc/self/maps").read_text()
    del kept
    gc.collect()
    assert "memfd:peerlm" not in Path("/proc/self/maps").read_text()
