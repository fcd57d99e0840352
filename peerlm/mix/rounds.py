"""What an outer step is followed by, and how much of its momentum it has: by count, and by how far nodes are apart.

A plan's `mix.exchanges` after every outer step is what most runs want. Two rules may add to it:

    consensus control   while a fragment is farther from its partners than `mix.spread_target`, an exchange more for each
                        factor of two (Kong et al., arXiv 2102.04828: training hurts where nodes are beyond a critical
                        distance, and not below it)
    a short settling    every `mix.settle_every` outer steps as many as bring a swarm close to its average (the mix that
                        tightens of Factored Gossip DiLoCo, arXiv 2606.22768; there it blocks, here nobody waits for it)

A node that starts an exchange is asked for another, and each halves the square of a distance: so one that is
started halves the distance, and log2 n come close to an average. Neither is for algorithms whose pulls wait in the
momentum until the next outer step: they would add up there. Pure.
"""

from __future__ import annotations

import dataclasses
import math

from peerlm.config import MixSection

FURTHER_MAX = 4
"""Exchanges that consensus control adds, at most: farther apart than sixteen times the target, something else is wrong."""


def exchanges_after(
    mix: MixSection, version: int, distance: float | None, partners: int, *, waits: bool
) -> int:
    """How many exchanges to start after an outer step of a fragment.

    Args:
        version: outer steps behind the fragment, this one among them.
        distance: relative, to its partners, by its recent exchanges; None: not known.
        partners: whom it may be mixed with; each is met once, so there are no more exchanges than that.
        waits: what exchanges move waits in the momentum.
    """
    wanted = mix.exchanges
    if not wanted or waits:
        return wanted
    if mix.spread_target and distance is not None and distance > mix.spread_target:
        wanted += min(math.ceil(math.log2(distance / mix.spread_target)), FURTHER_MAX)
    if mix.settle_every and version % mix.settle_every == 0:
        wanted = max(wanted, 1 + math.ceil(math.log2(1 + partners)))
    return max(mix.exchanges, min(wanted, partners))


def warmed(mix: MixSection, version: int) -> MixSection:
    """`mix` with the outer momentum that the outer step after `version` others has: it rises in equal parts over
    `mix.momentum_warmup` of them. Early progress points elsewhere a few steps later, and momentum would go on with it."""
    if version >= mix.momentum_warmup:
        return mix
    share = version / mix.momentum_warmup
    return dataclasses.replace(mix, outer_momentum=mix.outer_momentum * share)
