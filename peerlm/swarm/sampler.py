"""Names of the ways to choose a partner.

`uniform` draws any candidate; it needs no agreement and is the default. `latency_biased` prefers near
ones. The others follow a schedule (see samplers/scheduled.py): as long as views and round numbers agree
they do better than chance, and where they do not they are as good as some other choice.
"""

from __future__ import annotations

from collections.abc import Callable

from peerlm.errors import ConfigError
from peerlm.swarm.samplers.base2 import Base2
from peerlm.swarm.samplers.choice import Choice, Sampler
from peerlm.swarm.samplers.drawn import LatencyBiased, Uniform
from peerlm.swarm.samplers.scheduled import Matching, OnePeerExponential, Ring, Scheduled

__all__ = ["Choice", "Sampler", "sampler_named"]

MAKERS: dict[str, Callable[[int], Sampler]] = {
    "uniform": lambda seed: Uniform(),
    "matching": lambda seed: Scheduled(Matching(seed)),
    "ring": lambda seed: Scheduled(Ring()),
    "onepeer_exp": lambda seed: Scheduled(OnePeerExponential()),
    "base2": lambda seed: Scheduled(Base2()),
    "latency_biased": lambda seed: LatencyBiased(),
}


def sampler_named(name: str, seed: int) -> Sampler:
    """The sampler a plan asks for. Raises `ConfigError` for one there is not."""
    if name not in MAKERS:
        raise ConfigError(f"mix.sampler = {name!r}: must be one of {', '.join(MAKERS)}")
    return MAKERS[name](seed)
