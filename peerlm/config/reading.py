"""Settings from tables, text and changes, strictly; whatever is wrong is a `ConfigError` of one line."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from peerlm.config import mixture
from peerlm.config.node import NodeSettings
from peerlm.config.plan import ADDED, PRESETS, Plan
from peerlm.errors import ConfigError

T = TypeVar("T")

_HINTS: dict[type[Any], Mapping[str, Any]] = {}

INT_MAX = 2**62
"""Every whole number fits a signed plan and a message."""

DOTS_MAX = 64
"""In one line of a settings file; ours have two. A key of n parts costs `tomllib` n² memory."""

LISTS: dict[Any, str] = {
    tuple[str, ...]: "list of strings",
    tuple[int, ...]: "list of whole numbers",
}

SHOWN_CHARS_MAX = 120
"""Of a wrong value, in the line that complains of it."""


def to_dict(settings: Plan | NodeSettings) -> dict[str, dict[str, Any]]:
    """Sections of plain values, in the order they are declared."""
    return {
        section.name: {
            f.name: getattr(getattr(settings, section.name), f.name)
            for f in fields(getattr(settings, section.name))
        }
        for section in fields(settings)
    }


def told(plan: Plan) -> dict[str, dict[str, Any]]:
    """As `to_dict`, for others: fields that earlier releases do not know are there only where they say something, so that
    those can read any other plan."""
    return {
        section: {
            name: value
            for name, value in values.items()
            if value or name not in ADDED.get(section, ())
        }
        for section, values in to_dict(plan).items()
    }


def from_dict(kind: type[T], raw: Mapping[str, Any], where: str) -> T:
    """Build and check a `Plan` or `NodeSettings`. `where` names the source in errors.

    Raises:
        ConfigError: unknown section or field, wrong type, value out of range.
    """
    hints = _hints(kind)
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: must be a table of sections, not {_shown(raw)}")
    unknown = sorted(str(name) for name in raw if name not in hints)
    if unknown:
        raise ConfigError(
            f"{where}: unknown section [{_cut(unknown[0])}]; sections are {', '.join(hints)}"
        )
    settings = kind(
        **{name: _section(hints[name], raw.get(name, {}), where, name) for name in hints}
    )
    if isinstance(settings, Plan):
        _check_plan(settings, where)
    return settings


def read_toml(kind: type[T], text: str, where: str) -> T:
    """Parse and check a settings file. Raises `ConfigError` with the line of a syntax error."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > DOTS_MAX and not line.lstrip().startswith("#"):
            raise ConfigError(f"{where}: line {number} has more than {DOTS_MAX} dots")
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is no TOML error
        raise ConfigError(f"{where}: not valid TOML: {_cut(str(error))}") from None
    return from_dict(kind, raw, where)


def with_changes(settings: T, changes: Mapping[str, Any], where: str) -> T:
    """A copy with dotted fields changed (`{"mix.inner_steps": 50}`); text is parsed by field type."""
    raw = to_dict(settings)  # type: ignore[arg-type]
    for dotted, value in changes.items():
        section, _, name = dotted.partition(".")
        if section not in raw or name not in raw[section]:
            raise ConfigError(f"{where}: no field {_shown(dotted)}; see `peerlm plan show`")
        kind = _hints(_hints(type(settings))[section])[name]
        raw[section][name] = (
            _parse(kind, value, f"{where}: {dotted}") if isinstance(value, str) else value
        )
    return from_dict(type(settings), raw, where)


def preset(name: str) -> Plan:
    """The named starting plan. Raises `ConfigError` naming the presets there are."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; presets are {', '.join(PRESETS)}")
    return with_changes(Plan(), PRESETS[name], f"preset {name}")


def differences(ours: Plan, theirs: Plan) -> list[str]:
    """One line for each field in which two plans differ: `mix.inner_steps: 20 here, 50 there`."""
    a, b = to_dict(ours), to_dict(theirs)
    return [
        f"{section}.{name}: {a[section][name]!r} here, {b[section][name]!r} there"
        for section in a
        for name in a[section]
        if a[section][name] != b[section][name]
    ]


def _hints(kind: type[Any]) -> Mapping[str, Any]:
    """Types of the fields; worked out once, since a simulation reads the settings of many nodes."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _section(kind: type[Any], raw: Any, where: str, section: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: [{section}] must be a table, not {_shown(raw)}")
    hints = _hints(kind)
    values = {}
    for name, value in raw.items():
        if name not in hints:
            raise ConfigError(
                f"{where}: unknown field {section}.{_cut(str(name))}; "
                f"[{section}] has {', '.join(hints)}"
            )
        values[name] = _typed(hints[name], value, f"{where}: {section}.{name}")
    built = kind(**values)
    for f in fields(built):
        ok, value = f.metadata["ok"], getattr(built, f.name)
        if ok is not None and not ok(value):
            raise ConfigError(
                f"{where}: {section}.{f.name} = {_shown(value)}: must be {f.metadata['allowed']}"
            )
    return built


def _typed(kind: Any, value: Any, where: str) -> Any:
    if kind in (int, float) and type(value) is int and abs(value) >= INT_MAX:
        raise ConfigError(f"{where} = {_shown(value)}: must be below 2^62")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if (
        kind == tuple[str, ...]
        and isinstance(value, list | tuple)
        and all(isinstance(v, str) for v in value)
    ):
        return tuple(value)
    if (
        kind == tuple[int, ...]
        and isinstance(value, list | tuple)
        and all(type(v) is int and abs(v) < INT_MAX for v in value)
    ):
        return tuple(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} = {value!r}: must be finite")
    if kind in (int, float, str, bool) and type(value) is kind:
        return value
    name = LISTS.get(kind) or kind.__name__
    raise ConfigError(f"{where} = {_shown(value)}: must be {name}")


def _parse(kind: Any, text: str, where: str) -> Any:
    if kind is str:
        return text
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.strip("[]").split(",") if part.strip())
    if kind == tuple[int, ...]:
        parts = [part.strip() for part in text.strip("[]").split(",") if part.strip()]
        if not all(part.replace("_", "").isdecimal() for part in parts):
            raise ConfigError(f"{where} = {_shown(text)}: must be {LISTS[kind]}")
        return tuple(map(int, parts))
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return kind(text.replace("_", "")) if kind in (int, float) else _typed(kind, text, where)
    except ValueError:
        raise ConfigError(f"{where} = {_shown(text)}: must be {kind.__name__}") from None


def _shown(value: Any) -> str:
    """A wrong value for a person's eyes: one line, and not all of it when it is long."""
    try:
        return _cut(repr(value))
    except (ValueError, RecursionError):  # an int of thousands of digits, lists in lists in lists
        return f"a {type(value).__name__} too large to show"


def _cut(text: str) -> str:
    """On one line, of a bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS_MAX else line[:SHOWN_CHARS_MAX] + "…"


def _check_plan(plan: Plan, where: str) -> None:
    """Rules that span fields."""
    data = plan.data
    mixture.check_parts(data.source, len(data.shards), data.parts, where)
    m, t, alpha, gamma = plan.model, plan.train, plan.mix.outer_momentum, plan.mix.gamma
    if m.dim % m.heads:
        raise ConfigError(
            f"{where}: model.dim = {m.dim} is not a multiple of model.heads = {m.heads}"
        )
    if m.heads % m.kv_heads:
        raise ConfigError(
            f"{where}: model.heads = {m.heads} is not a multiple of model.kv_heads = {m.kv_heads}"
        )
    if (m.dim // m.heads) % 2:
        raise ConfigError(
            f"{where}: model.dim / model.heads = {m.dim // m.heads} must be even for rotary positions"
        )
    if m.stages > len(m.blocks):
        raise ConfigError(
            f"{where}: model.stages = {m.stages}: model.blocks has {len(m.blocks)}, and each stage "
            "takes one at least"
        )
    if plan.mix.algorithm == "noloco" and gamma >= 2 * (1 - alpha**2):
        raise ConfigError(
            f"{where}: mix.gamma = {gamma} makes noloco diverge with mix.outer_momentum = {alpha}: "
            f"must be below 2(1 - {alpha}²) = {2 * (1 - alpha**2):.3g}"
        )
    if plan.mix.inner_steps_min > plan.mix.inner_steps_max:
        raise ConfigError(
            f"{where}: mix.inner_steps_min = {plan.mix.inner_steps_min} is above "
            f"mix.inner_steps_max = {plan.mix.inner_steps_max}"
        )
    data = plan.data
    if data.shard_tokens and len(data.shard_tokens) != len(data.shards):
        raise ConfigError(
            f"{where}: data.shard_tokens has {len(data.shard_tokens)} entries, data.shards has "
            f"{len(data.shards)}"
        )
    if t.batch % t.accumulate:
        raise ConfigError(
            f"{where}: train.batch = {t.batch} is not a multiple of train.accumulate = {t.accumulate}"
        )
