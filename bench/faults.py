"""Random faults by the thousand: a minute of trouble each, then peace; no promise may break.

What `peerlm sim faults` plays (peerlm/sim/menus.py says what befalls a swarm). Ten thousand seeds take hours, so
they are played in *batches*, and each batch that is done is a line in docs/faults.jsonl with the commit that
it was played at. A batch that is there is not played again; `--again` forgets them all. What was found is summed up
over all of them. With `--jobs 1` one processor is left to others.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench import report
from bench.report import PLAYED, Missed, Row, say
from peerlm.cli.sim_pool import all_runs
from peerlm.data.processes import processors
from peerlm.sim.menus import FAULTS, NODES, RECOVERY_S, Lived, live_through

BATCH = 250


@dataclass(frozen=True, slots=True)
class Batch:
    """Seeds `first` to `last`. failed: which broke a promise. faults: how many came. kinds: of which kinds.
    recovery_p50_s, recovery_max_s: until all was well again, of those that broke none."""

    first: int
    last: int
    failed: tuple[int, ...]
    faults: int
    kinds: tuple[str, ...]
    recovery_p50_s: float
    recovery_max_s: float
    commit: str
    date: str


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    if args.seeds < BATCH or args.seeds % BATCH:
        raise Missed(f"--seeds {args.seeds}: must be a multiple of {BATCH}")
    path = PLAYED if args.record else folder / PLAYED.name
    if args.again:
        path.unlink(missing_ok=True)
    played = {batch.first: batch for batch in read(path)}
    for first in range(1, args.seeds + 1, BATCH):
        if first not in played:
            batch = played[first] = play(first, args.jobs or processors())
            append(path, batch)
            say(f"{batch.last} of {args.seeds} seeds; {len(batch.failed)} of these broke a promise")
        if len(played) * BATCH >= args.most:
            break
    return rows(sorted(played.values(), key=lambda batch: batch.first), args.seeds)


def play(first: int, jobs: int) -> Batch:
    """One batch. Raises `Missed` if the checkout has changed meanwhile: nobody knows what was played."""
    commit = report.commit_line()
    calls = [(seed, NODES) for seed in range(first, first + BATCH)]
    lives: list[Lived] = []
    for lived in all_runs(live_through, calls, jobs, f"seeds from {first}"):
        lives.append(lived)
        if lived.story:
            say(f"seed {lived.seed} broke a promise: peerlm sim replay {lived.seed}\n{lived.story}")
    if report.commit_line() != commit:
        raise Missed(f"the checkout was {commit} and is {report.commit_line()}: use a worktree")
    well = sorted(lived.recovery_s for lived in lives if not lived.story)
    return Batch(
        first=first,
        last=first + BATCH - 1,
        failed=tuple(lived.seed for lived in lives if lived.story),
        faults=sum(lived.faults for lived in lives),
        kinds=tuple(sorted({kind for lived in lives for kind in lived.menu})),
        recovery_p50_s=well[len(well) // 2] if well else RECOVERY_S,
        recovery_max_s=well[-1] if well else RECOVERY_S,
        commit=commit,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def read(path: Path) -> Iterator[Batch]:
    """The batches that are done; a line that was cut short is not."""
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        yield Batch(**{**found, "failed": tuple(found["failed"]), "kinds": tuple(found["kinds"])})


def append(path: Path, batch: Batch) -> None:
    """On the disk when this returns."""
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        is_torn = not (text := file.read()).endswith("\n") and bool(text)
        file.write("\n" * is_torn + json.dumps(asdict(batch)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rows(batches: Sequence[Batch], wanted: int) -> list[Row]:
    failed = [seed for batch in batches for seed in batch.failed]
    kinds = {kind for batch in batches for kind in batch.kinds}
    commits = dict.fromkeys(f"{batch.commit} ({batch.date})" for batch in batches)
    return [
        Row(
            f"seeds, {NODES} nodes, a minute of trouble each",
            BATCH * len(batches),
            at_least=wanted,
        ),
        Row("kinds of fault that came", len(kinds), at_least=len(FAULTS)),
        Row("faults", sum(batch.faults for batch in batches)),
        Row("seeds that broke a promise", len(failed), at_most=0),
        Row("which", ", ".join(map(str, failed[:20])) or "none"),
        Row(
            f"all is well again: median of the {len(batches)} medians",
            sorted(batch.recovery_p50_s for batch in batches)[len(batches) // 2],
            "s",
        ),
        Row("the slowest", max(batch.recovery_max_s for batch in batches), "s", at_most=RECOVERY_S),
        Row("played at", ", ".join(commits)),
    ]


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--seeds", type=int, default=1000, help="how many, from 1 [1000]")
    flags.add_argument("--most", type=int, default=10**9, help="stop when so many are played")
    flags.add_argument("--jobs", type=int, default=0, help="processes [all processors]")
    flags.add_argument("--again", action="store_true", help="play all of them again")
    return report.perform("faults", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
