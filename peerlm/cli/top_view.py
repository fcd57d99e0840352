"""What `peerlm top` shows, as functions of what the daemon has answered. Nothing here knows of a screen.

Much of it is peers' text: it comes out without control characters, as rich's Text or plain cells, which nobody
reads as markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from peerlm.cli import curve, words
from peerlm.cli.top_asking import Story
from peerlm.types import printable

Status = dict[str, Any]

GOOD, WARN, BAD, SOFT, MARK = "#5fce97", "#e2b04a", "#ff8a80", "#a2a9b3", "#79b8ff"
"""The colours of the page on a dark ground. Whatever has one says the same in words."""

STATE_TONES = {"alive": GOOD, "suspect": WARN, "dead": BAD, "left": SOFT}
PHASE_TONES = {"training": GOOD, "settling": MARK, "done": GOOD}
EVENT_TONES = {"dead": BAD, "refused": BAD, "worker": BAD, "snapshot": BAD, "suspect": WARN}

ADDRESS_MAX = 28
BAR_MIN, BAR_MAX = 6, 40
NARROW = 60
LATELY_S = 300.0
"""An exchange that is longer ago is not live; nodes tell of none."""

GAP = 2
"""Between two figures on a line."""


# --------------------------------------------------------------------------------------- head


def head(s: Status, width: int) -> Text:
    """What is so, in as many lines as it takes."""
    why = s["why"][0] if s["why"] else ""
    progress, figures = _progress(s, width), _figures(s)
    parts = [progress + figures] if width < NARROW else [progress, figures]
    lines = [line for part in [_names(s), *parts] for line in flowed(part, width)]
    told = [_pair("why", why), *_sample_line(s, width)]
    return Text("\n").join([*lines, *told])


def _names(s: Status) -> list[Text]:
    listed = [m["state"] for m in s["members"] if m["state"] != "left"]
    state = Text.assemble((s["state"], PHASE_TONES.get(s["state"], WARN)))
    if s["state_reason"]:
        state.append(f": {printable(s['state_reason'])}")
    return [
        Text.assemble((printable(s["run_name"]), "bold")),
        state,
        Text(f"{listed.count('alive')} of {len(listed)} alive"),
        _pair("node", s["node_id"][:8]),
    ]


def _progress(s: Status, width: int) -> list[Text]:
    done, budget = s["swarm_tokens"], s["token_budget"]
    share = done / budget if budget else 0.0
    left = words.time_left(done, budget, s["swarm_tokens_per_s"])
    texts = [
        Text.assemble((f"{100 * share:.1f} %", "bold")),
        Text(f"{words.count(done)} of {words.count(budget)} tokens"),
        Text(left),
    ]
    room = width - sum(GAP + text.cell_len for text in texts)
    return [bar(share, min(max(room, BAR_MIN), BAR_MAX)), *texts]


def bar(share: float, width: int) -> Text:
    filled = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("█" * filled, MARK), ("░" * (width - filled), SOFT))


def _figures(s: Status) -> list[Text]:
    worker = s["worker"]
    figures = [
        _pair("swarm", f"{words.count(s['swarm_tokens_per_s'])} tokens/s"),
        _pair("val loss", words.loss(s["val_loss"])),
        _pair("loss", words.loss(s["loss"])),
        _pair("distance", words.share(s["consensus_distance"])),
        _pair("sent", _sent(s)),
    ]
    if total := s["fetch"]["total_bytes"]:
        fetched = f"{words.size(s['fetch']['bytes'])} of {words.size(total)}"
        figures.append(_pair("fetching", fetched, MARK))
    if worker["state"] == "backing_off":
        figures.append(_pair("worker", f"backing off: {worker['last_error']}", BAD))
    elif worker["state"] != "running":
        figures.append(_pair("worker", worker["state"], WARN))
    if s["snapshot"]["error"]:
        figures.append(_pair("snapshot", f"fails: {s['snapshot']['error']}", BAD))
    return figures


def _sent(s: Status) -> str:
    text, sent, rival = words.size(s["bytes_sent"]), s["bytes_sent"], s["bytes_allreduce"]
    if not rival:
        return text
    return f"{text}, all-reduce {words.size(rival)}" + (f" ({rival / sent:.2g} ×)" if sent else "")


def _sample_line(s: Status, width: int) -> list[Text]:
    """How the text of the newest weights begins, in one line; nothing of an older daemon, which writes none."""
    sample = s.get("sample")
    if sample is None:
        return []
    text = " ".join(printable(line) for line in sample["text"].splitlines()) or sample["why"]
    at = f"at {words.count(sample['tokens'])} tokens: " if sample["text"] else ""
    return [_pair("text", cut(at + text, width - len("text ")), tone="")]


def sample(s: Status, now: float) -> Text:
    """All of it: of which weights it is, when it was written, or why it was not."""
    of = s.get("sample")
    if of is None:
        return Text("the daemon is of a version that writes no texts", SOFT)
    told = []
    if of["text"]:
        way = "several nodes' stages" if of["through_swarm"] else f"snapshot {of['snapshot']}"
        told.append(f"{way}, at {words.count(of['tokens'])} tokens of the swarm")
        told.append(curve.moment(of["at"], now))
    told += ["the node writes …"] if of["writing"] else [of["why"]] * bool(of["why"])
    lines = [Text(printable(", ".join(told)), SOFT), Text("")]
    lines += [Text(printable(line)) for line in of["text"].splitlines()]
    return Text("\n").join(lines)


def exchanges(s: Status) -> Text:
    """Who exchanged weights with whom lately, in all of the swarm: a line each, the latest first."""
    found: dict[tuple[str, str], float] = {}
    for m in s["members"]:
        told = [(m["id"], p["id"], p["s_ago"]) for p in m.get("mixed_with", ())]
        own = m["mixed_s_ago"]
        told += [(s["node_id"], m["id"], own)] if own is not None and own < LATELY_S else []
        for one, other, ago in told:
            pair = (min(one, other), max(one, other))
            found[pair] = min(ago, found.get(pair, ago))
    if not found:
        return Text("none in the last five minutes", SOFT)
    latest = sorted(found.items(), key=lambda item: (item[1], item[0]))
    return Text("\n").join(
        Text.assemble(f"{one[:8]} with {other[:8]}  ", (f"{words.ago(ago)} ago", SOFT))
        for (one, other), ago in latest
    )


def _pair(name: str, value: str, tone: str = "bold") -> Text:
    return Text.assemble((f"{name} ", SOFT), (printable(value), tone))


def flowed(items: Iterable[Text], width: int) -> list[Text]:
    """On lines, with a gap between two; what fits is not broken."""
    lines: list[Text] = []
    for item in items:
        if lines and lines[-1].cell_len + GAP + item.cell_len <= width:
            lines[-1].append(" " * GAP).append_text(item)
        else:
            lines.append(item.copy())
    return lines


# ------------------------------------------------------------------------------------ members


@dataclass(frozen=True, slots=True)
class Order:
    """A column by which members can be sorted; those without a value come last."""

    column: str
    key: Callable[[Status], Any]
    descending: bool = False


STATE_RANK = {"suspect": 0, "dead": 1, "alive": 2, "left": 3}
"""What needs a look first."""

ORDERS = (
    Order("node", lambda m: m["id"]),
    Order("state", lambda m: (STATE_RANK.get(m["state"], 4), m["phase"])),
    Order("tok/s", lambda m: m["tokens_per_s"], descending=True),
    Order("loss", lambda m: m["loss"]),
    Order("val", lambda m: m["val_loss"]),
    Order("dist", lambda m: m["consensus_distance"], descending=True),
    Order("mixed", lambda m: m["mixed_s_ago"]),
    Order("tokens", lambda m: m["tokens"], descending=True),
)

COLUMNS = (
    "node",
    "address",
    "state",
    "phase",
    "tok/s",
    "loss",
    "val",
    "dist",
    "mixed",
    "tokens",
    "with",
)
NUMBERS = frozenset(("tok/s", "loss", "val", "dist", "mixed", "tokens"))
"""These stand at the right of their columns."""


@dataclass(frozen=True, slots=True)
class Row:
    """A member: its whole id, its cells by COLUMNS, the colour of its state."""

    key: str
    cells: tuple[str, ...]
    tone: str
    note: str
    """More of it, for one that was picked out."""


def rows(s: Status, order: Order, *, is_reversed: bool = False) -> list[Row]:
    known = [m for m in s["members"] if order.key(m) is not None]
    unknown = [m for m in s["members"] if order.key(m) is None]
    known.sort(key=lambda m: (order.key(m), m["id"]), reverse=order.descending != is_reversed)
    return [_row(m, s["node_id"]) for m in [*known, *unknown]]


def _row(m: Status, own_id: str) -> Row:
    address = printable(m["address"].removeprefix("tcp://"))
    ago = m["mixed_s_ago"]
    partners = [f"{p['id'][:8]} {words.ago(p['s_ago'])}" for p in m.get("mixed_with", ())]
    cells = (
        m["id"][:8] + ("*" if m["id"] == own_id else ""),
        cut(address, ADDRESS_MAX) or words.ABSENT,
        m["state"],
        printable(m["phase"]) or words.ABSENT,
        words.count(m["tokens_per_s"]) if m["tokens_per_s"] else words.ABSENT,
        words.loss(m["loss"]),
        words.loss(m["val_loss"]),
        words.share(m["consensus_distance"]),
        words.ABSENT if ago is None else words.ago(ago),
        words.count(m["tokens"]),
        partners[0] if partners else words.ABSENT,
    )
    ties = "this node" if m["id"] == own_id else "linked" if m["linked"] else "not linked"
    mixes = "mixes" if m["participating"] else "does not mix"
    if m["participating"] and partners:
        mixes += f" with {', '.join(partners)}"
    reason = printable(m.get("reason", ""))  # an older daemon gives none
    note = f"{m['id']}: {reason}" if reason else f"{m['id']}, {ties}, {mixes}"
    return Row(m["id"], cells, STATE_TONES.get(m["state"], ""), note)


def cut(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:
        text = text[:-1]
    return text + "…"


# ------------------------------------------------------------------------- curves and events


@dataclass(frozen=True, slots=True)
class Curve:
    """One of the curves: a field of the history's points."""

    title: str
    field: str
    form: Callable[[float], str]
    is_log: bool = False


CURVES = (
    Curve("Validation loss", "val_loss", words.loss),
    Curve("Training loss", "loss", words.loss),
    Curve("Consensus distance", "distance", words.share, is_log=True),
    Curve("Tokens/s of the swarm", "tokens_per_s", words.count),
    Curve("Members alive", "alive", words.count),
)


def curve_title(chosen: Curve, story: Story) -> str:
    values = [p[chosen.field] for p in story.points if p[chosen.field] is not None]
    return f"{chosen.title} {chosen.form(values[-1])}" if values else chosen.title


def curve_text(chosen: Curve, story: Story, width: int, height: int) -> Text:
    times = [p["at"] for p in story.points]
    values = [p[chosen.field] for p in story.points]
    lines = curve.plot(times, values, width, height, chosen.form, is_log=chosen.is_log)
    if not lines:
        room = len([v for v in values if v is not None]) >= 2
        return Text(
            printable(story.trouble) or ("no room for it" if room else "not measured yet"), SOFT
        )
    text = Text(no_wrap=True)
    for line in lines[:-1]:
        scale, edge, picture = line.partition("▏")
        text.append(scale + edge, SOFT).append(picture + "\n", MARK)
    return text.append(lines[-1], SOFT)


def events(story: Story, now: float) -> Text:
    """The latest first."""
    lines = [Text(printable(story.trouble), BAD)] if story.trouble else []
    for event in reversed(story.events):
        text = printable(event["text"].replace("tcp://", ""))
        when = curve.moment(event["at"], now)
        lines.append(Text.assemble((when, SOFT), " ", (text, EVENT_TONES.get(event["kind"], ""))))
    return Text("\n").join(lines) if lines else Text("nothing yet", SOFT)


def silence(trouble: str, for_s: float) -> Text:
    """That nobody answers, and what is shown meanwhile."""
    lines = [
        f"The daemon has not answered for {words.span(for_s)}. What is below is what it last said; "
        "top goes on asking.",
        *([trouble] if trouble else []),
    ]
    return Text("\n").join(Text(printable(line)) for line in lines)


def members_title(count: int, order: Order, picked: str, *, is_reversed: bool) -> str:
    """How many, in which order, and more of the picked one."""
    way = ", reversed" if is_reversed else ""
    return f"Members {count}, by {order.column}{way}" + (f" – {picked}" if picked else "")


HELP = """\
q         quit
Tab       next pane; Shift+Tab the one before
arrows    move in a pane; also Page Up, Page Down, Home, End
s         sort the members by the next column
r         sort them the other way round
c         show the next curve
x         who exchanges with whom in the swarm
t         the text that the newest weights write
?         show or close this

alive     answers
suspect   did not answer a probe, and may refute
dead      answers nobody
left      said goodbye

val       loss of the slow weights on text held out, in nats per token
loss      of the fast weights on what they train on
dist      how far weights are from their partners', to their norm
mixed     since this node last exchanged weights with that one
with      whom that one last exchanged with, and how long ago
          roughly; the picked one's last four above the table
*         this node

The time left follows from the swarm's present rate."""
