"""Others who average weights, as parties of a comparison: where they are found, how they are started.

Their scripts are in peerlm/bench/rivals/ and run by an interpreter that has what they need: gloo comes
with this one's torch; hivemind is not installed with peerlm but in a `.venv-peers` beside the checkout, by
`make bench-peers`. Bytes are those that the method cannot do without, which flatters: gloo sends each
vector once; a group of n at hivemind sends each of n − 1 parts of each vector there and back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import peerlm
from peerlm.bench.child import Child, ask_all
from peerlm.bench.founding import Place
from peerlm.bench.rows import FP32_BYTES
from peerlm.errors import PeerlmError

SCRIPTS = Path(__file__).parent / "rivals"
PEERS = Path(peerlm.__file__).parent.parent / ".venv-peers"

LIMIT_S = 300.0
"""Longest time that a rival may take for a round, and to be ready."""

RIVALS = ("tcp", "gloo", "hivemind")


class Rival:
    """Processes of somebody else's as a party. `meets`: they look for each other before each round."""

    def __init__(self, name: str, children: Sequence[Child], round_bytes: int) -> None:
        self.name = name
        self.children = children
        self.meets = name == "hivemind"
        self._round_bytes = round_bytes
        self._rounds = 0

    def prepare(self) -> float:
        seconds = self._ask("prepare")
        return seconds if self.meets else 0.0

    def round(self) -> float:
        self._rounds += 1
        return self._ask("round")

    def counts(self) -> Mapping[str, int]:
        return {"wire_bytes": self._rounds * self._round_bytes}

    def _ask(self, command: str) -> float:
        answers = ask_all(self.children, command, limit_s=LIMIT_S)
        return float(max(a["ended"] for a in answers) - min(a["began"] for a in answers))


def interpreter_of(name: str) -> str:
    """The Python that has this rival. Raises `PeerlmError` when none does."""
    if name in ("tcp", "gloo"):
        return sys.executable
    python = PEERS / "bin" / "python"
    if not any(PEERS.glob(f"lib/python*/site-packages/{name}")):
        raise PeerlmError(f"--vs {name}: it is not installed here; `make bench-peers` installs it")
    return str(python)


@contextmanager
def rival(name: str, folder: Path, nodes: int, parameters: int, place: Place) -> Iterator[Rival]:
    """Its processes, ready. Raises `PeerlmError`."""
    folder.mkdir(parents=True, exist_ok=True)
    children: list[Child] = []
    try:
        if name == "tcp":
            round_bytes = _tcp(children, folder, parameters, place)
        else:
            start = {"gloo": _gloo, "hivemind": _hivemind}[name]
            round_bytes = start(children, interpreter_of(name), folder, nodes, parameters)
        yield Rival(name, children, round_bytes)
    finally:
        for child in children:
            child.close()


def _tcp(children: list[Child], folder: Path, parameters: int, place: Place) -> int:
    for rank in range(2):
        words = (str(rank), place.address(1), str(folder / "port"), str(parameters))
        children.append(_child("tcp", sys.executable, folder, rank, words, place))
    for child in children:
        child.hear(LIMIT_S)
    return 2 * FP32_BYTES * parameters


def _gloo(children: list[Child], python: str, folder: Path, nodes: int, parameters: int) -> int:
    for rank in range(nodes):
        words = (str(rank), str(nodes), str(folder / "meeting"), str(parameters))
        children.append(_child("gloo", python, folder, rank, words))
    for child in children:
        child.hear(LIMIT_S)
    return nodes // 2 * 2 * FP32_BYTES * parameters


def _hivemind(children: list[Child], python: str, folder: Path, nodes: int, parameters: int) -> int:
    addresses: list[str] = []
    for rank in range(nodes):
        words = (str(nodes), str(parameters), str(folder), *addresses)
        children.append(_child("hivemind", python, folder, rank, words))
        addresses = addresses or children[0].hear(LIMIT_S)["addresses"]
    for child in children[1:]:
        child.hear(LIMIT_S)
    return 2 * (nodes - 1) * FP32_BYTES * parameters


def _child(
    name: str,
    python: str,
    folder: Path,
    rank: int,
    words: Sequence[str],
    place: Place | None = None,
) -> Child:
    command = [python, "-P", str(SCRIPTS / f"{name}_pair.py"), *words]
    at = None if place is None else place.at(rank + 1)
    return Child(f"{name}, process {rank + 1}", command, folder / f"{name}-{rank + 1}.log", at)
