"""A node whose text is cut into small shards, and which gives the last of them to nobody until a file says so.

    GIVEN=FILE python tests/net/holding_back.py up --state FOLDER

Until FILE is there it says that it has no such shard. What it does besides is what peerlm does.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from peerlm.data import shards
from peerlm.effects import Effect, Send
from peerlm.node.snapshots import Snapshots
from peerlm.types import PeerId, TransferId
from peerlm.wire.message import PullAnswer, PullRequest

SHARD_TOKENS = 200_000


def hold_back(given: Path) -> None:
    donate = Snapshots.donate

    def held(self: Snapshots, peer: PeerId, request: PullRequest, *rest: Any, **more: Any) -> Any:
        is_last = bool(self.corpus) and request.object_hash == self.corpus[-1][0]
        if not is_last or given.exists():
            return donate(self, peer, request, *rest, **more)
        refused = PullAnswer(TransferId(request.transfer), "refuse", "no such object", 0)
        answers: list[Effect] = [Send(peer, refused)]
        return answers

    Snapshots.donate = held  # type: ignore[method-assign]


if __name__ == "__main__":
    shards.prepare = partial(shards.prepare, shard_tokens=SHARD_TOKENS)  # type: ignore[assignment]
    if "GIVEN" in os.environ:
        hold_back(Path(os.environ["GIVEN"]))
    from peerlm.__main__ import main

    sys.exit(main())
