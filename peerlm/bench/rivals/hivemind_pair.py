"""hivemind's DecentralizedAverager: peers find each other by its DHT and average in one group.

    python hivemind_pair.py GROUP PARAMETERS FOLDER [ADDRESS...]

Run by an interpreter that has hivemind. FOLDER is for its sockets; addresses are those that the first peer
answered with. Each peer holds one fp32 vector; nothing is compressed; parts are of hivemind's own
size. `prepare` looks for a group of exactly GROUP peers and holds it before any tensor moves
(`require_trigger`), so that `round` times the averaging alone, in a group that stands. Both are answered
with when they began and ended: what a user of hivemind waits for is the sum.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for the processes that hivemind forks

import torch
from hivemind import DHT  # type: ignore[import-not-found]
from hivemind.averaging import DecentralizedAverager  # type: ignore[import-not-found]
from hivemind.averaging.control import AveragingStage  # type: ignore[import-not-found]
from hivemind.p2p import P2P  # type: ignore[import-not-found]

MATCHMAKING_S, REQUEST_S = 1.0, 0.5
"""Shorter than hivemind's own 5 and 3: a group is complete as soon as all have asked."""

FOUND_S = 60.0
LOOK_S = 0.002


def found_group(averager: Any) -> Any:
    """A step whose group stands and waits for its trigger."""
    step = averager.step(
        scheduled_time=None, timeout=FOUND_S, allow_retries=True, require_trigger=True, wait=False
    )
    while step.stage is not AveragingStage.AWAITING_TRIGGER:
        if step.done():
            raise SystemExit(f"no group: {step.exception()!r}")
        time.sleep(LOOK_S)
    return step


def main() -> None:
    group, size, addresses = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4:]
    # Whatever its processes print must not be taken for an answer.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    P2P._UNIX_SOCKET_PREFIX = f"/unix{sys.argv[3]}/"  # it leaves them in /tmp
    torch.set_num_threads(1)
    dht = DHT(initial_peers=addresses, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    averager = DecentralizedAverager(
        [torch.randn(size)],
        dht,
        prefix="bench",
        target_group_size=group,
        min_group_size=group,
        min_matchmaking_time=MATCHMAKING_S,
        request_timeout=REQUEST_S,
        start=True,
    )

    def answer(words: dict[str, object]) -> None:
        told.write(json.dumps(words) + "\n")
        told.flush()

    answer({"addresses": [str(address) for address in dht.get_visible_maddrs()]})
    step = None
    for line in sys.stdin:
        began = time.monotonic()
        if line.strip() == "prepare":
            step = found_group(averager)
        elif step is not None:
            step.allow_allreduce()
            met = step.result()
            assert len(met) == group, f"a group of {len(met)}, not {group}"
            step = None
        answer({"began": began, "ended": time.monotonic()})
    averager.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    main()
