"""The memory a daemon and its worker share: fragments go through here, never through a socket.

Three regions of fp32, each as long as the model, with one slot for each fragment: `boundary`, where
the worker lays θ; `correction`, where the daemon lays what θ must be changed by; `slow`, where the
daemon lays φ for a worker that starts or evaluates. Whose turn it is with a slot is said in messages
(`train.protocol`), so nothing here is locked. Where slots lie follows from the plan's fragments, and
both sides work it out for themselves.

The memory is an anonymous file handed over by descriptor: it has no name, so there is nothing to
clean, and it is gone when the last of the two processes is.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peerlm.model.plan import FragmentSpec
from peerlm.types import FragmentId

Slots = dict[FragmentId, NDArray[np.float32]]
"""One flat array a fragment."""

ALIGN = 64
"""Bytes: a cache line, so that neighbouring slots can be written by two cores at once."""


class SharedMemory:
    """Views of the memory behind a descriptor. The views keep it mapped; the descriptor may close.

    whole: all three regions, as bytes.
    """

    def __init__(self, descriptor: int, fragments: Sequence[FragmentSpec]) -> None:
        length = region_bytes(fragments)
        memory = mmap.mmap(descriptor, 3 * length)
        self.whole = np.frombuffer(memory, np.uint8)
        self.boundary = _slots(memory, 0, fragments)
        self.correction = _slots(memory, length, fragments)
        self.slow = _slots(memory, 2 * length, fragments)


def allocate(fragments: Sequence[FragmentSpec]) -> int:
    """A descriptor of new memory, full of zeros, for these fragments. The caller closes it.

    Pages cost nothing until they are written. Raises `OSError`.
    """
    descriptor = _anonymous_file()
    try:
        os.ftruncate(descriptor, 3 * region_bytes(fragments))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def region_bytes(fragments: Sequence[FragmentSpec]) -> int:
    """Bytes of one region."""
    return sum(_slot_bytes(fragment) for fragment in fragments)


def _slot_bytes(fragment: FragmentSpec) -> int:
    return -(-fragment.size * 4 // ALIGN) * ALIGN


def _slots(memory: mmap.mmap, start: int, fragments: Sequence[FragmentSpec]) -> Slots:
    slots = {}
    for fragment in fragments:
        slots[fragment.id] = np.frombuffer(memory, np.float32, fragment.size, start)
        start += _slot_bytes(fragment)
    return slots


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("peerlm", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # has no name either, once it is open
        return os.dup(file.fileno())
