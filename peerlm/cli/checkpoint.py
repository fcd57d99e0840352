"""`peerlm checkpoint`: models of the whole swarm, as they were, in its own store."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli import copies, data, data_get, room, words
from peerlm.cli.commands import Commands
from peerlm.cli.data import facts_of, sample_of
from peerlm.cli.desk_here import open_desk
from peerlm.cli.leash import interruption
from peerlm.cli.state import state_option
from peerlm.errors import StateError
from peerlm.store.layout import Layout
from peerlm.store.manifest import Kind, Manifest
from peerlm.types import ObjectHash, printable

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client

COMMANDS = {
    "make": "checkpoint:make",
    "ls": "checkpoint:ls",
    "show": "checkpoint:show",
    "get": "checkpoint:get",
    "pin": "checkpoint:pin",
    "rm": "checkpoint:rm",
    "export": "checkpoint_export:export",
}

MANIFEST_S = 5.0

MADE = "or do not wait for copies: --wait 0"
"""What else there is to do where a checkpoint's copies have no room."""

AGAIN_S = 1800.0
"""So long a command for a name that is taken may be one that failed, and is said again."""


@click.group(cls=Commands, commands_at=COMMANDS, no_args_is_help=True)
def checkpoint() -> None:
    """Checkpoints: the swarm's model as it was, kept by several nodes while training goes on.

    One is made each half hour (store.checkpoint_every_s in node.toml), and a last one of the finished model; the newest
    three are kept, and those that are pinned. `get` gives a folder that `peerlm init --from` begins a new run with, or with
    --continue goes on from, on any number of nodes.

    \b
    Examples:
      peerlm checkpoint ls
      peerlm checkpoint get checkpoint-000001200000 model/
      peerlm checkpoint export checkpoint-000001200000 s3://bucket/model --format hf
    """


@click.command(short_help="Make one now.")
@click.option("--name", help="In the store.  [default: checkpoint-TOKENS]")
@click.option("--pin", "is_pinned", is_flag=True, help="Keep it when there are newer ones.")
@click.option("--replace", "replaces", is_flag=True, help="The name may stand for another one.")
@copies.wait_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object; docs/store.md explains it.")
@state_option
@interruption("the checkpoint is made all the same: see `peerlm checkpoint ls`")
def make(
    layout: Layout, name: str | None, is_pinned: bool, replaces: bool, wait: int, as_json: bool
) -> None:
    """Have the swarm's weights put into its store now; training goes on.

    A --name that is taken is not taken over without --replace. But a command that failed may be said again within half an hour: it
    makes the checkpoint anew, or is done where all of it has come meanwhile.

    \b
    Examples:
      peerlm checkpoint make
      peerlm checkpoint make --name before-the-merger --pin --wait 3
    """
    if name is not None:
        data.require_name(name)
    with open_desk(layout) as desk:
        if name and not replaces and _is_there(desk, name, is_pinned, wait):
            made = name
        else:
            made = desk.checkpoint(name or "", is_pinned=is_pinned)
        record, manifest, found = _copied(desk, made, wait)
    if as_json:
        told = {**record, **_facts(manifest), **copies.facts(found)}
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(f"{made}: {words.size(manifest.size_bytes)}")
        if said := copies.line(record, found):
            click.echo(said)
    copies.require_enough(record, found, wait)


def _copied(
    desk: Client, name: str, wait: int
) -> tuple[dict[str, Any], Manifest, copies.Copies | None]:
    """What the name stands for, once so many nodes have it. It may come to stand for something else meanwhile: what died with
    those that made it is made again by others."""
    while True:
        record, manifest = data.record_of(desk, name), desk.manifest(name)
        if wait:
            _require_fits(desk, name, manifest, wait)
        is_other = partial(_stands_for_other, desk, record)
        found = copies.wait_named(desk, record, data.distinct(manifest), wait, is_other)
        if found is None or not found.waiting or not is_other():
            return record, manifest, found


def _require_fits(desk: Client, name: str, manifest: Manifest, wait: int) -> None:
    """Raises `StateError`: there is no room for so many copies, which are not worth waiting for then."""
    try:
        room.require_copies_fit(desk, manifest, wait, is_here=False, or_else=MADE)
    except StateError as error:
        raise StateError(f"{name} is in the store, but {error}") from None


def _stands_for_other(desk: Client, record: dict[str, Any]) -> bool:
    return bool(data.record_of(desk, record["name"])["manifest"] != record["manifest"])


def _is_there(desk: Client, name: str, is_pinned: bool, wait: int) -> bool:
    """Whether the same command has made it a moment ago, and enough nodes have all of it. Raises `StateError`: the name is taken."""
    known = next((one for one in desk.names() if one["name"] == name), None)
    if known is None:
        return False
    is_checkpoint, age_s = known["kind"] == Kind.CHECKPOINT, time.time() - known["written_at"]
    if not is_checkpoint or known["is_pinned"] != is_pinned or age_s > AGAIN_S:
        its = ", pinned" if known["is_pinned"] else ""
        or_else = ", or put the new one in its place with --replace" if is_checkpoint else ""
        raise StateError(
            f"the name {name} is taken ({known['kind']}{its}, by node {known['writer'][:8]}, {words.ago(max(0.0, age_s))} ago); "
            f"choose another with --name{or_else}"
        )
    if not _is_kept(desk, known, wait):
        return False
    click.echo(
        f"{name} was made {words.ago(max(0.0, age_s))} ago, and is as it was; --replace puts a new one in its place",
        err=True,
    )
    return True


def _is_kept(desk: Client, known: dict[str, Any], wait: int) -> bool:
    try:
        manifest = desk.manifest(known["name"], MANIFEST_S)
    except StateError:
        return False
    hashes = [ObjectHash(bytes.fromhex(known["manifest"])), *data.distinct(manifest)]
    least = min(wait or copies.DURABLE, copies.holders(desk))
    return min(desk.survey(hashes).counts) >= least


@click.command(short_help="List checkpoints.")
@click.option("--json", "as_json", is_flag=True, help="A list; docs/store.md explains it.")
@state_option
def ls(layout: Layout, as_json: bool) -> None:
    """List the checkpoints that are in the store, the newest last, and in how many replicas.

    \b
    Examples:
      peerlm checkpoint ls
      peerlm checkpoint ls --json | jq -r '.[-1].name'
    """
    with open_desk(layout) as desk:
        records = [record for record in desk.names() if record["kind"] == Kind.CHECKPOINT]
        found = [_row(desk, one) for one in sorted(records, key=lambda r: r["written_at"])]
        kept_back = str(desk.status().get("checkpoints_kept_back", ""))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("no checkpoint yet: `peerlm checkpoint make` makes one now")
        return
    rows = [["name", "tokens", "size", "replicas", "written", ""]]
    rows += [_cells(one, time.time()) for one in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(printable("  ".join(cells).rstrip()))
    if kept_back:
        click.echo(printable(kept_back))


def _row(desk: Client, record: dict[str, Any]) -> dict[str, Any]:
    """Its manifest may not be to be had now."""
    try:
        manifest = desk.manifest(record["name"], MANIFEST_S)
    except StateError:
        unknown = ("tokens", "bytes", "files", "chunks", "before", "optimizer", "replicas_least")
        nothing = dict.fromkeys(unknown)
        return {**record, **nothing}
    counts = desk.survey(sample_of(manifest)).counts
    return {**record, **_facts(manifest), "replicas_least": min(counts, default=None)}


def _facts(manifest: Manifest) -> dict[str, Any]:
    of_texts = ("documents", "shards")
    facts = {key: value for key, value in facts_of(manifest).items() if key not in of_texts}
    return facts | {key: str(manifest.meta.get(key, "")) for key in ("before", "optimizer")}


def _cells(one: dict[str, Any], now: float) -> list[str]:
    about = {"pinned": one["is_pinned"], "with optimizer": one["optimizer"]}
    least = words.ABSENT if one["replicas_least"] is None else str(one["replicas_least"])
    return [
        one["name"],
        words.ABSENT if one["tokens"] is None else words.count(one["tokens"]),
        words.ABSENT if one["bytes"] is None else words.size(one["bytes"]),
        f"{least} of {one['replicas']}",
        f"{words.ago(max(0.0, now - one['written_at']))} ago",
        ", ".join(said for said, is_so in about.items() if is_so),
    ]


# ------------------------------------------------------------- what any name in the store has


def _same(command: click.Command, what: str) -> click.Command:
    """The command of `peerlm data`, said of checkpoints."""
    return click.Command(
        command.name,
        callback=command.callback,
        params=command.params,
        help=what,
        short_help=command.short_help,
    )


show = _same(
    data.show,
    """Show all that is known of the checkpoint NAME: of how many tokens it is, which one it followed, who keeps its chunks.

    \b
    Examples:
      peerlm checkpoint show checkpoint-000001200000
      peerlm checkpoint show checkpoint-000001200000 --json | jq .meta.tokens
    """,
)

get = _same(
    data_get.get,
    """Copy the checkpoint NAME into DIRECTORY, each chunk checked: a model that `peerlm init --from DIRECTORY` begins a run
    with, and `peerlm generate --model DIRECTORY` answers from. When all else is lost, `peerlm init --from DIRECTORY --continue`
    goes on with the run.

    \b
    Examples:
      peerlm checkpoint get checkpoint-000001200000 model/
      peerlm init --from model/ --state /srv/next
      peerlm init --from model/ --continue --state /srv/next
    """,
)

pin = _same(
    data.pin,
    """Pin the checkpoint NAME: it stays when there are newer ones.

    \b
    Examples:
      peerlm checkpoint pin checkpoint-000001200000
      peerlm checkpoint pin checkpoint-000001200000 --off
    """,
)

rm = _same(
    data.rm,
    """Remove the checkpoint NAME, for the whole swarm.

    \b
    Examples:
      peerlm checkpoint rm checkpoint-000001200000
    """,
)
