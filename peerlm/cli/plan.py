"""`peerlm plan show | set`: what the swarm has agreed on, and a new revision of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields

import click

from peerlm import config
from peerlm.cli.settings_text import explanation, parse_changes, toml_value
from peerlm.cli.state import read_run, state_option
from peerlm.config import Plan
from peerlm.config.mixture import OWN, STORED, has_own, parse, shown
from peerlm.errors import AuthError, ConfigError, StateError
from peerlm.identity.root import RunRoot, SignedPlan
from peerlm.store.layout import Layout, StateDirectory
from peerlm.store.manifest import Kind, Manifest

CHANGEABLE = (
    *("run.token_budget", "run.checkpoint_optimizer", "data.source", "data.val_fraction"),
    *("train", "mix", "swarm"),
)
"""Sections and fields that a living run can change; another model is another run."""

FOLLOW = dict.fromkeys(("data.shards", "data.shard_tokens", "data.parts"), "data.source")
"""What another field sets."""

SHARDS_MAX = 7000
"""So many fit a signed plan."""

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
    the next `peerlm up`. Of [run] the token budget can change, of [data] the text, to one in the swarm's store or a mixture
    of several, and all of [train], [mix] and [swarm] but mix.fragment_max. Raising the budget of a finished run makes it go on.

    \b
    Examples:
      peerlm plan set run.token_budget=50_000_000
      peerlm plan set train.lr=0.01 mix.outer_momentum=0.3
      peerlm plan set data.source=swarm:laws
      peerlm plan set 'data.source=swarm:laws*3+plays'     # three windows of laws for one of plays
      peerlm plan set 'data.source=swarm:laws*3+local'     # one of each node's own text (data.local in node.toml)
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

    changes = dict(changes)
    for dotted in changes:
        if dotted in FIXED or not {dotted, dotted.partition(".")[0]} & set(CHANGEABLE):
            raise ConfigError(
                f"{dotted} cannot change in a run that lives: it says what the model is; start another run with "
                "`peerlm init`"
            )
    old = current_plan(layout)
    if "data.source" in changes:
        source = changes["data.source"]
        stored = _stored_shards(layout, source, old.plan)
        shards = [shard for of_one in stored for shard in of_one]
        counts = [len(of_one) for of_one in stored] if len(stored) > 1 else []
        changes["data.shards"] = ",".join(name for name, _ in shards)
        changes["data.shard_tokens"] = ",".join(str(tokens) for _, tokens in shards)
        changes["data.parts"] = ",".join(map(str, counts))
    new = config.with_changes(old.plan, changes, "plan set")
    if new == old.plan:
        raise ConfigError("plan set: the plan says so already; nothing is changed")
    require_text(new, "plan set: the text")
    return sign_plan(root, new, old.revision + 1)


def require_text(plan: Plan, where: str) -> None:
    """Raises `ConfigError`: what is to be trained on is too short for it, as far as the plan says how long it is."""
    from peerlm.data.records import parts_of
    from peerlm.data.shards import require_one_batch

    data = plan.data
    for part in parts_of(plan) if data.shard_tokens else ():
        if part.is_own:
            continue  # each node looks at its own
        tokens = sum(data.shard_tokens[place] for place in part.places)
        text = f"{where} {shown(part.name)}"
        require_one_batch(tokens, data.val_fraction, plan.train.batch, plan.model.context, text)


def _stored_shards(layout: Layout, source: str, plan: Plan) -> list[list[tuple[str, int]]]:
    """Hash and tokens of each shard of each corpus in the swarm's store that `source` names, if the run's model can learn
    from it; none of `local`.

    Raises:
        ConfigError: one is no corpus, of another tokenizer, or twice there; or they are too large for a plan.
        StateError: there is none of that name, or no daemon.
    """
    from peerlm.cli.desk_here import open_desk

    where = f"plan set: data.source = {shown(source)}"
    if not source.startswith(STORED):
        raise ConfigError(
            f"{where}: a run that lives can only go on with text in its own store: peerlm data add URL --name NAME, "
            f"then data.source={STORED}NAME"
        )
    named = [corpus.name for corpus in parse(source, where)]
    own = OWN if has_own(source) else None
    found: dict[tuple[tuple[str, int], ...], str] = {}
    with open_desk(layout) as desk:
        for name in named:
            if name == own:  # each node has its own, or none
                found[()] = name
                continue
            about = where if len(named) == 1 else f"{where}: {name}"
            shards = tuple(_shards_of(desk.manifest(name), plan, about))
            if shards in found:
                raise ConfigError(
                    f"{about}: is the same text as {found[shards]}; name one of them, with the weight of both"
                )
            found[shards] = name
    if (count := sum(map(len, found))) > SHARDS_MAX:
        raise ConfigError(f"{where}: {count} shards; a plan has room for {SHARDS_MAX}")
    return [list(shards) for shards in found]


def _shards_of(manifest: Manifest, plan: Plan, where: str) -> list[tuple[str, int]]:
    """Hash and tokens of each of its shards, in order. Raises `ConfigError`: the run's model cannot learn from it."""
    from peerlm.data.shards import TOKENIZER_FILE, tokens_in

    meta = manifest.meta
    if manifest.kind != Kind.CORPUS:
        raise ConfigError(f"{where}: it is no corpus ({manifest.kind}); see `peerlm data ls`")
    for field, mine in (("tokenizer", plan.data.tokenizer), ("vocab", plan.data.vocab)):
        if meta.get(field) != mine:
            raise ConfigError(
                f"{where}: made with {field} {str(meta.get(field))[:16]}, the run's is {str(mine)[:16]}; add the text again "
                "without --tokenizer"
            )
    chunks = [manifest.chunks_of(file)[0] for file in manifest.files if file.path != TOKENIZER_FILE]
    shards = [(chunk.hash.hex(), tokens_in(chunk.size, plan.data.vocab)) for chunk in chunks]
    tokens = meta.get("tokens")
    if type(tokens) is not int:
        raise ConfigError(f"{where}: its manifest does not say how many tokens it has")
    if tokens != sum(each for _, each in shards):
        raise ConfigError(
            f"{where}: its manifest says {tokens} tokens, its shards have room for "
            f"{sum(each for _, each in shards)}: add the text again"
        )
    return shards


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
