"""`peerlm bench serve`: what answering many at once gains."""

from __future__ import annotations

import json

import click

from peerlm.cli.bench import progress
from peerlm.cli.sim_options import check_between
from peerlm.cli.sim_train import read_plan


@click.command(short_help="Time texts written together, and one at a time.")
@click.option(
    "--plan", "source", default="tiny", show_default=True, help="A plan.toml or a preset."
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a field of the plan."
)
@click.option("--sessions", default=8, show_default=True, help="Texts written together.")
@click.option("--tokens", default=100, show_default=True, help="Of each text.")
@click.option("--pairs", default=3, show_default=True, help="Turns of each way.")
@click.option("--requests", default=100, show_default=True, help="For the time to a first token.")
@click.option("--threads", default=0, help="Of the processor; 0: torch decides.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def serve(
    source: str,
    changes: tuple[str, ...],
    sessions: int,
    tokens: int,
    pairs: int,
    requests: int,
    threads: int,
    device: str,
    as_json: bool,
) -> None:
    """Write texts with the plan's model on this machine: by the plain loop, by `peerlm serve`'s engine with one session,
    and with all together. Then time requests to their first token under load.

    \b
    Examples:
      peerlm bench serve
      peerlm bench serve --plan small --threads 1 --json
      peerlm bench serve --plan gpt-124m --device cuda --sessions 32
    """
    from peerlm.bench.serve import Asked, measure
    from peerlm.train.device import choose_device

    check_between("--sessions", sessions, 1, 4096)
    check_between("--tokens", tokens, 1, 100_000)
    check_between("--pairs", pairs, 1, 10_000)
    check_between("--requests", requests, 2, 1_000_000)
    check_between("--threads", threads, 0, 1024)
    plan = read_plan(source, changes)
    choose_device(device, "--device")  # a wrong one is told at once
    found = measure(Asked(plan, sessions, tokens, pairs, requests, threads, device), progress)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(
        f"{found['parameters']:,} parameters; {sessions} texts of {tokens} tokens, "
        f"{'the same' if found['same_text'] else 'NOT the same'} in every way"
    )
    for row in found["rows"]:
        click.echo(
            f"{row['name']:>12}  {row['tokens_s']:>9,.0f} tokens/s  {row['ratio']:.2f} × plain"
        )
    first = found["first_token_ms"]
    click.echo(
        f"{'first token':>12}  p50 {first['p50']:.1f} ms, p99 {first['p99']:.1f} ms of {first['requests']} requests"
    )
