"""What a node's sample text is made by: it costs no more than it may, and says in a line why there is none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from peerlm.cli import sample
from peerlm.daemon.control import NoDaemon
from peerlm.errors import StateError
from peerlm.store.layout import Layout


@pytest.mark.parametrize("limit", ["CPU_S", "WRITE_S"])
def test_a_text_ends_where_it_has_cost_enough(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    for each in ("CPU_S", "WRITE_S"):  # of a process of its own, and this one has computed for long
        monkeypatch.setattr(sample, each, math.inf)
    assert list(sample._while_cheap(iter("abc"))) == ["a", "b", "c"]
    monkeypatch.setattr(sample, limit, 0.0)
    assert list(sample._while_cheap(iter("abc"))) == ["a"]


def test_without_weights_or_a_daemon_it_says_so(founded: Path) -> None:
    with pytest.raises(StateError, match="holds no weights yet"):
        sample.written(Layout(founded), "Oh", 0, through_swarm=False)
    with pytest.raises(NoDaemon):
        sample.written(Layout(founded), "Oh", 0, through_swarm=True)
