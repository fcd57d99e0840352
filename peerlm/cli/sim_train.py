"""`peerlm sim train`: what a run on these machines, links and faults would cost and learn."""

from __future__ import annotations

import dataclasses
import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

import click

from peerlm import config
from peerlm.cli.sim_options import check_between, check_seed, how, reason, this_command
from peerlm.config import Plan
from peerlm.data.corpus import SHIPPED, documents
from peerlm.errors import ConfigError, PeerlmError
from peerlm.identity.root import plan_hash
from peerlm.model.plan import fragments
from peerlm.sim.faults import Fault, read_faults
from peerlm.sim.learner import ByteModel
from peerlm.sim.network import read_wire
from peerlm.sim.training import START_S, Point, Trained, train

TEXT_BYTES = 2_000_000
"""More than the small model can learn from in a run worth waiting for."""

STEP_S, NODE_SECOND_S = 0.0005, 0.002
"""What an inner step of the small model and a virtual second of a node cost a processor, roughly."""
LONG_S = 600.0

FELT = ("batch", "warmup", "final_lr", "rewarm_steps")
"""Of the plan's [train]: tokens a step, and the rate's course as a share of the small model's own."""

SPEED_MIN, SPEED_MAX = 1.0, 1e9
"""Tokens a second: less than any machine does, and more."""


@click.command()
@click.option("--nodes", default=8, show_default=True, help="Machines the swarm begins with.")
@click.option(
    "--plan",
    "source",
    default="tiny",
    show_default=True,
    help="A plan.toml (as `peerlm plan show` prints it), or a preset: "
    + ", ".join(config.PRESETS)
    + ".",
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a field of the plan."
)
@click.option(
    "--link", default="1gbit,1ms", show_default=True, help="Lines between nodes: rate,delay,loss."
)
@click.option(
    "--speed",
    default="20000",
    show_default=True,
    help="Tokens a second of a node; several, with commas, are given to the nodes in turn.",
)
@click.option(
    "--faults",
    "faults_file",
    default=None,
    type=click.Path(path_type=Path),
    help="What goes wrong when; TOML.",
)
@click.option("--text", default=SHIPPED, show_default=True, help="Text to learn: a file or URL.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same run.")
@click.option(
    "--plot",
    default=None,
    type=click.Path(path_type=Path),
    help="Draw the run into this file (png, svg, pdf).",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object, with every point of the curves."
)
def sim_train(
    nodes: int,
    source: str,
    changes: tuple[str, ...],
    link: str,
    speed: str,
    faults_file: Path | None,
    text: str,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Train a swarm that does not exist yet, before you buy its machines.

    Nodes, mixing and faults are what the daemon would do; bytes and times follow from the plan's
    sizes and from the links and speeds you give. A small language model learns in the place of the
    plan's: compare its losses between settings, do not expect them of the real one. Its optimizer is
    its own: of [train], only batch, warmup, final_lr and rewarm_steps count, and nothing of [data].

    \b
    Examples:
      peerlm sim train --nodes 12 --plan small --link 100mbit,50ms,1% --speed 8000,8000,2000
      peerlm sim train --nodes 8 --set mix.bandwidth_share=0 --set mix.inner_steps=100 --plot run.png
    """
    check_between("--nodes", nodes, 1, 256)
    check_seed(seed)
    plan, wire, speeds = read_plan(source, changes), read_wire(link), read_speeds(speed)
    check_duration(plan, nodes, speeds)
    if unfelt := [field for field in _fields(changes) if is_unfelt(field)]:
        click.echo(
            f"peerlm: --set {', '.join(unfelt)}: changes nothing of the loss here; the small model has an "
            "optimizer and a text of its own",
            err=True,
        )
    faults = _faults(faults_file, nodes)
    sizes = tuple(spec.size for spec in fragments(plan))
    learner = ByteModel(_text(text), len(sizes))
    if plot is not None:
        can_draw(plot)
    with _Progress(plan.run.token_budget) as progress:
        try:
            trained = train(plan, nodes, learner, sizes, speeds, wire, faults, seed, progress.tell)
        except ConfigError:
            raise
        except Exception as broken:
            raise PeerlmError(
                f"seed {seed}: {how(broken)}; see it again: {this_command()}"
            ) from broken
    asked = {
        "plan": source,
        "plan_hash": plan_hash(plan).hex(),
        "set": list(changes),
        "speeds": speeds,
        "faults": None if faults_file is None else str(faults_file),
    }
    found = summarise(plan, nodes, link, seed, sizes, trained, asked)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)
    if nodes > 1 and max(point.training for point in trained.points) <= 1:
        click.echo(
            "peerlm: never did two nodes train at once, so this is no swarm's run: are the lines too slow "
            "for the plan's state, or the budget too small?",
            err=True,
        )
    if plot is not None:  # what it may fail by must not cost the figures
        from peerlm.cli.sim_plot import draw

        try:
            draw(plot, f"{nodes} nodes, {source}, {link}", trained, faults)
        except OSError as error:
            raise PeerlmError(f"--plot {plot}: {reason(error)}") from error
    if not trained.ended:
        raise PeerlmError(
            f"the run had not ended after {trained.seconds:,.0f} virtual s: see `training` and `nodes` of "
            "its points; are the links too slow for the plan, or is everybody down?"
        )


def read_plan(source: str, changes: tuple[str, ...]) -> Plan:
    """A preset, or a file. Raises `ConfigError`."""
    from peerlm.cli.settings_text import parse_changes

    if source in config.PRESETS:
        plan = config.preset(source)
    else:
        try:
            plan = config.read_toml(Plan, Path(source).read_text("utf-8"), source)
        except (OSError, UnicodeDecodeError) as error:
            presets = ", ".join(config.PRESETS)
            raise ConfigError(
                f"--plan {source}: no preset ({presets}) and no file: {reason(error)}"
            ) from None
    return config.with_changes(plan, parse_changes(changes, "--set"), "--set")


def _fields(changes: tuple[str, ...]) -> list[str]:
    return [change.partition("=")[0].strip() for change in changes]


def is_unfelt(field: str) -> bool:
    """Whether a field of the plan has no part in what a simulated swarm learns."""
    section, _, name = field.partition(".")
    return section == "data" or (section == "train" and name not in FELT)


def _faults(file: Path | None, nodes: int) -> tuple[Fault, ...]:
    if file is None:
        return ()
    try:
        return read_faults(tomllib.loads(file.read_text("utf-8")), str(file), nodes)
    except RecursionError:
        raise ConfigError(f"--faults {file}: not valid TOML: nested too deeply") from None
    except (OSError, ValueError) as error:  # of TOML, of UTF-8, and of numbers of too many digits
        raise ConfigError(f"--faults {file}: {reason(error)}") from None
    except OverflowError:
        raise ConfigError(f"--faults {file}: a number in it is too large") from None


def _text(source: str) -> bytes:
    text = bytearray()
    for document in documents(source, "--text"):
        text += document.encode()
        if len(text) >= TEXT_BYTES:
            break
    if len(text) < 10_000:
        raise ConfigError(f"--text {source}: {len(text)} bytes are too few to learn from")
    return bytes(text[:TEXT_BYTES])


def read_speeds(text: str) -> list[float]:
    try:
        speeds = [float(part) for part in text.split(",")]
    except ValueError:
        speeds = []
    if not speeds or not all(SPEED_MIN <= s <= SPEED_MAX for s in speeds):
        raise ConfigError(
            f"--speed {text!r}: must be tokens a second, from {SPEED_MIN:g} to {SPEED_MAX:,.0f}, "
            "or several with commas"
        )
    return speeds


def check_duration(plan: Plan, nodes: int, speeds: list[float]) -> None:
    """Tells on stderr what will take long. Raises `ConfigError` where all would be over before nodes
    have heard of each other's tokens: they would train many times the budget until they do."""
    budget, swarm = plan.run.token_budget, sum(speeds[i % len(speeds)] for i in range(nodes))
    seconds = budget / swarm
    if seconds < 1:
        raise ConfigError(
            f"--speed: {nodes} nodes train the whole budget of {budget:,} tokens in {seconds:.2g} s, "
            "before they can tell each other; see --set run.token_budget"
        )
    steps = budget / (plan.train.batch * plan.model.context)
    work_s = STEP_S * steps + NODE_SECOND_S * nodes * (seconds + START_S)
    if work_s > LONG_S:
        long = f"{work_s / 3600:,.0f} hours" if work_s > 7200 else f"{work_s / 60:,.0f} minutes"
        click.echo(
            f"peerlm: {seconds:,.0f} virtual s of {nodes} nodes and {steps:,.0f} inner steps: this may "
            f"take {long} or more",
            err=True,
        )


def can_draw(path: Path) -> None:
    """Before the work and not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'peerlm[plot]'") from None
    try:
        if path.is_dir():
            raise ConfigError(f"--plot {path}: is a folder; name a file in it")
        if path.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ConfigError(f"--plot {path}: must end in .png, .svg or .pdf")
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"--plot {path}: there is no folder {path.absolute().parent}")
        was_there = path.exists()
        path.open("ab").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"--plot {path}: {reason(error)}") from None


def summarise(
    plan: Plan,
    nodes: int,
    link: str,
    seed: int,
    sizes: tuple[int, ...],
    trained: Trained,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The JSON object. What is said of a node is the mean of all that ever took part, those that came
    later too. Losses are of the written models, or of the weights while there are none."""
    last = trained.points[-1]
    models = trained.model_losses
    control = sum(trained.control_bytes.values())
    lived = len(trained.control_bytes.keys() | set(range(nodes)))
    per_node = (sum(trained.bulk_bytes.values()) + control) / lived
    return {
        "scenario": "train",
        "nodes": nodes,
        "runs": 1,
        "seed": seed,
        "profile": plan.swarm.profile,
        "link": link,
        **asked,
        "nodes_ever": lived,
        "parameters": sum(sizes),
        "fragments": len(sizes),
        "token_budget": plan.run.token_budget,
        "ended": trained.ended,
        "seconds": trained.seconds,
        "tokens": last.tokens,
        "tokens_per_s": last.tokens / trained.seconds,
        "loss": fmean(models) if models else last.loss_mean,
        "loss_worst_node": max(models, default=last.loss_worst),
        "models_written": len(models),
        "spread": last.spread,
        "bytes_per_node": per_node,
        "bytes_per_node_s": per_node / trained.seconds,
        "control_bytes_per_node_s": control / lived / trained.seconds,
        "allreduce_bytes_per_node": trained.allreduce_bytes_per_node,
        "exchanges": trained.exchanges,
        "digest": trained.digest,
        "points": [dataclasses.asdict(point) for point in trained.points],
    }


def _show(found: dict[str, Any]) -> None:
    def mb(name: str) -> str:
        return f"{found[name] / 1e6:,.1f} MB"

    def shown(value: float | None, form: str = ".4f") -> str:
        return "none yet" if value is None else format(value, form)

    saved = found["allreduce_bytes_per_node"] / max(1.0, found["bytes_per_node"])
    lines = {
        "model": f"{found['parameters']:,} parameters in {found['fragments']} fragments",
        "time": f"{found['seconds']:,.0f} s for {found['tokens']:,} tokens ({found['tokens_per_s']:,.0f}/s)",
        "loss": f"{shown(found['loss'])} nats/byte of the stand-in "
        f"(worst node {shown(found['loss_worst_node'])})",
        "spread": shown(found["spread"], ".1e"),
        "sent by a node": f"{mb('bytes_per_node')}, {found['bytes_per_node_s'] / 1e3:,.1f} kB/s, of it "
        f"{found['control_bytes_per_node_s'] / 1e3:,.1f} kB/s control",
        "all-reduce": f"{mb('allreduce_bytes_per_node')} from each node, {saved:,.0f} times as much",
        "exchanges": ", ".join(f"{count} {name}" for name, count in found["exchanges"].items()),
        "digest": found["digest"],
    }
    for name, line in lines.items():
        click.echo(f"{name:>15}  {line}")


class _Progress:
    """A bar of tokens on stderr if that is a terminal."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.fields[virtual]}"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=self._budget, virtual="0 s", loss="")
            self._bar.start()
        return self

    def tell(self, point: Point) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=min(point.tokens, self._budget),
                virtual=f"{point.seconds:,.0f} virtual s",
                loss="" if point.loss_mean is None else f"{point.loss_mean:.3f}",
            )

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
