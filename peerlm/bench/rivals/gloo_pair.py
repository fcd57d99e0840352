"""gloo, as torch has it: two processes swap all their weights at once and average, in the clear.

    python gloo_pair.py RANK WORLD MEETING PARAMETERS

Ranks 0 and 1 are a pair, 2 and 3, and so on; one that is left over does nothing. Each sends its vector
while it receives its partner's, one vector in one piece, then goes half way to the other, on one thread.
This is the least that two processes can do who want the mean of two vectors: no membership, no
encryption, no codec, no answer for a partner that is busy or dies. MEETING is a file that does not exist.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch
import torch.distributed as dist


def swap(ours: torch.Tensor, theirs: torch.Tensor, partner: int) -> None:
    """Both vectors of the pair become their mean; `theirs` is room for the other's."""
    moving = [dist.isend(ours, partner), dist.irecv(theirs, partner)]
    for each in moving:
        assert each is not None
        each.wait()
    ours.lerp_(theirs, 0.5)


def main() -> None:
    rank, world, size = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4])
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world
    )
    ours = torch.randn(size, generator=torch.Generator().manual_seed(rank))
    theirs = torch.empty_like(ours)
    partner = rank ^ 1
    answer({})
    for line in sys.stdin:
        began = time.monotonic()
        if line.strip() == "round" and partner < world:
            swap(ours, theirs, partner)
        answer({"began": began, "ended": time.monotonic()})
    dist.destroy_process_group()


def answer(words: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
