"""Whether peerlm has become slower than it was at an earlier commit, for nodes that hold the whole model.

Both trees live on this machine at once and take turns of seconds, the other one stopped meanwhile, so that whatever else the
machine does hits both alike. Training: a daemon with its worker, alone in its run, as its own count of tokens tells. Texts: the
engine of `peerlm serve` in a process of its own, with one session and with eight. Promised since parts of a model
may lie on different nodes: nodes with all of it lose nothing, at least 0.99 of the rates before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from bench import report
from bench.report import Missed, Row, say
from peerlm.bench.founding import LOCAL, options
from peerlm.cli.leash import die_with_parent
from peerlm.daemon.control import ask
from peerlm.errors import PeerlmError
from peerlm.store.layout import Layout

TRAINING, TEXTS = "8a401ae", "41022c4"
"""The commits before a model could lie on several nodes, and before texts went through them."""

Side = TypeVar("Side")

START_S = 120.0
SETTLE_S = 2.0
"""After it has been stopped."""
POLL_S = 0.02
AT_LEAST = 0.99

WRITER = """
import sys
from peerlm import config
from peerlm.bench.serve import Asked, Bench
from peerlm.serve.engine import use_threads
use_threads(1)
bench = Bench(Asked(config.preset(sys.argv[1]), 8, int(sys.argv[2]), 1, 1, 1))
for line in sys.stdin:
    print(getattr(bench, line.strip())(), flush=True)
"""


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    rows = []
    with ExitStack() as trees:
        training = trees.enter_context(tree(folder / "for-training", args.training))
        texts = trees.enter_context(tree(folder / "for-texts", args.texts))
        with trained(folder / "before", training) as early, trained(folder / "now") as late:
            ratios = turns(args.turns, partial(rate, args.seconds), early, late)
        rows += told(f"training, beside {args.training}", ratios)
        with writer(args, texts) as early, writer(args, report.ROOT) as late:
            for way in ("one", "together"):
                ratios = turns(args.turns, partial(wrote, way), early, late)
                rows += told(f"texts, {way}, beside {args.texts}", ratios)
    return rows


def told(what: str, ratios: Sequence[float]) -> list[Row]:
    ordered = sorted(ratios)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return [
        Row(f"{what}: rate ÷ that of before, median", statistics.median(ratios), at_least=AT_LEAST),
        Row(f"{what}: middle half of {len(ratios)}", f"{low:.3f} to {high:.3f}"),
    ]


def turns(count: int, rate: Callable[[Side], float], early: Side, late: Side) -> list[float]:
    """now ÷ before, once a turn."""
    found = []
    for turn in range(count):
        before, now = rate(early), rate(late)
        found.append(now / before)
        say(f"{turn + 1} of {count}: {now:,.0f} now, {before:,.0f} before")
    return found


@contextmanager
def tree(folder: Path, commit: str) -> Iterator[Path]:
    """The sources of `commit`, with its compiled loops."""
    git = ("git", "-C", str(report.ROOT), "worktree")
    run([*git, "add", "--detach", str(folder), commit], report.ROOT)
    try:
        build = "from setuptools import setup; setup()"
        run([sys.executable, "-c", build, "-q", "build_ext", "--inplace"], folder)
        yield folder
    finally:
        run([*git, "remove", "--force", str(folder)], report.ROOT)


def run(command: Sequence[str], at: Path) -> None:
    done = subprocess.run(
        command, cwd=at, env=paths(at), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Missed(
            f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
        )


def paths(sources: Path) -> dict[str, str]:
    """The environment in which `peerlm`, and what it starts, is that of `sources`."""
    return {**os.environ, "PYTHONPATH": str(sources)}


# ---------------------------------------------------------------------------------- training


@contextmanager
def trained(state: Path, sources: Path = report.ROOT) -> Iterator[tuple[Layout, int]]:
    """A node of `sources` that trains by itself, and is stopped between turns: its folder and its process group."""
    peerlm = [sys.executable, "-m", "peerlm"]
    settings = [*options("--set-node", LOCAL), "--set", "run.token_budget=1000000000"]
    run([*peerlm, "init", "--state", str(state), "--preset", "tiny", *settings], sources)
    with (state.parent / f"{state.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*peerlm, "up", "--state", str(state)],
            cwd=sources,
            env=paths(sources),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        layout, began = Layout(state), time.monotonic()
        while not trains(layout):
            if process.poll() is not None or time.monotonic() - began > START_S:
                raise Missed(f"the node of {sources.name} did not begin to train; see {log.name}")
            time.sleep(POLL_S)
        send(process.pid, signal.SIGSTOP)
        yield layout, process.pid
    finally:
        for each in family(process.pid):
            each.kill()
        process.wait()


def rate(seconds: float, node: tuple[Layout, int]) -> float:
    """Tokens/s between the first and the last report of the worker in so much time."""
    layout, pid = node
    send(pid, signal.SIGCONT)
    time.sleep(SETTLE_S)
    seen: list[tuple[float, int]] = []
    began = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        tokens = status(layout)["tokens"]
        if not seen or tokens != seen[-1][1]:
            seen.append((now, tokens))
        time.sleep(POLL_S)
    send(pid, signal.SIGSTOP)
    if len(seen) < 4:
        raise Missed("a worker has hardly reported: take longer turns")
    (first, early), (last, late) = seen[1], seen[-1]
    return (late - early) / (last - first)


def status(layout: Layout) -> dict[str, Any]:
    return ask(layout, "status")


def trains(layout: Layout) -> bool:
    try:
        return bool(status(layout)["worker"]["tokens_per_s"] > 0)
    except PeerlmError:
        return False


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def send(pid: int, which: signal.Signals) -> None:
    for each in family(pid):
        each.send_signal(which)


# ------------------------------------------------------------------------------------- texts


@contextmanager
def writer(args: argparse.Namespace, sources: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, args.preset, str(args.tokens)],
        cwd=sources,
        env=paths(sources),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wrote(way: str, process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    print(way, file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise Missed("the engine of one of the trees has ended; see above")
    return float(json.loads(answer))


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--training", default=TRAINING, help=f"commit [{TRAINING}]")
    flags.add_argument("--texts", default=TEXTS, help=f"commit [{TEXTS}]")
    flags.add_argument("--preset", default="tiny", help="model of texts [tiny]")
    flags.add_argument("--tokens", type=int, default=200, help="of a text [200]")
    flags.add_argument("--turns", type=int, default=20, help="of each side [20]")
    flags.add_argument("--seconds", type=float, default=6.0, help="of a turn of training [6]")
    return report.perform("before", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
