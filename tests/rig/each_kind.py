"""Each kind of fault once, made and mended by `World` on three real nodes. Prints as JSON what was seen while it was and afterwards.

`python tests/rig/each_kind.py [KIND…]`, as root: a process of its own, for it takes mounts of its own. test_chaos.py judges.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from peerlm.bench.nodes import processes_of
from peerlm.bench.rows import Missed
from peerlm.chaos.clocks import library
from peerlm.chaos.scenario import KINDS, OF_ALL, Act, Fault, Scenario
from peerlm.chaos.world import World, world_of

PLAN = {
    "swarm.profile": "test",
    "model.dim": 32,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.hidden": 64,
    "model.context": 32,
    "train.batch": 4,
}
RATES = {"loss": 0.5, "slow": 2.0, "delay": 200.0, "corrupt": 0.5, "clock": 7200.0}
HALF = (1,)
PORT, SIZE, PATIENCE_S = 9999, 1200, 1.0
SOON_S = 120.0
TRIES = 5
"""Of which the fastest counts: this machine may be busy."""

Seen = dict[str, Any]


def has_clocks() -> bool:
    try:
        return bool(library())
    except Missed:
        return False


class Probe:
    """Datagrams and bytes of our own between the machines of a world."""

    def __init__(self, world: World) -> None:
        self._lines = world._lines
        self._sockets = {n: self._at(n, socket.SOCK_DGRAM) for n in (1, 2, 3)}
        self._listener = self._at(2, socket.SOCK_STREAM)
        self._listener.listen()
        for pair in ((1, 2), (2, 1), (2, 3)):
            soon(lambda pair=pair: self.arrive(*pair)[0] == 1, "a datagram arrives")

    def _at(self, number: int, kind: socket.SocketKind) -> socket.socket:
        with self._lines.at(number):
            made = socket.socket(socket.AF_INET, kind)
        made.bind((self._lines.address(number), PORT))
        made.settimeout(PATIENCE_S)
        return made

    def arrive(self, sender: int, receiver: int, count: int = 1) -> tuple[int, float]:
        """How many of so many that are sent, and after how many seconds the last."""
        there = self._sockets[receiver]
        there.settimeout(0.0)
        try:
            while there.recv(1 << 16):
                """Late ones of before."""
        except BlockingIOError:
            there.settimeout(PATIENCE_S)
        began = last = time.monotonic()
        for _ in range(count):
            address = (self._lines.address(receiver), PORT)
            self._sockets[sender].sendto(bytes(SIZE), address)
        arrived = 0
        try:
            while arrived < count:
                there.recv(1 << 16)
                arrived, last = arrived + 1, time.monotonic()
        except TimeoutError:
            """What is not here by now does not come."""
        return arrived, last - began

    def fastest(self, count: int) -> float:
        """Seconds until the last of so many is on machine 2, of tries in which most arrive."""
        tries = [self.arrive(1, 2, count) for _ in range(TRIES)]
        return round(min((s for n, s in tries if n > 0.6 * count), default=SOON_S), 4)

    def ways(self) -> dict[str, bool]:
        """Which of three ways something arrives on."""
        return {f"{a}-{b}": self.arrive(a, b, 3)[0] > 0 for a, b in ((1, 2), (2, 1), (2, 3))}

    def spoilt(self) -> int:
        """Bytes that are not what was sent, of a quarter of a million over TCP from machine 1 to 2."""
        with self._lines.at(1):
            line = socket.socket()
        line.settimeout(SOON_S)
        line.connect((self._lines.address(2), PORT))
        there, _ = self._listener.accept()
        there.settimeout(SOON_S)
        with line, there:
            heard = b""
            for _ in range(50):
                line.sendall(bytes(5000))
                wanted = len(heard) + 5000
                while len(heard) < wanted:
                    heard += there.recv(1 << 16)
        return sum(byte != 0 for byte in heard)


def soon(is_so: Callable[[], bool], what: str) -> None:
    """Raises `Missed`."""
    until = time.monotonic() + SOON_S
    while not is_so():
        if time.monotonic() > until:
            raise Missed(f"{what}: not within {SOON_S:.0f} s")
        time.sleep(0.1)


def states(world: World, number: int) -> list[str]:
    return sorted({process.status() for process in processes_of(world.node(number))})


def has_room(world: World, number: int) -> bool:
    probe = world.node(number).layout.root.parent / "probe"
    try:
        probe.write_bytes(bytes(1 << 16))
        os.sync()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


def has_guests(world: World, number: int) -> bool:
    """Somebody is connected with the port of its page, which nobody else wants."""
    node = world.node(number)
    assert node.status is not None
    port = f":{urlsplit(node.status['page']).port:04X}"
    tables = (Path(f"/proc/{node.pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [row for table in tables for row in table.splitlines()[1:]]
    return any(row.split()[1].endswith(port) and row.split()[3] == "01" for row in rows)


def clock_is_wrong_by(world: World, number: int) -> int:
    """Whole hours."""
    program = world._clocks[number - 1].program([sys.executable, "-c", "import time"])
    program[-1] += "; print(time.time())"
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return round((float(done.stdout) - time.time()) / 3600)


def worker_of(world: World, number: int) -> int:
    """Its process, 0: there is none that answers."""
    status = world.node(number).status
    if status is None or status["worker"]["state"] != "running":
        return 0
    return next((p.pid for p in processes_of(world.node(number))[1:]), 0)


def look_of(kind: str, world: World, probe: Probe) -> Callable[[], Any]:
    """What shows whether the first node suffers it."""
    match kind:
        case "kill" | "everybody":
            return lambda: [node.is_up for node in world.swarm.nodes]
        case "stop":
            return lambda: "stopped" in states(world, 1)
        case "cut" | "oneway" | "split":
            return probe.ways
        case "loss":
            return lambda: round(probe.arrive(1, 2, 100)[0] / 100, 2)
        case "slow":
            return lambda: probe.fastest(30)
        case "delay":
            return lambda: probe.fastest(1)
        case "corrupt":
            return lambda: probe.spoilt() > 0
        case "full":
            return lambda: has_room(world, 1)
        case "guests":
            return lambda: has_guests(world, 1)
        case "clock":
            return lambda: clock_is_wrong_by(world, 1)
    raise AssertionError(kind)


def all_take_part(world: World) -> bool:
    statuses = world.swarm.statuses()
    return len(statuses) == 3 and all(
        s["participating"] and s["state"] == "training" for s in statuses
    )


def workers_end(world: World, act: Act) -> Seen:
    """It is gone at once, and another comes."""
    world.swarm.wait("a worker", lambda: worker_of(world, 1) != 0, SOON_S)
    before = worker_of(world, 1)
    said = world.begin(act)
    psutil.wait_procs([psutil.Process(before)] if psutil.pid_exists(before) else [], timeout=10)
    gone = not psutil.pid_exists(before)
    world.swarm.wait("another worker", lambda: worker_of(world, 1) not in (0, before), SOON_S)
    status = world.node(1).status
    assert status is not None
    return {"said": said, "mended": world.end(act), "while": gone, "then": status["worker"]}


def suffer(world: World, probe: Probe, kind: str) -> Seen:
    nodes = HALF if kind == "split" else (1, 2, 3) if kind in OF_ALL else (1,)
    act = Act(0.0, 1.0, kind, nodes, RATES.get(kind, 0.0))
    if kind in ("worker", "crash"):
        return workers_end(world, act)
    look = look_of(kind, world, probe)
    seen: Seen = {"said": world.begin(act)}
    if kind == "guests":
        soon(look, "guests are there")
    seen["while"] = look()
    seen["mended"] = world.end(act)
    if kind in ("cut", "oneway", "split"):
        soon(lambda: all(probe.ways().values()), "all ways are open")
    if kind == "guests":
        soon(lambda: not look(), "guests are gone")
    seen["then"] = look()
    return seen


def main() -> None:
    wanted = sys.argv[1:] or KINDS
    kinds = [kind for kind in wanted if kind != "clock" or has_clocks()]
    faults = tuple(Fault(kind, at_s=1.0) for kind in ("guests", "clock") if kind in kinds)
    scenario = Scenario("each kind", 3, 10.0, pace=300.0, plan=PLAN, faults=faults)
    seen: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="peerlm-kinds-") as folder,
        world_of(scenario, Path(folder)) as world,
    ):
        world.swarm.start()
        world.swarm.wait("all take part", lambda: all_take_part(world))
        probe = Probe(world)
        for kind in kinds:
            seen[kind] = suffer(world, probe, kind)
            took_s = world.swarm.wait("all take part again", lambda: all_take_part(world))
            sys.stderr.write(f"{kind}: {seen[kind]}, well after {took_s:.1f} s\n")
        world.mend_all()
        seen["tracebacks"] = world.swarm.tracebacks()
        seen["tokens_that_fell"] = world.swarm.steps_back
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
