"""`peerlm bench exchange`: how long a whole model takes from node to node."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from peerlm.bench.exchange import Asked, measure
from peerlm.bench.rival import RIVALS
from peerlm.bench.rows import STAGES, codecs_of
from peerlm.cli.bench import progress
from peerlm.cli.leash import interrupt_on_terminate
from peerlm.errors import ConfigError
from peerlm.mix.codec import CODECS, WEIGHT_CODECS
from peerlm.sim.network import read_wire

MEGABYTES = (0.1, 100_000.0)
NODES_MAX = 64
SECURITIES = ("aead", "plain")


@click.command(short_help="Time a whole model from node to node, beside others.")
@click.option("--mb", default=100.0, show_default=True, help="Megabytes of fp32 parameters.")
@click.option("--rounds", default=5, show_default=True, help="Counted; one more comes before them.")
@click.option(
    "--codec",
    "codecs",
    default="fp32",
    show_default=True,
    metavar="REQUEST[:REPLY],...",
    help="Each is measured: fp32, fp16, int8:int4 and other pairs.",
)
@click.option(
    "--security",
    "securities",
    default="aead",
    show_default=True,
    metavar="aead,plain",
    help="Each is measured.",
)
@click.option("--nodes", default=2, show_default=True, help="More than two mix in random pairs.")
@click.option(
    "--link",
    default="",
    metavar="RATE,DELAY,LOSS",
    help="Put each node on a machine of its own, with such lines between them: 100mbit,25ms,1%, the delay "
    "one way. Needs root.  [default: loopback]",
)
@click.option(
    "--vs", "rivals", default="", metavar="tcp,gloo,hivemind", help="Others in the same run."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def exchange(
    mb: float,
    rounds: int,
    codecs: str,
    securities: str,
    nodes: int,
    link: str,
    rivals: str,
    as_json: bool,
) -> None:
    """Time the exchange of a whole model between real nodes, and between others beside them.

    Daemons without workers hold weights that are about as far apart as those of nodes that have trained
    apart. A round exchanges every fragment once; rounds of all who take part follow one another,
    so that whatever else the machine does hits all alike. docs/benchmarks.md says what each figure is.

    \b
    Examples:
      peerlm bench exchange
      peerlm bench exchange --codec fp32,int8:int4 --vs gloo --json
      peerlm bench exchange --nodes 8 --vs hivemind
      peerlm bench exchange --link 100mbit,25ms,1% --vs tcp
    """
    asked = Asked(
        megabytes=mb,
        nodes=nodes,
        rounds=rounds,
        codecs=words_of("--codec", codecs),
        securities=words_of("--security", securities, SECURITIES),
        rivals=words_of("--vs", rivals, RIVALS) if rivals else (),
        link=link,
    )
    _check(asked)
    interrupt_on_terminate()
    with tempfile.TemporaryDirectory(prefix="peerlm-bench-", ignore_cleanup_errors=True) as folder:
        found = measure(asked, Path(folder), progress)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)


def words_of(option: str, text: str, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The words between commas, each once. Raises `ConfigError` for one that is not `known`, if
    any are."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if not word or (known and word not in known):
            raise ConfigError(
                f"{option} {text!r}: {word!r} is none of {', '.join(known) or 'them'}"
            )
    return words


def _check(asked: Asked) -> None:
    """Raises `ConfigError`."""
    low, high = MEGABYTES
    if not low <= asked.megabytes <= high:
        raise ConfigError(f"--mb {asked.megabytes:g}: must be between {low:g} and {high:g}")
    if asked.rounds < 1:
        raise ConfigError(f"--rounds {asked.rounds}: must be at least 1")
    if asked.link:
        read_wire(asked.link)
        if {"gloo", "hivemind"} & set(asked.rivals):
            raise ConfigError("--vs gloo, hivemind: they run on loopback; with --link only tcp")
    if "tcp" in asked.rivals and asked.nodes != 2:
        raise ConfigError(f"--vs tcp: is a pair, and --nodes {asked.nodes} are none")
    if not 2 <= asked.nodes <= NODES_MAX:
        raise ConfigError(f"--nodes {asked.nodes}: must be between 2 and {NODES_MAX}")
    for codec in asked.codecs:
        request, reply = codecs_of(codec)
        if request not in WEIGHT_CODECS or reply not in CODECS:
            raise ConfigError(
                f"--codec {codec}: a request takes {', '.join(WEIGHT_CODECS)}; "
                f"a reply also {CODECS[-1]}, as in int8:int4"
            )


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{found['mb']:.1f} MB of parameters in {found['fragments']} fragments, "
        f"{found['nodes']} nodes, {found['rounds']} rounds, {found['link']}",
        box=None,
        padding=(0, 1, 0, 0),
    )
    rivals = [row["name"] for row in found["rows"] if row["name"] in RIVALS]
    table.add_column("", no_wrap=True)
    for column in ("p50 s", "max s", "GB/s", "sent MB", "cpu s", "RSS MB"):
        table.add_column(column, justify="right")
    for rival in rivals:
        table.add_column(f"÷ {rival}", justify="right")
    for row in found["rows"]:
        rate = [f"{row[key]:.3f}" for key in ("seconds_p50", "seconds_max", "param_gb_s")]
        cost = [f"{row['wire_bytes'] / 1e6:.1f}", f"{row['cpu_s']:.2f}", f"{row['rss_mb']:.0f}"]
        ratios = [f"{row['ratio'][r]:.2f}" if r in row["ratio"] else "" for r in rivals]
        table.add_row(row["name"], *rate, *cost, *ratios)
    spent = Table(title="where it went, ms a round, all nodes", box=None, padding=(0, 1, 0, 0))
    spent.add_column("", no_wrap=True)
    for stage in STAGES:
        spent.add_column(stage, justify="right")
    for row in found["rows"]:
        if row["spent_ms"]:
            spent.add_row(row["name"], *(f"{row['spent_ms'][stage]:.0f}" for stage in STAGES))
    console = Console()
    console.print(table)
    console.print(spent)
