"""A whole model from node to node, beside gloo and hivemind in the same run; where the time and memory go.

What `peerlm bench exchange` and `peerlm bench codec` measure (docs/benchmarks.md says what each figure
is): two nodes in fp32 and as plans have it, in cipher and in the clear; eight in random pairs beside
hivemind's group of eight; and two with a model of a gigabyte, to see what they need besides its weights.
Needs `make bench-peers`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import report
from bench.report import Row, say
from peerlm.bench.codec import measure as measure_codecs
from peerlm.bench.exchange import Asked
from peerlm.bench.exchange import measure as measure_exchange
from peerlm.bench.rows import FP32_BYTES, STAGES

FRAGMENT_BYTES = 16e6
"""The most that one has in fp32: mix.fragment_max."""

FRAME_BYTES = 1 << 20
STREAMS = 4
"""Exchanges between two nodes that are under way at a time, with a frame's buffer each way."""


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    yield from codecs(args)
    rivals = ("gloo", "hivemind")
    asked = Asked(100, 2, args.rounds, ("fp32", "int8:int4"), ("aead", "plain"), rivals)
    yield from pair(measure_exchange(asked, folder / "pair", say))
    asked = Asked(100, 8, args.rounds, ("fp32", "int8:int4"), ("aead",), ("hivemind",))
    yield from crowd(measure_exchange(asked, folder / "crowd", say))
    asked = Asked(1000, 2, args.rounds, ("fp32",), ("aead",), ())
    yield from memory(measure_exchange(asked, folder / "memory", say))


def codecs(args: argparse.Namespace) -> Iterator[Row]:
    found = measure_codecs(4_000_000, args.rounds, say)
    yield Row("loops", found["loops"])
    for row in found["rows"]:
        if row["name"].endswith(" exchange"):
            yield Row(
                f"{row['name']}, both sides' arithmetic", row["ns_per_parameter"], "ns/parameter"
            )


def pair(found: dict[str, Any]) -> Iterator[Row]:
    bounds = {"peerlm fp32 aead": {"gloo": 0.7, "hivemind": 6.0}}
    for row in found["rows"]:
        what = f"2 nodes, {found['mb']:.0f} MB, {row['name']}"
        yield Row(f"{what}: median", row["seconds_p50"], "s")
        yield Row(f"{what}: slowest of {found['rounds']}", row["seconds_max"], "s")
        yield Row(f"{what}: processor time of all", row["cpu_s"], "s")
        for rival, ratio in row["ratio"].items():
            least = bounds.get(row["name"], {}).get(rival)
            yield Row(f"{what}: rate ÷ {rival}'s", ratio, at_least=least)
        if row["name"] == "peerlm int8:int4 aead":
            sent = row["wire_bytes"] / found["parameters"]
            yield Row(f"{what}: sent by both", sent, "bytes a parameter", at_most=1.58)
    for row in found["rows"]:
        for stage in STAGES if row["spent_ms"] else ():
            yield Row(f"{row['name']}, both nodes: {stage}", row["spent_ms"][stage], "ms")


def crowd(found: dict[str, Any]) -> Iterator[Row]:
    for row in found["rows"]:
        what = f"8 nodes, {found['mb']:.0f} MB, {row['name']}"
        yield Row(f"{what}: median", row["seconds_p50"], "s")
        yield Row(f"{what}: sent by all", row["wire_bytes"] / 1e6, "MB")
        least = 4.0 if row["name"].startswith("peerlm fp32") else None
        for rival, ratio in row["ratio"].items():
            yield Row(f"{what}: rate ÷ {rival}'s", ratio, at_least=least)


def memory(found: dict[str, Any]) -> Iterator[Row]:
    row = found["rows"][0]
    model = FP32_BYTES * found["parameters"] / 1e6
    most = (3 * FRAGMENT_BYTES + STREAMS * 2 * FRAME_BYTES) / 1e6
    what = f"memory of a node while {model:,.0f} MB are exchanged in {found['fragments']} fragments"
    yield Row(f"{what}: growth", row["rss_grown_mb"], "MB", at_most=most)


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--rounds", type=int, default=9, help="counted, of each who takes part [9]")
    return report.perform("exchange", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
