"""Everything that moves θ, for one process or for a group of them.

The inner loop decides what is to happen to θ and does it through here. Alone, a process does it; in a group rank 0
gives the order first, and the others carry out whatever order comes (`follow`), with the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, assert_never

import numpy as np
from numpy.typing import NDArray

from peerlm.model import weights
from peerlm.model.plan import FragmentSpec
from peerlm.model.weights import Values
from peerlm.train.group import Group, Kind, Order
from peerlm.train.learner import Begun, Learner
from peerlm.train.shared import SharedMemory
from peerlm.train.staging import Direct, Landed, Staging, Streamed
from peerlm.types import FragmentId


class Hands:
    """`group`: None for a process that trains alone. All values that are taken out and brought in are
    parts of `memory`."""

    def __init__(
        self,
        learner: Learner,
        fragments: Sequence[FragmentSpec],
        memory: SharedMemory | None,
        group: Group | None = None,
    ) -> None:
        """`memory`: None for a rank that only follows."""
        self._learner, self._group = learner, group
        self._fragments = {fragment.id: fragment for fragment in fragments}
        # What other ranks hear through gloo has been waited for; what crosses would only come later.
        self._staging: Staging
        if memory is None or group is not None or learner.device.type != "cuda":
            self._staging = Direct(learner.model, fragments)
        else:
            self._staging = Streamed(learner.model, fragments, memory)

    def begin(self, batch_BT1: NDArray[np.int64], rate: float) -> Begun:
        """Ask for one inner step on the batch of all ranks. Raises `DeviceLost`."""
        self._tell(Order(Kind.STEP, 0, rate, batch_BT1))
        return self._begin(batch_BT1, rate)

    def take_out(self, fragment: FragmentId, out: Values) -> None:
        """Write θ as it is now to `out`, which is done when it is among `landed`."""
        self._staging.take_out(fragment, out)

    def bring_in(self, fragment: FragmentId, values: Values) -> None:
        """θ += values, which is done when it is among `landed`."""
        self._tell(Order(Kind.ADD, fragment, 0.0, values))
        self._staging.bring_in(fragment, values)

    def landed(self, *, wait: bool = False) -> list[Landed]:
        """What has been taken out and brought in since the last time; with `wait`, all that is under way."""
        return self._staging.landed(wait=wait)

    def load(self, fragment: FragmentId, values: Values, *, forget: bool = False) -> None:
        """θ := values; `forget`: and what the optimizer knew of it is void."""
        self._tell(Order(Kind.LOAD_AND_FORGET if forget else Kind.LOAD, fragment, 0.0, values))
        self._load(fragment, values, forget)

    def follow(self) -> NoReturn:
        """Carry out orders until rank 0 ends this process."""
        assert self._group is not None
        while True:
            order = self._group.take()
            fragment = FragmentId(order.number)
            match order.kind:
                case Kind.STEP:
                    self._begin(order.values, order.rate)
                case Kind.ADD:
                    weights.add_in(self._learner.model, self._fragments[fragment], order.values)
                case Kind.LOAD | Kind.LOAD_AND_FORGET:
                    forget = order.kind is Kind.LOAD_AND_FORGET
                    self._load(fragment, order.values, forget)
                case _:
                    assert_never(order.kind)

    def _tell(self, order: Order) -> None:
        if self._group is not None:
            self._group.give(order)

    def _begin(self, batch_BT1: NDArray[np.int64], rate: float) -> Begun:
        mine = batch_BT1 if self._group is None else self._group.rows_of(batch_BT1)
        return self._learner.begin(mine, rate)

    def _load(self, fragment: FragmentId, values: Values, forget: bool) -> None:
        spec = self._fragments[fragment]
        weights.copy_in(self._learner.model, spec, values)
        if forget:
            self._learner.optimizer.reset(piece.tensor for piece in spec.slices)
