"""Two nodes train on a corpus of the store; one of them mixes in text of its own, and the other neither gets nor hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from swarm import Swarm, succeed, wait_for

from peerlm.data.passes import is_own
from peerlm.data.records import decode

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

SECRET = b"Dear Sir, this is between the two of us"
AS_TOKENS = SECRET.decode().encode("utf-16-le")
"""A token is a byte here, in two."""


def texts(status: dict[str, Any]) -> dict[str, float]:
    return {text["name"]: round(text["share"], 3) for text in status["data"]["texts"]}


def trains_on(status: dict[str, Any], **shares: float) -> bool:
    return texts(status) == shares and status["worker"]["tokens_per_s"] > 0


def kept(folder: Path) -> float:
    """How much of a pass over its own text the node has on its disk that it has read."""
    path = folder / "passes"
    found, _ = decode(path.read_bytes()) if path.exists() else ([], b"")
    return sum(record.passes.position for record in found if is_own(record.passes.text))


def test_one_of_two_nodes_mixes_in_text_of_its_own(swarm: Swarm, tmp_path: Path) -> None:
    letters, plays = tmp_path / "letters.txt", tmp_path / "plays"
    letters.write_bytes(b"".join(SECRET + b", number %d.\n" % n for n in range(2000)))
    plays.mkdir()
    (plays / "one.txt").write_text("Enter two gentlemen, and a clown with a lantern.\n" * 3000)
    with_own = swarm.found(**{"data.local": str(letters), "page.enabled": "false"})
    without = swarm.join(with_own, "", **{"page.enabled": "false"})
    succeed("data", "add", plays, "--name", "plays", "--here", "--state", with_own.folder)
    source = "swarm:plays*0.7+local*0.3"
    succeed("plan", "set", f"data.source={source}", "--state", with_own.folder)

    with_own.wait(lambda s: trains_on(s, plays=0.7, local=0.3), "it mixes its own text in")
    without.wait(lambda s: trains_on(s, plays=1.0), "it reads the other text alone")
    with_own.wait(
        lambda s: all(text["val_loss"] is not None for text in s["data"]["texts"]),
        "a loss is known of each",
    )
    assert "local 30.0 %" in succeed("status", "--state", with_own.folder)

    wait_for(lambda: kept(with_own.folder) > 0, "what is read is kept")
    with_own.kill()
    before = kept(with_own.folder)
    with_own.up()
    again = with_own.wait(lambda s: trains_on(s, plays=0.7, local=0.3), "it goes on")
    assert again["data"]["texts"][1]["position"] >= round(before, 4), "where it was"
    files = [path for path in without.folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert SECRET not in (data := path.read_bytes()), path
        assert AS_TOKENS not in data, path
    (own,) = (with_own.folder / "local").iterdir()
    assert AS_TOKENS in own.read_bytes()
