"""The interface of whatever advances sessions.

A session is one text in the making. What the model remembers of it (keys and values, a recurrence's state) lies
with whoever computes it, under a *slot*, a small number that the session holds until it ends. That is this process
(`engine.Whole`), or the hosts of a model in stages (`swarm.Swarm`). Nothing else in this room knows where the weights are.
What is begun together need not end together: sessions may go ways of different lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from peerlm.serve.session import Pick, Sampling

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Turn:
    """The next `tokens` of the session in `slot`; `start` is the place of the first. At 0 the slot begins anew.

    More than one token only within the first `context` places.
    """

    slot: int
    start: int
    tokens: tuple[int, ...]


class Route(Protocol):
    faults_pass: bool
    """Where a session fails here, another may do better a little later."""

    def begin(self, turns: Sequence[Turn]) -> None:
        """Go on with these. A slot has one turn at a time: until `ended` names it, or it is released."""

    def ended(self) -> tuple[Sequence[int], Logits]:
        """Slots whose turns are over, and logits (slots, vocab) after their last tokens, which they remember from then on. Where
        none is over yet it waits for some, but not for long, and may find none."""

    def clear(self, slot: int) -> None:
        """Nothing of what the slot holds may reach whoever has it next."""

    def release(self, slot: int) -> None:
        """Its session is over."""

    def version_of(self, slot: int) -> str | None:
        """The weights that its session is advanced with, where that is not one version for all; known once it has been."""

    def why(self, slot: int) -> str:
        """Its last logits are not finite."""

    def is_full(self, slot: int) -> bool:
        """They are not because others are in its way: it is not the route that fails."""

    @property
    def again(self) -> int:
        """How often a session began again from its first token, so far."""


class Sampler(Protocol):
    """Draws tokens. `generator` gives a session what it draws from: a seed alone decides it."""

    def generator(self, rng_seed: int) -> Any: ...

    def draw(self, logits: Logits, asked: Sequence[tuple[Sampling, Any]]) -> list[Pick | None]:
        """A token for each row, by its session's settings and generator; None where the logits are not finite."""


@dataclass(frozen=True, slots=True)
class Version:
    """Weights that sessions are answered with. `name` is the same wherever the weights are."""

    name: str
    tokens: int | None
    """The swarm's, that they were trained on."""
    route: Route


def name_of_all(names: Sequence[str]) -> str:
    """One name for the weights of several hosts or sessions: theirs, where they have the same, else the beginning of a hash."""
    if len(set(names)) == 1:
        return names[0]
    return "stages-" + blake3("\n".join(names).encode()).hexdigest()[:12]


def name_of(fragment_values: Sequence[NDArray[np.float32]], tokens: int | None) -> str:
    """Of a version: the swarm's tokens where they are known, and the beginning of the hash of the weights."""
    digest = blake3()
    for values in fragment_values:
        digest.update(values.data.cast("B"))
    return (f"t{tokens}-" if tokens is not None else "") + digest.hexdigest()[:12]
