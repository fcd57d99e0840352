"""Fragments of θ between a device and the memory that the daemon shares, while the device goes on.

On a processor a copy is a copy and done at once. A CUDA device would stand still for one: gpt-124m is half a
gigabyte, ten milliseconds of the bus each way. So there a fragment is first copied within the device, between two
inner steps, which takes microseconds; from that copy it crosses on a stream of its own to page-locked memory
while inner steps go on. A correction takes the same way back, and is added to θ between two steps once it has crossed. What
has crossed is asked for, never waited for, unless there is nothing else to do.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from peerlm.model import weights
from peerlm.model.plan import FragmentSpec
from peerlm.model.weights import Values
from peerlm.train.device import device_of
from peerlm.train.shared import SharedMemory
from peerlm.types import FragmentId


class Way(Enum):
    OUT = "out"
    """θ has been copied to the memory named."""
    IN = "in"
    """What lay there has been added to θ."""


@dataclass(frozen=True, slots=True)
class Landed:
    fragment: FragmentId
    way: Way


class Staging(ABC):
    """At most one fragment's copy is under way in each direction; its memory is ours until it has landed."""

    @abstractmethod
    def take_out(self, fragment: FragmentId, out: Values) -> None:
        """θ as it is now, into `out`."""

    @abstractmethod
    def bring_in(self, fragment: FragmentId, values: Values) -> None:
        """Add `values` to θ, some time before this has landed."""

    @abstractmethod
    def landed(self, *, wait: bool = False) -> list[Landed]:
        """What has since the last time; with `wait`, all that is under way."""


class Direct(Staging):
    """Everything at once, where model and memory are the same processor's."""

    def __init__(self, model: nn.Module, fragments: Sequence[FragmentSpec]) -> None:
        self._model = model
        self._fragments = {fragment.id: fragment for fragment in fragments}
        self._landed: list[Landed] = []

    def take_out(self, fragment: FragmentId, out: Values) -> None:
        weights.copy_out(self._model, self._fragments[fragment], out)
        self._landed.append(Landed(fragment, Way.OUT))

    def bring_in(self, fragment: FragmentId, values: Values) -> None:
        weights.add_in(self._model, self._fragments[fragment], values)
        self._landed.append(Landed(fragment, Way.IN))

    def landed(self, *, wait: bool = False) -> list[Landed]:
        landed, self._landed = self._landed, []
        return landed


@dataclass(frozen=True, slots=True)
class _Crossing:
    landed: Landed
    staged: Tensor
    """The fragment on the device, which nothing else may use before `crossed`."""
    crossed: torch.cuda.Event


class Streamed(Staging):
    """For a model on a CUDA device. `memory`, of which all values are parts, is page-locked as long as this
    lives; where that is refused, copies are slower and hold up the caller."""

    def __init__(
        self, model: nn.Module, fragments: Sequence[FragmentSpec], memory: SharedMemory
    ) -> None:
        self._memory = memory
        self._slices = {f.id: weights.slices_of(model, f) for f in fragments}
        self._stream = torch.cuda.Stream(device_of(model))
        self._crossings: list[_Crossing] = []
        self.is_page_locked = _lock_pages(self, memory, self._stream.device)

    @torch.no_grad()
    def take_out(self, fragment: FragmentId, out: Values) -> None:
        staged = torch.cat(self._slices[fragment])
        self._cross(Landed(fragment, Way.OUT), staged, torch.from_numpy(out), staged)

    def bring_in(self, fragment: FragmentId, values: Values) -> None:
        staged = torch.empty(values.size, dtype=torch.float32, device=self._stream.device)
        self._cross(Landed(fragment, Way.IN), staged, staged, torch.from_numpy(values))

    def landed(self, *, wait: bool = False) -> list[Landed]:
        if wait:
            self._stream.synchronize()
        landed = []
        while self._crossings and self._crossings[0].crossed.query():
            crossing = self._crossings.pop(0)
            if crossing.landed.way is Way.IN:
                self._add(crossing)
            landed.append(crossing.landed)
        return landed

    def _cross(self, landed: Landed, staged: Tensor, to: Tensor, source: Tensor) -> None:
        # `staged` belongs to the current stream, where something else may have used its memory until now.
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)
            crossed = torch.cuda.Event()
            crossed.record()
        self._crossings.append(_Crossing(landed, staged, crossed))

    @torch.no_grad()
    def _add(self, crossing: _Crossing) -> None:
        slices = self._slices[crossing.landed.fragment]
        parts = crossing.staged.split([mine.numel() for mine in slices])
        for mine, part in zip(slices, parts, strict=True):
            mine.add_(part)


def _lock_pages(owner: Streamed, memory: SharedMemory, device: torch.device) -> bool:
    """For as long as `owner` lives, which keeps `memory`. False: refused."""
    runtime = torch.cuda.cudart()
    address = memory.whole.ctypes.data
    with torch.cuda.device(device):
        if int(runtime.cudaHostRegister(address, memory.whole.nbytes, 0)) == 0:
            weakref.finalize(owner, runtime.cudaHostUnregister, address)
            return True
        with suppress(RuntimeError):  # the refusal stays behind, and the next kernel would raise it
            torch.zeros(1, device=device)
    return False
