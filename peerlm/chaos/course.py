"""The course of a scenario: acts when they are due, the swarm looked at all the while, and what came of it.

Efficiency is what has been learnt of what could have been: the swarm's tokens, but for those that died with a node or
its worker before another had them, ÷ (pace × seconds in which each node was neither dead nor stopped). A node that is started again counts as live from that moment, although it takes
seconds to come up. Nothing is asked of a node that others could not ask.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from peerlm.bench.nodes import Swarm, processes_of, processor_time
from peerlm.bench.rows import Missed
from peerlm.chaos.scenario import INSTANT, Act, Scenario, acts_of, token_budget
from peerlm.chaos.verdict import (
    LEAKERS,
    RETURN_S_MAX,
    Losses,
    Process,
    Size,
    Split,
    Unshared,
    Usage,
    growth_by_kind,
    is_whole,
)
from peerlm.chaos.world import world_of
from peerlm.cli.demo_nodes import DemoNode
from peerlm.data.processes import processors
from peerlm.sim.figures import quantiles

WORKER = "peerlm.train.worker"
LOOK_S = 0.5
SAMPLE_S = 10.0
BREADTH_S = 300.0
FINISH_S = 180.0
"""Longest wait for settling."""

SETTLED = frozenset({"training", "draining", "settling", "done"})
"""States in which a node takes part in a run that comes to its end."""

WELL_S = 90.0
"""Longest wait, after the end, until every node takes part again."""

Tell = Callable[[str], None]


class World(Protocol):
    """What a course is played in. `down`, `stopped`: numbers of nodes that were killed, or frozen."""

    down: set[int]
    stopped: set[int]

    @property
    def swarm(self) -> Swarm:
        """Its nodes, and how they are."""

    def node(self, number: int) -> DemoNode:
        """1, 2 and so on."""

    def is_held_up(self, number: int) -> bool:
        """It runs, and could not exchange anything however well it did."""

    def begin(self, act: Act) -> str:
        """What was done, for people; empty if it could not befall its victim now."""

    def end(self, act: Act) -> str:
        """Mend what `begin` did; what was done."""

    def mend_all(self) -> None:
        """Nothing is wrong any more."""


@dataclass(slots=True)
class Lives:
    """Of one node: how long it could have trained, and how long it took to take part again."""

    live_s: float = 0.0
    coming_s: float | None = None
    """Since it was started again, while it was not held up by anything else; None once it takes part."""
    returns_s: list[float] = field(default_factory=list)
    sizes: dict[str, dict[Process, list[Size]]] = field(default_factory=dict)
    """Kind of process → process → sampled while nobody was in trouble: files and threads follow the members that are up."""
    unshared: Unshared = field(default_factory=Unshared)
    lost: int = 0
    """Tokens that died with it, or with its worker, about."""


@dataclass(frozen=True, slots=True)
class Happening:
    """For the report: seconds since the beginning, and what was done."""

    at_s: float
    text: str


class Course:
    """One run of a scenario. `run` once."""

    def __init__(self, scenario: Scenario, world: World, tell: Tell, *, faults: bool) -> None:
        self._scenario = scenario
        self._world = world
        self._tell = tell
        self._acts = acts_of(scenario) if faults else []
        self._trouble_s = scenario.trouble_s if faults else 0.0
        self._happened: list[Happening] = []
        self._done: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._lives = {number: Lives() for number in range(1, scenario.nodes + 1)}
        self._curve: list[dict[str, Any]] = []
        self._splits: list[Split] = []
        self._usage = Usage()

    def run(self) -> dict[str, Any]:
        """Raises `Missed` where the swarm cannot even be started, or does not become well again."""
        swarm, seconds = self._world.swarm, 60 * self._scenario.minutes
        self._tell(f"starting {self._scenario.nodes} nodes")
        swarm.start()
        swarm.wait("all nodes take part", self._all_take_part)
        first_tokens, began = swarm.tokens, time.monotonic()
        last, sample_at = began, began
        to_end: list[Act] = []
        while (now := time.monotonic()) - began < seconds and not self._is_through(now - began):
            to_end = self._act(now - began, to_end)
            self._count(now - last)
            last = now
            swarm.look()
            self._see(now - began)
            if now >= sample_at:
                sample_at = now + SAMPLE_S
                self._sample(now, began)
            time.sleep(max(0.0, LOOK_S - (time.monotonic() - now)))
        tokens, seconds = swarm.tokens - first_tokens, time.monotonic() - began
        self._usage.see(processor_time(swarm.nodes))
        self._world.mend_all()
        report = self._report(seconds, tokens, self._until_well())
        if self._scenario.finish:
            report["final"] = self._until_finished()
            report |= self._faults_seen()
        return report

    def _is_through(self, at_s: float) -> bool:
        """There is nothing more to learn, and nothing more happens."""
        is_learnt = self._world.swarm.tokens >= token_budget(self._scenario)
        return self._scenario.finish and at_s >= self._trouble_s and is_learnt

    # ------------------------------------------------------------------------------- acting

    def _act(self, at_s: float, to_end: list[Act]) -> list[Act]:
        for act in [a for a in to_end if a.until_s <= at_s]:
            down = set(self._world.down)
            self._note(at_s, self._world.end(act))
            if act.kind == "split":
                self._splits.append(Split.over(at_s, act.nodes, self._losses()))
            for number in down - self._world.down:
                self._lives[number].coming_s = 0.0
        to_end = [a for a in to_end if a.until_s > at_s]
        while self._acts and self._acts[0].at_s <= at_s:
            act = self._acts.pop(0)
            down = set(self._world.down)
            said = self._world.begin(act)
            killed = self._world.down - down
            for number in killed:
                self._cut_short(number)
            self._note(at_s, said)
            (self._done if said else self._skipped)[act.kind] += 1
            if said:
                self._lose(act.nodes if act.kind in INSTANT else killed)
            if said:
                to_end.append(act)
        return to_end

    def _cut_short(self, number: int) -> None:
        """Killed before it could take part again: that says nothing about how long it would have taken, unless it
        had taken too long already."""
        lives = self._lives[number]
        if lives.coming_s is not None and lives.coming_s > RETURN_S_MAX:
            lives.returns_s.append(math.inf)
        lives.coming_s = None

    def _lose(self, numbers: Iterable[int]) -> None:
        """What died with these, or with their workers. Where nobody is left, the count itself goes back: nodes come with that of
        their snapshots."""
        is_told = len(self._world.down) < self._scenario.nodes
        for number in numbers:
            lost = self._lives[number].unshared.lose()
            self._lives[number].lost += lost if is_told else 0

    def _note(self, at_s: float, text: str) -> None:
        if text:
            self._happened.append(Happening(round(at_s, 1), text))
            self._tell(f"{at_s:7.1f} s  {text}")

    # ------------------------------------------------------------------------------- looking

    def _all_take_part(self, states: Container[str] = ("training",)) -> bool:
        return len(self._world.swarm.statuses()) == self._scenario.nodes and all(
            s["participating"] and s["state"] in states for s in self._world.swarm.statuses()
        )

    def _count(self, passed_s: float) -> None:
        for number, lives in self._lives.items():
            if number not in self._world.down | self._world.stopped:
                lives.live_s += passed_s
            if lives.coming_s is not None and not self._world.is_held_up(number):
                lives.coming_s += passed_s

    def _losses(self) -> Losses:
        answers = ((n, self._world.node(n).status) for n in self._lives)
        return {n: s["val_loss"] for n, s in answers if s is not None and s["val_loss"] is not None}

    def _see(self, at_s: float) -> None:
        if self._splits:
            self._splits[-1].see(at_s, is_whole(self._world.swarm.statuses()), self._losses())
        for number, lives in self._lives.items():
            status = self._world.node(number).status
            if status is not None:
                lives.unshared.see(status)
            if lives.coming_s is not None and status is not None and status["participating"]:
                lives.returns_s.append(lives.coming_s)
                lives.coming_s = None

    def _sample(self, now: float, began: float) -> None:
        swarm = self._world.swarm
        self._usage.see(processor_time(swarm.nodes))
        losses = self._losses()
        self._curve.append(
            {
                "at_s": round(now - began, 1),
                "tokens": swarm.tokens,
                "val_loss": statistics.median(losses.values()) if losses else None,
                "val_losses": losses,
                "up": sum(node.is_up for node in swarm.nodes),
            }
        )
        if not self._is_calm():
            return
        for number, lives in self._lives.items():
            for kind, process in zip(LEAKERS, _leakers(self._world.node(number)), strict=False):
                with contextlib.suppress(psutil.Error):
                    began_at = process.create_time()
                    size = Size(
                        time.time() - began_at,
                        process.memory_info().rss,
                        process.num_fds() - _waiting(self._world.node(number).status, process),
                        process.num_threads(),
                    )
                    lives_of_kind = lives.sizes.setdefault(kind, {})
                    lives_of_kind.setdefault((process.pid, began_at), []).append(size)

    def _is_calm(self) -> bool:
        is_held_up = any(map(self._world.is_held_up, self._lives))
        return not is_held_up and self._all_take_part() and is_whole(self._world.swarm.statuses())

    def _until_well(self) -> float:
        """Seconds until everybody takes part, from when everything was mended; inf if that does not come."""
        states = SETTLED if self._scenario.finish else ("training",)
        try:
            return self._world.swarm.wait(
                "all take part again", lambda: self._all_take_part(states), WELL_S
            )
        except Missed as missed:
            self._tell(str(missed))
            return math.inf

    def _until_finished(self) -> dict[str, float] | None:
        """What the finished model is worth, once all have written it; None if that does not come."""
        swarm = self._world.swarm
        # What faults have cost is learnt first.
        limit_s = FINISH_S + 60 * self._scenario.minutes / 4
        try:
            swarm.wait("all have finished", swarm.all_done, limit_s)
        except Missed as missed:
            self._tell(str(missed))
            return None
        from peerlm.cli.demo_proof import relative_spread, validation_loss

        models = swarm.models()
        loss = validation_loss(models[0], swarm.nodes[0].layout)
        return {"loss": loss, "spread": relative_spread(models)}

    # ------------------------------------------------------------------------------- reporting

    def _faults_seen(self) -> dict[str, int]:
        """Of peerlm's own, so far."""
        swarm = self._world.swarm
        return {"tokens_that_fell": len(swarm.steps_back), "tracebacks": swarm.tracebacks()}

    def _report(self, seconds: float, tokens: int, well_s: float) -> dict[str, Any]:
        swarm, lives = self._world.swarm, self._lives.values()
        live_s = sum(life.live_s for life in lives)
        lost = sum(life.lost for life in lives)
        returns = [r for life in lives for r in life.returns_s]
        breadth = [
            sum(m["mixed_s_ago"] is not None and m["mixed_s_ago"] < BREADTH_S for m in s["members"])
            for s in swarm.statuses()
        ]
        losses = [s["val_loss"] for s in swarm.statuses() if s["val_loss"] is not None]
        return {
            "scenario": self._scenario.name,
            "seed": self._scenario.seed,
            "nodes": self._scenario.nodes,
            "seconds": seconds,
            "trouble_s": min(seconds, self._trouble_s),
            "pace": self._scenario.pace,
            "link": self._scenario.link,
            "faults": dict(self._done),
            "skipped": dict(self._skipped),
            "tokens": tokens,
            "live_s": round(live_s, 1),
            "tokens_lost": lost,
            "efficiency": (tokens - lost) / (self._scenario.pace * live_s) if live_s else None,
            "return_s": quantiles(returns),
            "not_returned": sum(life.coming_s is not None for life in lives),
            "well_s": well_s,
            "cores_share": self._usage.seconds / (seconds * processors()),
            "breadth_min": min(breadth, default=0),
            "val_loss": statistics.median(losses) if losses else None,
            "swarm_tokens": swarm.tokens,
            **self._faults_seen(),
            "growth": growth_by_kind(
                {
                    kind: [s for life in lives for s in life.sizes.get(kind, {}).values()]
                    for kind in LEAKERS
                }
            ),
            "splits": [asdict(split) for split in self._splits],
            "finish": self._scenario.finish,
            "final": None,
            "curve": self._curve,
            "events": [{"at_s": h.at_s, "text": h.text} for h in self._happened],
        }


def _leakers(node: DemoNode) -> list[psutil.Process]:
    """As `LEAKERS`, as far as they run."""
    processes = processes_of(node)
    workers = []
    for process in processes[1:]:
        with contextlib.suppress(psutil.Error):
            if WORKER in process.cmdline():
                workers.append(process)
    return [*processes[:1], *workers[:1]]


def _waiting(status: Mapping[str, Any] | None, process: psutil.Process) -> int:
    """Connections that this process keeps for its next transfers, for a minute each: how many comes and goes with whom it
    exchanges."""
    if status is None or status["daemon"]["pid"] != process.pid:
        return 0
    waiting: int = status["daemon"]["bulk_waiting"]
    return waiting


def run(
    scenario: Scenario,
    folder: Path,
    tell: Tell,
    *,
    faults: bool = True,
    keep: Path | None = None,
) -> dict[str, Any]:
    """The scenario once, on machines of this machine's. `keep`: where to put the nodes' logs, also when it fails. Raises
    `PeerlmError`."""
    with world_of(scenario, folder) as world:
        try:
            return Course(scenario, world, tell, faults=faults).run()
        finally:
            if keep is not None:
                _keep_logs(folder, keep)


def _keep_logs(folder: Path, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob("node-*.log"), *folder.glob("disk-*/node/log*")):
        name = "-".join(path.relative_to(folder).parts)
        (keep / name).write_bytes(path.read_bytes())
