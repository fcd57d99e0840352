"""Half an hour of kills, stops and cuts on machines made of namespaces, beside the same nodes left in peace meanwhile.

Both are `peerlm chaos run` of one scenario file, at the same time on the same processors, to the same number of
tokens; what is promised of the one is held beside the other. Needs root on Linux, and `ip`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import report
from bench.report import ROOT, Missed, Row, say
from peerlm.chaos.course import WELL_S
from peerlm.chaos.verdict import (
    CORES_MAX,
    EFFICIENCY_MIN,
    GROWTH_MAX,
    HEAL_S_MAX,
    LEAK_RUN_S,
    LOSS_MAX,
    RETURN_S_MAX,
    SPREAD_MAX,
    curves_beside,
    loss_beside,
)
from peerlm.cli.leash import die_with_parent

SCENARIO = ROOT / "deploy/scenarios/hard-half-hour.toml"
END_S = 30.0
"""Longest wait for a run that was told to end."""

POLL_S = 1.0


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    with ExitStack() as stack:
        runs = {
            name: stack.enter_context(playing(args, folder / name, *more))
            for name, more in (("trouble", ()), ("peace", ("--no-faults",)))
        }
        say("both run")
        while any(run.poll() is None for run in runs.values()):
            time.sleep(POLL_S)
    trouble, peace = (read(folder / name) for name in runs)
    return rows(trouble, peace)


@contextmanager
def playing(args: argparse.Namespace, place: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The scenario under way; it does not go on afterwards."""
    place.mkdir(parents=True, exist_ok=True)
    command = [*(sys.executable, "-m", "peerlm", "chaos", "run", args.scenario, "--json"), *more]
    command += ["--seed", str(args.seed), "--keep", str(place / "logs")]
    if args.minutes is not None:
        command += ["--minutes", str(args.minutes)]
    with (place / "report.json").open("wb") as out, (place / "told.log").open("wb") as told:
        run = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=told,
            preexec_fn=die_with_parent,
        )
    try:
        yield run
    finally:
        run.terminate()
        try:
            run.wait(END_S)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()


def read(place: Path) -> dict[str, Any]:
    """Raises `Missed` with the last thing that was told."""
    try:
        found: dict[str, Any] = json.loads((place / "report.json").read_text())
        return found
    except ValueError:
        told = (place / "told.log").read_text(errors="replace").strip().splitlines()
        raise Missed(f"{place.name}: no report; {told[-1] if told else 'no word'}") from None


def rows(trouble: Mapping[str, Any], peace: Mapping[str, Any]) -> list[Row]:
    """What the two reports come to; `null` in them is what never happened."""
    others = trouble["nodes"] - 1
    returns = trouble["return_s"]
    found = [
        Row("faults went on for", trouble["trouble_s"] / 60, "min"),
        *(Row(f"of kind {kind}", n) for kind, n in sorted(trouble["faults"].items())),
        Row("efficiency", trouble["efficiency"], at_least=EFFICIENCY_MIN),
        Row("efficiency in peace", peace["efficiency"]),
        Row("tokens that died with a node, about", trouble["tokens_lost"]),
        Row("restart to taking part, median", returns["p50"], "s"),
        Row("restart to taking part, slowest", returns["max"], "s", at_most=RETURN_S_MAX),
        Row("restarts after which that was seen", returns["n"]),
        Row("nodes that had not come back", trouble["not_returned"], at_most=0),
        Row("well at the end after", trouble["well_s"], "s", at_most=WELL_S),
        Row(
            f"others mixed with in five minutes, of {others}, the fewest",
            trouble["breadth_min"],
            at_least=others,
        ),
        *(row for split in trouble["splits"] for row in _of_split(split)),
        Row("of all processors' time", trouble["cores_share"], at_most=CORES_MAX),
        Row("of all processors' time, in peace", peace["cores_share"]),
        *_growth(trouble, ""),
        *_growth(peace, ", in peace"),
        Row("tracebacks", trouble["tracebacks"] + peace["tracebacks"], at_most=0),
        Row(
            "counts of tokens that fell",
            trouble["tokens_that_fell"] + peace["tokens_that_fell"],
            at_most=0,
        ),
        Row("loss ÷ that in peace", loss_beside(trouble, peace), at_most=LOSS_MAX),
        Row(
            "of the curves, at the end of the scenario",
            curves_beside(trouble["curve"], peace["curve"]),
        ),
    ]
    if trouble["finish"]:
        finals = {"": trouble["final"] or {}, ", in peace": peace["final"] or {}}
        found += [Row(f"loss of the finished model{w}", f.get("loss")) for w, f in finals.items()]
        found += [
            Row(f"spread of finished models{w}", f.get("spread"), at_most=SPREAD_MAX)
            for w, f in finals.items()
        ]
    return found


def _growth(of: Mapping[str, Any], where: str) -> Iterator[Row]:
    bound = GROWTH_MAX if of["seconds"] >= LEAK_RUN_S else None
    for kind, grown in of["growth"].items():
        yield Row(f"longest {kind}'s life{where}", (grown["life_s"] or 0) / 60, "min")
        for name in ("rss", "files", "threads"):
            value = grown[name]
            yield Row(f"{name} of a {kind}, × in its life{where}", value, at_most=bound)


def _of_split(split: Mapping[str, Any]) -> Iterator[Row]:
    merged, best = split["merged"], split["better_half"]
    yield Row("heal to one swarm", split["heal_s"], "s", at_most=HEAL_S_MAX)
    yield Row("merged loss ÷ the better half's", merged and best and merged / best, at_most=1.0)
    yield Row("until that was so for good", split["worse_s"], "s")


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--scenario", type=Path, default=SCENARIO, help="[hard-half-hour.toml]")
    flags.add_argument(
        "--minutes", type=float, help="instead of the file's, the calm at the end included"
    )
    flags.add_argument("--seed", type=int, default=1)
    return report.perform("hosts", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
