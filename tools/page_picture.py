"""docs/page.png anew: three nodes learn the shipped text, one is killed and comes back, and Chromium takes their page.

    python tools/page_picture.py        # three minutes

The page is a node's own, as it is after that; look at the picture before it is committed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from peerlm.bench.nodes import Swarm, running

PICTURE = Path(__file__).parents[1] / "docs" / "page.png"
LOCAL = {
    "page.enabled": True,
    "page.port": 0,
    "train.pace_tokens_s": 3000,
    "limits.snapshot_every_s": 10,
    "observe.sample_every_s": 0,
}
FIRST_TOKENS, LAST_TOKENS = 500_000, 1_200_000
WIDTH, HEIGHT = 1280, 2000
SOON_S, LONG_S = 30.0, 600.0

Status = dict[str, Any] | None


def main() -> int:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("needs Chromium")
    with tempfile.TemporaryDirectory() as made, running(Swarm(Path(made), 3, {}, LOCAL)) as swarm:
        swarm.start()
        first, *_, last = swarm.nodes
        swarm.wait("they learn", lambda: swarm.tokens > FIRST_TOKENS, LONG_S)
        last.kill()
        swarm.wait("that is seen", lambda: _alive(first.status) < 2)
        swarm.start_again(last)
        swarm.wait("they learn on", lambda: swarm.tokens > LAST_TOKENS, LONG_S)
        assert first.status is not None
        page = first.status["page"]
        wanted = urllib.request.Request(f"{page}sample", b"", {"X-Peerlm": "sample"})
        urllib.request.urlopen(wanted, timeout=SOON_S).close()
        swarm.wait("a text is there", lambda: _sample_tokens(first.status) > FIRST_TOKENS)
        shot = [
            *(program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={made}/chromium", f"--window-size={WIDTH},{HEIGHT}"),
            *("--virtual-time-budget=8000", f"--screenshot={PICTURE}", page),
        ]
        subprocess.run(shot, check=True, capture_output=True, timeout=120)
    return 0


def _alive(status: Status) -> int:
    """Others, as this node has them."""
    others = [m for m in status["members"] if m["id"] != status["node_id"]] if status else []
    return sum(m["state"] == "alive" for m in others)


def _sample_tokens(status: Status) -> int:
    return int(status["sample"]["tokens"]) if status else 0


if __name__ == "__main__":
    sys.exit(main())
