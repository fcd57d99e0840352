"""What the parameters of a scenario may be, so that a wrong one is a line and not a run that fails.

A parameter means the same in every scenario that knows it, so each has one range. What the number of
machines has to say is looked at besides: somebody must be left to see what happens to the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peerlm.errors import ConfigError

NODES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Range:
    """`low` and `high` may be reached."""

    low: float
    high: float
    whole: bool = False

    def __str__(self) -> str:
        return f"a {'whole ' * self.whole}number from {self.low:g} to {self.high:g}"


SWITCH = Range(0, 1, whole=True)

RANGES: Mapping[str, Range] = {
    "share": Range(0, 1),
    "rate": Range(0, 0.99),
    "seconds": Range(0, 86_400),
    "minutes": Range(0.001, 100_000),
    "per_minute": Range(0.001, 10),
    "count": Range(1, NODES_MAX, whole=True),
    "times": Range(1, 100_000, whole=True),
    "kind": Range(0, 2, whole=True),
    **dict.fromkeys(("reset", "datagrams", "fallback", "lifeguard", "early", "checks"), SWITCH),
}


def read_number(key: str, text: str) -> float:
    """Raises `ConfigError` for what is no number, or none that `key` may be."""
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"--param {key}={text}: must be a number") from None
    allowed = RANGES[key]
    if not allowed.low <= value <= allowed.high or (allowed.whole and value != int(value)):
        raise ConfigError(f"--param {key}={text}: must be {allowed}")
    return value


def check_nodes(scenario: str, params: Mapping[str, float], nodes: int) -> None:
    """Raises `ConfigError` where the scene is not for so few machines."""
    if "share" in params:
        hit = max(1, round(params["share"] * nodes))
        if hit >= nodes:
            raise ConfigError(
                f"--param share={params['share']:g}: that is {hit} of {nodes} nodes; somebody must be left"
            )
    if scenario == "slow" and params["count"] > nodes:
        raise ConfigError(f"--param count={params['count']:g}: there are only {nodes} nodes")
    if scenario == "churn" and nodes < 3:
        raise ConfigError(f"--nodes {nodes}: churn takes 3 or more")
