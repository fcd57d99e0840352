"""Fuzzing: damaged inputs for every decoder, and what came of them.

Every decoder (`fuzz_decoders`) gets as many inputs, true samples that were damaged (`fuzz_damage`) and
noise. Promised: it returns, or raises the error it documents; never another. It takes at most 100 ms of
processor time and 64 MiB for any input from outside. What breaks a promise is shown with the command that does the
very same input again: the input is drawn from the seed, the decoder's name and the input's number.

    python -m bench.fuzz --inputs 1000000 --seed 1
    python -m bench.fuzz --seed 1 --only wire.Ping --replay 4711
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import report
from bench.fuzz_damage import damaged
from bench.fuzz_decoders import Decoder, all_decoders
from bench.report import Missed, Row, say

SECONDS_MAX = 0.1
"""Processor time for one input. A daemon's loop stands still meanwhile."""

WEIGHED_EVERY = 64
"""Counting memory makes everything several times slower: one input in so many is weighed, and each
that is large or took long."""

LARGE = 50_000
LONG_S = 0.005
SHOWN_MAX = 3
"""Failures of one kind that are shown for a decoder."""

PROGRESS_S = 5.0


@dataclass(slots=True)
class Tally:
    """What became of one decoder's inputs."""

    decoder: Decoder
    seed: int
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    over_10_ms: int = 0
    heaviest: int = 0

    def fail(self, number: int, what: str) -> None:
        self.failures[what] += 1
        if self.failures[what] <= SHOWN_MAX:
            name = self.decoder.name
            again = f"python -m bench.fuzz --seed {self.seed} --only {name} --replay {number}"
            self.shown.append(f"{name} {number}: {what}\n    {again}")


def input_of(decoder: Decoder, seed: int, number: int) -> bytes:
    """The input of this number: always the same bytes."""
    rng = random.Random(f"{seed} {decoder.name} {number}")
    return damaged(rng, decoder.form, decoder.samples, decoder.bytes_max)


def feed(tally: Tally, number: int) -> None:
    """One input."""
    data = input_of(tally.decoder, tally.seed, number)
    began = time.thread_time()
    outcome, broken = _outcome(tally.decoder, data)
    took_s = time.thread_time() - began
    tally.inputs += 1
    tally.outcomes[outcome] += 1
    if broken:
        tally.fail(number, broken)
    if took_s > SECONDS_MAX:
        took_s = _again_s(tally.decoder, data)
    if took_s > SECONDS_MAX:
        tally.fail(number, f"slow: more than {SECONDS_MAX:g} s")
    tally.longest_s = max(tally.longest_s, took_s)
    tally.over_10_ms += took_s > 0.010
    if len(data) > LARGE or took_s > LONG_S or number % WEIGHED_EVERY == 0:
        weight = _weight(tally.decoder, data)
        tally.heaviest = max(tally.heaviest, weight)
        if weight > tally.decoder.heap_max:
            tally.fail(number, f"large: more than {tally.decoder.heap_max >> 20} MiB")


def _outcome(decoder: Decoder, data: bytes) -> tuple[str, str]:
    """What became of it, in a word, and what is wrong with that, if anything."""
    try:
        decoder.read(data)
    except decoder.refuses as error:
        line = str(error)
        if "\n" in line or len(line) > 1000:
            return "refused", f"a message that is long or of several lines; {_place(error)}"
        return "refused", ""
    except Exception as error:
        return "broken", f"{type(error).__name__} at {_place(error)}"
    return "taken", ""


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "?"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def _again_s(decoder: Decoder, data: bytes) -> float:
    """The better of two more tries: a collection of garbage in between was not its fault."""
    times = []
    for _ in range(2):
        gc.collect()
        began = time.thread_time()
        _outcome(decoder, data)
        times.append(time.thread_time() - began)
    return min(times)


def _weight(decoder: Decoder, data: bytes) -> int:
    """The most bytes it held at once."""
    tracemalloc.start()
    try:
        _outcome(decoder, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def fuzz(inputs: int, seed: int, only: str = "", *, progress: bool = False) -> list[Tally]:
    """`inputs` in all, the same number for each decoder whose name contains `only`."""
    tallies = [Tally(d, seed) for d in all_decoders() if only in d.name]
    if not tallies:
        raise Missed(f"no decoder's name contains {only!r}")
    each = -(-inputs // len(tallies))
    told = time.monotonic()
    for index, tally in enumerate(tallies):
        for number in range(each):
            feed(tally, number)
            if progress and time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                done = index * each + number
                broken = sum(sum(t.failures.values()) for t in tallies)
                say(
                    f"{done:,} of {each * len(tallies):,} inputs, {broken} broken; {tally.decoder.name}"
                )
    return tallies


def table(tallies: Sequence[Tally]) -> str:
    """A line for each decoder."""
    head = ("decoder", "inputs", "taken", "refused", "failed", "> 10 ms", "longest ms", "peak KiB")
    cells: list[tuple[str, ...]] = [head]
    for t in tallies:
        numbers = (t.inputs, t.outcomes["taken"], t.outcomes["refused"], sum(t.failures.values()))
        costs = (t.over_10_ms, f"{1e3 * t.longest_s:.2f}", t.heaviest >> 10)
        cells.append((t.decoder.name, *(str(n) for n in (*numbers, *costs))))
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if column == 0 else cell.rjust(w)
            for column, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def replay(seed: int, only: str, number: int) -> Sequence[Row]:
    """One input again, with its traceback."""
    decoders = [d for d in all_decoders() if d.name == only]
    if not decoders:
        raise Missed(f"--replay needs --only with the whole name of a decoder, not {only!r}")
    [decoder] = decoders
    data = input_of(decoder, seed, number)
    say(f"{len(data)} bytes: {data[:400]!r}")
    tally = Tally(decoder, seed)
    feed(tally, number)
    say(table([tally]))
    try:
        say(f"read as {decoder.read(data)!r}"[:2000])
    except decoder.refuses as error:
        say(f"refused: {error!r}")
    return rows([tally], 0.0)


def rows(tallies: Sequence[Tally], seconds: float) -> list[Row]:
    outcomes = sum((t.outcomes for t in tallies), Counter[str]())
    slowest = max(tallies, key=lambda t: t.longest_s)
    outside = [t for t in tallies if not t.decoder.name.startswith("train.")] or tallies
    heaviest = max(outside, key=lambda t: t.heaviest)
    slow = sum(n for t in tallies for what, n in t.failures.items() if what.startswith("slow"))
    large = sum(n for t in tallies for what, n in t.failures.items() if what.startswith("large"))
    return [
        Row("decoders", len(tallies)),
        Row("inputs", sum(t.inputs for t in tallies)),
        Row("taken", outcomes["taken"]),
        Row("refused with the documented error", outcomes["refused"]),
        Row(
            "another error, or a promise broken",
            sum(sum(t.failures.values()) for t in tallies) - slow - large,
            at_most=0,
        ),
        Row("slower than 10 ms", sum(t.over_10_ms for t in tallies)),
        Row("slower than 100 ms", slow, at_most=0),
        Row("larger than they may be", large, at_most=0),
        Row(
            f"longest ({slowest.decoder.name})",
            1e3 * slowest.longest_s,
            "ms",
            at_most=1e3 * SECONDS_MAX,
        ),
        Row(f"largest ({heaviest.decoder.name})", heaviest.heaviest / 2**20, "MiB"),
        Row("time", seconds, "s"),
    ]


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    os.chdir(folder)
    if args.replay is not None:
        return replay(args.seed, args.only, args.replay)
    began = time.monotonic()
    tallies = fuzz(args.inputs, args.seed, args.only, progress=True)
    sys.stderr.write(table(tallies) + "\n")
    for tally in tallies:
        for line in tally.shown:
            say(line)
    return rows(tallies, time.monotonic() - began)


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--inputs", type=int, default=20_000, help="of all decoders together")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--only", default="", help="decoders whose name contains this")
    flags.add_argument("--replay", type=int, metavar="NUMBER", help="one input again")
    return report.perform("fuzz", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
