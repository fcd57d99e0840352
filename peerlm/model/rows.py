"""Which sessions a batch advances, and where each of them stands.

Sessions that are answered together began at different times and are of different lengths. Each has a
*slot*: what every block remembers of it lies at that index of tensors that were made once. A batch is made of
rows; a row brings the next tokens of one session, padded to the longest, and names its slot and the place
of its first token. A row at place 0 begins anew, whatever the slot held.

B rows, T tokens of the longest, N slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Rows:
    """`slots[b]`, `starts[b]` (the place of its first token) and `lengths[b]` of each row."""

    def __init__(
        self,
        slots: Sequence[int],
        starts: Sequence[int],
        lengths: Sequence[int],
        device: torch.device,
    ) -> None:
        self.lengths = torch.tensor(lengths)
        """(B,), on the CPU."""
        longest = max(lengths)
        self.is_padded = min(lengths) != longest
        self.place_max = max(start + n for start, n in zip(starts, lengths, strict=True)) - 1
        self.slots_B = torch.tensor(slots, device=device)
        self.starts_B = torch.tensor(starts, device=device)
        lengths_B = self.lengths.to(device)
        self.newest_B = self.starts_B + lengths_B - 1
        places_T = torch.arange(longest, device=device)
        self.places_BT = self.starts_B[:, None] + places_T
        self.is_token_BT = places_T < lengths_B[:, None]
        self.are_even = longest == 1 and len(set(starts)) == 1
        """One token each, at the same place: all see the same."""
        self._shared: dict[str, Any] = {}
        first, last = slots[0], slots[-1]
        self._run = slice(first, last + 1) if list(slots) == list(range(first, last + 1)) else None

    def of(self, kept: Tensor) -> Tensor:
        """The rows' part of what is kept for all slots (N, ...): a view where the slots follow each other."""
        return kept[self.slots_B] if self._run is None else kept[self._run]

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
