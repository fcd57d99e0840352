"""`peerlm sim mixing`: how fast nodes agree, by algorithm, sampler and codec."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli.settings_text import parse_changes
from peerlm.cli.sim_options import how, this_command
from peerlm.config import MixSection, Plan, with_changes
from peerlm.errors import PeerlmError

if TYPE_CHECKING:
    from peerlm.sim.consensus import Outcome, Setting


@click.command(short_help="How fast nodes agree, by algorithm, sampler and codec.")
@click.option("--nodes", default=16, show_default=True, help="2 to 1000.")
@click.option("--algorithm", help="mix.algorithm.  [default: outer_mix]")
@click.option("--sampler", help="mix.sampler.  [default: uniform]")
@click.option("--rounds", default=60, show_default=True, help="See above.")
@click.option("--runs", default=100, show_default=True, help="Swarms to look at.")
@click.option(
    "--drop-reply",
    metavar="P",
    default=0.0,
    show_default=True,
    help="Part of the replies that are lost after the answering side has moved.",
)
@click.option(
    "--codec",
    metavar="REQUEST:REPLY",
    help="Such as int8:int4, or one name for both ways; kept to the end, where a node would change to a "
    "finer one.  [default: numbers as they are]",
)
@click.option("--set", "pairs", metavar="FIELD=VALUE", multiple=True, help="A field of the plan.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same figures.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def mixing(
    nodes: int,
    algorithm: str | None,
    sampler: str | None,
    rounds: int,
    runs: int,
    drop_reply: float,
    codec: str | None,
    pairs: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """How fast nodes agree when they do nothing but mix.

    Each node begins with 100 random numbers of variance one, in fp64, and nobody trains or clips. V is the
    variance between nodes.

    In a round everybody compares, moves, and takes an outer step without progress. With a sampler that
    draws (uniform, latency_biased) nodes come in a random order, and each that is still free draws a
    partner among those still free; so nobody is in two exchanges. With a schedule (matching, base2, ring,
    onepeer_exp) everybody asks whom it names, at once; two who name each other make one exchange. For
    latency_biased the nodes are at two sites, 1 ms within and 50 ms between them. A node on its own
    clock takes part in about two exchanges between two outer steps, so two rounds here are one there.

    \b
      variance_ratio_per_round  V after a round ÷ V before it: mean of all rounds and runs. A swarm that
                                agrees to 20 digits begins anew.
      rounds_to_1e-3            rounds until the spread (the root of V) is a thousandth of what it was
      mean_drift_rms            how far the swarm's mean has moved, per number
      …_se                      standard errors of these
      bytes_per_node            sent in all rounds, for 100 numbers; as fp32 where no codec is given

    \b
    Examples:
      peerlm sim mixing --nodes 16 --sampler matching
      peerlm sim mixing --nodes 12 --sampler base2 --rounds 5 --json
      peerlm sim mixing --drop-reply 0.1 --codec int8:int4
      peerlm sim mixing --algorithm noloco --set mix.outer_momentum=0.3
    """
    changes = parse_changes(pairs, "--set")
    named = {"mix.algorithm": algorithm, "mix.sampler": sampler}
    changes |= {field: name for field, name in named.items() if name is not None}
    plan = with_changes(Plan(), changes, "sim mixing")
    mix = plan.mix

    from peerlm.sim import consensus

    codecs = None if codec is None else consensus.codecs_named(codec)
    setting = consensus.Setting(mix, nodes, rounds, runs, seed, codecs, drop_reply)
    with _progress(consensus.batches(setting) * rounds) as after_round:
        try:
            outcome = consensus.simulate(setting, after_round)
        except Exception as broken:
            raise PeerlmError(
                f"seed {seed}: {how(broken)}; see it again: {this_command()}"
            ) from broken
    answer = as_json_object(setting, plan.swarm.profile, outcome, codec)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        _show(answer, mix)


def as_json_object(
    setting: Setting, profile: str, outcome: Outcome, codec: str | None
) -> dict[str, Any]:
    """`profile` is the plan's, as in the other commands' objects; rounds have no timers."""
    return {
        "scenario": "mixing",
        "nodes": setting.nodes,
        "runs": setting.runs,
        "seed": setting.seed,
        "profile": profile,
        "digest": outcome.digest,
        "algorithm": setting.mix.algorithm,
        "sampler": setting.mix.sampler,
        "rounds": setting.rounds,
        "drop_reply": setting.drop_reply,
        "codec": codec,
        **outcome.figures(),
    }


@contextmanager
def _progress(rounds: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rounds", total=rounds)
        yield lambda: bar.advance(task)


def _show(answer: dict[str, Any], mix: MixSection) -> None:
    from rich.table import Table
    from rich.text import Text

    from peerlm.cli import words
    from peerlm.cli.views import console

    close = answer["rounds_to_1e-3"]
    reached = f"{close['n']} of {answer['runs']} runs"
    lines = [
        ("setting", f"{answer['nodes']} nodes, {mix.algorithm}, {mix.sampler}, {_wire(answer)}"),
        ("runs", f"{answer['runs']} of {answer['rounds']} rounds, seed {answer['seed']}"),
        (
            "variance left by a round",
            f"{answer['variance_ratio_per_round']:.4f} ± {answer['variance_ratio_se']:.1g}",
        ),
        (
            "rounds to a thousandth",
            f"{close['p50']} median, {close['max']} at most, {reached}"
            if close["n"]
            else f"more than {answer['rounds']} in every run",
        ),
        (
            "drift of the mean",
            f"{answer['mean_drift_rms']:.3g} ± {answer['mean_drift_se']:.1g}",
        ),
        ("sent by a node", words.size(answer["bytes_per_node"])),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    for name, line in lines:
        table.add_row(name, Text(line))
    console().print(table)


def _wire(answer: dict[str, Any]) -> str:
    lost = f", {100 * answer['drop_reply']:g} % of replies lost" if answer["drop_reply"] else ""
    return f"{answer['codec'] or 'no codec'}{lost}"
