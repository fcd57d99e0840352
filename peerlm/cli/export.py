"""`peerlm export`: this node's weights as plain files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from peerlm.cli.state import read_run, require_node, state_option
from peerlm.daemon.control import NoDaemon, ask
from peerlm.errors import ConfigError, PeerlmError, StateError
from peerlm.store.layout import Layout

SNAPSHOT_S = 120.0
"""How long the daemon may take to write a snapshot."""


@click.command(short_help="Write this node's weights as plain files.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--format",
    "form",
    type=click.Choice(["peerlm", "hf"]),
    default="peerlm",
    show_default=True,
    help="hf: config.json and the names of tensors that `transformers` knows; Llama's shape only.",
)
@click.option(
    "--check", is_flag=True, help="Read it back with torch and compare logits, bit by bit."
)
@click.option("--force", is_flag=True, help="Replace a model that is in DIR.")
@state_option
def export(layout: Layout, folder: Path, form: str, check: bool, force: bool) -> None:
    """Write the node's newest weights to DIR: model.safetensors, plan.toml (with --format hf:
    config.json) and, if the run has one, tokenizer.json.

    A running daemon is asked for a fresh snapshot first. `peerlm generate --model DIR` and
    `peerlm init --from DIR` read what is written; of --format hf, `peerlm init --from hf:DIR` and
    `transformers`.

    \b
    Examples:
      peerlm export model/
      peerlm export model/ --force --check
      peerlm export for-others/ --format hf
    """
    from peerlm.cli.weights_here import from_folder, from_hf, from_snapshot
    from peerlm.model.export import PLAN, WEIGHTS, write_model
    from peerlm.model.hf import CONFIG, write_hf

    require_node(layout)
    about, foreign = (PLAN, CONFIG) if form == "peerlm" else (CONFIG, PLAN)
    if (folder / foreign).exists():
        raise ConfigError(f"{folder} holds a model of another format: name another folder")
    if any((folder / name).exists() for name in (WEIGHTS, about)) and not force:
        raise ConfigError(f"{folder} holds a model already: name another folder, or say --force")
    _refresh(layout)
    weights = from_snapshot(layout, _say)
    metadata = {
        "run": read_run(layout).run_id.hex(),
        "swarm_tokens": str(weights.tokens),
        "finished": str(weights.final).lower(),
    }
    write = write_model if form == "peerlm" else partial(write_hf, end=weights.codec().end)
    write(folder, weights.plan, weights.values, weights.tokenizer, metadata)
    if check:
        from peerlm.cli.torch_here import build, logits_are_equal

        written = from_folder(folder) if form == "peerlm" else from_hf(folder, weights.plan)
        if not logits_are_equal(build(weights), build(written)):
            raise StateError(f"{folder / WEIGHTS}: reads back as another model; is the disk sound?")
    kind = "finished model" if weights.final else "weights"
    click.echo(f"{kind} after {weights.tokens:,} tokens: {folder / WEIGHTS}, {folder / about}")


def _refresh(layout: Layout) -> None:
    """A fresh snapshot if a daemon runs; if it cannot, the last one will do, and it is said."""
    try:
        ask(layout, "snapshot", timeout_s=SNAPSHOT_S)
    except NoDaemon:
        pass
    except PeerlmError as error:
        _say(f"no fresh snapshot ({error}); taking the last one")


def _say(line: str) -> None:
    click.echo(f"peerlm: {line}", err=True)
