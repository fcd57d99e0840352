"""A whole model from node to node over long, lossy and fast lines, beside one plain TCP stream on the same line.

What `peerlm bench exchange --link` measures (docs/benchmarks.md): two nodes, each in a network of its own behind a switch
that has the line's rate, delay and loss. A rate beside TCP's is what an exchange gets out of the line; int8 and
int4 beside fp32 is what fewer bytes are worth there. Needs root, for it makes networks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.report import Row, say
from peerlm.bench.exchange import Asked
from peerlm.bench.exchange import measure as measure_exchange

FP32, COARSE = "peerlm fp32 aead", "peerlm int8:int4 aead"


@dataclass(frozen=True, slots=True)
class Line:
    """A model of so many megabytes over `link`; the least that was promised there."""

    link: str
    megabytes: float
    of_tcp: float | None = None
    of_fp32: float | None = None


LINES = (
    Line("1gbit,5ms", 100, of_fp32=2.0),
    Line("100mbit,25ms,1%", 60, of_tcp=0.7),
)


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    for number, line in enumerate(LINES):
        asked = Asked(
            line.megabytes,
            2,
            args.rounds,
            ("fp32", "int8:int4"),
            ("aead",),
            ("tcp",),
            line.link,
        )
        found = measure_exchange(asked, folder / str(number), say)
        medians = {row["name"]: row["seconds_p50"] for row in found["rows"]}
        what = f"{line.link}, {line.megabytes:.0f} MB"
        for row in found["rows"]:
            yield Row(f"{what}: {row['name']}, median", row["seconds_p50"], "s")
            yield Row(f"{what}: {row['name']}, slowest of {args.rounds}", row["seconds_max"], "s")
        yield Row(
            f"{what}: fp32, rate ÷ TCP's", medians["tcp"] / medians[FP32], at_least=line.of_tcp
        )
        ratio = medians[FP32] / medians[COARSE]
        yield Row(f"{what}: int8:int4, rate ÷ fp32's", ratio, at_least=line.of_fp32)


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--rounds", type=int, default=9, help="counted, of each who takes part [9]")
    return report.perform("lines", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
