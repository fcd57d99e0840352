"""How fast the simulator is: a swarm at rest on one core, its beginning included, and how much memory it takes.

Whole nodes without work, each run in a process of its own. A busy machine spoils it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.report import Row

SPEED = """
import resource, sys, time
from peerlm.sim.world import WATCHING, World
began = time.perf_counter()
world = World(1)
world.met(int(sys.argv[1]), roles=WATCHING)
world.run(float(sys.argv[2]))
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    rows = []
    for nodes, seconds, most_s in ((64, 600, 20), (1000, 120, 120)):
        done = subprocess.run(
            [sys.executable, "-c", SPEED, str(nodes), str(seconds)],
            capture_output=True,
            text=True,
            check=True,
            env={"OMP_NUM_THREADS": "1"},
        )
        took_s, peak = (float(word) for word in done.stdout.split())
        what = f"N = {nodes}, {seconds} virtual s on one core"
        rows.append(Row(what, took_s, "s", at_most=most_s))
        rows.append(Row(f"{what}: peak memory", peak / 1e9, "GB", at_most=2.0))
    return rows


def main() -> int:
    return report.perform("speed", report.parser(__doc__), measure)


if __name__ == "__main__":
    sys.exit(main())
