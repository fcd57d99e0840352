"""Newer snapshots become versions; what cannot be served is not taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from peerlm.cli.main import main
from peerlm.cli.plan import current_plan
from peerlm.cli.serve import Source
from peerlm.errors import ConfigError, StateError
from peerlm.model.plan import fragments
from peerlm.serve.engine import Slots
from peerlm.store import snapshot
from peerlm.store.layout import Layout
from peerlm.store.snapshot import Contents, FragmentState
from peerlm.types import PeerId, RunId, WallTime

SMALL = ("--set", "model.dim=16", "--set", "model.heads=2", "--set", "model.hidden=16")


def put_snapshot(layout: Layout, tokens: int, value: float | None = None) -> None:
    """As a daemon writes it; all weights are `value`, or random."""
    signed, rng = current_plan(layout), np.random.default_rng(tokens)
    states = []
    for spec in fragments(signed.plan):
        phi = rng.normal(size=spec.size).astype(np.float32)
        if value is not None:
            phi[:] = value
        states.append(FragmentState(spec.id, 1, phi, np.zeros_like(phi), ()))
    contents = Contents(
        run_id=RunId(bytes(16)),
        plan_hash=bytes(32),
        plan_revision=1,
        tokens={(PeerId(bytes(16)), 1): tokens},
        own_tokens=tokens,
        epoch=1,
        wall=WallTime(1.0),
    )
    snapshot.write(layout, contents, fragments(signed.plan), states)


def test_newer_snapshots_are_found_once_and_bad_ones_passed_over(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "node")
    assert main(["init", "--state", str(layout.root), *SMALL]) == 0
    source = Source(layout, None)
    with pytest.raises(StateError, match="no weights yet"):
        source.first()
    put_snapshot(layout, 100)
    weights = source.first()
    slots = Slots(weights.plan, 2, 1 << 30)
    assert source.as_version(weights, slots).name.startswith("t100-")
    assert source.newer() is None
    put_snapshot(layout, 250)
    newer = source.newer()
    assert newer is not None
    assert newer.name.startswith("t250-")
    assert newer.tokens == 250
    assert source.newer() is None
    put_snapshot(layout, 300, float("nan"))
    with pytest.raises(ConfigError, match="not finite"):
        source.newer()
    assert source.newer() is None
    put_snapshot(layout, 400)
    again = source.newer()
    assert again is not None
    assert again.tokens == 400
