"""`peerlm bench quality`: what ways to train together learn, and what they send for it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli.bench import progress
from peerlm.cli.bench_exchange import words_of
from peerlm.cli.leash import interrupt_on_terminate
from peerlm.cli.sim_options import check_between
from peerlm.cli.sim_pool import all_runs
from peerlm.cli.sim_train import read_plan, read_speeds
from peerlm.config import Plan
from peerlm.data.processes import processors
from peerlm.errors import ConfigError

if TYPE_CHECKING:
    from peerlm.bench.quality import Setting, Trial

LR_MIN, LR_MAX = 1e-3, 1e3


@click.command(short_help="Compare what ways to train together learn.")
@click.option(
    "--plan", "source", default="tiny", show_default=True, help="A plan.toml or a preset."
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a field of the plan."
)
@click.option("--nodes", default=4, show_default=True, help="How many train together.")
@click.option("--tokens", default=1_000_000, show_default=True, help="Of all nodes together.")
@click.option(
    "--methods",
    default="solo,ddp,local_sgd,diloco,noloco,gasloc,outer_mix",
    show_default=True,
    help="Also: alone, adpsgd.",
)
@click.option(
    "--lr", default="1", show_default=True, metavar="FACTOR,...", help="Times the plan's own rates."
)
@click.option(
    "--vary",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="A field of the plan with several values; all combinations are trained.",
)
@click.option("--seeds", default=1, show_default=True, help="Trials of each, with seeds from 1.")
@click.option("--link", default="1gbit,1ms", show_default=True, help="Lines: rate,delay,loss.")
@click.option(
    "--speed",
    default="4000",
    show_default=True,
    help="Tokens a second of a node; several, with commas, in turn.",
)
@click.option(
    "--local",
    "texts",
    multiple=True,
    metavar="FILE",
    help="A text of its own for each node in turn, instead of one for all.",
)
@click.option(
    "--device", default="cpu", show_default=True, help="Where to train: cpu, cuda, cuda:N, mps."
)
@click.option("--jobs", default=0, help="Processes at once; 0: as many as processors.")
@click.option(
    "--keep",
    default=None,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep each trial here as it is done, and do not train again what is kept.",
)
@click.option(
    "--plot",
    default=None,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw loss against bytes and tokens into this file (png, svg, pdf).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def quality(
    source: str,
    changes: tuple[str, ...],
    nodes: int,
    tokens: int,
    methods: str,
    lr: str,
    vary: tuple[str, ...],
    seeds: int,
    link: str,
    speed: str,
    texts: tuple[str, ...],
    device: str,
    jobs: int,
    keep: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Train the plan's model in several ways on equally many tokens, and compare.

    outer_mix, noloco and adpsgd are whole nodes in the simulator that train the plan's own model; the
    others are written down as published. Nodes of a trial share one process. Seconds and bytes are
    those of the speed and line given, not of this machine. docs/benchmarks.md says more.

    \b
    Examples:
      peerlm bench quality --tokens 500000 --methods ddp,outer_mix --lr 0.5,1,2
      peerlm bench quality --methods outer_mix --vary mix.inner_steps=5,20,50 --set mix.bandwidth_share=0
    """
    from peerlm.bench.quality import METHODS, Trial, plan_of, rows_of

    check_between("--nodes", nodes, 2, 64)
    check_between("--seeds", seeds, 1, 1000)
    plan = read_plan(source, changes)
    step = plan.train.batch * plan.model.context
    check_between("--tokens", tokens, nodes * step, 2**40)
    wanted = words_of("--methods", methods, METHODS)
    if texts and {"solo", "alone"} & set(wanted):
        raise ConfigError("--local: solo and alone train on one text; leave them out of --methods")
    trials = [
        Trial(method, factor, varied, seed)
        for varied, method, factor in itertools.product(_variants(vary, plan), wanted, _factors(lr))
        for seed in range(1, seeds + 1)
    ]
    if plot is not None:
        from peerlm.cli.sim_train import can_draw

        can_draw(plot)
    interrupt_on_terminate()
    with tempfile.TemporaryDirectory(prefix="peerlm-bench-", ignore_cleanup_errors=True) as folder:
        setting = _prepared(
            plan, texts, Path(folder), nodes, tokens, link, read_speeds(speed), device
        )
        for trial in trials:
            plan_of(setting, trial)  # what it refuses is said before anything is trained
        done = _train(setting, trials, jobs or processors(), keep)
        rows = rows_of(done)
    if as_json:
        asked = {"plan": source, "set": list(changes), "nodes": nodes, "tokens": tokens}
        found = {**asked, "link": link, "speed": speed, "device": device, "rows": _plain(rows)}
        click.echo(json.dumps(found, indent=2))
    else:
        _show(rows, nodes, tokens, link)
    if plot is not None:
        from peerlm.cli.quality_plot import draw

        draw(plot, f"{nodes} nodes, {tokens:,} tokens, {link}", rows)


def _plain(value: Any) -> Any:
    """For JSON, which has no word for what is no number."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _plain(of) for key, of in value.items()}
        case list() | tuple():
            return [_plain(of) for of in value]
    return value


def _factors(text: str) -> tuple[float, ...]:
    try:
        factors = tuple(float(part) for part in text.split(","))
    except ValueError:
        factors = ()
    if not factors or not all(LR_MIN <= factor <= LR_MAX for factor in factors):
        raise ConfigError(f"--lr {text!r}: must be factors from {LR_MIN:g} to {LR_MAX:g}")
    return factors


def _variants(vary: Sequence[str], plan: Plan) -> list[tuple[tuple[str, Any], ...]]:
    """Every combination of the fields that vary, as changes to the plan."""
    from peerlm.cli.settings_text import parse_changes
    from peerlm.config import with_changes

    fields = []
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise ConfigError(f"--vary {text!r}: must be KEY=VALUE,VALUE")
        section, _, name = key.strip().partition(".")
        several = []
        for value in values.split(","):
            changed = with_changes(plan, parse_changes((f"{key}={value}",), "--vary"), "--vary")
            several.append((key.strip(), getattr(getattr(changed, section), name)))
        fields.append(several)
    return list(itertools.product(*fields))


def _prepared(
    plan: Plan,
    texts: Sequence[str],
    folder: Path,
    nodes: int,
    tokens: int,
    link: str,
    speeds: Sequence[float],
    device: str,
) -> Setting:
    """Cut the text into shards. Raises `ConfigError`."""
    from peerlm.bench.quality import Setting
    from peerlm.data import shards, tokenizer
    from peerlm.sim.network import read_wire

    read_wire(link)
    codec = tokenizer.load(tokenizer.BYTES, "data.tokenizer")
    if plan.data.tokenizer != tokenizer.BYTES:
        raise ConfigError("data.tokenizer: only texts of bytes are compared")
    source = "local" if texts else plan.data.source
    made = [shards.prepare(text, codec, folder, where="--local") for text in texts] or [
        shards.prepare(source, codec, folder)
    ]
    for text, cut in zip(texts or [source], made, strict=True):
        shards.require_one_batch(
            sum(shard.tokens for shard in cut),
            plan.data.val_fraction,
            plan.train.batch,
            plan.model.context,
            text,
        )
    data = dataclasses.replace(
        plan.data, source=source, vocab=codec.vocab, shards=(), shard_tokens=()
    )
    return Setting(
        plan=dataclasses.replace(plan, data=data),
        shards=tuple(tuple(str(shard.path) for shard in cut) for cut in made),
        nodes=nodes,
        tokens=tokens,
        link=link,
        speeds=tuple(speeds),
        device=device,
    )


def _train(
    setting: Setting, trials: Sequence[Trial], jobs: int, keep: Path | None
) -> list[tuple[Trial, dict[str, Any]]]:
    """Each trial with what came of it; what is kept is not trained again."""
    from peerlm.bench.kept import KeptTrials
    from peerlm.bench.quality import live

    kept = KeptTrials(keep, setting)
    left = [trial for trial in trials if kept.found(trial) is None]
    if len(left) < len(trials):
        progress(f"{len(trials) - len(left)} of {len(trials)} trials were kept")
    found = all_runs(live, [(setting, trial) for trial in left], jobs, "trials")
    for trial, outcome in zip(left, found, strict=True):
        kept.keep(trial, outcome)
        progress(f"{trial.method} × {trial.lr:g}, seed {trial.seed}: {outcome['val_loss']:.4f}")
    return list(_all_found(trials, kept))


def _all_found(trials: Sequence[Trial], kept: Any) -> Iterator[tuple[Trial, dict[str, Any]]]:
    for trial in trials:
        found = kept.found(trial)
        assert found is not None, trial
        yield trial, found


def _show(rows: Sequence[dict[str, Any]], nodes: int, tokens: int, link: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{nodes} nodes, {tokens:,} tokens, {link}", box=None, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("changes")
    for name in ("lr ×", "loss", "seeds", "vs ddp", "spread", "MB/node", "fewer", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        versus, fewer = row["vs_ddp"], row["fewer_bytes"]
        differ = row["val_loss_max"] - row["val_loss_min"]
        table.add_row(
            row["method"],
            " ".join(f"{k.partition('.')[2]}={v}" for k, v in row["changes"].items()),
            f"{row['lr']:g}{'*' if row['best'] else ' '}",
            f"{row['val_loss']:.4f}",
            f"{row['seeds']} ±{differ / 2:.3f}" if row["seeds"] > 1 else "1",
            "" if versus is None else f"{versus:+.1%}",
            f"{row['spread']:.0e}",
            f"{row['bytes_per_node'] / 1e6:,.1f}",
            "" if fewer is None else f"{fewer:,.1f}",
            f"{row['seconds']:,.0f}",
        )
    Console().print(table)
    click.echo("*: the method's best rate. fewer: ddp's bytes ÷ this method's.")
