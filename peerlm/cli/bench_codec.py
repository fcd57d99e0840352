"""`peerlm bench codec`: what encoding, decoding and the arithmetic of an exchange cost."""

from __future__ import annotations

import json
from typing import Any

import click

from peerlm.bench.codec import measure
from peerlm.cli.bench import progress
from peerlm.errors import ConfigError

PARAMETERS = (1_000, 1_000_000_000)


@click.command(short_help="Time codecs and the arithmetic of an exchange.")
@click.option(
    "--parameters", default=4_000_000, show_default=True, help="Of the fragment that is encoded."
)
@click.option("--repeat", default=5, show_default=True, help="Counted; one more comes before them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def codec(parameters: int, repeat: int, as_json: bool) -> None:
    """Time each codec, and both sides of an exchange, on one fragment and one processor.

    Nothing is sent: this is arithmetic alone, compiled or in numpy as peerlm was installed. docs/benchmarks.md says what each figure is.

    \b
    Examples:
      peerlm bench codec
      peerlm bench codec --repeat 20 --json
    """
    low, high = PARAMETERS
    if not low <= parameters <= high:
        raise ConfigError(f"--parameters {parameters}: must be between {low} and {high}")
    if repeat < 1:
        raise ConfigError(f"--repeat {repeat}: must be at least 1")
    found = measure(parameters, repeat, progress)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{found['parameters']:,} parameters, {found['loops']}, median of {found['repeat']}"
    )
    table.add_column("")
    for column in ("ns/parameter", "GB/s", "bytes/parameter", "error"):
        table.add_column(column, justify="right")
    for row in found["rows"]:
        size, error = row["bytes_per_parameter"], row["error"]
        table.add_row(
            row["name"],
            f"{row['ns_per_parameter']:.2f}",
            f"{row['gb_s']:.2f}",
            "" if size is None else f"{size:.3f}",
            "" if error is None else f"{error:.1e}",
        )
    Console().print(table)
