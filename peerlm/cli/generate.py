"""`peerlm generate`: text from this node's weights."""

from __future__ import annotations

from pathlib import Path

import click

from peerlm.cli.numbers import Finite
from peerlm.cli.state import state_option
from peerlm.store.disk import Layout


@click.command(short_help="Continue a text with this node's weights.")
@click.argument("prompt")
@click.option(
    "--tokens", type=click.IntRange(1), default=200, show_default=True, help="How many to write."
)
@click.option(
    "--temperature",
    type=Finite(0.0, 10.0),
    default=0.8,
    show_default=True,
    help="0 takes the likeliest token each time.",
)
@click.option(
    "--seed", "rng_seed", type=int, default=0, show_default=True, help="Same seed, same text."
)
@click.option(
    "--model",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="An exported model.  [default: this node's newest snapshot]",
)
@state_option
def generate(
    layout: Layout, prompt: str, tokens: int, temperature: float, rng_seed: int, folder: Path | None
) -> None:
    """Continue PROMPT with this node's weights, on the CPU; the prompt is printed first.

    The weights are those of the newest snapshot, so this works while the node trains, and without a
    daemon.

    \b
    Examples:
      peerlm generate "ROMEO:"
      peerlm generate "ROMEO:" --tokens 500 --temperature 0.5 --seed 7
      peerlm generate "Whereas" --model finished-model/
    """
    from peerlm.cli.weights_here import from_folder, from_snapshot

    if folder is not None:
        weights = from_folder(folder)
    else:
        weights = from_snapshot(layout, lambda note: click.echo(f"peerlm: {note}", err=True))
    from peerlm.cli.torch_here import text_after

    pieces = text_after(weights, prompt, tokens, temperature, rng_seed)
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
