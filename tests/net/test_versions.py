"""A swarm is upgraded one node at a time: nodes of this protocol version and of the one before train together.

The older ones run through `tests/wire/older.py`, which lets nothing pass that their version did not know.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from swarm import PEERLM, Node, Swarm, mixes

from peerlm import __version__

pytestmark = pytest.mark.timeout(180)
OLDER = (sys.executable, str(Path(__file__).parents[1] / "wire" / "older.py"))


def mixed_with(*others: Node) -> Any:
    """A condition: lately it has exchanged weights with each of these."""
    ids = {node.id for node in others}

    def holds(status: dict[str, Any]) -> bool:
        lately = [m["id"] for m in status["members"] if m["mixed_s_ago"] is not None]
        return ids <= set(lately)

    return holds


def releases(node: Node) -> dict[str, str]:
    return {m["id"]: m["software"] for m in node.status()["members"]}


def misheard(node: Node) -> dict[str, int]:
    counters = node.status()["daemon"]["counters"]
    return {name: n for name, n in counters.items() if "garbage" in name or "unknown" in name}


def test_a_swarm_is_upgraded_one_node_at_a_time(swarm: Swarm) -> None:
    founder = swarm.found(program=OLDER)
    newer = swarm.join(founder)
    newer.wait(mixes, "the newer one mixes")
    older = swarm.join(newer, program=OLDER)
    trio = (founder, newer, older)
    swarm.wait_whole()
    for node in trio:
        node.wait(mixed_with(*(other for other in trio if other is not node)), "all mix with all")
    assert releases(newer) == {newer.id: __version__, founder.id: "", older.id: ""}

    trained = 0
    for node in (founder, older):
        trained = max(trained, newer.status()["swarm_tokens"])
        node.signal(signal.SIGTERM)
        assert node.wait_end() == 0
        node.program = PEERLM
        node.up()
        swarm.wait_whole()
        others = [other for other in trio if other is not node]
        node.wait(mixed_with(*others), "the upgraded one mixes with all")
        assert node.status()["swarm_tokens"] >= trained
    newer.wait(lambda _: set(releases(newer).values()) == {__version__}, "all run the new release")
    assert {node.folder.name: misheard(node) for node in trio} == {n.folder.name: {} for n in trio}
