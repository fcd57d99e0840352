"""When the worker hands in which fragment: every H inner steps, each fragment at its own step.

H may change at any time; fragments keep their places in the turn that H steps are, and stay spread out.

Spreading the fragments over the H steps (Streaming DiLoCo, arXiv 2501.18512) keeps copies, outer
steps and network traffic even instead of bursting. A fragment whose last boundary the daemon has
not taken yet stays due and is handed in at a later step: so there is never more than one under way,
and a slow daemon costs freshness, not training speed. Pure: knows neither tensors nor sockets.
"""

from __future__ import annotations

from collections.abc import Iterable

from peerlm.types import FragmentId

ROUNDING = 1e-6
"""Of a turn: H times one H-th is a whole one."""


class Cadence:
    """Args: `fragments`, in order; `every`, H to begin with."""

    def __init__(self, fragments: Iterable[FragmentId], every: int) -> None:
        held = tuple(fragments)
        self._every = every
        self._turn = 0.0
        """How much of H inner steps has passed."""
        self._next = {fragment: 1 - place / len(held) for place, fragment in enumerate(held)}
        """The turn at which each is due: a place of its own, whatever H becomes."""
        self._due: set[FragmentId] = set()
        self._under_way: set[FragmentId] = set()
        self._handed_in_at = dict.fromkeys(held, 0)
        self._step = 0

    def stepped(self) -> None:
        """An inner step is done."""
        self._step += 1
        self._turn += 1 / self._every
        for fragment, at in self._next.items():
            if at <= self._turn + ROUNDING:
                self._due.add(fragment)
                self._next[fragment] = at + 1
        if self._turn >= 1:
            self._turn -= 1
            self._next = {fragment: at - 1 for fragment, at in self._next.items()}

    def change(self, every: int) -> None:
        """H is another from here on."""
        self._every = every

    def drain(self) -> None:
        """No inner step will follow, or none that is of use before: whatever has moved since it was handed in is due."""
        self._due |= {f for f, at in self._handed_in_at.items() if at < self._step}

    def ready(self) -> list[FragmentId]:
        """Fragments to hand in now, in order."""
        return sorted(self._due - self._under_way)

    def handed_in(self, fragment: FragmentId) -> None:
        assert fragment not in self._under_way, f"two boundaries of fragment {fragment}"
        self._due.discard(fragment)
        self._under_way.add(fragment)
        self._handed_in_at[fragment] = self._step

    def taken(self, fragment: FragmentId) -> None:
        """The daemon has read the boundary."""
        self._under_way.remove(fragment)

    def is_idle(self) -> bool:
        """Nothing is due and nothing under way."""
        return not self._due and not self._under_way
