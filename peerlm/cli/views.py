"""The answer of `status` for eyes: a panel and a table on a terminal, plain lines in a pipe.

Both are functions of the JSON object alone, so what is shown can always be had by a program. Much of
it is peers' text: it reaches the terminal without control characters and is no markup to rich.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from peerlm.cli import words
from peerlm.node import advice
from peerlm.types import printable

Status = dict[str, Any]

COLOURS = {
    "alive": "green",
    "suspect": "yellow",
    "dead": "red",
    "left": "bright_black",
    "training": "green",
    "settling": "cyan",
    "done": "bold green",
}
BAR_WIDTH = 32


def console() -> Console:
    """Standard output without guesses about numbers and paths."""
    return Console(highlight=False)


def facts(s: Status) -> list[tuple[str, str]]:
    """What is so, in pairs of a name and a line."""
    worker, mixing = s["worker"], s["exchanges"]
    rate = s["swarm_tokens_per_s"]
    pairs = [
        ("node", f"{s['node_id'][:8]} of run {s['run_name']} ({s['run_id'][:8]}), {s['state']}"),
        ("address", s["address"] or _no_address(s["dialled"])),
        *([("goes on", f"from checkpoint {s['continues'][:16]}…")] if s.get("continues") else []),
        (
            "tokens",
            f"{words.count(s['swarm_tokens'])} of {words.count(s['token_budget'])} by the swarm "
            f"({100 * s['swarm_tokens'] / s['token_budget']:.1f} %), {words.count(s['tokens'])} here; "
            f"{words.count(rate)}/s, {words.time_left(s['swarm_tokens'], s['token_budget'], rate)}",
        ),
        ("loss", f"{words.loss(s['loss'])} training, {words.loss(s['val_loss'])} validation"),
        *_texts(s.get("data", {}).get("texts", ())),  # an older daemon has none
        ("worker", _worker(worker)),
        *([("batch", _batch(s["batch"]))] if "batch" in s else []),  # an older daemon has none
        ("mixing", f"{words.counts(mixing)}; distance {words.share(s['consensus_distance'])}"),
        *_stages(s),
        ("tempo", _tempo(s["tempo"])),
        (
            "bytes",
            f"{words.size(s['bytes_sent'])} sent, {words.size(s['bytes_received'])} received"
            + (
                f"; all-reduce would have sent {words.size(s['bytes_allreduce'])}"
                if s["bytes_allreduce"]
                else ""
            ),
        ),
    ]
    if total := s["fetch"]["total_bytes"]:
        pairs.append(("fetching", f"{words.size(s['fetch']['bytes'])} of {words.size(total)}"))
    pairs.append(("snapshot", _snapshot(s["snapshot"])))
    pairs += _store(s)
    if s.get("page"):
        pairs.append(("page", s["page"]))
    if s["model_dir"]:
        pairs.append(("model", s["model_dir"]))
    pairs += [("why" if not at else "", line) for at, line in enumerate(s["why"])]
    return [(name, printable(line)) for name, line in pairs]


def _no_address(dialled: Status) -> str:
    return "none: nobody can dial it, it dials out" if dialled["guarded"] else "not known yet"


def _texts(texts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Of a mixture: each text's share, where it is read, and its loss."""
    if len(texts) < 2:
        return []
    lines = [
        f"{t['name']} {100 * t['share']:.1f} %: pass {t['pass']}, {100 * t['position']:.1f} % read, "
        f"loss {words.loss(t['val_loss'])}"
        for t in texts
    ]
    return [("texts", "; ".join(lines))]


def _stages(s: Status) -> list[tuple[str, str]]:
    """Of a model in stages: what is held here, and what goes between the nodes for it."""
    stages = s.get("stages", {})  # an older daemon has none
    if stages.get("count", 1) == 1:
        return []
    sent, received = words.size(stages["bytes_sent"]), words.size(stages["bytes_received"])
    line = f"{run_of(stages['first'], stages['last'])} of 0 to {stages['count'] - 1}"
    line += f"; stream {sent} sent, {received} received"
    if stages["lost"]:
        line += f"; {stages['lost']} microbatches lost"
    return [("stages", line)]


def run_of(first: int, last: int) -> str:
    """A first above the last: none."""
    if first > last:
        return "none"
    return str(first) if first == last else f"{first}-{last}"


def _tempo(tempo: Status) -> str:
    use, rate = tempo["line_use"], tempo["line_bytes_s"]
    often = f"an outer step each {tempo['inner_steps']} inner steps"
    if use is None:
        return often
    line = "the time" if rate is None else f"a line of {words.size(rate)}/s"
    return f"{often}; exchanges take {words.share(use)} of {line}"


def _worker(worker: Status) -> str:
    line: str = worker["state"].replace("_", " ")
    if worker["state"] == "running":
        line += f" on {worker['device']}, {words.count(worker['tokens_per_s'])} tokens/s"
        if worker["threads"]:
            line += f", {worker['threads']} thread{'s' if worker['threads'] > 1 else ''}"
    if worker["restarts"]:
        line += f"; restarted {worker['restarts']} times, last: {worker['last_error']}"
    if worker["nonfinite_steps"]:
        line += f"; {worker['nonfinite_steps']} steps were not finite"
    return line


def _batch(batch: Status) -> str:
    tokens, scale = batch["tokens"], batch["noise_scale"]
    line = f"{words.count(tokens)} tokens a step"
    if scale is None:
        return line
    line += f"; half noise at {words.count(scale)}"
    if advice.is_small(tokens, scale):
        line += f": {advice.LARGER}"
    return line


def _store(s: Status) -> list[tuple[str, str]]:
    """Of a node that keeps something for the swarm, or should; an older daemon has no store."""
    store = s.get("store", {})
    if not store.get("names") and not store.get("used_bytes"):
        return []
    names = f"{store['names']} name{'' if store['names'] == 1 else 's'}"
    line = (
        f"{names}; {words.size(store['used_bytes'])} of {words.size(store['capacity_bytes'])} here"
    )
    if store["swarm_lacking"]:
        line += f"; lacking: {store['lacking']} here, {store['swarm_lacking']} in the swarm"
    return [("store", f"{line}; full" if store["is_full"] else line)]


def _snapshot(kept: Status) -> str:
    if kept["error"]:
        return f"fails: {kept['error']}"
    if not kept["number"]:
        return "none yet"
    return f"number {kept['number']}, at {words.count(kept['tokens'])} tokens of the swarm"


MEMBER_COLUMNS = ("node", "address", "state", "mixes", "tokens", "tok/s", "loss", "val", "dist")
"""As many as fit on eighty columns; a living member's state is what it says it is doing."""

PEER_COLUMNS = (
    "id",
    "address",
    "state",
    "phase",
    "linked",
    *MEMBER_COLUMNS[3:],
    "preprocess",
    "release",
)


def member_row(m: Status, own_id: str) -> tuple[str, ...]:
    doing = m["phase"] if m["state"] == "alive" and m["phase"] else m["state"]
    return (m["id"][:8] + _mark(m, own_id), _address(m), doing, *_figures(m))


def peer_row(m: Status, own_id: str) -> tuple[str, ...]:
    linked = "yes" if m["linked"] else "no"
    phase = m["phase"] or words.ABSENT
    release = printable(m.get("software", "")) or words.ABSENT
    who = m["id"] + _mark(m, own_id)
    makes = m.get("preprocess") or words.ABSENT  # an older daemon does not say
    return (who, _address(m), m["state"], phase, linked, *_figures(m), makes, release)


def _mark(m: Status, own_id: str) -> str:
    return "*" if m["id"] == own_id else ""


def _address(m: Status) -> str:
    return printable(m["address"].removeprefix("tcp://")) or words.ABSENT


def _figures(m: Status) -> tuple[str, ...]:
    return (
        "yes" if m["participating"] else "no",
        words.count(m["tokens"]),
        words.count(m["tokens_per_s"]) if m["tokens_per_s"] else words.ABSENT,
        words.loss(m["loss"]),
        words.loss(m["val_loss"]),
        words.share(m["consensus_distance"]),
    )


# ------------------------------------------------------------------------------------- pipes


def plain_status(s: Status) -> list[str]:
    """Lines without control codes."""
    lines = [f"{name:<9} {line}".rstrip() for name, line in facts(s)]
    rows = [member_row(m, s["node_id"]) for m in s["members"]]
    return [*lines, "", *_columns([MEMBER_COLUMNS, *rows])]


def plain_peers(s: Status) -> list[str]:
    """A header and a line for each member, with whole ids; * marks this node. Below, what is in the way of some."""
    rows = _columns([PEER_COLUMNS, *(peer_row(m, s["node_id"]) for m in s["members"])])
    return [*rows, *([""] if (found := reasons(s)) else []), *found]


def reasons(s: Status) -> list[str]:
    """A line for each member that is suspect, dead or gone, or that this node cannot mix with; an older daemon gives none."""
    return [
        f"{m['id'][:8]}: {_for_so_long(m)}{printable(m['reason'])}"
        for m in s["members"]
        if m.get("reason")
    ]


def _for_so_long(m: Status) -> str:
    return "" if m["state"] == "alive" else f"{m['state']} for {words.span(m['state_s'])}: "


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# --------------------------------------------------------------------------------- terminals


def status_view(s: Status) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, line in facts(s):
        if name == "tokens":
            grid.add_row("", progress_bar(s["swarm_tokens"], s["token_budget"]))
        grid.add_row(name, Text(line, style=COLOURS.get(s["state"], "") if name == "node" else ""))
    return Group(grid, Text(), members_table(s))


def progress_bar(done: int, budget: int) -> Bar:
    return Bar(budget, 0, min(done, budget), width=BAR_WIDTH, color="cyan", bgcolor="grey23")


def members_table(s: Status) -> Table:
    table = Table(box=None, header_style="bright_black", padding=(0, 1, 0, 0), pad_edge=False)
    for at, column in enumerate(MEMBER_COLUMNS):
        table.add_column(column, justify="right" if at > 3 else "left", no_wrap=True)
    for m in s["members"]:
        node, address, state, *figures = member_row(m, s["node_id"])
        shown = Text(state, style=COLOURS.get(state, ""))
        table.add_row(Text(node), Text(address), shown, *map(Text, figures))
    return table


def trouble(line: str) -> Text:
    return Text(printable(line), style="red")
