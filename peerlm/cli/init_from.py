"""`peerlm init --from DIR`: a run that begins with the weights of an exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peerlm.config import Plan
from peerlm.errors import ConfigError
from peerlm.identity.root import SignedPlan
from peerlm.mix.sketch import sketch
from peerlm.model.export import TOKENIZER, join_fragments, read_model, split_fragments
from peerlm.model.plan import fragments
from peerlm.store import snapshot
from peerlm.store.disk import StateDirectory
from peerlm.types import RunId, WallTime


@dataclass(frozen=True, slots=True)
class StartingModel:
    """An exported model: what it is, its fragments' values, its tokenizer's file if it has one."""

    folder: Path
    plan: Plan
    values: Sequence[NDArray[np.float32]]
    tokenizer: str | None

    @classmethod
    def read(cls, folder: Path, tokenizer: str | None, changes: Mapping[str, str]) -> StartingModel:
        """`tokenizer` and `changes` are what flags ask for.

        Raises:
            ConfigError: it is no model, or flags ask for another one than it is.
        """
        fixed = sorted(field for field in changes if field.startswith("model."))
        if fixed or tokenizer:
            what = f"--set {fixed[0]}" if fixed else "--tokenizer"
            raise ConfigError(f"{what} does not go with --from: {folder} says what the model is")
        plan, values = read_model(folder)
        own = folder / TOKENIZER
        if plan.data.tokenizer != "bytes" and not own.is_file():
            raise ConfigError(f"{own}: no such file, and the model's plan needs it")
        return cls(folder, plan, values, None if plan.data.tokenizer == "bytes" else str(own))

    def adopted_by(self, plan: Plan) -> Plan:
        """The new run's plan with this model, cut as the new run cuts it."""
        return replace(plan, model=self.plan.model)

    def write_snapshot(
        self, state: StateDirectory, run_id: RunId, signed: SignedPlan, wall: WallTime
    ) -> None:
        """The weights as the new run's first snapshot, from which its first node goes on.

        Raises:
            ConfigError: the new plan has another vocabulary.
            StateError: the disk refuses.
        """
        plan = signed.plan
        if plan.data.vocab != self.plan.data.vocab:
            raise ConfigError(
                f"{self.folder}: the model has {self.plan.data.vocab} token ids, its tokenizer "
                f"{plan.data.vocab}"
            )
        specs = fragments(plan)
        contents = snapshot.Contents(
            run_id=run_id,
            plan_hash=signed.plan_hash,
            plan_revision=signed.revision,
            tokens={},
            own_tokens=0,
            epoch=0,
            wall=wall,
        )
        states = (
            snapshot.FragmentState(
                id=spec.id,
                version=0,
                phi=values,
                momentum=np.zeros_like(values),
                sketch=tuple(float(s) for s in sketch(values, plan.run.rng_seed, spec.id)),
            )
            for spec, values in zip(specs, self._recut(plan), strict=True)
        )
        snapshot.write(state, contents, specs, states)

    def _recut(self, plan: Plan) -> Sequence[NDArray[np.float32]]:
        """The values in the new plan's fragments, which may be of another size."""
        return split_fragments(plan, join_fragments(self.plan, self.values))
