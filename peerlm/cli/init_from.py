"""`peerlm init --from`: a run that begins with weights that are there already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from peerlm import config
from peerlm.config import ModelSection, Plan
from peerlm.data import tokenizer as tokenizers
from peerlm.errors import ConfigError
from peerlm.identity.root import SignedPlan
from peerlm.mix.sketch import sketch
from peerlm.model.export import TOKENIZER, open_model
from peerlm.model.hf import open_hf
from peerlm.model.moments import adopted, remembered
from peerlm.model.plan import FragmentSpec, fragments
from peerlm.model.stages import held_fragments
from peerlm.model.tensors import Tensors, Values, fragment_values
from peerlm.store import disk, snapshot
from peerlm.store.layout import StateDirectory
from peerlm.store.placed import Copy, Placed
from peerlm.types import FragmentId, ObjectHash, RunId, WallTime

if TYPE_CHECKING:
    from peerlm.cli.init_continue import Past

HF, GGUF = "hf:", "gguf:"

OWN = ("model.context", "model.stages")
"""Fields of the model that are the new run's to say."""

CONTEXT = 1024
"""Of the context of a published model, what a run trains on unless `--set model.context` says otherwise: memory
of a step grows with it, and weights do not depend on it."""

QUIET = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
"""Environment in which the libraries that read GGUF ask nobody and draw nothing; they read it when imported."""

TOKENIZER_BYTES_MAX = 256 << 20


@dataclass(frozen=True, slots=True)
class StartingModel:
    """A model that is there: its shape, its tensors by our names, its tokenizer."""

    source: str
    model: ModelSection
    vocab: int
    tensors: Tensors
    codec: tokenizers.Tokenizer
    checkpoint: Path | None = None
    """The folder, if it is one of ours: it may have the optimizer's state."""
    past: Past | None = None
    """The run that goes on with it, if one does."""

    @classmethod
    def read(cls, source: str, tokenizer: str | None, changes: Mapping[str, str]) -> StartingModel:
        """`source` is a folder that `peerlm export` wrote, hf:FOLDER or gguf:FILE; `tokenizer` and `changes` are
        what flags ask for.

        Raises:
            ConfigError: it is no model, or flags ask for another one than it is.
            StateError: it cannot be read.
        """
        fixed = sorted(f for f in changes if f.startswith("model.") and f not in OWN)
        if fixed:
            raise ConfigError(
                f"--set {fixed[0]} does not go with --from: {source} says what the model is"
            )
        if source.startswith(HF):
            start = cls._read_hf(Path(source.removeprefix(HF)), tokenizer)
        elif source.startswith(GGUF):
            start = cls._read_gguf(Path(source.removeprefix(GGUF)), tokenizer)
        else:
            start = cls._read_own(Path(source), tokenizer)
        if start.codec.vocab > start.vocab:
            raise ConfigError(
                f"{source}: the model has {start.vocab} token ids, its tokenizer {start.codec.vocab}"
            )
        asked = {f: value for f, value in changes.items() if f in OWN}
        return replace(
            start, model=config.with_changes(Plan(model=start.model), asked, "--set").model
        )

    @classmethod
    def _read_own(cls, folder: Path, tokenizer: str | None) -> StartingModel:
        plan, tensors = open_model(folder)
        if plan.data.tokenizer == tokenizers.BYTES:
            _require_none(tokenizer, folder)
            codec: tokenizers.Tokenizer = tokenizers.ByteTokenizer()
        else:
            codec = _tokenizer(folder, tokenizer)
        model = replace(plan.model, stages=1)  # how a run is cut is its own
        return cls(str(folder), model, plan.data.vocab, tensors, codec, folder)

    @classmethod
    def _read_hf(cls, folder: Path, tokenizer: str | None) -> StartingModel:
        found = open_hf(folder)
        model = replace(found.model, context=min(found.model.context, CONTEXT))
        return cls(str(folder), model, found.vocab, found.tensors, _tokenizer(folder, tokenizer))

    @classmethod
    def _read_gguf(cls, file: Path, tokenizer: str | None) -> StartingModel:
        """The folder it is turned into goes again at once: its files stay open as long as they are needed."""
        _require_none(tokenizer, file)
        os.environ |= QUIET
        from peerlm.model.gguf import convert

        with TemporaryDirectory(prefix="peerlm-") as folder:
            convert(file, Path(folder))
            try:
                start = cls._read_hf(Path(folder), None)
            except ConfigError as error:
                raise ConfigError(str(error).replace(folder, str(file))) from None
        return replace(start, source=str(file))

    def adopted_by(self, plan: Plan) -> Plan:
        """The new run's plan with this model."""
        run = replace(plan.run, initial="given")
        return replace(plan, run=run, model=self.model, data=replace(plan.data, vocab=self.vocab))

    def write_snapshot(
        self,
        state: StateDirectory,
        run_id: RunId,
        signed: SignedPlan,
        held: range,
        wall: WallTime,
    ) -> None:
        """The weights of the stages `held` as the new run's first snapshot, from which its first node goes on; of all others as
        copies, which it shows as long as nobody holds them (`node.stock`).

        Raises:
            ConfigError: a weight is not a finite number.
            StateError: the disk refuses.
        """
        plan = signed.plan
        specs, past = held_fragments(plan, held), self.past
        versions = {} if past is None else past.versions_in(plan)
        mine = {spec.id for spec in specs}
        others = [spec for spec in fragments(plan) if spec.id not in mine]
        copies = {
            spec.id: self._copied(state, spec, plan.run.rng_seed, versions) for spec in others
        }
        if plan.model.stages > 1:  # with less memory free, it would begin with less than it has
            disk.write_atomic(state.placement, Placed(held, copies).encode())
        contents = snapshot.Contents(
            run_id=run_id,
            plan_hash=signed.plan_hash,
            plan_revision=signed.revision,
            tokens={} if past is None else past.tally,
            own_tokens=0,
            epoch=0,
            wall=wall,
        )
        states = (self._state(spec, plan.run.rng_seed, versions) for spec in specs)
        snapshot.write(state, contents, specs, states)

    def keep_optimizer(self, state: StateDirectory, plan: Plan) -> str:
        """Of the checkpoint, for the new run's first node; what came of it, in a line, if there is anything to say."""
        if self.checkpoint is None or not any(remembered(plan).values()):
            return ""
        if self.past is not None and self.past.no_optimizer:
            return f"the optimizer begins empty: {self.past.no_optimizer}"
        return adopted(self.checkpoint, state.moments, plan)

    def _copied(
        self,
        state: StateDirectory,
        spec: FragmentSpec,
        rng_seed: int,
        versions: Mapping[FragmentId, int],
    ) -> Copy:
        found = self._state(spec, rng_seed, versions)
        data = found.phi.tobytes()
        name = ObjectHash(blake3(data).digest())
        disk.write_atomic(state.objects / name.hex(), data)
        return Copy(found.version, name, len(data), found.sketch)

    def _state(
        self, spec: FragmentSpec, rng_seed: int, versions: Mapping[FragmentId, int]
    ) -> snapshot.FragmentState:
        values: Values = fragment_values(spec, self.tensors)
        if not np.isfinite(values).all():
            raise ConfigError(f"{self.source}: {spec.name} holds a weight that is not finite")
        return snapshot.FragmentState(
            id=spec.id,
            version=versions.get(spec.id, 0),
            phi=values,
            momentum=np.zeros_like(values),
            sketch=tuple(float(s) for s in sketch(values, rng_seed, spec.id)),
        )


def _tokenizer(folder: Path, tokenizer: str | None) -> tokenizers.Tokenizer:
    """The folder's own, or what `--tokenizer` names where it has none."""
    own = folder / TOKENIZER
    if own.is_file():
        _require_none(tokenizer, folder)
        return tokenizers.JsonTokenizer(disk.read_file(own, TOKENIZER_BYTES_MAX), str(own))
    if tokenizer is None:
        raise ConfigError(
            f"{own}: no such file; name the model's tokenizer with --tokenizer (a JSON file of "
            "the `tokenizers` library, or `bytes`)"
        )
    return tokenizers.load(tokenizer, "--tokenizer")


def _require_none(tokenizer: str | None, source: Path) -> None:
    if tokenizer is not None:
        raise ConfigError(f"--tokenizer does not go with --from: {source} has its own")
