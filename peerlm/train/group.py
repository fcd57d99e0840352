"""Several processes of one machine that train as one node: all-reduce inside, one worker outside.

The worker that the daemon knows is rank 0. It alone reads the text, hears the daemon and hands in
fragments. Whatever moves θ (an inner step, a correction, weights that are loaded) it first gives as an
*order* to the other ranks, and then carries out as they do; so all ranks do the same in the same order
and hold the same θ. In a step each takes its rows of the batch, and torch's DistributedDataParallel takes
the mean of the gradients.

Ranks find each other through an anonymous file (torch's FileStore) that rank 0 hands them by descriptor,
and talk over loopback: orders always with gloo, between processors; gradients with nccl where ranks
have CUDA devices. A rank that stands still ends the group after `STEP_TIMEOUT_S`; one that dies, at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

STEP_TIMEOUT_S = 60.0
"""How long ranks wait for each other within a step."""

MEET_EVERY_S = 0.02
"""Between two looks at who is here."""

ORDER_TIMEOUT = timedelta(days=365)
"""How long a rank waits for its next order. A paused worker gives none; a dead one ends its ranks."""


class Kind(IntEnum):
    """Of order; see `train.hands`."""

    STEP = 0
    ADD = 1
    LOAD = 2
    LOAD_AND_FORGET = 3
    REMEMBER = 4


@dataclass(frozen=True, slots=True)
class Order:
    """`kind`, and what it is about: `number` is a fragment, or a parameter's place of which to remember moments; `rate` the share
    of the peak learning rate, or their count of steps; `values` the whole batch (rows, context + 1) of a step, or a fragment's, or moments."""

    kind: Kind
    number: int
    rate: float
    values: NDArray[Any]


class Group:
    """This process's place among `size` ranks on `device`; `descriptor` is of their common file.

    `check` raises when a rank has ended: until all have come, nothing else would tell.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        descriptor: int,
        device: torch.device,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        store = dist.FileStore(f"/proc/self/fd/{descriptor}", size)  # type: ignore[attr-defined]
        _meet(store, rank, size, check)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ[name] = "lo"
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=STEP_TIMEOUT_S),
        )
        self._orders = dist.new_group(backend="gloo", timeout=ORDER_TIMEOUT)

    # --------------------------------------------------------------------------------- gradients

    def averaged(self, model: nn.Module, loss: Callable[[Tensor], Tensor]) -> Averaged:
        """`loss` of `model` such that its gradients become the mean of all ranks'. Everybody starts
        from rank 0's weights."""
        return Averaged(_Loss(model, loss), self.device)

    def mean(self, value: Tensor) -> Tensor:
        """Of a scalar over all ranks."""
        dist.all_reduce(value)
        return value / self.size

    def rows_of(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's part of the batch of all."""
        each = len(batch) // self.size
        return batch[self.rank * each : (self.rank + 1) * each]

    # ------------------------------------------------------------------------------------ orders

    def give(self, order: Order) -> None:
        """To all other ranks. For rank 0."""
        shape = (*order.values.shape, 0)[:2]
        head = torch.tensor([order.kind, order.number, order.rate, *shape], dtype=torch.float64)
        dist.broadcast(head, 0, group=self._orders)
        dist.broadcast(_as_tensor(order.values), 0, group=self._orders)

    def take(self) -> Order:
        """The next one, however long it takes. For the other ranks."""
        head = torch.empty(5, dtype=torch.float64)
        dist.broadcast(head, 0, group=self._orders)
        kind, number, rate, rows, columns = head.tolist()
        values = (
            torch.empty((int(rows), int(columns)), dtype=torch.int64)
            if kind == Kind.STEP
            else torch.empty(int(rows), dtype=torch.float32)
        )
        dist.broadcast(values, 0, group=self._orders)
        return Order(Kind(int(kind)), int(number), rate, values.numpy())


class Averaged:
    """A loss to call on tokens. Gradients of all but a step's last micro-batch stay here, in `alone`."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else None
        self._module = DistributedDataParallel(module, device_ids=devices)

    def __call__(self, tokens_BT1: Tensor) -> Tensor:
        loss: Tensor = self._module(tokens_BT1)
        return loss

    def alone(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else self._module.no_sync()


class Alone:
    """The same for a process that trains by itself."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        self._loss = loss

    def __call__(self, tokens_BT1: Tensor) -> Tensor:
        return self._loss(tokens_BT1)

    def alone(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext()


class _Loss(nn.Module):
    """The loss as a module's forward pass, which is where torch hooks in."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, tokens_BT1: Tensor) -> Tensor:
        return self._loss(tokens_BT1)


def _meet(store: Any, rank: int, size: int, check: Callable[[], None]) -> None:
    """Wait until all ranks are here: torch's own wait would hear of nobody's end. Raises what `check` does."""
    store.set(f"here {rank}", b"")
    everybody = [f"here {number}" for number in range(size)]
    while not store.check(everybody):
        check()
        time.sleep(MEET_EVERY_S)


def _as_tensor(values: NDArray[Any]) -> Tensor:
    """Without a copy where torch allows it: it wants memory that can be written."""
    contiguous = np.ascontiguousarray(values)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())
