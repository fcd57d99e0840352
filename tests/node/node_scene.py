"""The simulator's world as tests want it: settings by keyword, claims that fail with a story."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peerlm.config import Plan, with_changes
from peerlm.sim import world
from peerlm.sim.world import DAY, PLAN

__all__ = ["DAY", "World"]


class World(world.World):
    """`changes` are the plan's, by their dotted names. Every effect is remembered."""

    def __init__(
        self, seed: int = 0, *, speed: float = 20_000.0, shards: int = 1, **changes: Any
    ) -> None:
        plan = with_changes(Plan(), {**PLAN, **changes}, "world")
        super().__init__(seed, plan=plan, speed=speed, remembers=True, shards=shards)

    def within(self, seconds: float, until: Callable[[], bool], claim: str) -> float:
        """`run`, where `until` must come true in time."""
        took = self.run(seconds, until)
        assert until(), f"seed {self.seed}: not within {seconds} s: {claim}\n{self.story()}"
        return took
