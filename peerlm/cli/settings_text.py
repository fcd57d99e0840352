"""node.toml as a person finds it: every field explained, in its default, ready to be changed.

Fields that nobody has set are written as comments, so the defaults of a later peerlm hold for them.
The text comes from the documentation of the fields in `peerlm.config`, as docs/settings.md does.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import click
import tomlkit
from tomlkit.items import Table

from peerlm.config import NodeSettings, Plan, read_toml, to_dict, with_changes
from peerlm.daemon.writers import require_packages
from peerlm.errors import ConfigError, StateError
from peerlm.store import disk
from peerlm.store.layout import Layout
from peerlm.types import HOST_LETTERS

NODE_TOML_BYTES_MAX = 1 << 20

HEADER = """\
This machine's own settings. They never leave it, and the other nodes need not know them.
A line that is commented out shows the default; take away the # to change it.
They are read when the daemon starts: `peerlm stop`, then `peerlm up`.\
"""


def parse_changes(pairs: Sequence[str], option: str) -> dict[str, str]:
    """`["mix.inner_steps=50"]` as a dict. Raises `click.BadParameter`."""
    changes = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or "." not in name:
            raise click.BadParameter(
                f"{pair!r}: give section.field=value, such as mix.inner_steps=50",
                param_hint=f"'{option}'",
            )
        changes[name.strip()] = value.strip()
    return changes


def _host_alone(ctx: click.Context, parameter: click.Parameter, host: str | None) -> dict[str, str]:
    if host is None:
        return {}
    name = host.strip("[]")
    if not name or not HOST_LETTERS.issuperset(name) or name.count(":") == 1:
        raise click.BadParameter(
            f"{host!r}: give a host without a port, such as ada.example.org; the ports are the node's own"
        )
    return {"network.advertise": name}


host_option = click.option(
    "--host",
    "hosted",
    metavar="STAGES",
    callback=lambda _context, _parameter, value: {} if value is None else {"host.stages": value},
    help="Stages of the model that this node holds: all, one (0), a run (1-2), auto, or none.  [default: all]",
)
"""→ changes of node.toml."""

advertise_option = click.option(
    "--advertise",
    "advertised",
    metavar="HOST",
    callback=_host_alone,
    help="Address or name at which others can dial this node: of a router, say, that passes its three ports "
    "on.  [default: network.advertise of node.toml, else found out]",
)
"""Gives a command `advertised`, changes of node.toml."""


def node_settings(changes: Mapping[str, str], where: str) -> NodeSettings:
    """The defaults with some fields changed. Raises `ConfigError`, also where a package is missing that a
    field needs."""
    settings = with_changes(NodeSettings(), changes, where)
    require_packages(settings)
    return settings


def read_node_settings(layout: Layout) -> NodeSettings:
    """node.toml of this folder, or the defaults. Raises `ConfigError`, `StateError`."""
    path = layout.node_settings
    if not path.exists():
        return NodeSettings()
    text = disk.read_file(path, NODE_TOML_BYTES_MAX)
    try:
        return read_toml(NodeSettings, text.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None


def change_node_settings(layout: Layout, changes: Mapping[str, str], option: str) -> None:
    """Write node.toml where there is none; set fields in the one there is, leaving the rest as it is.

    Raises:
        ConfigError: no such field, a value that is not allowed, or a package missing that it needs.
        StateError: the folder cannot be written.
    """
    settings = with_changes(read_node_settings(layout), changes, option)
    require_packages(settings)
    if not layout.node_settings.exists():
        text = render_node_settings(settings, frozenset(changes))
    elif changes:
        text = _edited(disk.read_file(layout.node_settings, NODE_TOML_BYTES_MAX), settings, changes)
    else:
        return
    if read_toml(NodeSettings, text, option) != settings:
        raise StateError(f"{layout.node_settings}: cannot be changed by {option}; edit it")
    disk.write_atomic(layout.node_settings, text.encode())


def enter_with(layout: Layout, plan: Plan, changes: Mapping[str, str]) -> None:
    """`change_node_settings` of a node that is about to enter a run of that plan: nothing is changed where the run's
    model has no such stages as it is to hold. Raises as that does."""
    from peerlm.model.stages import held_stages

    settings = with_changes(read_node_settings(layout), changes, "--set-node")
    where = "--host" if "host.stages" in changes else f"{layout.node_settings}: host.stages"
    held_stages(settings.host.stages, plan, where)
    change_node_settings(layout, changes, "--set-node")


def render_node_settings(settings: NodeSettings, chosen: frozenset[str]) -> str:
    """The commented file. `chosen`: dotted names of the fields that are not to be comments."""
    document = tomlkit.document()
    for line in HEADER.splitlines():
        document.add(tomlkit.comment(line))
    values = to_dict(settings)
    for section in dataclasses.fields(settings):
        table = tomlkit.table()
        for field in dataclasses.fields(getattr(settings, section.name)):
            value = values[section.name][field.name]
            _add_field(table, field, value, f"{section.name}.{field.name}" in chosen)
        document.add(tomlkit.nl())
        document.add(section.name, table)
    return tomlkit.dumps(document)


def _add_field(table: Table, field: dataclasses.Field[Any], value: Any, is_chosen: bool) -> None:
    table.add(tomlkit.nl())
    for line in textwrap.wrap(explanation(field), 96):
        table.add(tomlkit.comment(line))
    if is_chosen:
        table.add(field.name, value)
    else:
        table.add(tomlkit.comment(f"{field.name} = {toml_value(value)}"))


def _edited(text: bytes, settings: NodeSettings, changes: Mapping[str, str]) -> str:
    document, values = tomlkit.parse(text), to_dict(settings)
    for dotted in changes:
        section, _, name = dotted.partition(".")
        table = document.setdefault(section, tomlkit.table())
        table[name] = values[section][name]
    return tomlkit.dumps(document)


def explanation(field: dataclasses.Field[Any]) -> str:
    """What a field means, its unit and what it may be, in a line."""
    unit, allowed = field.metadata["unit"], field.metadata["allowed"]
    limits = ", ".join(part for part in (f"in {unit}" if unit else "", allowed) if part)
    return f"{field.metadata['doc']}{f' [{limits}]' if limits else ''}"


def toml_value(value: Any) -> str:
    """A value as TOML spells it."""
    return str(tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string())
