"""`peerlm completion`: what makes a shell complete peerlm's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print shell completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the lines that make a shell complete peerlm's commands and options.

    \b
    Examples:
      peerlm completion bash > ~/.local/share/bash-completion/completions/peerlm
      peerlm completion zsh  > ~/.zfunc/_peerlm
      peerlm completion fish > ~/.config/fish/completions/peerlm.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(ctx.find_root().command, {}, "peerlm", "_PEERLM_COMPLETE").source())
