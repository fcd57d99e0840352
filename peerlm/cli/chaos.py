"""`peerlm chaos run | plan`: trouble for a swarm of real nodes on this machine, from a file."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from peerlm.cli.commands import Commands
from peerlm.cli.leash import interrupt_on_terminate
from peerlm.cli.numbers import Finite
from peerlm.cli.words import ABSENT
from peerlm.daemon.control import finite
from peerlm.errors import ConfigError, PeerlmError


@click.group(
    cls=Commands,
    commands_at={"run": "chaos:run", "plan": "chaos:plan"},
    short_help="Make trouble for a swarm of real nodes, from a file.",
)
def chaos() -> None:
    """Make trouble for a swarm of real nodes on this machine: kills, stops, cuts, loss, full disks and more,
    from a scenario file. docs/chaos.md explains it; deploy/scenarios/ has some.

    \b
    Examples:
      peerlm chaos plan deploy/scenarios/everything.toml
      sudo peerlm chaos run deploy/scenarios/hard-half-hour.toml --json
    """


SEED = click.option("--seed", type=click.IntRange(0), help="Instead of the file's.")
MINUTES = click.option(
    "--minutes", type=Finite(0.1), help="Instead of the file's, the calm at the end included."
)


def _read(path: Path, seed: int | None, minutes: float | None) -> Any:
    """The scenario of a file. Raises `ConfigError`."""
    from dataclasses import replace

    from peerlm import config
    from peerlm.chaos.scenario import read_scenario
    from peerlm.chaos.world import plan_of

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    scenario = read_scenario(text, str(path))
    config.with_changes(config.preset(scenario.preset), plan_of(scenario), str(path))
    if seed is not None:
        scenario = replace(scenario, seed=seed)
    if minutes is not None:
        if 60 * minutes <= scenario.calm_s:
            raise ConfigError(f"--minutes {minutes:g}: calm_s = {scenario.calm_s:g} leaves no time")
        scenario = replace(scenario, minutes=minutes)
    return scenario


@click.command(short_help="Show what would happen, and when.")
@click.argument("file", type=click.Path(path_type=Path))
@SEED
@MINUTES
def plan(file: Path, seed: int | None, minutes: float | None) -> None:
    """Show what FILE would do, act by act: the same for the same seed.

    \b
    Example:
      peerlm chaos plan deploy/scenarios/hard-half-hour.toml --seed 7
    """
    from peerlm.chaos.scenario import acts_of

    scenario = _read(file, seed, minutes)
    for act in acts_of(scenario):
        rate = f" {act.rate:g}" if act.rate else ""
        nodes = ", ".join(map(str, act.nodes))
        click.echo(f"{act.at_s:8.1f} – {act.until_s:.1f} s  {act.kind}{rate}: {nodes}")


@click.command(short_help="Carry a scenario out, and report.")
@click.argument("file", type=click.Path(path_type=Path))
@SEED
@MINUTES
@click.option("--no-faults", is_flag=True, help="The same nodes for the same time, left in peace.")
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    metavar="JSON",
    help="The report of a run without faults: losses are held beside it, at equal tokens.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
@click.option(
    "--page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="HTML",
    help="Write the report as a page too.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the nodes' logs in DIR.",
)
def run(
    file: Path,
    seed: int | None,
    minutes: float | None,
    no_faults: bool,
    beside: Path | None,
    as_json: bool,
    page: Path | None,
    keep: Path | None,
) -> None:
    """Carry FILE out with real nodes, each on a machine of its own (network namespaces), and report what
    became of the swarm. Needs root on Linux, and `ip`. Exit code 1 when it misses what peerlm promises.

    \b
    Examples:
      sudo peerlm chaos run deploy/scenarios/everything.toml
      sudo peerlm chaos run deploy/scenarios/hard-half-hour.toml --minutes 10 --json --page report.html
      sudo peerlm chaos run deploy/scenarios/hard-half-hour.toml --no-faults --json > quiet.json
      sudo peerlm chaos run deploy/scenarios/hard-half-hour.toml --beside quiet.json
    """
    from peerlm.chaos.course import run as run_course
    from peerlm.chaos.verdict import curves_beside, loss_beside, missed_bars

    interrupt_on_terminate()
    other = _read_report(beside) if beside else None
    scenario = _read(file, seed, minutes)
    for wanted in (page.parent if page else None, keep):
        if wanted is not None:  # told now, not after half an hour
            wanted.mkdir(parents=True, exist_ok=True)
            require_writable(wanted)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="peerlm-chaos-") as folder:
        report = run_course(
            scenario,
            Path(folder),
            lambda line: click.echo(line, err=True),
            faults=not no_faults,
            keep=keep,
        )
    report["took_s"] = round(time.monotonic() - began, 1)
    if other is not None:
        report["loss_beside"] = loss_beside(report, other)
        report["curves_beside"] = curves_beside(report["curve"], other["curve"])
    missed = missed_bars(report)
    report["missed"] = missed
    click.echo(json.dumps(finite(report)) if as_json else "\n".join(report_lines(report)))
    if page is not None:
        from peerlm.chaos.page import page_of

        page.write_text(page_of(report), encoding="utf-8")
    if missed:
        raise PeerlmError(f"{scenario.name}: {'; '.join(missed)}")


def _read_report(path: Path) -> Any:
    """What `--json` wrote. Raises `ConfigError`."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        for point in report["curve"]:
            int(point["tokens"]), float(point["val_loss"] or 0)
        if report.get("final"):
            float(report["final"]["loss"])
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConfigError(f"{path}: no report of peerlm chaos run --json") from None
    return report


def require_writable(folder: Path) -> None:
    """Raises `ConfigError`."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: cannot be written to")


def report_lines(report: dict[str, Any]) -> list[str]:
    """The table, for people."""
    returns = report["return_s"]
    faults = ", ".join(f"{n} {kind}" for kind, n in sorted(report["faults"].items()))
    growth = "; ".join(
        f"{kind} "
        + ", ".join(f"{name} × {grown[name]:.3f}" for name in ("rss", "files", "threads"))
        for kind, grown in report["growth"].items()
        if grown["rss"] is not None
    )
    loss = report["val_loss"]
    rows = [
        (
            "scenario",
            f"{report['scenario']}, seed {report['seed']}, {report['nodes']} nodes, {report['seconds']:.0f} s",
        ),
        ("faults", f"{faults or 'none'}, in {report['trouble_s']:.0f} s"),
        (
            "efficiency",
            f"{report['efficiency']:.3f} of {report['live_s']:.0f} s × {report['pace']:g} tokens/s; lost with who died, about {report['tokens_lost']:,} tokens",
        ),
        (
            "taking part again",
            f"p50 {_seconds(returns['p50'])}, slowest {_seconds(returns['max'])}, {returns['n']} times"
            if returns["n"]
            else ABSENT,
        ),
        ("well at the end after", f"{report['well_s']:.1f} s"),
        (
            "mixed with, the fewest",
            f"{report['breadth_min']} of {report['nodes'] - 1} others in five minutes",
        ),
        (
            "validation loss",
            f"{loss:.4f} at {report['swarm_tokens']:,} tokens" if loss is not None else ABSENT,
        ),
        *(
            [("beside the other run", f"× {report['loss_beside']:.4f} at equal tokens")]
            if report.get("loss_beside") is not None
            else []
        ),
        *(("split", _split_line(split)) for split in report["splits"]),
        *(
            [("finished models", f"loss {final['loss']:.4f}, spread {final['spread']:.1e}")]
            if (final := report.get("final"))
            else []
        ),
        ("grown", growth or "no life was long enough to say"),
        ("processors", f"{100 * report['cores_share']:.0f} % of all, by all nodes together"),
        ("tracebacks", str(report["tracebacks"])),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _split_line(split: dict[str, Any]) -> str:
    heal_s = None if math.isinf(split["heal_s"]) else split["heal_s"]
    losses = (ABSENT if x is None else f"{x:.4f}" for x in (split["better_half"], split["merged"]))
    return (
        "one swarm again after {}; loss of the better half {}, merged {}, no worse after {}".format(
            _seconds(heal_s), *losses, _seconds(split["worse_s"])
        )
    )


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"
