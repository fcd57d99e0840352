"""`peerlm data`: names in the swarm's store: list them, look at one, remove it, pin it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli import data_job, words
from peerlm.cli.commands import Commands
from peerlm.cli.desk_here import open_desk
from peerlm.cli.state import state_option
from peerlm.errors import ConfigError, StateError
from peerlm.observe.store import standing_of
from peerlm.store.layout import Layout
from peerlm.store.manifest import NAME, Kind
from peerlm.types import ObjectHash, printable

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client
    from peerlm.store.manifest import Manifest

COMMANDS = {
    "add": "data_add:add",
    "ls": "data:ls",
    "show": "data:show",
    "get": "data_get:get",
    "verify": "data_get:verify",
    "pin": "data:pin",
    "rm": "data:rm",
    "work": "data_work:work",
}

SAMPLE = 256
"""Chunks of each name that `ls` asks for."""

MANIFEST_S = 5.0
"""`ls` waits so long for a manifest that is not here."""

Names = list[dict[str, Any]]

FACTS = ("bytes", "files", "chunks", "shards", "documents", "tokens")

COLUMNS = (
    *("name", "kind", "size", "files", "shards", "documents", "tokens"),
    *("replicas", "verified", "writer", "age"),
)

FOUND = "found"


@click.group(cls=Commands, commands_at=COMMANDS, no_args_is_help=True)
def data() -> None:
    """Data in the swarm's store: put in at one node, kept by several, read at any.

    \b
    Examples:
      peerlm data add texts/ --as files
      peerlm data ls
      peerlm data get texts copy-of-texts/
    """


@click.command(short_help="List what is in the store.")
@click.option("--json", "as_json", is_flag=True, help="A list; docs/store.md explains it.")
@state_option
def ls(layout: Layout, as_json: bool) -> None:
    """List what is in the store: what kind it is, how much, in how many replicas, and how long ago `peerlm data verify` read
    all of it here.

    The replicas are those of the chunk that has the fewest, of at most 256 chunks of each name; `peerlm data show` asks for all.

    \b
    Examples:
      peerlm data ls
      peerlm data ls --json | jq -r '.[].name'
    """
    with open_desk(layout) as desk:
        found = [_listed(desk, record) for record in sorted(desk.names(), key=lambda r: r["name"])]
        _count_replicas(desk, found)
        _add_jobs(desk, [one for one in found if one["kind"] == Kind.JOB])
    if as_json:
        click.echo(json.dumps([_without_sample(one) for one in found], indent=2))
        return
    for line in _table(found, time.time()):
        click.echo(printable(line))


def _listed(desk: Client, record: dict[str, Any]) -> dict[str, Any]:
    """A row of `ls`, the replicas aside; its manifest may not be to be had now."""
    try:
        manifest: Manifest | None = desk.manifest(record["name"], MANIFEST_S)
    except StateError:
        manifest = None
    facts = facts_of(manifest) if manifest else dict.fromkeys(FACTS)
    return {**record, **facts, "sample": sample_of(manifest)}


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """How much it is: `FACTS`. `chunks`: equal ones count once."""
    counted = {"documents": manifest.meta.get("documents"), "tokens": manifest.meta.get("tokens")}
    return {
        "bytes": manifest.size_bytes,
        "files": len(manifest.files),
        "chunks": len(distinct(manifest)),
        "shards": _shards(manifest),
        **{name: value if _is_count(value) else None for name, value in counted.items()},
    }


def _shards(manifest: Manifest) -> int | None:
    """Of a corpus; its tokenizer's file is none. None: it is no corpus."""
    from peerlm.data.shards import TOKENIZER_FILE

    if manifest.kind != Kind.CORPUS:
        return None
    return sum(file.path != TOKENIZER_FILE for file in manifest.files)


def require_name(name: str) -> None:
    """Raises `ConfigError`: nothing in the store can be called so."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:100]!r} cannot be a name in the store: small letters, digits and . _ - (at most 96), a letter or digit "
            "first; give one with --name"
        )


def _is_count(value: object) -> bool:
    """Whoever wrote the manifest may have written anything."""
    return type(value) is int and 0 <= value < 1 << 63


def distinct(manifest: Manifest) -> list[ObjectHash]:
    return list(dict.fromkeys(chunk.hash for chunk in manifest.chunks))


def sample_of(manifest: Manifest | None) -> list[ObjectHash]:
    """Some of its chunks, evenly from all of it."""
    hashes = distinct(manifest) if manifest else []
    return hashes[:: -(-len(hashes) // SAMPLE) or 1]


def _count_replicas(desk: Client, found: Names) -> None:
    """`replicas_least` of each, by one survey."""
    asked = list(dict.fromkeys(wanted for one in found for wanted in one["sample"]))
    counts = dict(zip(asked, desk.survey(asked).counts, strict=True)) if asked else {}
    for one in found:
        one["replicas_least"] = min((counts[wanted] for wanted in one["sample"]), default=None)


def _add_jobs(desk: Client, found: Names) -> None:
    """How far each is; None: this node has not heard yet."""
    under_way = {job["name"]: job for job in desk.jobs()} if found else {}
    for one in found:
        one["job"] = under_way.get(one["name"])


def _without_sample(one: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name != "sample"}


def _table(found: Names, now: float) -> list[str]:
    if not found:
        return ["there is nothing in the store; `peerlm data add` puts something in"]
    rows = [list(COLUMNS)]
    rows += [
        [
            one["name"] + ("*" if one["is_pinned"] else ""),
            one["kind"],
            _or_absent(one["bytes"], words.size),
            _or_absent(one["files"], str),
            _or_absent(one["shards"], str),
            _or_absent(one["documents"], words.count),
            _or_absent(one["tokens"], words.count),
            f"{_or_absent(one['replicas_least'], str)} of {one['replicas']}",
            _verified(one, now),
            one["writer"][:8],
            words.ago(max(0.0, now - one["written_at"])),
        ]
        for one in found
    ]
    return [*in_columns(rows), *_jobs(found)]


def _verified(one: dict[str, Any], now: float) -> str:
    """How long ago all of it was read here. The release before does not remember."""
    if one.get("verified_at") is None:
        return words.ABSENT
    ago, missing = words.ago(max(0.0, now - one["verified_at"])), one["verified_missing"]
    return f"{ago}, {missing} missing" if missing else ago


def _jobs(found: Names) -> Iterator[str]:
    """How far corpora are that are being made."""
    for one in found:
        if (job := one.get("job")) is None:
            continue
        yield f"{one['name']}: {data_job.line_of(job)}; {words.some(len(job['makers']), 'node')} at it"
        for peer, why in job["troubles"].items():
            yield f"{one['name']}: not on {peer[:8]}: {why}"


def _or_absent(value: Any, form: Callable[[Any], str]) -> str:
    return words.ABSENT if value is None else form(value)


def in_columns(rows: Iterable[list[str]]) -> list[str]:
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in lines
    ]


# ------------------------------------------------------------------------------------- show


@click.command(short_help="Show all that is known of a name, and who keeps its chunks.")
@click.argument("name")
@click.option("--files", "with_files", is_flag=True, help="List its files too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; docs/store.md explains it.")
@state_option
def show(layout: Layout, name: str, with_files: bool, as_json: bool) -> None:
    """Show all that is known of NAME: where it came from, how much it is, in how many replicas its chunks are, on which nodes.

    Every live node that offers room is asked which of the chunks it keeps.

    \b
    Examples:
      peerlm data show plays
      peerlm data show plays --json | jq .found.under_replicated
    """
    with open_desk(layout) as desk:
        found = _found(desk, name)
    if not with_files:
        del found["paths"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for line in _lines(found, time.time()):
        click.echo(printable(line))


def record_of(desk: Client, name: str) -> dict[str, Any]:
    """What `names` says of it. Raises: StateError, there is no such name."""
    found = next((record for record in desk.names() if record["name"] == name), None)
    if found is None:
        raise StateError(
            f"the swarm's store has nothing of the name {name[:100]}: see `peerlm data ls`"
        )
    return found


def _found(desk: Client, name: str) -> dict[str, Any]:
    record = record_of(desk, name)
    manifest = desk.manifest(name)
    hashes = distinct(manifest)
    surveyed = desk.survey(hashes)
    found = standing_of(hashes, surveyed.counts, record["replicas"], surveyed.silent, surveyed.kept)
    try:
        checked = desk.checked(hashes)
    except StateError:  # the release before cannot say
        checked = None
    paths = [
        {
            "path": file.path,
            "bytes": sum(chunk.size for chunk in manifest.chunks_of(file)),
            "chunks": file.length,
        }
        for file in manifest.files
    ]
    return {
        **record,
        **facts_of(manifest),
        "meta": _short(dict(manifest.meta)),
        FOUND: found,
        "checked_here": checked,
        "paths": paths,
    }


LONG = 400
"""Characters of a value in a manifest's meta that are shown."""

KEY_LONG, KEYS_MAX = 40, 32


def _short(meta: dict[str, Any]) -> dict[str, Any]:
    """Long lists of a corpus or a checkpoint are for programs that read the manifest itself."""
    short = {key: value for key, value in meta.items() if len(key) <= KEY_LONG}
    shown = ((key, value) for key, value in short.items() if len(json.dumps(value)) <= LONG)
    return dict(islice(shown, KEYS_MAX))


def _lines(s: dict[str, Any], now: float) -> list[str]:
    found, age = s[FOUND], words.ago(max(0.0, now - s["written_at"]))
    pinned = ", pinned" if s["is_pinned"] else ""
    of = [
        f"{words.size(s['bytes'])} in {words.some(s['files'], 'file')}, {words.some(s['chunks'], 'chunk')}"
    ]
    of += [f"{words.count(s[key])} {key}" for key in ("documents", "tokens") if s[key] is not None]
    facts = [
        ("name", f"{s['name']} ({s['kind']}{pinned})"),
        ("about", s["about"] or words.ABSENT),
        ("written", f"by {s['writer'][:8]}, {age} ago"),
        ("manifest", f"{s['manifest']} ({words.size(s['manifest_bytes'])})"),
        ("size", ", ".join(of)),
        *((key, json.dumps(value, ensure_ascii=False)) for key, value in s["meta"].items()),
        ("replicas", f"{s['replicas']} wanted; {_histogram(found)}"),
    ]
    if found["under_replicated"]:
        facts.append(
            ("fewer", f"{words.some(found['under_replicated'], 'chunk')}, fewer than wanted")
        )
    if found["unreadable"]:
        facts.append(
            ("nowhere", f"{words.some(found['unreadable'], 'chunk')}: on no node that answered")
        )
    facts += [
        ("on", f"{node['id'][:8]}  {words.some(node['chunks'], 'chunk')}")
        for node in found["nodes"]
    ]
    facts.append(("verified", verified_line(s, now)))
    if (checked := s["checked_here"]) and checked["here"]:
        facts.append(("checked", checked_line(checked, now)))
    facts += [("silent", f"{node[:8]} did not answer") for node in found["silent"]]
    facts += [
        ("file", f"{file['path']}  {words.size(file['bytes'])}") for file in s.get("paths", ())
    ]
    width = max(len(key) for key, _ in facts)
    return [f"{key.ljust(width)}  {line}" for key, line in facts]


def verified_line(s: dict[str, Any], now: float) -> str:
    """When `peerlm data verify` read all of it on this node, and what came of it."""
    if s.get("verified_at") is None:
        return f"not here so far: `peerlm data verify {s['name']}` reads all of it"
    ago, missing = words.ago(max(0.0, now - s["verified_at"])), s["verified_missing"]
    if missing:
        return f"{ago} ago, from this node: {words.some(missing, 'chunk')} could not be had"
    return f"{ago} ago, from this node: all of it as it should be"


def checked_line(checked: dict[str, Any], now: float) -> str:
    """When chunks that are here were last read from the disk and found right."""
    here = words.some(checked["here"], "chunk")
    if checked["oldest"] is None:
        return f"{here} here, when they came; not since"
    ago = words.ago(max(0.0, now - checked["oldest"]))
    later = f"; {checked['unknown']} not since they came" if checked["unknown"] else ""
    return f"{here} here, within the last {ago}{later}"


def _histogram(found: dict[str, Any]) -> str:
    parts = [f"{words.some(count, 'chunk')} in {n}" for n, count in found["replicas"].items()]
    return ", ".join(parts) or "no chunks"


# ------------------------------------------------------------------------------ rm and pin


@click.command(short_help="Remove a name; what no other name needs goes with it.")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: what `ls` said of the name."
)
@state_option
def rm(layout: Layout, name: str, yes: bool, as_json: bool) -> None:
    """Remove NAME from the store, for the whole swarm. Chunks that are in nothing else are dropped by all nodes soon
    after, by those that are away when they come back.

    \b
    Examples:
      peerlm data rm plays
      peerlm data rm plays --yes
    """
    with open_desk(layout) as desk:
        record = record_of(desk, name)
        if record["is_pinned"]:
            raise StateError(f"{name} is pinned: `peerlm data pin {name} --off` first")
        if not yes:
            question = (
                f"Remove {name} ({record['kind']}, by {record['writer'][:8]}) for the whole swarm?"
            )
            click.confirm(question, abort=True, err=True)
        desk.remove(name)
    click.echo(json.dumps(record, indent=2) if as_json else f"removed {name}")


@click.command(short_help="Keep a name from being removed.")
@click.argument("name")
@click.option("--off", is_flag=True, help="It may be removed again.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: what `ls` says of the name."
)
@state_option
def pin(layout: Layout, name: str, off: bool, as_json: bool) -> None:
    """Pin NAME: `peerlm data rm` refuses to remove it, and a checkpoint is not removed when there are newer ones.

    \b
    Examples:
      peerlm data pin plays
      peerlm data pin plays --off
      peerlm data pin plays --json | jq .is_pinned
    """
    with open_desk(layout) as desk:
        desk.pin(name, not off)
        record = record_of(desk, name) if as_json else {}
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    click.echo(f"{name} is {'not pinned any more' if off else 'pinned'}")
