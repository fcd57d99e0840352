"""The simulator against reality: crashes and partitions of real daemons, and of simulated ones.

Eight daemons without workers, each in a network namespace of its own. A node drawn at random is
killed, again and again: silently (its plug is pulled first, so nobody gets a reset: a machine that lost
its power) or with resets (`kill -9`: the kernel closes its connections). It is started again, and the next
crash waits until every node holds every other alive over a link made since. Then the cable between the
halves is pulled and put back. Measured is when tables change. Needs root on Linux, and `ip`.

The samples are left in samples.json with --keep.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import report
from bench.report import Missed, Quantiles, Row, say
from bench.truth_net import Network, address_of, die_with_parent
from bench.truth_simulated import Reality, simulated
from bench.truth_told import FIGURES, Samples, Tables, Told, first_times, last_change
from peerlm.bench.founding import options
from peerlm.bench.telling import told_path
from peerlm.cli.demo_nodes import DemoNode, end_all, peerlm

PORT = 7700
POLL_S = 0.02
SOON_S = 120.0
REST_S = 20.0
"""How long the swarm is left alone to time its probes."""

CALM_S = (0.5, 1.5)
"""Drawn from this between two scenes, so that none falls on a beat of the one before."""

APART_MAX = 0.25
"""Of the medians of simulation and reality."""


class HousedNode(DemoNode):
    """A telling daemon on a machine of its own."""

    def __init__(self, number: int, folder: Path, net: Network) -> None:
        super().__init__(number, folder)
        self.net = net

    def enrol(self, through: HousedNode) -> None:
        door = f"{address_of(through.number)}:{PORT}"
        words = peerlm("invite", "--state", str(through.layout.root), "--address", door).split()
        state = ("--state", str(self.layout.root))
        with self.net.at(self.number):
            peerlm("join", door, "--token", words[4], "--enrol-only", *state, *self.settings)

    @property
    def settings(self) -> list[str]:
        host = address_of(self.number)
        local = {"network.host": host, "network.port": PORT, "train.enabled": "false"}
        return options("--set-node", local)

    def up(self) -> None:
        command = [
            sys.executable,
            "-m",
            "peerlm.bench.telling",
            "up",
            "--state",
            str(self.layout.root),
        ]
        with self.net.at(self.number), self.output.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=report.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def crash(self) -> None:
        """SIGKILL, and nothing else."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@dataclass(slots=True)
class Truth:
    """The swarm and what has been measured of it."""

    nodes: list[HousedNode]
    net: Network
    rng: random.Random
    tables: Tables
    samples: Samples = field(default_factory=dict)
    """The figures, and besides them what a simulation has to know of the machine."""
    false_deaths: int = 0
    overslept: int = 0

    # ----------------------------------------------------------------------------------- scenes

    def begin(self, profile: str) -> None:
        """Found the run, bring everybody in, and time probes at rest."""
        first, *others = self.nodes
        plan = options("--set", {"swarm.profile": profile})
        peerlm("init", "--state", str(first.layout.root), *plan, *first.settings)
        first.up()
        self.wait("the first node listens", lambda: self._answers(first))
        for node in others:
            node.enrol(first)
            node.up()
        self.wait("every node listens", lambda: all(map(self._answers, self.nodes)), poll_s=0.25)
        ids = {str(n.status["node_id"]): n.number for n in self.nodes if n.status}
        self.tables.numbers.update(ids)
        self.wait_whole()
        self.tables.forget()
        say(f"{len(self.nodes)} nodes see each other; at rest for {REST_S:.0f} s")
        self.let_pass_until(time.monotonic() + REST_S)
        self._note("round trip of a probe", self._took("answered"))

    def crash(self, *, silent: bool) -> None:
        """One node dies and comes back."""
        victim = self.rng.choice(self.nodes)
        others = [n.number for n in self.nodes if n is not victim]
        kind = "silent crash" if silent else "crash with resets"
        at = time.monotonic()
        if silent:
            self.net.pull_plug(victim.number)
        victim.crash()

        def is_lost() -> bool:
            tables = self.tables
            return all(
                tables.state(n, victim.number) == "dead" and not tables.is_linked(n, victim.number)
                for n in others
            )

        self.wait(f"{kind}: everybody holds {victim.name} dead, without a link", is_lost, victim)
        told, of = self.tables.told, [victim.number]
        dead = first_times(told, "dead", of, others, at)
        suspect = first_times(told, "suspect", of, others, at)
        self._note(f"{kind}: first suspicion", [min(suspect.values())])
        self._note(f"{kind}: first verdict", [min(dead.values())])
        self._note(f"{kind}: all others know", [max(dead.values())])
        for line in told:
            if line.what == "link_down" and line.peer == victim.number and line.at >= at:
                whose = "own" if line.dialled else "the other's"
                self._note(f"{kind}: to LinkDown, {whose} dialling", [line.at - at])
        say(f"{kind} of {victim.name}: {min(dead.values()):.2f} s, {max(dead.values()):.2f} s")
        if silent:
            self.net.put_plug(victim.number)
        self._come_back(victim, others)

    def _come_back(self, victim: HousedNode, others: list[int]) -> None:
        victim.up()
        self.wait_whole()
        began = max(line.at for line in self.tables.told if line.what == "began")
        alive = first_times(self.tables.told, "alive", [victim.number], others, began)
        self._note("node begins: all others hold it alive", [max(alive.values())])
        self._note("introduction to link", self._took("introduced"))
        self._end_scene(lambda line: line.peer != victim.number)

    def partition(self, apart_s: float) -> None:
        """The halves lose each other for so long, and find each other again."""
        half = len(self.nodes) // 2
        numbers = [n.number for n in self.nodes]
        a, b = numbers[:half], numbers[half:]
        at = time.monotonic()
        self.net.part()
        self.let_pass_until(at + apart_s)
        for of, by in ((a, b), (b, a)):
            dead = first_times(self.tables.told, "dead", of, by, at)
            if len(dead) < len(of) * len(by):
                raise Missed(f"{apart_s:g} s apart, and a half does not hold all of the other dead")
            self._note("partition: first verdict of a half", [min(dead.values())])
            self._note("partition: a half holds all of the other dead", [max(dead.values())])
        rejoined = time.monotonic()
        self.net.rejoin()
        self.wait("the halves see each other alive", self.tables.see_all_alive)
        heal_s = last_change(self.tables.told, rejoined)
        self._note("partition: one swarm after it ends", [heal_s])
        say(f"partition: {max(dead.values()):.2f} s, healed after {heal_s:.2f} s")
        self.wait_whole()
        self._end_scene(lambda line: (line.node in a) == (line.peer in a))

    def _end_scene(self, is_false: Callable[[Told], bool]) -> None:
        """Book what happened besides; a moment of calm."""
        self.let_pass_until(time.monotonic() + self.rng.uniform(*CALM_S))
        dead = [t for t in self.tables.told if t.what == "member" and t.state == "dead"]
        self.false_deaths += sum(map(is_false, dead))
        self.overslept += sum(line.what == "overslept" for line in self.tables.told)
        self.tables.forget()

    # ---------------------------------------------------------------------------------- waiting

    def wait_whole(self) -> None:
        tables = self.tables
        self.wait("all linked, alive", lambda: tables.see_all_alive() and tables.all_linked())

    def wait(
        self,
        what: str,
        is_so: Callable[[], bool],
        down: HousedNode | None = None,
        *,
        limit_s: float = SOON_S,
        poll_s: float = POLL_S,
    ) -> None:
        """Read what the nodes tell until it is so. Raises `Missed` at the deadline, and `DemoFailed`
        when a node that is not `down` has ended."""
        until = time.monotonic() + limit_s
        while True:
            if self.tables.numbers:  # until then lines could not be understood
                self.tables.read()
            if is_so():
                return
            for node in self.nodes:
                if node is not down:
                    node.check_up()
            if time.monotonic() > until:
                raise Missed(f"not within {limit_s:.0f} s: {what}")
            time.sleep(poll_s)

    def let_pass_until(self, at: float) -> None:
        """Look on until then."""
        limit_s = at - time.monotonic() + SOON_S
        self.wait("time passes", lambda: time.monotonic() >= at, limit_s=limit_s)

    def _answers(self, node: HousedNode) -> bool:
        node.look()
        return node.status is not None

    def _took(self, what: str) -> list[float]:
        return [line.took_s for line in self.tables.told if line.what == what]

    def _note(self, figure: str, seconds: Sequence[float]) -> None:
        self.samples.setdefault(figure, []).extend(seconds)

    def median(self, figure: str) -> float:
        return Quantiles.of(self.samples[figure]).p50


@contextmanager
def housed(folder: Path, size: int, seed: int) -> Iterator[Truth]:
    """Nodes on a network of their own; nothing of either is left afterwards."""
    with closing(Network(size)) as net:
        nodes = [HousedNode(number, folder, net) for number in range(1, size + 1)]
        tables = Tables({node.number: told_path(node.layout.root) for node in nodes})
        try:
            yield Truth(nodes, net, random.Random(seed), tables)
        finally:
            end_all(nodes, patience_s=0.0)


# ------------------------------------------------------------------------------------- the figure


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    with housed(folder, args.nodes, args.seed) as truth:
        truth.begin(args.profile)
        for silent in (True, False):
            for _ in range(args.crashes):
                truth.crash(silent=silent)
        for _ in range(args.partitions):
            truth.partition(args.apart)
    (folder / "samples.json").write_text(json.dumps(truth.samples))
    reality = Reality(
        nodes=args.nodes,
        profile=args.profile,
        apart_s=args.apart,
        round_trip_s=truth.median("round trip of a probe"),
    )
    return rows(truth, simulated(reality, args.seed))


def rows(truth: Truth, simulation: Samples) -> list[Row]:
    """Reality and simulation by figure, then what else was seen of reality."""
    found = [Row("each figure: p50 / p90 / max", "")]
    for figure in FIGURES:
        real = Quantiles.of(truth.samples[figure])
        found.append(Row(f"{figure}, {real.n} real", real, "s"))
        if figure in simulation:
            made = Quantiles.of(simulation[figure])
            found.append(Row(f"{figure}, {made.n} simulated", made, "s"))
            ratio, low, high = made.p50 / real.p50, 1 - APART_MAX, 1 + APART_MAX
            what = f"{figure}, simulated ÷ real p50"
            found.append(Row(what, ratio, at_least=low, at_most=high))
    for what, seconds in truth.samples.items():
        if what not in FIGURES:
            unit, scale = ("ms", 1000) if max(seconds) < 1 else ("s", 1)
            spread = Quantiles.of([scale * s for s in seconds])
            found.append(Row(f"{what} ({spread.n})", spread, unit))
    found.append(
        Row("live nodes declared dead by one they could reach", truth.false_deaths, at_most=0)
    )
    found.append(Row("times a node noticed that it had overslept", truth.overslept))
    return found


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--nodes", type=int, default=8)
    flags.add_argument("--crashes", type=int, default=30, help="of each kind [30]")
    flags.add_argument("--partitions", type=int, default=10)
    flags.add_argument("--apart", type=float, default=30.0, metavar="S", help="[30]")
    flags.add_argument("--profile", default="test", help="timers of failure detection [test]")
    flags.add_argument("--seed", type=int, default=1)
    return report.perform("truth", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
