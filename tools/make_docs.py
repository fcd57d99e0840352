"""Fill in the parts of docs/*.md that follow from the code, so that they cannot drift from it.

    python tools/make_docs.py            rewrite the pages
    python tools/make_docs.py --check    exit 1, naming the pages, if any is not up to date

A page marks such a part with a pair of comments, and everything between them is made here:

    <!-- made: settings of node.toml -->
    …
    <!-- end -->

Each part is a function of what the code says about itself: documented fields, message classes, constants,
the command tree. What surrounds the parts is written by people.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import click

from peerlm import config
from peerlm.cli.main import cli
from peerlm.cli.settings_text import toml_value
from peerlm.config import NodeSettings, Plan
from peerlm.membership import profile
from peerlm.node.company import fixed_differences
from peerlm.observe.curves import CURVES
from peerlm.observe.metrics import METRICS
from peerlm.serve.metrics import Metrics
from peerlm.wire import frame, message, rumor, store_talk
from peerlm.wire.bounds import Exactly, Least, Most
from peerlm.wire.message import Message, Struct

DOCS = Path(__file__).parent.parent / "docs"

PART = re.compile(r"(<!-- made: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The text of a page with every marked part made anew. Raises `KeyError` for an unknown part."""

    def made(found: re.Match[str]) -> str:
        lines = "\n".join(PARTS[found["name"]]())
        return f"{found[1]}\n{lines}\n\n{found[3]}"

    return PART.sub(made, page)


# ------------------------------------------------------------------------------------- settings


def plan_settings() -> Iterator[str]:
    yield from _settings(
        Plan, ("field", "default", "unit", "allowed", "in a living run", "meaning")
    )


def node_settings() -> Iterator[str]:
    yield from _settings(NodeSettings, ("field", "default", "unit", "allowed", "meaning"))


def _settings(kind: type[Plan] | type[NodeSettings], columns: tuple[str, ...]) -> Iterator[str]:
    defaults = kind()
    for number, section in enumerate(dataclasses.fields(kind)):
        values = getattr(defaults, section.name)
        yield ("\n" if number else "") + f"### [{section.name}]\n"
        yield from _table_head(columns)
        for field in dataclasses.fields(values):
            meta = field.metadata
            cells = {
                "field": f"`{field.name}`",
                "default": f"`{toml_value(getattr(values, field.name))}`",
                "unit": meta["unit"],
                "allowed": meta["allowed"] or _allowed_by_type(getattr(values, field.name)),
                "meaning": meta["doc"],
            }
            if isinstance(defaults, Plan):
                fixed = is_fixed(section.name, field.name)
                cells["in a living run"] = "fixed" if fixed else "can change"
            yield _row(cells[column] for column in columns)


def is_fixed(section: str, name: str) -> bool:
    """Whether nodes refuse a revision of the plan that changes this field."""
    ours = Plan()
    other = dataclasses.replace(getattr(ours, section), **{name: object()})
    return bool(fixed_differences(ours, dataclasses.replace(ours, **{section: other})))


def _allowed_by_type(default: object) -> str:
    return "true, false" if isinstance(default, bool) else ""


def presets() -> Iterator[str]:
    yield from _table_head(("preset", "parameters", "tokens", "what differs from the defaults"))
    from peerlm.model.plan import parameter_count

    for name, changes in config.PRESETS.items():
        plan = config.preset(name)
        parameters = parameter_count(plan.model, plan.data.vocab)
        differing = ", ".join(f"`{field}` {_short(value)}" for field, value in changes.items())
        yield _row(
            (
                f"`{name}`",
                f"{parameters / 1e6:,.2f} M",
                f"{plan.run.token_budget / 1e6:,.0f} M",
                differing or "nothing",
            )
        )


def _short(value: Any) -> str:
    """A default as it fits a cell; a long list of blocks as what repeats in it."""
    if isinstance(value, tuple):
        unit = next(
            value[:n] for n in range(1, len(value) + 1) if value == value[:n] * (len(value) // n)
        )
        return f"{len(value) // len(unit)} × ({', '.join(unit)})"
    return f"{value:_}" if isinstance(value, int) else toml_value(value)


# ------------------------------------------------------------------------------------- messages


CATALOGUE = (message, rumor, store_talk)
"""The modules of the message catalogue, in the order of the page."""


def messages() -> Iterator[str]:
    """A table for each part of the catalogue, in its order."""
    notes = {
        key: note
        for part in CATALOGUE
        for key, note in _notes_below_fields(inspect.getsource(part)).items()
    }
    part = ""
    for heading, kind in _catalogue():
        if heading != part:
            yield ("\n" if part else "") + f"### {heading[0].upper()}{heading[1:]}\n"
            yield from _table_head(("no.", "name", "fields", "meaning"))
            part = heading
        name = f"**{kind.__name__}**" if issubclass(kind, Message) else f"{kind.__name__} (part)"
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = "<br>".join(
            f"`{f.name}` {_type_text(hints[f.name])}{_note(notes.get((kind.__name__, f.name)))}"
            for f in dataclasses.fields(kind)
        )
        yield _row((str(kind.code), name, fields or "none", _one_line(_doc(kind))))


def _catalogue() -> Iterator[tuple[str, type[Struct]]]:
    """(heading of its part of the file, class), in the order of the files."""
    heading = ""
    for line in (line for part in CATALOGUE for line in inspect.getsource(part).splitlines()):
        if title := re.fullmatch(r"# -{5,} (.+)", line):
            heading = title[1]
        elif name := re.match(r"class (\w+)\(", line):
            kind = getattr(message, name[1])
            if kind.code:
                yield heading, kind


def _notes_below_fields(source: str) -> dict[tuple[str, str], str]:
    """The string below a field, by (class, field)."""
    notes = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for above, below in zip(node.body, node.body[1:], strict=False):
            match above, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=field))
                    | ast.Assign(targets=[ast.Name(id=field)]),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ):
                    notes[node.name, field] = _one_line(text)
    return notes


def _doc(kind: type[Struct]) -> str:
    doc = kind.__doc__ or ""
    assert not doc.startswith(f"{kind.__name__}("), f"{kind.__name__} has no docstring"
    return doc


def _note(text: str | None) -> str:
    return f": {text.rstrip('.')}" if text else ""


def _type_text(hint: Any) -> str:
    """A field's type with its bounds, as people say it."""
    bounds: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        bounds += more
    if get_origin(hint) is tuple:
        return f"list{_bound_text(bounds)} of {_plural(get_args(hint)[0])}"
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [k for k in get_args(hint) if k is not type(None)]
        absent = " or nothing" if len(kinds) < len(get_args(hint)) else ""
        return " or ".join(_type_text(k) for k in kinds) + absent
    if hint is bytes and len(bounds) == 1 and isinstance(bounds[0], Exactly):
        return f"{bounds[0].length} bytes"
    unit = {str: " characters"}.get(hint, "")
    name = {bytes: "bytes", str: "text", int: "integer", float: "number", bool: "yes or no"}
    return name.get(hint, getattr(hint, "__name__", str(hint))) + _bound_text(bounds, unit)


def _plural(hint: Any) -> str:
    """Of what a list is made."""
    return "rumors" if hint == message.Rumor else _type_text(hint)


def _bound_text(bounds: list[Any], unit: str = "") -> str:
    texts = []
    for bound in bounds:
        match bound:
            case Exactly(length=length):
                texts.append(f"exactly {length}{unit}")
            case Most(value=value):
                texts.append(f"≤ {_power(value)}{unit}")
            case Least(value=value):
                texts.append(f"≥ {value:g}{unit}")
    return f" ({', '.join(texts)})" if texts else ""


def _power(value: float) -> str:
    if isinstance(value, int) and value >= 1 << 20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def profiles() -> Iterator[str]:
    notes = _notes_below_fields(inspect.getsource(profile))
    yield from _table_head(("timer or bound", "lan", "wan", "test", "meaning"))
    for field in dataclasses.fields(profile.Profile):
        values = (getattr(p, field.name) for p in profile.PROFILES.values())
        texts = (f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}" for value in values)
        yield _row((f"`{field.name}`", *texts, notes["Profile", field.name]))


def bulk_frames() -> Iterator[str]:
    notes = _notes_below_fields(inspect.getsource(frame))
    yield from _table_head(("no.", "kind", "meaning"))
    for kind in frame.Kind:
        yield _row((str(kind.value), f"**{kind.name}**", notes["Kind", kind.name]))


# -------------------------------------------------------------------------------------- figures


def _figures(*rows: tuple[str, str, str, str]) -> Callable[[], Iterator[str]]:
    """A table of constants: (what it is, unit, module, name). The value is the code's."""

    def table() -> Iterator[str]:
        yield from _table_head(("what", "value", "where"))
        for what, unit, module, name in rows:
            value = _value(module, name)
            yield _row((what, f"{value} {unit}".strip(), f"`{module}.{name}`"))

    return table


def _value(module: str, name: str) -> str:
    owner: Any = importlib.import_module(f"peerlm.{module}")
    for part in name.split("."):
        owner = getattr(owner, part)
    if isinstance(owner, tuple):
        return " to ".join(map(_number, owner))
    return _number(owner)


def _number(value: float) -> str:
    if isinstance(value, int) and value >= 1 << 14 and value % 1024 == 0:
        for shift, unit in ((30, "Gi"), (20, "Mi"), (10, "Ki")):
            if value % (1 << shift) == 0:
                return f"{value >> shift} {unit}"
    if value >= 1e9:
        return f"{value:.0e}".replace("e+", "e")
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


mixing_figures = _figures(
    ("partners asked for one exchange", "", "mix.exchange", "TRIES"),
    ("wait for an answer to a request", "s", "mix.exchange", "ASK_TIMEOUT_S"),
    ("longest silence of a transfer", "s", "mix.terms", "PROGRESS_TIMEOUT_S"),
    ("slowest link an exchange is finished on", "bytes/s", "mix.terms", "FLOOR_BYTES_S"),
    ("pause before the only partner is asked again", "s × tries", "mix.exchange", "RETRY_PAUSE_S"),
    ("how long an answered transfer is remembered", "s", "mix.exchange", "REPLY_MEMORY_S"),
    ("elements that share a scale (int8, int4)", "", "mix.vector", "BLOCK"),
    ("norm ratio beyond which weights are refused", "", "mix.robust", "NORM_RATIO_MAX"),
    ("rms per element below which a fragment counts as this large", "", "mix.robust", "SMALL_RMS"),
    ("τ before there is a history, as a share of the norm of φ", "", "mix.robust", "FIRST_CLIP"),
    ("differences needed before the median counts", "", "mix.robust", "HISTORY_MIN"),
    ("differences in the median", "", "mix.robust", "HISTORY"),
    ("distinct partners clipped in a row that double τ", "", "mix.robust", "DISTINCT_CLIPPED"),
    ("norm ratio beyond which the sender is excluded", "", "mix.robust", "ABSURD_RATIO"),
    ("τ a difference must exceed to speak against its sender", "", "mix.robust", "STRANGE"),
    ("such differences in a row that make a stranger", "", "mix.robust", "STRANGE_TIMES"),
    ("share of partners beyond which nobody is a stranger", "", "mix.robust", "STRANGERS_SHARE"),
    ("first exclusion after a gate held", "s", "mix.robust", "EXCLUSION_S"),
    ("longest exclusion", "s", "mix.robust", "EXCLUSION_MAX_S"),
    ("time that takes one refusal off the count", "s", "mix.robust", "FORGIVENESS_S"),
    ("requests for one fragment a peer may make", "per s", "mix.robust", "REQUESTS_PER_S"),
    ("outer steps over which a newcomer's weight ramps", "", "mix.algorithms", "RAMP_STEPS"),
    ("numbers in a sketch", "", "mix.sketch", "SKETCH_SIZE"),
    (
        "sketches further apart than this disagree",
        "relative",
        "node.acquire",
        "SKETCH_DISTANCE_MAX",
    ),
    ("the same for finished weights", "relative", "node.acquire", "FINAL_DISTANCE_MAX"),
    ("donors whose sketches are compared", "", "node.acquire", "DONORS_COMPARED"),
    ("outer steps of the swarm a snapshot may lag", "", "node.lifecycle", "BEHIND_STEPS"),
    ("wait for others before settling alone", "s", "node.settling", "ALONE_S"),
    ("wait for others before going on from one's own snapshot", "s", "node.lifecycle", "GRACE_S"),
    ("the same for an origin without one", "s", "node.lifecycle", "FRESH_GRACE_S"),
)

protocol_figures = _figures(
    ("protocol version", "", "wire.versions", "PROTOCOL_VERSION"),
    ("oldest version spoken", "", "wire.versions", "OLDEST_VERSION"),
    ("introduction frame", "bytes", "wire.codec", "INTRODUCTION_BYTES_MAX"),
    ("control frame", "bytes", "wire.codec", "FRAME_BYTES_MAX"),
    ("longest list in a message", "", "wire.codec", "ARRAY_LEN_MAX"),
    ("links in a certificate chain", "", "identity.chain", "LINKS_MAX"),
    ("a link of a chain", "bytes", "identity.chain", "LINK_BYTES_MAX"),
    ("a signed plan", "bytes", "identity.root", "PLAN_BYTES_MAX"),
    ("a revocation", "bytes", "identity.revocation", "REVOCATION_BYTES_MAX"),
    ("chunk of an object", "bytes", "wire.frame", "CHUNK_BYTES"),
    ("chunk of an exchange", "elements", "mix.chunks", "CHUNK"),
    ("body of a frame", "bytes", "wire.frame", "BODY_BYTES_MAX"),
    ("connections for one transfer", "", "wire.frame", "ATTEMPTS_MAX"),
    ("transfers under way at once", "", "daemon.mover", "TRANSFERS_MAX"),
    ("memory they hold together", "bytes", "daemon.mover", "HELD_BYTES_MAX"),
    ("bulk connections that have yet to prove their key", "", "daemon.callers", "CALLERS_MAX"),
    ("time they have", "s", "daemon.callers", "CALLER_S"),
    ("bulk connections kept for another transfer", "", "daemon.kept", "KEPT_MAX"),
    ("time they are kept by who dialled", "s", "daemon.kept", "DIALLED_S"),
    ("time they are kept by who was dialled", "s", "daemon.kept", "CALLED_S"),
    ("introductions open at once", "", "daemon.introduction", "GUESTS_MAX"),
    ("life of an introduction", "s", "daemon.introduction", "GUEST_LIVES_S"),
    ("hellos from one address", "per s", "daemon.introduction", "HELLOS_PER_S"),
    ("the same in one burst", "", "daemon.introduction", "HELLOS_BURST"),
    ("hellos from all addresses", "per s", "daemon.introduction", "ALL_HELLOS_PER_S"),
    ("the same in one burst", "", "daemon.introduction", "ALL_HELLOS_BURST"),
    ("time for one's own introduction elsewhere", "s", "daemon.introduction", "DIAL_TIMEOUT_S"),
    ("handshake of an encrypted connection", "ms", "daemon.sockets", "HANDSHAKE_TIMEOUT_MS"),
    ("messages queued to one peer", "", "daemon.dealer", "QUEUE_MESSAGES"),
    ("inbound connections remembered of one peer", "", "daemon.link", "ROUTES_MAX"),
    ("members seated by the gate", "", "identity.gate", "PEERS_MAX"),
    ("members listed", "", "membership.profile", "LAN.members_max"),
    ("members up to which everybody links with everybody", "", "node.contacts", "MESH_MAX"),
    ("links a node keeps in a larger swarm", "", "node.contacts", "NEIGHBOURS"),
    ("entries of the token count", "", "swarm.vitals", "ENTRIES_MAX"),
    ("objects served at once", "", "node.snapshots", "PULLS_MAX"),
)


# ------------------------------------------------------------------------------------- commands


def commands() -> Iterator[str]:
    yield from _table_head(("command", "what it does"))
    for name, command in command_tree():
        if not isinstance(command, click.Group):
            yield _row((f"`peerlm {name}`", command.get_short_help_str(200)))


def command_tree() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name ("plan set"), groups included, in the order of help."""
    yield from _commands_of(cli, ())


def _commands_of(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        if command.hidden:
            continue
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from _commands_of(command, (*path, name))


# -------------------------------------------------------------------------------------- tables


def _table_head(columns: tuple[str, ...]) -> Iterator[str]:
    yield _row(columns)
    yield "|" + "---|" * len(columns)


def _row(cells: Any) -> str:
    return "| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def metrics() -> Iterator[str]:
    """A node's metrics with their kind and meaning."""
    yield from ("| metric | kind | meaning |", "|---|---|---|")
    for figure in METRICS:
        name = figure.name + ("_total" if figure.kind == "counter" else "")
        label = f", by `{figure.label}`" if figure.label else ""
        yield f"| `{name}`{label} | {figure.kind} | {figure.help} |"


def serving_metrics() -> Iterator[str]:
    yield from _table_head(("metric", "kind", "meaning"))
    for name, label, kind, meaning in Metrics().described():
        yield _row((f"`{name}`" + (f", by `{label}`" if label else ""), kind, meaning))


def curves() -> Iterator[str]:
    """What other tools get."""
    yield from _table_head(("name", "unit", "meaning"))
    for curve in CURVES:
        yield _row((f"`{curve.name}`", curve.unit, curve.help))


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "settings of plan.toml": plan_settings,
    "settings of node.toml": node_settings,
    "presets": presets,
    "messages": messages,
    "bulk frames": bulk_frames,
    "profiles": profiles,
    "figures of mixing": mixing_figures,
    "figures of the protocol": protocol_figures,
    "commands": commands,
    "metrics": metrics,
    "metrics of serving": serving_metrics,
    "curves": curves,
}


def main(arguments: list[str]) -> int:
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text()
        made = filled(page)
        if made != page:
            stale.append(path.name)
            if "--check" not in arguments:
                path.write_text(made)
    if stale:
        sys.stdout.write(f"not up to date: {', '.join(stale)}\n")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
