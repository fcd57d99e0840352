"""The outer step of `outer_mix` with nobody to mix with: what a node learns alone.

Lookahead (arXiv 1907.08610) with Nesterov momentum outside. The control every claim about mixing is
measured against.
"""

from __future__ import annotations

from peerlm.config import MixSection
from peerlm.mix.algorithms.outer_mix import OuterMix


class Local(OuterMix):
    mixes = False

    def coefficient(self, mix: MixSection, ramp: float, meetings: float | None = None) -> float:
        return 0.0
