"""What a figure looks like: rows with bounds, on a screen, as JSON, and in docs/results.md.

`perform` is the frame of every script: it reads the flags, makes a folder, measures, prints, records
if it is asked to, and leaves no process or file behind. A row without a bound informs; a row that
misses its bound makes the exit status 1. What is recorded is what was measured, missed bounds too,
with the command, machine, date and commit, so the page can claim nothing that was not seen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from peerlm.bench.rows import Missed as Missed
from peerlm.data.processes import processors
from peerlm.errors import PeerlmError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
PLAYED = ROOT / "docs" / "faults.jsonl"
"""What `bench.faults` has played so far."""
CASES = ROOT / "docs" / "membership.jsonl"
"""The same of `bench.membership`."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """How often-measured things spread, by nearest rank; no bound can be put on them."""

    p50: float
    p90: float
    max: float
    n: int

    @staticmethod
    def of(samples: Sequence[float]) -> Quantiles:
        """Raises `Missed` when there are no samples."""
        if not samples:
            raise Missed("nothing was measured")
        ordered, n = sorted(samples), len(samples)
        p50, p90 = (ordered[math.ceil(share * n) - 1] for share in (0.5, 0.9))
        return Quantiles(p50, p90, ordered[-1], n)

    def __str__(self) -> str:
        return " / ".join(shown(value) for value in (self.p50, self.p90, self.max))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a figure. A bound is the most (or least) that `value` may be; None: no promise.

    A value of None with a bound is a miss: what was to be measured never happened.
    """

    what: str
    value: float | str | Quantiles | None
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    below: float | None = None

    @property
    def ok(self) -> bool | None:
        """Whether the bound is kept; None when there is none."""
        bounds = (self.at_most, self.at_least, self.below)
        if all(bound is None for bound in bounds):
            return None
        if not isinstance(self.value, int | float):
            return False
        return (
            (self.at_most is None or self.value <= self.at_most)
            and (self.at_least is None or self.value >= self.at_least)
            and (self.below is None or self.value < self.below)
        )

    @property
    def measured(self) -> str:
        return f"{shown(self.value)} {self.unit}".rstrip()

    @property
    def target(self) -> str:
        if self.at_most is not None and self.at_most == self.at_least:
            return f"= {shown(self.at_most)} {self.unit}".rstrip()
        signs = (("≤", self.at_most), ("≥", self.at_least), ("<", self.below))
        bounds = [f"{sign} {shown(bound)}" for sign, bound in signs if bound is not None]
        return f"{', '.join(bounds)} {self.unit}".rstrip() if bounds else ""

    @property
    def verdict(self) -> str:
        return {None: "", True: "kept", False: "MISSED"}[self.ok]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole figure."""

    name: str
    rows: tuple[Row, ...]
    command: str
    machine: str
    date: str
    commit: str

    @property
    def ok(self) -> bool:
        return all(row.ok is not False for row in self.rows)

    @property
    def origin(self) -> str:
        return f"{self.machine}; {self.date}; commit {self.commit}"

    def as_text(self) -> str:
        """For a screen: columns, then the line that says where this comes from."""
        cells = [(r.what, r.measured, r.target, r.verdict) for r in self.rows]
        cells.insert(0, ("", "measured", "target", ""))
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        return "\n".join([*lines, "", self.origin])

    def as_markdown(self) -> str:
        lines = ["| | measured | target | |", "|---|---|---|---|"]
        lines += [f"| {r.what} | {r.measured} | {r.target} | {r.verdict} |" for r in self.rows]
        return "\n".join([f"`{self.command}`", "", *lines, "", f"{self.origin}."])

    def as_json(self) -> str:
        rows = [
            {
                "what": r.what,
                "value": _as_json(r.value),
                "unit": r.unit,
                "target": r.target,
                "ok": r.ok,
            }
            for r in self.rows
        ]
        about = {"command": self.command, "machine": self.machine, "date": self.date}
        whole = {"figure": self.name, "ok": self.ok, "rows": rows, **about, "commit": self.commit}
        return json.dumps(whole, ensure_ascii=False)


def shown(value: float | str | Quantiles | None) -> str:
    """A number as a person wants it: three or four digits that mean something."""
    if value is None:
        return "never"
    if isinstance(value, str | Quantiles):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 10):
        return f"{value:,.0f}"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.2g}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def _as_json(value: float | str | Quantiles | None) -> object:
    if isinstance(value, Quantiles):
        return asdict(value)
    if value is None or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    return str(value)


# ------------------------------------------------------------------------------------ the frame

Measure = Callable[[argparse.Namespace, Path], Iterable[Row]]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the flags that every figure has; `doc` is the script's own docstring."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--json", action="store_true", help="one JSON object on standard output")
    found.add_argument("--record", action="store_true", help="put the table into docs/results.md")
    found.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR and leave it there")
    return found


def perform(name: str, flags: argparse.ArgumentParser, measure: Measure) -> int:
    """Measure and tell; returns the exit status. `measure` must end the processes it starts.

    It may give its rows one by one, as it has them: with --record and --keep the page then has those
    that are there, and says that there are to be more.
    """
    args = flags.parse_args()
    command = shlex.join(["python", "-m", f"bench.{name}", *_own_flags(sys.argv[1:])])
    machine = machine_line()
    _interrupt_on_terminate()
    folder = _folder(args.keep)
    rows: list[Row] = []

    def so_far(*more: Row) -> Report:
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return Report(name, (*rows, *more), command, machine, date, commit_line())

    try:
        for row in measure(args, folder):
            rows.append(row)
            if args.record and args.keep is not None:
                record(so_far(UNFINISHED))
    except PeerlmError as error:
        sys.stderr.write(f"bench.{name}: {error}\n")
        return 1
    finally:
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    report = so_far()
    sys.stdout.write((report.as_json() if args.json else report.as_text()) + "\n")
    if args.record:
        record(report)
    return 0 if report.ok else 1


UNFINISHED = Row("not finished: more is being measured", "")


def record(report: Report) -> None:
    """Into docs/results.md."""
    PAGE.write_text(recorded(PAGE.read_text(), report))


def say(line: str) -> None:
    """Progress, for whoever watches."""
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {line}\n")
    sys.stderr.flush()


def recorded(page: str, report: Report) -> str:
    """The page with the figure's block replaced. Raises `Missed` if the page has no such block."""
    begin, end = f"<!-- figure: {report.name} -->", f"<!-- end: {report.name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise Missed(f"docs/results.md: no block between {begin} and {end}")
    return f"{before}{begin}\n{report.as_markdown()}\n{end}{after}"


def _own_flags(arguments: Sequence[str]) -> list[str]:
    """What was measured; not where it was shown."""
    return [a for a in arguments if a not in ("--json", "--record")]


def _folder(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="peerlm-bench-"))
    keep.mkdir(parents=True, exist_ok=True)
    return keep.absolute()


def _interrupt_on_terminate() -> None:
    """SIGTERM ends a script as Ctrl-C does, so that its nodes end too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


# ------------------------------------------------------------------------------ where and when


def machine_line() -> str:
    """Processor, cores, memory, load before the measurement, and what it ran on."""
    cores = processors()
    memory_gb = psutil.virtual_memory().total / 1e9
    load = os.getloadavg()[0]
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    return (
        f"{_processor()}, {cores} cores, {memory_gb:.0f} GB, load {load:.1f} before; "
        f"{platform.system()} {platform.release()}, {versions}"
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit_line() -> str:
    """The checkout's commit, and whether files differ from it; those that are recorded to do not count."""
    commit = _git("rev-parse", "--short=10", "HEAD")
    recorded = tuple(str(path.relative_to(ROOT)) for path in (PAGE, PLAYED, CASES))
    lines = _git("status", "--porcelain").splitlines()
    changed = [line for line in lines if not line.endswith(recorded)]
    return f"{commit}, with changes" if changed else commit


def _git(*arguments: str) -> str:
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return str(done.stdout).strip() if done.returncode == 0 else "unknown"
