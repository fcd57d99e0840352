"""Newer snapshots become versions; what cannot be served is not taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from serve_scene import INIT, put_snapshot

from peerlm.cli.main import main
from peerlm.cli.serve import Source
from peerlm.errors import ConfigError, StateError
from peerlm.serve.engine import Slots
from peerlm.store.layout import Layout


def test_newer_snapshots_are_found_once_and_bad_ones_passed_over(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "node")
    assert main(["init", "--state", str(layout.root), *INIT]) == 0
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
