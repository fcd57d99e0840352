"""What many simulated runs have in common, as an object and as a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import click

QUANTILES = ("p50", "p90", "p99", "max")

HEAD = ("scenario", "nodes", "runs", "seed", "profile", "digest")
NO_FIGURES = frozenset((*HEAD, "failed"))


def head(scenario: str, nodes: int, runs: int, seed: int, digests: Iterable[str]) -> dict[str, Any]:
    """What was run. `digests`: of the runs that ended, in order."""
    digest = hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()
    return dict(zip(HEAD, (scenario, nodes, runs, seed, "lan", digest), strict=True))


def show(found: dict[str, Any]) -> None:
    """A row for each figure, with its quantiles where it has some."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found['scenario']}, {found['nodes']} nodes, {found['runs']} runs")
    for column in ("figure", *QUANTILES):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, value in found.items():
        if isinstance(value, dict):
            table.add_row(name, *(_number(value[q]) for q in QUANTILES))
        elif name not in NO_FIGURES:
            table.add_row(name, "", "", "", _number(value))
    Console().print(table)
    click.echo(f"seed {found['seed']}, digest {found['digest']}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
