"""Which sessions a batch advances, and where each of them stands.

Sessions that are answered together began at different times and are of different lengths. Each has a
*slot*: what every block remembers of it lies at that index of tensors that were made once. A batch is made of
rows; a row brings the next tokens of one session, padded to the longest, and names its slot and the place
of its first token. A row at place 0 begins anew, whatever the slot held.

B rows, T tokens of the longest, N slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Rows:
    """`slots[b]`, `starts[b]` (the place of its first token) and `lengths[b]` of each row. Tensors are made when they
    are asked for: most batches need few of them."""

    def __init__(
        self,
        slots: Sequence[int],
        starts: Sequence[int],
        lengths: Sequence[int],
        device: torch.device,
    ) -> None:
        self._slots, self._starts, self._lengths, self._device = slots, starts, lengths, device
        self._longest = max(lengths)
        self.is_padded = min(lengths) != self._longest
        self.begins = 0 in starts
        """Some row is at place 0."""
        self.place_max = max(start + n for start, n in zip(starts, lengths, strict=True)) - 1
        self.are_even = self._longest == 1 and len(set(starts)) == 1
        """One token each, at the same place: all see the same."""
        first, last = slots[0], slots[-1]
        follow = list(slots) == list(range(first, last + 1))
        self.run = slice(first, last + 1) if follow else None
        """The slots, where they follow each other."""
        self._shared: dict[str, Any] = {}

    @cached_property
    def lengths(self) -> Tensor:
        """(B,), on the CPU."""
        return torch.tensor(self._lengths)

    @cached_property
    def slots_B(self) -> Tensor:
        return torch.tensor(self._slots, device=self._device)

    @cached_property
    def starts_B(self) -> Tensor:
        return torch.tensor(self._starts, device=self._device)

    @cached_property
    def newest_B(self) -> Tensor:
        """Place of each row's last token."""
        return self.starts_B + self.lengths.to(self._device) - 1

    @cached_property
    def places_BT(self) -> Tensor:
        return self.starts_B[:, None] + torch.arange(self._longest, device=self._device)

    @cached_property
    def is_token_BT(self) -> Tensor:
        """And not padding."""
        return self.places_BT <= self.newest_B[:, None]

    def of(self, kept: Tensor) -> Tensor:
        """The rows' part of what is kept for all slots (N, ...): a view where the slots follow each other."""
        return kept[self.slots_B] if self.run is None else kept[self.run]

    def keep(self, kept: Tensor, new: Tensor) -> None:
        """Write the rows' part of `kept`."""
        if self.run is None:
            kept[self.slots_B] = new
        else:
            kept[self.run] = new

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What all blocks of a kind need alike: the first of them makes it."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def last(self, x_BTD: Tensor) -> Tensor:
        """(B, 1, D): what stands at the last token of each row."""
        if not self.is_padded:
            return x_BTD[:, -1:]
        at = (self.lengths - 1).to(x_BTD.device)
        return x_BTD[torch.arange(len(at), device=x_BTD.device), at][:, None]
