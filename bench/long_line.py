"""One line of ten gigabytes through `peerlm data add`: does its memory stay bounded, and what is the outcome?

The line is nowhere on a disk: a web server of this process makes it up as it is asked for. It says the same sixteen bytes again and
again, so all shards of it are one chunk, and the store holds no more of it either; whatever is read, decoded, cut, made into tokens, put and
listed is done for all of it. *In order*: from a server that gives no parts of a file. *In parts*: from one that does, by all processes
that the command starts. *As a record*, of JSON, it has to fit into memory, so it is refused, and that soon and in one line.

What the command and its processes hold is looked at ten times a second, and added up, so what they share counts more than
once.

    python -m bench.long_line
    python -m bench.long_line --gb 1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import report
from bench.report import Missed, Row, say
from bench.served import web_of
from bench.store_nodes import BRIEF, LOCAL, PLAN, SMALL, Stores
from peerlm.bench.nodes import running
from peerlm.cli.demo_nodes import DemoNode

WORDS = b"to be or not to "
BLOCK = WORDS * (1 << 17)

LOOK_S = 0.1

HELD_MB_MAX = 1000.0
"""A tenth of the line: the command, and for each processor a process with a few units of two megabytes."""


class Line:
    """Of so many bytes, which are made up. There is no end of a line in it."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(self._size)
        at = start % len(WORDS)
        assert at + end - start <= len(BLOCK), "more at once than there is"
        return BLOCK[at : at + end - start]


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    error: str
    took_s: float
    peak_mb: float
    """The most that the command and its processes held at one time."""
    processes: int
    """The most that there were at one time."""


def add(node: DemoNode, url: str, name: str) -> Outcome:
    """`peerlm data add`, watched."""
    words = ["data", "add", url, "--name", name, "--tokenizer", "bytes", "--here", "--wait", "0"]
    state = ["--json", "--state", str(node.layout.root)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        began = time.monotonic()
        work = subprocess.Popen(
            [sys.executable, "-m", "peerlm", *words, *state], stdout=out, stderr=error
        )
        peak, most = 0, 0
        while work.poll() is None:
            held = held_by(work.pid)
            peak, most = max(peak, sum(held)), max(most, len(held))
            time.sleep(LOOK_S)
        took_s = time.monotonic() - began
        out.seek(0)
        error.seek(0)
        return Outcome(work.returncode, out.read(), error.read(), took_s, peak / 1e6, most)


def held_by(pid: int) -> list[int]:
    """Resident bytes of a process and all that it has started."""
    held = []
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                held.append(one.memory_info().rss)
    return held


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    size = int(args.gb * 1e9)
    yield Row("one line, without an end", size / 1e9, "GB")
    local = {**LOCAL, "store.bytes": 4 * size, "limits.disk_bytes": 8 * size}
    with running(Stores(folder, 1, {**PLAN, **SMALL, **BRIEF}, local)) as swarm:
        swarm.begin()
        (node,) = swarm.nodes
        say("a node is there")
        yield from added(node, size, "in order", has_ranges=False)
        yield from added(node, size, "in parts", has_ranges=True)
        yield Row("the node's whole store afterwards", stored_mb(node), "MB", at_most=HELD_MB_MAX)
        yield from refused(node, size)
        yield Row("tracebacks", swarm.tracebacks(), at_most=0)


def added(node: DemoNode, size: int, how: str, *, has_ranges: bool) -> Iterator[Row]:
    with web_of(Line(size), "line.txt") as web:
        web.ranges = has_ranges
        done = add(node, web.url, f"line-{how.replace(' ', '-')}")
    if done.code:
        raise Missed(f"{how}: {done.error.strip()}")
    say(f"{how}: {done.peak_mb:.0f} MB, {done.took_s:.0f} s")
    yield Row(f"{how}: tokens in the store", json.loads(done.out)["tokens"], at_least=size)
    yield Row(
        f"{how}: most memory of the command and its processes",
        done.peak_mb,
        "MB",
        at_most=HELD_MB_MAX,
    )
    yield Row(f"{how}: processes", done.processes)
    yield Row(f"{how}: took", done.took_s, "s")


def refused(node: DemoNode, size: int) -> Iterator[Row]:
    with web_of(Line(size), "line.jsonl") as web:
        done = add(node, web.url, "record")
        sent = web.sent_bytes
    lines = done.error.strip().splitlines()
    say(f"as a record: {lines}")
    is_said = done.code == 2 and "line.jsonl has a record of more than" in lines[-1]
    yield Row("as a record: lines that say why it is refused", len(lines), at_most=1)
    yield Row("as a record: they say so", int(is_said), at_least=1)
    yield Row(
        "as a record: most memory of the command and its processes",
        done.peak_mb,
        "MB",
        at_most=HELD_MB_MAX,
    )
    yield Row("as a record: read of it", sent / 1e6, "MB", at_most=HELD_MB_MAX)


def stored_mb(node: DemoNode) -> float:
    chunks = node.layout.chunks
    return sum(path.stat().st_size for path in chunks.iterdir()) / 1e6


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--gb", type=float, default=10.0, help="of the line [10]")
    return report.perform("long_line", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
