"""Two nodes of four killed at once while the store takes something in: is anything lost?

Three replicas. Files are added at one node after another, and checkpoints made; while that is under
way two nodes, drawn at random, get SIGKILL at the same moment, and come back. The moment is drawn from the time that the same
took undisturbed, and whether the command was still at it when both were dead is looked at then. What it refused is said again
after the restart, as a person would; if a node lists the name all the same, it is read before. Promised: every name that any node lists reads back bit by bit at some other node, and what was
acknowledged is listed and has its three replicas again; and some of both kinds was, or nothing is shown. Each
chunk is held beside its hash, and a file beside what was added; of a checkpoint nobody has more than the hashes.

    python -m bench.store_kills
    python -m bench.store_kills --rounds 20
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from bench import report
from bench.report import Missed, Row, say
from bench.store_nodes import (
    LOCAL,
    PLAN,
    POLL_S,
    REPAIRED_S,
    REPLICAS,
    SMALL,
    SOON_DEAD,
    Stores,
    begun,
    replicas,
)
from bench.store_nodes import desk_of as _desk
from peerlm.bench.nodes import running
from peerlm.cli.demo_nodes import DemoNode
from peerlm.errors import PeerlmError, StateError
from peerlm.types import ObjectHash

FILE, KEPT = "file", "kept"
"""Kinds of what is put in: a file, a checkpoint."""

ROUND_S = 1000.0
"""The longest that a command may take: by then a checkpoint of which nothing comes is given up, and so is waiting for copies."""


class Kills:
    """Rounds of adding, killing and looking what is left."""

    def __init__(self, swarm: Stores, folder: Path, seed: int) -> None:
        self._swarm, self._folder, self._rng = swarm, folder, random.Random(seed)
        self.begun: dict[str, ObjectHash | None] = {}
        """Name → the hash of its bytes; None: a checkpoint, whose chunks are held beside their hashes."""
        self.acknowledged: set[str] = set()
        self.under_way, self.survived = Counter[str](), Counter[str]()
        """Of each kind, commands that were at it when both nodes were dead; and such as were acknowledged all the same."""
        self.killed = self.refused = self.done_again = self.listed = 0
        self.listed_refused = self.lost_refused = 0
        """Names that were listed though the command was refused, before it was said again; and such of them as did not read back."""
        self.repairs_s: list[float] = []

    def play(self, rounds: int, size: int) -> None:
        usual_s = {kind: self._undisturbed(kind, size) for kind in (FILE, KEPT)}
        for number in range(rounds):
            kind = KEPT if number % 3 == 2 else FILE
            name, words = self._wanted(kind, f"{kind}-{number}", size)
            work, delay_s = begun(words), self._rng.uniform(0.0, usual_s[kind])
            time.sleep(delay_s)  # the moment is what is drawn
            victims = self._rng.sample(self._swarm.nodes, 2)
            is_under_way = self._kill(victims, work)
            is_refused = bool(_ended(name, work))
            for node in victims:
                self._swarm.start_again(node)
            self._swarm.wait("all are up", lambda: all(n.status for n in self._swarm.nodes))
            self.under_way[kind] += is_under_way
            self.survived[kind] += is_under_way and not is_refused
            if is_refused:
                self._say_again(name, words)
            else:
                self.acknowledged.add(name)
            self.repairs_s.append(self._repaired())
            say(
                f"round {number + 1}: {kind}, killed {', '.join(n.name for n in victims)} after {delay_s:.2f} s, "
                f"{'under way' if is_under_way else 'ended before'}, {'not acknowledged' if is_refused else 'acknowledged'}"
            )

    def _undisturbed(self, kind: str, size: int) -> float:
        """Seconds that it takes when nobody is killed."""
        name, words = self._wanted(kind, f"{kind}-before", size)
        began = time.monotonic()
        if not self._said(name, words):
            raise Missed(f"{name} was not acknowledged though no node was killed")
        return time.monotonic() - began

    def _said(self, name: str, words: Sequence[str]) -> bool:
        """Whether a command is acknowledged, of which nobody is killed."""
        if error := _ended(name, begun(words)):
            say(f"{name}: {error}")
            return False
        self.acknowledged.add(name)
        return True

    def _say_again(self, name: str, words: Sequence[str]) -> None:
        """What was refused; whatever the first time has left is looked at before the second hides it."""
        self.refused += 1
        if name in self._names():
            self.listed_refused += 1
            self.lost_refused += self._is_lost(name)
        self.done_again += self._said(name, words)

    def _kill(self, victims: Sequence[DemoNode], work: subprocess.Popen[str]) -> bool:
        """Whether the command was still at it when both were dead."""
        for node in victims:
            assert node.pid is not None, f"{node.name} does not run"
            os.kill(node.pid, signal.SIGKILL)
        is_under_way = work.poll() is None
        for node in victims:
            node.kill()
        self.killed += len(victims)
        return is_under_way

    def _wanted(self, kind: str, name: str, size: int) -> tuple[str, Sequence[str]]:
        """(The name, the command), at some node."""
        state = ["--state", str(self._rng.choice(self._swarm.nodes).layout.root)]
        if kind == KEPT:
            self.begun[name] = None
            return name, ["checkpoint", "make", "--name", name, "--pin", *state]
        data, path = self._rng.randbytes(size), self._folder / name
        path.write_bytes(data)
        self.begun[name] = ObjectHash(blake3(data).digest())
        return name, ["data", "add", str(path), "--as", "files", "--name", name, "--json", *state]

    def _repaired(self) -> float:
        """Seconds until everything that was acknowledged is in three replicas."""
        began = time.monotonic()
        while True:
            with _desk(self._swarm.nodes[0]) as desk:
                counts = [n for name in sorted(self.acknowledged) for n in replicas(desk, name)]
            if all(n >= REPLICAS for n in counts):
                return time.monotonic() - began
            if time.monotonic() - began > REPAIRED_S:
                raise Missed(f"only {min(counts)} replicas after {REPAIRED_S:.0f} s")
            time.sleep(POLL_S)

    def lost(self) -> int:
        """Of what is listed or was acknowledged, what does not read back as it was, at another node for each."""
        listed = self._names()
        self.listed = len(listed)
        return sum(self._is_lost(name) for name in sorted(listed | self.acknowledged))

    def _names(self) -> set[str]:
        """That any node lists."""
        listed: set[str] = set()
        for node in self._swarm.nodes:
            with _desk(node) as desk:
                listed |= {str(record["name"]) for record in desk.names()}
        return listed

    def _is_lost(self, name: str) -> bool:
        """It does not read back as it was, at some node."""
        try:
            found = _read_all(self._rng.choice(self._swarm.nodes), name)
        except PeerlmError as error:
            say(f"{name}: {error}")
            return True
        digest = self.begun.get(name)
        return digest is not None and found != digest

    def counted(self) -> tuple[int, int]:
        """Files and checkpoints that were acknowledged, at once or when they were said again."""
        files = sum(self.begun[name] is not None for name in self.acknowledged)
        return files, len(self.acknowledged) - files


def _ended(name: str, work: subprocess.Popen[str]) -> str:
    """Why it was refused; empty: it was not. Raises `Missed`: it goes on for ever."""
    try:
        _, error = work.communicate(timeout=ROUND_S)
    except subprocess.TimeoutExpired:
        work.kill()
        work.communicate()
        raise Missed(f"{name}: the command has not ended after {ROUND_S:.0f} s") from None
    return (error.strip() or f"it ended with {work.returncode}") if work.returncode else ""


def _read_all(node: DemoNode, name: str) -> ObjectHash:
    """The hash of it all. Raises `StateError`: a chunk is not to be had, or is not what its own hash says."""
    digest = blake3()
    with _desk(node) as desk:
        manifest = desk.manifest(name)
        for chunk in manifest.chunks:
            data = desk.read(chunk.hash, chunk.size, 60.0)
            if len(data) != chunk.size or blake3(data).digest() != chunk.hash:
                raise StateError(f"chunk {chunk.hash.hex()[:8]} is not what its hash says")
            digest.update(data)
    return ObjectHash(digest.digest())


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    with running(Stores(folder / "nodes", 4, {**PLAN, **SMALL, **SOON_DEAD}, LOCAL)) as swarm:
        swarm.begin()
        swarm.enter(*swarm.nodes[1:])
        say("four nodes are there")
        trouble = Kills(swarm, folder, args.seed)
        trouble.play(args.rounds, args.file_mb << 20)
        lost, (files, kept) = trouble.lost(), trouble.counted()
        faults = swarm.tracebacks()
    return [
        Row("kills, two at once", trouble.killed),
        Row("pairs killed while a file was being added", trouble.under_way[FILE], at_least=1),
        Row("pairs killed while a checkpoint was being made", trouble.under_way[KEPT], at_least=1),
        Row("pairs killed when the command had ended", args.rounds - trouble.under_way.total()),
        Row("killed under way, and acknowledged all the same", trouble.survived.total()),
        Row("refused", trouble.refused),
        Row("refused, and listed before they were said again", trouble.listed_refused),
        Row("of these lost or changed", trouble.lost_refused, at_most=0),
        Row("refused, and done when said again", trouble.done_again, at_least=trouble.refused),
        Row("files acknowledged, with the undisturbed", files, at_least=1),
        Row("checkpoints acknowledged, with the undisturbed", kept, at_least=1),
        Row("names listed in the end, read back at some other node", trouble.listed, at_least=1),
        Row("listed or acknowledged, and lost or changed", lost, at_most=0),
        Row("again in three replicas after the restart, slowest", max(trouble.repairs_s), "s"),
        Row("tracebacks", faults, at_most=0),
    ]


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--rounds", type=int, default=12, help="of kills [12]")
    flags.add_argument("--file-mb", type=int, default=48, help="of a file added meanwhile [48]")
    flags.add_argument("--seed", type=int, default=1)
    return report.perform("store_kills", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
