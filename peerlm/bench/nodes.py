"""Swarms of real nodes for figures: founded, joined, held until all are there, watched, ended.

A node of a figure is the demo's: a `peerlm` process on loopback with a folder of its own. A `Swarm`
adds what all figures need. Nodes that have joined are paused until every one has its weights and its
worker, so that all start from the same weights at the same time and none trains alone. Everything that is waited for has
a deadline and a name; a swarm that is closed leaves no process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from peerlm.bench.founding import LOCAL, Loopback, Place, Values, found, invitation, options
from peerlm.bench.rows import Missed
from peerlm.cli.demo_nodes import DemoNode, end_all
from peerlm.daemon.control import ask

ENDED = ("killed", "ended (0)", "not started")
"""What a node may be besides up: nothing of this comes without the figure's own doing."""

POLL_S = 0.25
SOON_S = 120.0
"""Longest wait for a single step: generous, since a missed bound is a row and not an error."""


class Swarm:
    """Nodes of one run under `folder`; the first one founded it.

    Args:
        plan: changes to `preset`'s plan.
        local: changes to `LOCAL`.
        place: where the nodes are.
        program: what is run as `peerlm` to be a node; None: peerlm itself.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        plan: Values,
        local: Values | None = None,
        preset: str = "tiny",
        place: Place | None = None,
        program: Sequence[str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.nodes = [DemoNode(number, folder) for number in range(1, size + 1)]
        for node in self.nodes:
            node.program = program or node.program
        self.local = {**LOCAL, **(local or {})}
        self._place = Loopback() if place is None else place
        self._plan, self._preset = plan, preset
        self._highest: dict[tuple[int, int], int] = {}
        self.steps_back: list[str] = []
        """Each time a node's count of the swarm's tokens fell within one life of the node."""

    # ------------------------------------------------------------------------------- beginning

    def found(self) -> None:
        """`peerlm init`, in the first node's folder."""
        first = self.nodes[0]
        found(first, self._plan, self._local_of(first), self._preset)

    def start(self) -> None:
        """Found the run and bring every node in; all begin to train together."""
        first, *others = self.nodes
        self.found()
        with self._place.at(first.number):
            first.start("up")
        self.hold(first)
        for node in others:
            self.join(node)
        for node in others:
            self.hold(node)
        self.wait("every node has the weights and sees the others", self._all_ready)
        self._start_workers()
        for node in self.nodes:
            ask(node.layout, "resume")

    def _start_workers(self) -> None:
        """A worker starts when there is a step to take: stop each at its first."""
        idle = list(self.nodes)
        for node in idle:
            ask(node.layout, "resume")

        def all_stopped() -> bool:
            for node in [n for n in idle if n.status and n.status["worker"]["state"] == "running"]:
                ask(node.layout, "pause")
                idle.remove(node)
            return not idle

        self.wait("every node has a worker", all_stopped, poll_s=0.05)

    def hold(self, node: DemoNode) -> None:
        """Pause it as soon as it answers, which is seconds before it could take a step."""
        self.wait(f"{node.name} answers", lambda: node.status is not None, poll_s=0.05)
        ask(node.layout, "pause")

    def join(self, node: DemoNode) -> None:
        """`peerlm join`, through the first node."""
        address, token = self.invitation()
        settings = options("--set-node", self._local_of(node))
        with self._place.at(node.number):
            node.start("join", address, "--token", token, *settings)

    def start_again(self, node: DemoNode) -> None:
        """`peerlm up`, where it was."""
        with self._place.at(node.number):
            node.start("up")

    def _local_of(self, node: DemoNode) -> Values:
        return {**self.local, **self._place.local(node.number)}

    def invitation(self) -> tuple[str, str]:
        """(address, token) as `peerlm invite` prints them."""
        return invitation(self.nodes[0])

    def _all_ready(self) -> bool:
        ids = {s["node_id"] for s in self.statuses()}
        return len(ids) == len(self.nodes) and all(
            s["state"] == "ready" and {m["id"] for m in s["members"] if m["linked"]} >= ids
            for s in self.statuses()
        )

    # -------------------------------------------------------------------------------- watching

    def statuses(self) -> list[dict[str, Any]]:
        """The last answer of each node that gave one."""
        return [node.status for node in self.nodes if node.status is not None]

    @property
    def tokens(self) -> int:
        """The swarm's, by the node that has heard of most."""
        return max((int(s["swarm_tokens"]) for s in self.statuses()), default=0)

    def look(self) -> None:
        """Ask every node, and note where a count has fallen."""
        for node in self.nodes:
            node.look()
            if node.status is None:
                continue
            life, tokens = (node.number, node.status["epoch"]), node.status["swarm_tokens"]
            before = self._highest.get(life, 0)
            if tokens < before:
                self.steps_back.append(f"{node.name}: {before:,} → {tokens:,}")
            self._highest[life] = max(before, tokens)

    def wait(
        self,
        what: str,
        is_so: Callable[[], bool],
        limit_s: float = SOON_S,
        poll_s: float = POLL_S,
    ) -> float:
        """Look until it is so; returns the seconds it took.

        Raises:
            Missed: it was not so in time; `DemoFailed`: a node has ended by itself.
        """
        began = time.monotonic()
        while True:
            self.look()
            if is_so():
                return time.monotonic() - began
            for node in self.nodes:
                if node.state not in ENDED:
                    node.check_up()
            if time.monotonic() - began > limit_s:
                raise Missed(f"{what}: not within {limit_s:.0f} s; {self.words()}")
            time.sleep(poll_s)

    def let_pass(self, seconds: float) -> None:
        """Look on for a while."""
        until = time.monotonic() + seconds
        self.wait("time passes", lambda: time.monotonic() >= until, seconds + SOON_S)

    def all_done(self) -> bool:
        """Every node has settled and written the finished model."""
        statuses = self.statuses()
        return len(statuses) == len(self.nodes) and all(
            s["state"] == "done" and s["model_dir"] for s in statuses
        )

    def models(self) -> list[Path]:
        return [Path(s["model_dir"]) for s in self.statuses() if s["model_dir"]]

    def words(self) -> str:
        """What the nodes say of themselves, for whoever has to find out what went wrong."""
        return "; ".join(
            f"{n.name} is {n.state}" + (f" ({n.status['why'][0]})" if n.status else "")
            for n in self.nodes
        )

    # -------------------------------------------------------------------------------- the logs

    def tracebacks(self) -> int:
        """Faults of peerlm's own in all that the nodes have written."""
        texts = []
        for node in self.nodes:
            logs = sorted(node.layout.log.parent.glob(node.layout.log.name + "*"))
            texts += [p.read_text(errors="replace") for p in (node.output, *logs) if p.exists()]
        return sum(text.count("Traceback") + text.count("internal error") for text in texts)


S = TypeVar("S", bound=Swarm)


@contextmanager
def running(swarm: S) -> Iterator[S]:
    """The swarm, of which nothing runs afterwards."""
    try:
        yield swarm
    finally:
        end_all(swarm.nodes, patience_s=0.0)


def processes_of(node: DemoNode) -> list[psutil.Process]:
    """Its daemon, then all that this has started; none of a node that does not run."""
    if node.pid is None:
        return []
    try:
        daemon = psutil.Process(node.pid)
        return [daemon, *daemon.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def processor_time(nodes: Iterable[DemoNode]) -> dict[tuple[int, float], float]:
    """(Process id, when it began) → seconds of processor time, of all that these run."""
    used = {}
    for node in nodes:
        for process in processes_of(node):
            with suppress(psutil.Error):
                times = process.cpu_times()
                used[process.pid, process.create_time()] = times.user + times.system
    return used


def processes(swarm: Swarm) -> list[psutil.Process]:
    """Daemons and workers of the swarm that run now."""
    found = []
    for status in swarm.statuses():
        daemon = psutil.Process(status["daemon"]["pid"])
        found += [daemon, *daemon.children(recursive=True)]
    return found
