"""The newest weights a node keeps, with the plan and the tokenizer they belong to.

Works beside a running daemon and without one: a snapshot is whole or not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from peerlm.cli.plan import current_plan
from peerlm.config import Plan
from peerlm.data import tokenizer as tokenizers
from peerlm.errors import ChunkCorrupt, ConfigError, StateError
from peerlm.model.export import TOKENIZER, open_model
from peerlm.model.hf import open_hf
from peerlm.model.plan import fragments
from peerlm.model.tensors import Tensors, Values, fragment_values
from peerlm.store import disk, snapshot
from peerlm.store.disk import ReadFile
from peerlm.store.layout import Layout

TOKENIZER_BYTES_MAX = 256 << 20


@dataclass(frozen=True, slots=True)
class Weights:
    """Flat fp32 values of every fragment of the plan, in order, as often as they are asked for.
    `tokens`: the swarm trained on. `snapshot`: the number of the one they are of, else 0."""

    plan: Plan
    values: Iterable[Values]
    tokenizer: bytes | None
    tokens: int | None
    final: bool
    snapshot: int = 0

    def codec(self) -> tokenizers.Tokenizer:
        """Raises `ConfigError` when the tokenizer's file is damaged."""
        if self.tokenizer is None:
            return tokenizers.ByteTokenizer()
        return tokenizers.JsonTokenizer(self.tokenizer)


@dataclass(frozen=True, slots=True)
class KeptValues:
    """A snapshot's, read and checked one at a time. Iteration raises `StateError`."""

    file: ReadFile
    regions: tuple[snapshot.Region, ...]

    def __iter__(self) -> Iterator[Values]:
        for region in self.regions:
            out = np.empty(region.size // 4, np.float32)
            try:
                snapshot.read_array(self.file, region, out)
            except ChunkCorrupt as error:
                raise StateError(str(error)) from None
            yield out


@dataclass(frozen=True, slots=True)
class StoredValues:
    """Those of tensors in files, read one at a time. Iteration raises `StateError`."""

    plan: Plan
    tensors: Tensors

    def __iter__(self) -> Iterator[Values]:
        return (fragment_values(spec, self.tensors) for spec in fragments(self.plan))


def from_folder(folder: Path) -> Weights:
    """An exported model. Raises `ConfigError`."""
    plan, tensors = open_model(folder)
    tokenizer = None
    if plan.data.tokenizer != tokenizers.BYTES:
        path = folder / TOKENIZER
        if not path.is_file():
            raise ConfigError(f"{path}: no such file, and the model's plan needs it")
        tokenizer = path.read_bytes()
    return Weights(plan, StoredValues(plan, tensors), tokenizer, None, True)


def from_hf(folder: Path, plan: Plan) -> Weights:
    """What was exported as hf from a run of `plan`, read again. Raises `ConfigError`."""
    found = open_hf(folder)
    plan = replace(plan, model=found.model, data=replace(plan.data, vocab=found.vocab))
    return Weights(plan, StoredValues(plan, found.tensors), None, None, True)


def from_snapshot(layout: Layout, say: Callable[[str], None]) -> Weights:
    """The node's newest snapshot that can be read; `say` gets a line for each that cannot.

    Raises:
        StateError: no node here, or no snapshot yet.
    """
    plan = current_plan(layout).plan
    loaded = snapshot.load(layout)
    for note in loaded.notes:
        say(note)
    if loaded.snapshot is None:
        raise StateError(
            f"{layout.root} holds no weights yet: the first snapshot comes soon after `peerlm up`"
        )
    manifest = loaded.snapshot.manifest
    records = {record.name: record for record in manifest.fragments}
    regions = []
    for spec in fragments(plan):
        record = records.get(spec.name)
        if record is None and plan.model.stages > 1:
            raise StateError(
                f"{layout.root} holds a part of the model: say --swarm to go through the others, or ask a node with host.stages = all"
            )
        if record is None or record.phi.size != 4 * spec.size:
            raise StateError(
                f"{loaded.snapshot.path}: does not fit the plan at {spec.name}; it is of another run"
            )
        regions.append(record.phi)
    values = KeptValues(loaded.snapshot.open(), tuple(regions))
    contents = manifest.contents
    tokenizer = tokenizer_of(layout, plan)
    return Weights(plan, values, tokenizer, contents.swarm_tokens, contents.final, manifest.number)


def prompt_ids(
    codec: tokenizers.Tokenizer, prompt: str, context: int, note: Callable[[str], None]
) -> list[int]:
    """Its last `context` tokens; `note` takes a line where there are more. Raises `ConfigError`: there are none."""
    ids = [int(i) for i in codec.encode(prompt)]
    if not ids:
        raise ConfigError("the prompt is empty: give at least one token to start from")
    if len(ids) > context:
        note(f"the prompt has {len(ids)} tokens; the model reads the last {context}")
    return ids[-context:]


def tokenizer_of(layout: Layout, plan: Plan) -> bytes | None:
    """The file of the run's tokenizer; None for bytes. Raises `StateError`."""
    if plan.data.tokenizer == tokenizers.BYTES:
        return None
    return disk.read_file(layout.objects / plan.data.tokenizer, TOKENIZER_BYTES_MAX)
