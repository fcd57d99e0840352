"""The process in which a node writes the sample text of its newest weights (daemon/sampling.py).

    python -m peerlm.cli.sample STATE PARENT SEED here|swarm PROMPT

It prints one JSON object: the text with its prompt, the number and tokens of the snapshot, the processor time that it took; or one
line on standard error. It is nicer than what trains, computes on one thread of the processor, ends with its parent, and stops
writing when it has cost enough, however large the model is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peerlm.errors import PeerlmError
from peerlm.observe.sample import CPU_S, TEXT_MAX
from peerlm.store.layout import Layout
from peerlm.train.limits import die_with
from peerlm.types import printable

NICENESS = 10

TOKENS = 160
TEMPERATURE = 0.8

WRITE_S = 60.0
"""A text ends where it is after so long, or `CPU_S`, loading included: one that waits for others costs them too."""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    root, parent, rng_seed, way, prompt = arguments
    if not die_with(int(parent)):
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: its daemon ends it
    os.nice(NICENESS)
    try:
        said = written(Layout(Path(root)), prompt, int(rng_seed), through_swarm=way == "swarm")
    except PeerlmError as error:
        print(printable(" ".join(str(error).split())), file=sys.stderr)
        return 1
    print(json.dumps(said))
    return 0


def written(layout: Layout, prompt: str, rng_seed: int, *, through_swarm: bool) -> dict[str, Any]:
    """The object that is printed. Raises `PeerlmError`."""
    number = tokens = 0
    if through_swarm:
        from peerlm.cli import swarm_here

        pieces = swarm_here.text_after(layout, prompt, TOKENS, TEMPERATURE, rng_seed, _ignore)
    else:
        from peerlm.cli import weights_here

        weights = weights_here.from_snapshot(layout, _ignore)
        number, tokens = weights.snapshot, weights.tokens or 0
        from peerlm.cli.torch_here import text_after

        pieces = text_after(weights, prompt, TOKENS, TEMPERATURE, rng_seed, _ignore)
    text = prompt + "".join(_while_cheap(pieces))
    cpu_s = time.process_time()
    return {"text": text[:TEXT_MAX], "snapshot": number, "tokens": tokens, "cpu_s": cpu_s}


def _while_cheap(pieces: Iterator[str]) -> Iterator[str]:
    began = time.monotonic()
    for piece in pieces:
        yield piece
        if time.process_time() > CPU_S or time.monotonic() - began > WRITE_S:
            return


def _ignore(_: str) -> None:
    """Notes are for who asked."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
