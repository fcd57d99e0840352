"""The newest weights a node keeps, with the plan and the tokenizer they belong to.

Works beside a running daemon and without one: a snapshot is whole or not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peerlm.cli.plan import current_plan
from peerlm.config import Plan
from peerlm.data import tokenizer as tokenizers
from peerlm.errors import ChunkCorrupt, ConfigError, StateError
from peerlm.model.export import TOKENIZER, read_model
from peerlm.model.plan import fragments
from peerlm.store import disk, snapshot
from peerlm.store.disk import Layout

TOKENIZER_BYTES_MAX = 256 << 20


@dataclass(frozen=True, slots=True)
class Weights:
    """Flat fp32 values of every fragment of the plan, in order. `tokens`: the swarm trained on."""

    plan: Plan
    values: list[NDArray[np.float32]]
    tokenizer: bytes | None
    tokens: int | None
    final: bool

    def codec(self) -> tokenizers.Tokenizer:
        """Raises `ConfigError` when the tokenizer's file is damaged."""
        if self.tokenizer is None:
            return tokenizers.ByteTokenizer()
        return tokenizers.JsonTokenizer(self.tokenizer)


def from_folder(folder: Path) -> Weights:
    """An exported model. Raises `ConfigError`."""
    plan, values = read_model(folder)
    tokenizer = None
    if plan.data.tokenizer != tokenizers.BYTES:
        path = folder / TOKENIZER
        if not path.is_file():
            raise ConfigError(f"{path}: no such file, and the model's plan needs it")
        tokenizer = path.read_bytes()
    return Weights(plan, values, tokenizer, None, True)


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
    file = loaded.snapshot.open()
    records = {record.name: record for record in manifest.fragments}
    values = []
    for spec in fragments(plan):
        record = records.get(spec.name)
        if record is None or record.phi.size != 4 * spec.size:
            raise StateError(
                f"{loaded.snapshot.path}: does not fit the plan at {spec.name}; it is of another run"
            )
        out = np.empty(spec.size, np.float32)
        try:
            snapshot.read_array(file, record.phi, out)
        except ChunkCorrupt as error:
            raise StateError(str(error)) from None
        values.append(out)
    contents = manifest.contents
    return Weights(plan, values, _tokenizer(layout, plan), contents.swarm_tokens, contents.final)


def _tokenizer(layout: Layout, plan: Plan) -> bytes | None:
    if plan.data.tokenizer == tokenizers.BYTES:
        return None
    return disk.read_file(layout.objects / plan.data.tokenizer, TOKENIZER_BYTES_MAX)
