"""Each node takes its own momentum step, then slow weights are averaged in pairs. The default.

The step is DiLoCo's (arXiv 2311.08105), Nesterov momentum on the progress of many inner steps, but taken by each
node alone and on its own clock; nobody waits for an average. Pairs then mix *after* the step, as in
AD-PSGD (arXiv 1710.06952). So momentum never sees the force that pulls nodes together, and any α < 1
is stable; NoLoCo (arXiv 2506.10911), which feeds that force into the momentum, must keep
γ < 2(1 − α²). Relatives: GASLoC (2606.11081), Factored Gossip DiLoCo (2606.22768), MuLoCo
(2505.23725) for the inner optimizer, Streaming DiLoCo (2501.18512) for fragments.

    m ← α m + Δ        φ ← φ + ν (Δ + α m)
"""

from __future__ import annotations

import numpy as np

from peerlm.config import MixSection
from peerlm.mix.vector import Vector


class OuterMix:
    mixes = True
    through_momentum = False

    def outer(self, phi: Vector, momentum: Vector, progress: Vector, mix: MixSection) -> None:
        momentum *= np.float32(mix.outer_momentum)
        momentum += progress
        progress *= np.float32(mix.outer_lr)
        phi += progress
        np.multiply(momentum, np.float32(mix.outer_lr * mix.outer_momentum), out=progress)
        phi += progress

    def coefficient(self, mix: MixSection, ramp: float, meetings: float | None = None) -> float:
        return mix.weight * ramp
