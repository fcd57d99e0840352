"""`peerlm init`: a new run, and this machine's node as its first."""

from __future__ import annotations

import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from peerlm import config
from peerlm.cli.settings_text import (
    change_node_settings,
    host_option,
    node_settings,
    parse_changes,
)
from peerlm.cli.state import ORIGIN, has_node, read_run, state_option
from peerlm.config.mixture import OWN, STORED
from peerlm.errors import ConfigError, StateError
from peerlm.store import disk
from peerlm.store.layout import Layout, StateDirectory
from peerlm.types import Role, WallTime, printable, short

if TYPE_CHECKING:
    from peerlm.cli.init_continue import Past
    from peerlm.cli.init_from import StartingModel
    from peerlm.data.shards import ShardInfo
    from peerlm.data.tokenizer import Tokenizer

FOUNDER_LIFE_S = 20 * 365 * 86_400
"""How long the founder's node may renew its certificates, and invite others without the root key."""

AUTO = "auto"
"""Of `model.stages`: as many as it takes; of `host.stages`: the node decides."""


@click.command(short_help="Make a run, with this machine as its first node.")
@click.option("--name", help="Name of the run, for people.  [default: plays]")
@click.option(
    "--preset",
    type=click.Choice(list(config.PRESETS)),
    default="tiny",
    show_default=True,
    help="Where the plan starts from.",
)
@click.option(
    "--data",
    metavar="URL",
    help="Text to train on: file, directory, glob, any fsspec URL; `shipped` is a Shakespeare of 1 MB; "
    "with `local` every node trains on its own (data.local in its node.toml).  [default: shipped]",
)
@click.option(
    "--tokenizer",
    metavar="FILE",
    help="A `tokenizers` JSON file.  [default: bytes]",
)
@click.option(
    "--from",
    "source",
    metavar="MODEL",
    help="Start from these weights instead of random ones: DIR of `peerlm export`, hf:DIR (a Llama as "
    "safetensors) or gguf:FILE. Shape and tokenizer are the model's.",
)
@click.option(
    "--continue",
    "goes_on",
    is_flag=True,
    help="Go on with the run that --from is a checkpoint of: its plan, its tokens, its place in the text. For when all its machines "
    "are lost.",
)
@click.option(
    "--set", "plan_pairs", metavar="FIELD=VALUE", multiple=True, help="Change a field of the plan."
)
@click.option(
    "--set-node",
    "node_pairs",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Change a field of this machine's node.toml.",
)
@host_option
@state_option
def init(
    layout: Layout,
    name: str | None,
    preset: str,
    data: str | None,
    tokenizer: str | None,
    source: str | None,
    goes_on: bool,
    plan_pairs: tuple[str, ...],
    node_pairs: tuple[str, ...],
    hosted: dict[str, str],
) -> None:
    """Make a run, with this machine as its first node.

    Writes the run's root key, the signed plan (model, data, training, mixing), this node's keys, and
    the text as token shards which other nodes will fetch from this one or from each other. Nothing
    runs yet: that is `peerlm up`. No flags at all make a small model on the shipped text.

    The root key signs invites and plans; no running node needs it. `peerlm root export` moves it to a
    safe place.

    With --continue the plan is the checkpoint's, --set changes what `peerlm plan set` may and model.stages, and --data says where
    the text is if it is no longer where it was: a folder of `peerlm data get` will do.

    \b
    Examples:
      peerlm init
      peerlm init --name laws --preset small --data 'texts/**/*.txt'
      peerlm init --data https://example.org/book.txt --set mix.inner_steps=50
      peerlm init --from finished-model/ --set run.token_budget=5_000_000
      peerlm init --from checkpoint/ --continue
      peerlm init --from checkpoint/ --continue --data copy-of-plays/ --set model.stages=2
      peerlm init --from hf:SmolLM2-135M/ --set model.context=512 --set train.optimizer=adamw
      peerlm init --from hf:SmolLM2-135M/ --set model.stages=3 --host 0
      peerlm init --data local --set-node data.local=/srv/letters
      peerlm init --set model.stages=3 --host 0
      peerlm init --preset gpt-124m --set model.stages=auto --set-node host.memory_bytes=2_000_000_000
      peerlm init --set model.blocks=recurrent,feedforward,attention,feedforward
    """
    plan_changes = parse_changes(plan_pairs, "--set")
    node_changes = parse_changes(node_pairs, "--set-node") | hosted
    is_cut_here = plan_changes.get("model.stages") == AUTO
    if is_cut_here:
        del plan_changes["model.stages"]
        node_changes.setdefault("host.stages", AUTO)
    settings = node_settings(node_changes, "--set-node")
    if goes_on:
        _require_checkpoint(source)
    plan = None if goes_on else _plan(name, preset, data, plan_changes)
    if has_node(layout):
        raise StateError(
            f"{layout.root} already holds a node of run {short(read_run(layout).run_id)}; "
            "use another --state, or `peerlm rm` it first"
        )
    from peerlm.daemon.memory import memory_of, require_memory
    from peerlm.model.plan import fragments
    from peerlm.model.stages import first_held, held_stages

    with _claimed(layout) as state:
        start: StartingModel | None
        if plan is None:
            assert source is not None, "a run goes on from nothing"
            plan, start = _past(source, name, tokenizer, plan_changes)
        else:
            start = _read_start(source, tokenizer, plan_changes)
            plan = plan if start is None else start.adopted_by(plan)
        fragments(plan)  # a plan that cuts the model too fine is said to before anything is made
        if is_cut_here:
            plan = _cut(plan, tokenizer, start, settings)
        held = held_stages(settings.host.stages, plan, "--host")
        if settings.host.is_aside:
            raise ConfigError(
                "--host none: the node that begins a run makes its weights: leave it out here, and `peerlm join` others with it"
            )
        if held is None:
            held = first_held(plan, memory_of(settings), "--host auto")
        require_memory(plan, held)
        if start is not None and start.past is not None:
            prepare = partial(_prepared, state, plan, start.codec, plan.data.vocab)
            plan = start.past.with_text(state, plan, data, start.codec, prepare)
            if plan.data.source == OWN:
                _check_local(settings)
        else:
            plan = _with_corpus(state, plan, tokenizer, start, settings)
        change_node_settings(state, node_changes, "--set-node")
        run_id = _found(state, plan, start, held)
    _report(layout, plan, short(run_id), None if start is None else start.past)


def _plan(name: str | None, preset: str, data: str | None, changes: dict[str, str]) -> config.Plan:
    """The plan as far as flags say it. `--name` and `--data` are short for two fields."""
    named = {"run.name": name, "data.source": data}
    flags = {field: value for field, value in named.items() if value is not None}
    for field in ("data.shards", "data.shard_tokens", "data.vocab", "data.tokenizer"):
        if field in changes:
            raise ConfigError(f"--set {field}: it follows from --data and --tokenizer")
    if STORED in (source := changes.get("data.source", data or "")):
        raise ConfigError(
            f"--data {source}: the swarm of a new run keeps nothing yet; begin with a text, `peerlm data add` yours, then "
            f"`peerlm plan set 'data.source={source}'`"
        )
    plan = config.preset(preset)
    plan = config.with_changes(config.with_changes(plan, flags, "init"), changes, "--set")
    _require_plain(plan)
    return plan


def _require_plain(plan: config.Plan) -> None:
    if any(unicodedata.category(c) == "Cc" for c in plan.run.name):
        raise ConfigError(
            f"run.name = {plan.run.name!r}: control characters do not belong into a name"
        )


def _require_checkpoint(source: str | None) -> None:
    """Flags that go with `--continue`. Raises `ConfigError`."""
    if source is None:
        raise ConfigError("--continue: name the checkpoint with --from DIR")
    preset = click.get_current_context().get_parameter_source("preset")
    if preset is not ParameterSource.DEFAULT:
        raise ConfigError("--preset does not go with --continue: the run goes on by its own plan")


def _past(
    source: str, name: str | None, tokenizer: str | None, changes: dict[str, str]
) -> tuple[config.Plan, StartingModel]:
    """The plan of the run that goes on, and the checkpoint as its first weights."""
    from peerlm.cli.init_continue import Past
    from peerlm.cli.init_from import StartingModel

    past = Past.read(source)
    plan = past.planned(name, changes)
    _require_plain(plan)
    start = StartingModel.read(source, tokenizer, {})
    return plan, replace(start, model=plan.model, past=past)


def _cut(
    plan: config.Plan,
    tokenizer: str | None,
    start: StartingModel | None,
    settings: config.NodeSettings,
) -> config.Plan:
    """Into as few stages as let each fit into what this machine offers. Raises `ConfigError`: a module alone does not."""
    from peerlm.daemon.memory import memory_of
    from peerlm.data import tokenizer as tokenizers
    from peerlm.model.stages import stage_count

    codec = start.codec if start else tokenizers.load(tokenizer or tokenizers.BYTES, "--tokenizer")
    vocab = start.vocab if start else codec.vocab
    offered = memory_of(settings)
    count = stage_count(replace(plan, data=replace(plan.data, vocab=vocab)), [offered])
    click.echo(
        f"model.stages = {count}: each fits into the {offered.total() / 1e9:,.1f} GB that this machine offers "
        "(--set-node host.memory_bytes=… for smaller ones)",
        err=True,
    )
    return config.with_changes(plan, {"model.stages": count}, "--set")


def _read_start(
    source: str | None, tokenizer: str | None, changes: dict[str, str]
) -> StartingModel | None:
    if source is None:
        return None
    from peerlm.cli.init_from import StartingModel

    return StartingModel.read(source, tokenizer, changes)


@contextmanager
def _claimed(layout: Layout) -> Iterator[StateDirectory]:
    """The state directory, locked; if it was made for this and all fails, it goes again."""
    is_new, is_held = not layout.root.exists(), False
    try:
        with StateDirectory(layout.root) as state:
            is_held = True
            yield state
    except BaseException:
        if is_new and is_held:
            shutil.rmtree(layout.root, ignore_errors=True)
        raise


# ---------------------------------------------------------------------------------- the text


def _with_corpus(
    state: StateDirectory,
    plan: config.Plan,
    tokenizer: str | None,
    start: StartingModel | None,
    settings: config.NodeSettings,
) -> config.Plan:
    """Keep the tokenizer and the token shards as objects, and name them in the plan."""
    from blake3 import blake3

    from peerlm.data import tokenizer as tokenizers

    codec = start.codec if start else tokenizers.load(tokenizer or tokenizers.BYTES, "--tokenizer")
    named = tokenizers.BYTES
    if isinstance(codec, tokenizers.JsonTokenizer):
        named = blake3(codec.data).hexdigest()
        disk.write_atomic(state.objects / named, codec.data)
    vocab = start.vocab if start else codec.vocab
    plan = replace(plan, data=replace(plan.data, tokenizer=named, vocab=vocab))
    if plan.data.source == "local":
        _check_local(settings)
        return plan

    made = _prepared(state, plan, codec, vocab, plan.data.source, "--data")
    hashes, tokens = tuple(shard.hash for shard in made), tuple(shard.tokens for shard in made)
    return replace(plan, data=replace(plan.data, shards=hashes, shard_tokens=tokens))


def _prepared(
    state: StateDirectory, plan: config.Plan, codec: Tokenizer, vocab: int, source: str, where: str
) -> list[ShardInfo]:
    """Shards of a text, kept as objects."""
    from peerlm.data import shards

    with _progress() as show:
        made = shards.prepare(source, codec, state.objects, vocab=vocab, progress=show, where=where)
    shards.require_one_batch(
        sum(shard.tokens for shard in made),
        plan.data.val_fraction,
        plan.train.batch,
        plan.model.context,
        f"{where} {source}",
    )
    return made


def _check_local(settings: config.NodeSettings) -> None:
    """With `--data local` this node's own text must be named and readable."""
    from peerlm.data.corpus import documents

    if not settings.data.local:
        raise ConfigError("--data local: name this node's own text with --set-node data.local=PATH")
    next(documents(settings.data.local, "--set-node data.local"))


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Tokens written so far, on a terminal; how many there will be, nobody knows yet."""
    if not sys.stderr.isatty():
        yield lambda tokens: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading the text") as spinner:
        yield lambda tokens: spinner.update(f"reading the text: {tokens / 1e6:,.1f} M tokens")


# ---------------------------------------------------------------------------------- the run


def _found(
    state: StateDirectory, plan: config.Plan, start: StartingModel | None, held: range
) -> bytes:
    """Root key, signed plan, keys and chain; the identity last, for it makes the folder a node's."""
    from peerlm.identity import files
    from peerlm.identity.invite import enrol, make_invite, root_inviter
    from peerlm.identity.keys import NodeKeys
    from peerlm.identity.root import create_run, sign_plan

    wall = WallTime(time.time())
    until = WallTime(wall + FOUNDER_LIFE_S)
    root, keys = create_run(plan.run.name), NodeKeys.generate()
    signed = sign_plan(root, plan, revision=1)
    token = make_invite(root_inviter(root), tuple(Role), until, until, ())
    files.write_root(state.root, root)
    files.write_plan(state.root, signed.blob)
    files.write_chain(state.root, enrol(token.inviter, keys, wall))
    files.write_inviter(state.root, token.inviter)
    disk.write_atomic(state.root / ORIGIN, b"")
    if start is not None:
        start.write_snapshot(state, root.run_id, signed, held, wall)
        lines = [start.keep_optimizer(state, plan)]
        if start.past is not None:
            lines += [*start.past.notes, start.past.keep_passes(state, plan)]
        for line in filter(None, lines):
            click.echo(printable(line), err=True)
    files.write_keys(state.root, keys)
    return root.run_id


def _report(layout: Layout, plan: config.Plan, run: str, past: Past | None) -> None:
    from peerlm.model.plan import parameter_count

    if past is not None:
        click.echo(printable(past.line))
    parameters = parameter_count(plan.model, plan.data.vocab)
    click.echo(
        f"run {plan.run.name} ({run}): {parameters / 1e6:,.2f} M parameters, to train on "
        f"{plan.run.token_budget / 1e6:,.1f} M tokens"
    )
    click.echo(
        f"an inner step of a node: {plan.train.batch * plan.model.context:,} tokens; when it has trained for a little, its log and "
        "`peerlm status` say whether a larger train.batch would do"
    )
    click.echo(f"node in {layout.root}")
    click.echo("next: `peerlm up` here, then `peerlm invite` for the other machines")
