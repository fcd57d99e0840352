"""Hosts that trouble can be made for: nodes of a run, each on a machine of its own (network namespaces).

Each node's folder is a file system of its own in memory, so that it can be filled. Namespaces, mounts, the switch
and all nodes are this process's alone and end with it, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from peerlm.bench.lines import Lines
from peerlm.bench.namespaces import mount_namespace
from peerlm.bench.nodes import Swarm, processes_of, running
from peerlm.bench.rows import Missed
from peerlm.bench.switch import Trouble
from peerlm.chaos.clocks import Clock
from peerlm.chaos.scenario import Act, Scenario, token_budget
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.leash import die_with_parent
from peerlm.sim.network import read_wire

FOLDER_BYTES = 256 << 20

FILLER = "filler"
FILLING_TRIES = 5


class World:
    """The swarm of a scenario, and what it suffers. `down` and `stopped`: node numbers. `clocks`: of nodes in their order,
    where the scenario has faults of clocks."""

    def __init__(
        self, scenario: Scenario, swarm: Swarm, lines: Lines, clocks: Sequence[Clock] = ()
    ) -> None:
        self.swarm = swarm
        self._clocks = clocks
        self.down: set[int] = set()
        self.stopped: set[int] = set()
        self._scenario = scenario
        self._lines = lines
        self._acts: list[Act] = []
        self._guests: dict[Act, subprocess.Popen[bytes]] = {}

    def node(self, number: int) -> DemoNode:
        return self.swarm.nodes[number - 1]

    def is_held_up(self, number: int) -> bool:
        """It runs, and could not exchange anything however well it did."""
        cut = (act.nodes for act in self._acts if act.kind in ("cut", "oneway"))
        return number in self.stopped or any(number in nodes for nodes in cut)

    # ------------------------------------------------------------------------------- trouble

    def begin(self, act: Act) -> str:
        """Returns what was done, for people; empty if it could not befall its victim now."""
        match act.kind:
            case "kill" | "everybody":
                return self._kill([n for n in act.nodes if n not in self.down])
            case "stop":
                return self._stop([n for n in act.nodes if n not in self.down | self.stopped])
            case "worker" | "crash":
                return self._end_workers(act)
            case "full":
                return self._fill([n for n in act.nodes if n not in self.down])
            case "guests":
                return self._send_guests(act)
            case "clock":
                self._set_clocks(act.nodes, act.rate)
                return f"the clock of {_names(act.nodes)} set by {act.rate:+g} s"
            case _:
                self._acts.append(act)
                self._lines.suffer(self._trouble())
                who = f" of {_names(act.nodes)}" if len(act.nodes) < len(self.swarm.nodes) else ""
                return f"{act.kind}{who}" + (f", {act.rate:g}" if act.rate else "")

    def end(self, act: Act) -> str:
        """Mend what `begin` did. Returns what was done."""
        match act.kind:
            case "kill" | "everybody":
                return self._start([n for n in act.nodes if n in self.down])
            case "stop":
                return self._go_on([n for n in act.nodes if n in self.stopped])
            case "full":
                for number in act.nodes:
                    (self.node(number).layout.root.parent / FILLER).unlink(missing_ok=True)
                return f"room again for {_names(act.nodes)}"
            case "guests":
                guests = self._guests.pop(act, None)
                if guests is not None:
                    guests.kill()
                    guests.wait()
                return f"guests of {_names(act.nodes)} gone"
            case "clock":
                self._set_clocks(act.nodes, -act.rate)
                return f"the clock of {_names(act.nodes)} set right"
            case "worker" | "crash":
                return ""
            case _:
                self._acts.remove(act)
                self._lines.suffer(self._trouble())
                return f"{act.kind} over"

    def _trouble(self) -> Trouble:
        """All that lines suffer now."""
        trouble, blocked = Trouble(), set[tuple[int, int]]()
        everybody = range(len(self.swarm.nodes))
        for act in self._acts:
            ours = {number - 1 for number in act.nodes}
            match act.kind:
                case "cut":
                    blocked |= {(a, b) for a in everybody for b in everybody if {a, b} & ours}
                case "oneway":
                    blocked |= {(a, b) for a in ours for b in everybody}
                case "split":
                    blocked |= {
                        (a, b) for a in everybody for b in everybody if (a in ours) != (b in ours)
                    }
                case "loss":
                    trouble = replace(trouble, loss=max(trouble.loss, act.rate))
                case "corrupt":
                    trouble = replace(trouble, corrupt=max(trouble.corrupt, act.rate))
                case "slow":
                    trouble = replace(trouble, rate=act.rate * 1e6 / 8)
                case "delay":
                    trouble = replace(trouble, delay_s=trouble.delay_s + act.rate / 1000)
        return replace(trouble, blocked=tuple(sorted(blocked)))

    def _kill(self, numbers: Sequence[int]) -> str:
        for number in numbers:
            self._go_on([number] if number in self.stopped else [])
            self.node(number).kill()
            self.down.add(number)
        return f"killed {_names(numbers)}" if numbers else ""

    def _start(self, numbers: Sequence[int]) -> str:
        for number in numbers:
            self.swarm.start_again(self.node(number))
            self.down.discard(number)
        return f"started {_names(numbers)}" if numbers else ""

    def _stop(self, numbers: Sequence[int]) -> str:
        for number in numbers:
            _signal(processes_of(self.node(number)), signal.SIGSTOP)
            self.stopped.add(number)
        return f"stopped {_names(numbers)}" if numbers else ""

    def _go_on(self, numbers: Sequence[int]) -> str:
        for number in numbers:
            _signal(reversed(processes_of(self.node(number))), signal.SIGCONT)
            self.stopped.discard(number)
        return f"{_names(numbers)} go on" if numbers else ""

    def _end_workers(self, act: Act) -> str:
        number = signal.SIGKILL if act.kind == "worker" else signal.SIGSEGV
        ended = []
        for victim in act.nodes:
            if victim not in self.down | self.stopped:
                workers = processes_of(self.node(victim))[1:]
                _signal(workers, number)
                ended += [victim] * bool(workers)
        return f"{number.name} to the worker of {_names(ended)}" if ended else ""

    def _fill(self, numbers: Sequence[int]) -> str:
        filled = [number for number in numbers if _fill(self.node(number).layout.root.parent)]
        return f"no room for {_names(filled)}" if filled else ""

    def _send_guests(self, act: Act) -> str:
        """From the machine of the next node."""
        (number,) = act.nodes
        status = self.node(number).status
        if number in self.down or status is None:
            return ""
        port = int(status["address"].rsplit(":", 1)[1])
        page = urlsplit(status["page"]).port
        host = number % len(self.swarm.nodes) + 1
        with self._lines.at(host):
            self._guests[act] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "peerlm.chaos.guests", self._lines.address(number)),
                    *map(str, (port, port + 1, port + 2, page)),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
            )
        return f"guests at {_names(act.nodes)}"

    def _set_clocks(self, numbers: Sequence[int], seconds: float) -> None:
        for number in numbers:
            self._clocks[number - 1].step(seconds)

    def send_guests_away(self) -> None:
        for act in list(self._guests):
            self.end(act)

    def mend_all(self) -> None:
        """Nothing is wrong any more."""
        self.send_guests_away()
        self._acts.clear()
        self._lines.suffer(Trouble())
        for clock in self._clocks:
            clock.set_right()
        self._go_on(sorted(self.stopped))
        self._start(sorted(self.down))


def _fill(folder: Path) -> bool:
    """Leave no room in a file system; whether it worked, for it is used meanwhile. False if it is full already."""
    filler = folder / FILLER
    if filler.exists():
        return False
    with filler.open("wb") as file:
        for _ in range(FILLING_TRIES):
            free = os.statvfs(folder)
            with contextlib.suppress(OSError):
                size = file.seek(0, os.SEEK_END)
                os.posix_fallocate(file.fileno(), size, free.f_bavail * free.f_bsize)
                return True
    filler.unlink()
    return False


def _names(numbers: Sequence[int]) -> str:
    return ", ".join(f"node {number}" for number in numbers)


def _signal(
    processes: Iterator[psutil.Process] | Sequence[psutil.Process], number: signal.Signals
) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def world_of(scenario: Scenario, folder: Path) -> Iterator[World]:
    """Machines and nodes, none started. Raises `Missed` where they cannot be made."""
    mount_namespace()
    with ExitStack() as stack:
        for number in range(1, scenario.nodes + 1):
            stack.enter_context(_disk(folder / f"disk-{number}"))
        lines = Lines(scenario.nodes, read_wire(scenario.link), scenario.seed)
        stack.callback(lines.close)
        swarm = _swarm(scenario, folder, lines)
        stack.enter_context(running(swarm))
        clocks = _clocks(scenario, folder)
        for node, clock in zip(swarm.nodes, clocks, strict=False):
            node.program = clock.program(node.program)
        world = World(scenario, swarm, lines, clocks)
        stack.callback(world.send_guests_away)
        yield world


def _clocks(scenario: Scenario, folder: Path) -> list[Clock]:
    if not any(fault.kind == "clock" for fault in scenario.faults):
        return []
    return [Clock(folder / f"clock-{n}") for n in range(1, scenario.nodes + 1)]


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """A file system in memory at `place`. Raises `Missed`."""
    place.mkdir(parents=True)
    size = f"size={FOLDER_BYTES}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Missed(f"no file system for a node: {done.stderr.strip()}")
    try:
        yield
    finally:  # lazily: what still has a file open there must not keep us
        subprocess.run(["umount", "--lazy", place], check=False)


def plan_of(scenario: Scenario) -> dict[str, Any]:
    """Changes to the preset's plan."""
    return {
        "run.token_budget": token_budget(scenario),
        "run.rng_seed": scenario.seed,
        **_dotted(scenario.plan),
    }


def node_settings_of(scenario: Scenario) -> dict[str, Any]:
    """What every node has set for itself."""
    return {"train.pace_tokens_s": scenario.pace, **_dotted(scenario.node)}


def _swarm(scenario: Scenario, folder: Path, lines: Lines) -> Swarm:
    has_guests = any(fault.kind == "guests" for fault in scenario.faults)
    local = {
        **node_settings_of(scenario),
        "network.port": 7700,
        "page.enabled": has_guests,
        "page.host": "",
        "page.port": 7703,
    }
    swarm = Swarm(folder, scenario.nodes, plan_of(scenario), local, scenario.preset, place=lines)
    for node in swarm.nodes:
        node.layout = type(node.layout)(folder / f"disk-{node.number}" / "node")
    return swarm


def _dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"lr": 1}}` as `{"train.lr": 1}`."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            found |= _dotted(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
