"""`peerlm store`: how the swarm's store stands at this node, and what can be done about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from peerlm.cli import words
from peerlm.cli.commands import Commands
from peerlm.cli.desk_here import Tell, open_desk, progress
from peerlm.cli.leash import interruption
from peerlm.cli.state import state_option
from peerlm.errors import PeerlmError
from peerlm.observe.store import store_of
from peerlm.store.layout import Layout
from peerlm.types import printable

if TYPE_CHECKING:
    from peerlm.daemon.desk_client import Client

COMMANDS = {"status": "store:status", "repair": "store:repair", "scrub": "store:scrub"}

LOOK_S = 0.5

STANDSTILL_S = 60.0
"""Repair in which nothing has come for so long is given up waiting for."""


@click.group(cls=Commands, commands_at=COMMANDS, no_args_is_help=True)
def store() -> None:
    """What this node keeps for the swarm's store, and how the store stands. `peerlm data` is for what is in it.

    \b
    Examples:
      peerlm store status
      peerlm store scrub
    """


@click.command(short_help="Say whether everything is in as many replicas as wanted.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; docs/store.md explains it.")
@state_option
def status(layout: Layout, as_json: bool) -> None:
    """Say whether everything in the store is in as many replicas as wanted, and what this node's part in it is.

    What other nodes lack is by their own word, some seconds old.

    \b
    Examples:
      peerlm store status
      peerlm store status --json | jq .is_whole
    """
    with open_desk(layout) as desk:
        found = store_of(desk.status(), desk.names())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for line in shown(found, time.time()):
        click.echo(printable(line))


def shown(found: dict[str, Any], now: float) -> list[str]:
    """The answer, this node's part, and a row for each node that offers room."""
    lines = [found["answer"], ""]
    facts = [*_facts(found, now)]
    width = max(len(name) for name, _ in facts)
    lines += [f"{name.ljust(width)}  {line}" for name, line in facts]
    if not found["nodes"]:
        return lines
    rows = [["node", "offers", "used", "lacking", "label", "state"]]
    rows += [_row(node, found) for node in found["nodes"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines.append("")
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return lines


def _facts(found: dict[str, Any], now: float) -> list[tuple[str, str]]:
    chunks = found["chunks"]
    offers = f"{words.size(found['used_bytes'])} used of {words.size(found['capacity_bytes'])}"
    facts = [
        ("room", f"{offers} offered" + ("; full" if found["is_full"] else "")),
        ("names", f"{found['names']}, with {chunks['chunks_known']} chunks"),
        ("due here", f"{chunks['due']} ({words.size(chunks['due_bytes'])})"),
        (
            "here",
            f"{chunks['held_due']} of these, and {chunks['surplus']} that are others' to keep",
        ),
    ]
    if chunks["lacking"] or found["unread"]:
        unread = f"; {found['unread']} names not read yet" if found["unread"] else ""
        size = words.size(chunks["lacking_bytes"])
        facts.append(
            ("lacking", f"{chunks['lacking']} ({size}), {chunks['urgent']} urgent{unread}")
        )
    if found["pulling"]:
        facts.append(("pulling", f"{found['pulling']}, {found['unfound']} of them in vain so far"))
    if found["trouble"]:
        facts.append(("trouble", found["trouble"]))
    if kept_back := found.get("checkpoints_kept_back"):  # the release before had none
        facts.append(("checkpoints", kept_back))
    if found["lost"]:
        facts.append(("lost", f"{found['lost']} found damaged or gone since the start"))
    if twice := found.get("hedged_bytes", 0):  # the release before did not count
        facts.append(("hedged", f"{words.size(twice)} came twice, for a node was slow"))
    facts.append(("scrubbed", _scrubbed(found["scrubbed"], now)))
    return facts


def _scrubbed(scrub: dict[str, Any] | None, now: float) -> str:
    if scrub is None:
        return "not all at once since the start; `peerlm store scrub` does it now"
    return f"{words.ago(now - scrub['at'])} ago: {_found(scrub)}"


def _found(scrub: dict[str, Any]) -> str:
    return f"{scrub['checked']} read in {words.span(scrub['seconds'])}, {scrub['damaged']} damaged or gone"


def _row(node: dict[str, Any], found: dict[str, Any]) -> list[str]:
    state = "here" if node["is_live"] else "away"
    if node["id"] in found["distrusted"]:
        state = "distrusted"
        if known := found.get("distrust", {}).get(node["id"]):  # the release before had none
            state = f"distrusted for {words.span(known['for_s'])}: {known['why']}"
    mark = "*" if node["id"] == found["node"] else ""
    lacking = str(node["lacking"]) if node["is_live"] else words.ABSENT
    sizes = [words.size(node["capacity_bytes"]), words.size(node["used_bytes"])]
    return [node["id"][:8] + mark, *sizes, lacking, node["label"] or words.ABSENT, state]


@click.command(short_help="Copy what lacks now, without waiting and without a ceiling.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: how many lacked, and lack.")
@state_option
@interruption("the repair goes on: see `peerlm store status`")
def repair(layout: Layout, as_json: bool) -> None:
    """Copy what lacks on this node now: nodes that are away count as gone at once, and store.repair_bytes_s is no ceiling.

    Other nodes do the same for what they lack only when told there. Waits until nothing lacks here; Ctrl-C ends the
    waiting, not the repair. Exit code 1 when nothing has come for a minute.

    \b
    Examples:
      peerlm store repair
      peerlm store repair --json
    """
    with open_desk(layout) as desk, progress("copying what lacks") as tell:
        desk.repair()
        first, left = _wait_repaired(desk, tell)
    if as_json:
        click.echo(json.dumps({"lacked": first, "lacking": left}, indent=2))
    else:
        click.echo(
            f"{first - left} copied, nothing lacks here" if not left else f"{left} lack still"
        )
    if left:
        raise PeerlmError(
            f"{left} chunks lack here and have not come for a minute: see `peerlm store status`"
        )


def _wait_repaired(
    desk: Client,
    tell: Tell,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, int]:
    """(What lacked at the most, what lacks in the end)."""
    least, since, most = None, clock(), 0
    while True:
        said = desk.status()
        lacking = said["chunks"]["lacking"] + said["unread"]
        most = max(most, lacking)
        if least is None or lacking < least:
            least, since = lacking, clock()
        tell(most - lacking, most, "")
        if not lacking or clock() - since > STANDSTILL_S:
            return most, lacking
        sleep(LOOK_S)


@click.command(short_help="Read and check all that this node keeps for the store.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: checked, damaged, seconds, at."
)
@state_option
@interruption("what was damaged so far is known; the same command begins anew")
def scrub(layout: Layout, as_json: bool) -> None:
    """Read all that this node keeps for the store from its disk, and check it. What is damaged is removed, and fetched
    again from others; that is no failure. Each chunk has its turn by itself too, every store.scrub_days.

    \b
    Examples:
      peerlm store scrub
      peerlm store scrub --json | jq .damaged
    """
    with open_desk(layout) as desk, progress("reading chunks") as tell:
        found = desk.scrub(lambda done, of: tell(done, of, ""))
    click.echo(json.dumps(found, indent=2) if as_json else _found(found))
