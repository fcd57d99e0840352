"""`peerlm plan show | set`: what the swarm has agreed on, and a new revision of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields

import click

from peerlm import config
from peerlm.cli.settings_text import explanation, parse_changes, toml_value
from peerlm.cli.state import read_run, state_option
from peerlm.errors import AuthError, ConfigError, StateError
from peerlm.identity.root import RunRoot, SignedPlan
from peerlm.store.disk import Layout, StateDirectory

CHANGEABLE = ("run.token_budget", "train", "mix", "swarm")
"""Sections and fields that a living run can change; another model or other text is another run."""

FIXED = ("mix.fragment_max",)
"""Within those, what says how weights are cut."""


@click.group(short_help="Show or change what the swarm has agreed on.")
def plan() -> None:
    """Show or change the plan: model, data, training, mixing.

    Every node of a run has the same plan. It is signed by the run's root key and has a revision;
    nodes follow the highest they see. What is one machine's own is in its node.toml.

    \b
    Examples:
      peerlm plan show
      peerlm plan set run.token_budget=50_000_000
      peerlm plan set mix.inner_steps=50 train.lr=0.01
    """


@plan.command(short_help="Print the plan.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--explain", is_flag=True, help="Say what each field means.")
@state_option
def show(layout: Layout, as_json: bool, explain: bool) -> None:
    """Print the plan of the highest revision this node has seen, as TOML.

    \b
    Examples:
      peerlm plan show
      peerlm plan show --explain
      peerlm plan show --json | jq .plan.mix
    """
    signed = current_plan(layout)
    if as_json:
        whole = {
            "run_id": read_run(layout).run_id.hex(),
            "revision": signed.revision,
            "plan_hash": signed.plan_hash.hex(),
            "plan": config.to_dict(signed.plan),
        }
        click.echo(json.dumps(whole, indent=2))
        return
    click.echo(f"# revision {signed.revision}, {signed.plan_hash.hex()[:16]}")
    for section in fields(signed.plan):
        click.echo(f"\n[{section.name}]")
        values = getattr(signed.plan, section.name)
        for field in fields(values):
            if explain:
                click.echo(f"# {explanation(field)}")
            click.echo(f"{field.name} = {toml_value(getattr(values, field.name))}")


@plan.command("set", short_help="Sign a new revision.")
@click.argument("pairs", metavar="FIELD=VALUE...", nargs=-1, required=True)
@state_option
def set_(layout: Layout, pairs: tuple[str, ...]) -> None:
    """Change fields of the living run: sign the next revision with the run's root key.

    A running daemon takes it over at once and the swarm learns it by gossip; without one it holds from
    the next `peerlm up`. Of [run] the token budget can change, and all of [train], [mix] and [swarm]
    but mix.fragment_max. Raising the budget of a finished run makes it go on.

    \b
    Examples:
      peerlm plan set run.token_budget=50_000_000
      peerlm plan set train.lr=0.01 mix.outer_momentum=0.3
    """
    from peerlm.cli.signer import require_root

    changes = parse_changes(pairs, "plan set")
    signed = _hand_over(layout, _next_revision(layout, require_root(layout, "plan set"), changes))
    click.echo(f"revision {signed.revision}:")
    for dotted in changes:
        section, _, name = dotted.partition(".")
        click.echo(f"  {dotted} = {toml_value(getattr(getattr(signed.plan, section), name))}")
    if "run.token_budget" in changes:
        _warn_of_the_end(layout, signed.plan.run.token_budget)


def _warn_of_the_end(layout: Layout, budget: int) -> None:
    from peerlm.daemon.control import ask, is_served

    if is_served(layout) and (trained := ask(layout, "status")["swarm_tokens"]) >= budget:
        click.echo(f"the swarm has trained on {trained:,} tokens already: the run ends", err=True)


def current_plan(layout: Layout) -> SignedPlan:
    """The verified plan in the folder. Raises `StateError`."""
    from peerlm.identity import files
    from peerlm.identity.root import verify_plan

    here = read_run(layout)
    blob = files.read_plan(layout.root)
    if blob is None:
        raise StateError(
            f"{layout.plan}: missing; it comes from a peer with the next `peerlm join`"
        )
    try:
        return verify_plan(blob, here.root_public_key, here.run_id)
    except AuthError as error:
        raise StateError(f"{layout.plan}: {error}") from None


def _next_revision(layout: Layout, root: RunRoot, changes: Mapping[str, str]) -> SignedPlan:
    """The plan with the changes, signed. Raises `ConfigError` when they cannot be made."""
    from peerlm.identity.root import sign_plan

    for dotted in changes:
        if dotted in FIXED or not {dotted, dotted.partition(".")[0]} & set(CHANGEABLE):
            raise ConfigError(
                f"{dotted} cannot change in a run that lives: it says what the model or its text is; "
                "start another run with `peerlm init`"
            )
    old = current_plan(layout)
    new = config.with_changes(old.plan, changes, "plan set")
    if new == old.plan:
        raise ConfigError("plan set: the plan says so already; nothing is changed")
    return sign_plan(root, new, old.revision + 1)


def _hand_over(layout: Layout, signed: SignedPlan) -> SignedPlan:
    """To the daemon if it runs, else to the disk. Raises `StateError`."""
    from peerlm.daemon.control import NoDaemon, ask
    from peerlm.identity import files

    try:
        ask(layout, "new_plan", plan=signed.blob.hex())
    except NoDaemon:
        with StateDirectory(layout.root):
            files.write_plan(layout.root, signed.blob)
    return signed
