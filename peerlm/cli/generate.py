"""`peerlm generate`: text from this node's weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from peerlm.cli.numbers import Finite
from peerlm.cli.state import require_node, state_option
from peerlm.errors import ConfigError
from peerlm.store.layout import Layout


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
    "--seed",
    "rng_seed",
    type=click.IntRange(-(1 << 63), (1 << 63) - 1),
    default=0,
    show_default=True,
    help="Same seed, same text.",
)
@click.option(
    "--model",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="An exported model.  [default: this node's newest snapshot]",
)
@click.option(
    "--swarm",
    is_flag=True,
    help="Through the stages of a model that this node need not hold whole; its daemon must run.",
)
@state_option
def generate(
    layout: Layout,
    prompt: str,
    tokens: int,
    temperature: float,
    rng_seed: int,
    folder: Path | None,
    swarm: bool,
) -> None:
    """Continue PROMPT with this node's weights, on the CPU; the prompt is printed first. Of a prompt longer than the
    model's context its end is read, and a line on standard error says so.

    The weights are those of the newest snapshot, so this works while the node trains, and without a
    daemon. With --swarm they are those of whoever holds the stages of the model.

    \b
    Examples:
      peerlm generate "ROMEO:"
      peerlm generate "ROMEO:" --tokens 500 --temperature 0.5 --seed 7
      peerlm generate "Whereas" --model finished-model/
      peerlm generate "ROMEO:" --swarm
    """
    if swarm:
        if folder is not None:
            raise ConfigError("--swarm and --model: give one of them")
        from peerlm.cli import swarm_here

        require_node(layout)
        pieces = swarm_here.text_after(layout, prompt, tokens, temperature, rng_seed, _say)
        _print(prompt, pieces)
        return
    from peerlm.cli.weights_here import from_folder, from_snapshot

    weights = from_snapshot(layout, _say) if folder is None else from_folder(folder)
    from peerlm.cli.torch_here import text_after

    pieces = text_after(weights, prompt, tokens, temperature, rng_seed, _say)
    _print(prompt, pieces)


def _say(note: str) -> None:
    click.echo(f"peerlm: {note}", err=True)


def _print(prompt: str, pieces: Iterable[str]) -> None:
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
