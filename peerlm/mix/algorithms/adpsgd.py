"""AD-PSGD (arXiv 1710.06952): whenever a node has taken its steps it averages with one other.

No outer momentum, no outer step size, and always the middle between the two, whatever `mix.weight`. The
paper's inner steps go on while two models are averaged, from weights that are a little old by then; here
that is so by construction, since a correction is added to θ between two inner steps. Its bipartite roles,
which keep two nodes from waiting for each other, are not needed: nobody waits (mix/exchange.py).
"""

from __future__ import annotations

from peerlm.config import MixSection
from peerlm.mix.algorithms.dgd import Dgd


class AdPsgd(Dgd):
    def coefficient(self, mix: MixSection, ramp: float, meetings: float | None = None) -> float:
        return 0.5 * ramp
