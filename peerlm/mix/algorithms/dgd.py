"""Decentralised gradient descent, the textbook rule: x_i ← Σ_j W_ij (x_j − η g_j(x_j)).

No outer momentum and no outer step size: φ simply arrives where the inner steps did, and is then
mixed with weights W_ij that belong to the pair, not to the node: they are the sampler's share of
`mix.weight` (Lian et al., arXiv 1705.09056). With one inner step of SGD and a sampler that walks a fixed
graph it is D-PSGD, whose bias under differing data has a closed form: (I − (1 − η)W)⁻¹ ηW for
quadratics. On their own clocks nodes mix pair by pair, so W is a product of pair matrices and stays
doubly stochastic whatever the order.
"""

from __future__ import annotations

from peerlm.config import MixSection
from peerlm.mix.vector import Vector


class Dgd:
    mixes = True
    through_momentum = False

    def outer(self, phi: Vector, momentum: Vector, progress: Vector, mix: MixSection) -> None:
        phi += progress

    def coefficient(self, mix: MixSection, ramp: float, meetings: float | None = None) -> float:
        return mix.weight * ramp
