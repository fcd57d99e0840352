"""`peerlm bench step`: what mixing costs a worker's device."""

from __future__ import annotations

import json
from typing import Any

import click

from peerlm.cli.bench import progress
from peerlm.cli.sim_options import check_between
from peerlm.cli.sim_train import read_plan


@click.command(short_help="Time inner steps with boundaries and corrections, and without.")
@click.option(
    "--plan", "source", default="tiny", show_default=True, help="A plan.toml or a preset."
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a field of the plan."
)
@click.option("--device", default="auto", show_default=True, help="As train.device in node.toml.")
@click.option("--compile", "compiled", is_flag=True, help="Through torch.compile.")
@click.option("--pairs", default=4, show_default=True, help="Windows with mixing, and without.")
@click.option("--steps", default=20, show_default=True, help="Inner steps of a window.")
@click.option(
    "--peak-tflops", default=0.0, help="Of the device in its precision, for the share that is used."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def step(
    source: str,
    changes: tuple[str, ...],
    device: str,
    compiled: bool,
    pairs: int,
    steps: int,
    peak_tflops: float,
    as_json: bool,
) -> None:
    """Time the plan's inner steps on this machine's device, alone and with a worker's part of mixing.

    Every mix.inner_steps each fragment is copied to the host, and corrections are added to it. On CUDA the share
    of the time in which the device waits is measured too. docs/benchmarks.md says what each figure is.

    \b
    Examples:
      peerlm bench step --plan gpt-124m --peak-tflops 989
      peerlm bench step --device cpu --set mix.inner_steps=5 --json
    """
    from peerlm.bench.step import Asked, measure

    check_between("--pairs", pairs, 1, 10_000)
    check_between("--steps", steps, 1, 1_000_000)
    check_between("--peak-tflops", peak_tflops, 0, 1e6)
    plan = read_plan(source, changes)
    found = measure(Asked(plan, device, compiled, pairs, steps, peak_tflops), progress)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    click.echo(
        f"{found['parameters']:,} parameters on {found['device']}, {found['tokens_per_step']:,} tokens a step, "
        f"an outer step each {found['inner_steps']}"
    )
    for row in found["rows"]:
        mfu = "" if row["mfu"] is None else f", {row['mfu']:.1%} of the peak"
        idle = "" if row["idle"] is None else f", {row['idle']:.1%} of the time idle"
        line = f"{row['tokens_s']:,.0f} tokens/s, {row['step_ms']:.1f} ms a step{mfu}{idle}"
        click.echo(f"{row['name']:>11}  {line}")
    click.echo(
        f"{'on ÷ off':>11}  {found['on_off']:.4f} ({found['on_off_min']:.3f} to {found['on_off_max']:.3f})"
    )
