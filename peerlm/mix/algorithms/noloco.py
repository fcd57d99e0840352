"""NoLoCo (arXiv 2506.10911): the pull towards a partner goes into the momentum.

The paper's step, with its two weights equal as in its code (β = γ), for groups of two:

    m ← α m + γ·½(Δ_i + Δ_j) + γ·½(φ_j − φ_i)        φ ← φ + m

Here nobody waits for a partner at the boundary. A pair compares slow weights while the next inner
steps run, and the pull waits in the momentum for the next outer step; one's own progress stands where
the paper has the pair's mean, and the partner's arrives with its φ, a step later. What is kept is not m
but what the next step will add without any progress, q = α m, so that a pull is one addition to it:

    outer step   q ← q + γ Δ      φ ← φ + q      q ← α q
    exchange     q_i ← q_i + c·d̂       q_j ← q_j − c·d̂

Σ (φ + q/(1 − α)) is conserved by every exchange. Without progress, and with everybody paired once
between two steps, this is the paper's recursion, term by term. As pulls add up in the momentum it must
be short enough: the spread stays finite where γ < 2(1 − α²), and a plan beyond that is refused. On their
own clocks nodes meet about 2·`mix.exchanges` partners between two steps instead of one, and all of
them before φ moves, so each pulls by that many times less; that is no less stable.
"""

from __future__ import annotations

from peerlm.config import MixSection
from peerlm.mix.vector import Vector


class NoLoCo:
    mixes = True
    through_momentum = True

    def outer(self, phi: Vector, momentum: Vector, progress: Vector, mix: MixSection) -> None:
        progress *= mix.gamma
        momentum += progress
        phi += momentum
        momentum *= mix.outer_momentum

    def coefficient(self, mix: MixSection, ramp: float, meetings: float | None = None) -> float:
        if meetings is None:
            meetings = 2.0 * max(1, mix.exchanges)
        return mix.gamma / 2 * ramp / meetings
