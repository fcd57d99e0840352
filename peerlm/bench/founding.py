"""Runs for figures, founded as a person would: by the real commands, in folders of their own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from peerlm.cli.demo_nodes import DemoNode, peerlm

Values = Mapping[str, object]
"""Dotted names of settings with their values."""

LOCAL: Values = {"network.host": "127.0.0.1", "network.port": 0, "limits.threads": 1}
"""What every node of a figure has in its node.toml."""


class Place(Protocol):
    """Where the nodes of a figure are."""

    def at(self, node: int) -> AbstractContextManager[None]:
        """What is started in here is on the machine of node 1, 2 and so on."""

    def local(self, node: int) -> Values:
        """What it has in its node.toml besides `LOCAL`."""

    def address(self, node: int) -> str:
        """Its machine's."""


class Loopback:
    """All on this machine."""

    def at(self, node: int) -> AbstractContextManager[None]:
        return nullcontext()

    def local(self, node: int) -> Values:
        return {}

    def address(self, node: int) -> str:
        return "127.0.0.1"


def options(flag: str, values: Values) -> list[str]:
    return [part for name, value in values.items() for part in (flag, f"{name}={value}")]


def found(node: DemoNode, plan: Values, local: Values, preset: str = "tiny") -> None:
    """`peerlm init` in the node's folder.

    Args:
        plan: changes to `preset`'s plan.
        local: its node.toml.
    """
    state = str(node.layout.root)
    settings = options("--set", plan) + options("--set-node", local)
    peerlm("init", "--state", state, "--preset", preset, *settings)


def invitation(node: DemoNode) -> tuple[str, str]:
    """(address, token) as `peerlm invite` prints them, of a node that listens."""
    words = peerlm("invite", "--state", str(node.layout.root)).split()
    return words[2], words[4]


def enrol(node: DemoNode, address: str, token: str, local: Values) -> None:
    """Make `node` a member of the run at `address`; its daemon does not stay."""
    state = ("--state", str(node.layout.root))
    settings = options("--set-node", local)
    peerlm("join", address, "--token", token, "--enrol-only", *settings, *state)
