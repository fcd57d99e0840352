"""A daemon in a process of its own that mixes when it is told to: `python -m bench.member STATE SEED...`

The daemon is the real one, with its sockets, threads and snapshots; it has no worker, and exchanges
start by command instead of after outer steps. A line of words on standard input, a line of JSON on
standard output:

    wait N             until N partners can be mixed with
    exchange COUNT     start COUNT exchanges of all fragments in turn, one at a time, until they are done
    rest SECONDS       nothing; the daemon's lags are counted from here
    load SECONDS       one exchange after another for so long; the daemon's lags are counted from here

The end of standard input is the end of the process. `Member` is the other end of the pipe.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.report import Missed
from peerlm.cli.demo_nodes import DemoNode
from peerlm.daemon.log import DaemonLog
from peerlm.daemon.loop import Driver
from peerlm.daemon.main import open_daemon, read_home
from peerlm.mix.codec import choose_codecs
from peerlm.store.disk import StateDirectory
from peerlm.types import FragmentId

PAUSE_S = 0.005
"""Between two looks at whether an exchange is over."""

WAIT_S = 60.0
EXCHANGE_S = 30.0
"""Longest time from one finished exchange to the next."""


class Member:
    """The process, from outside. `node` gives the folder, the log and the questions to ask."""

    def __init__(self, node: DemoNode, *seeds: str) -> None:
        self.node = node
        with node.output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.member", str(node.layout.root), *seeds],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,
            )

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The answer to the oldest command without one. Raises `Missed` when the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Missed(f"{self.node.name} has ended: {self.node.last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if error := answer.get("error"):
            raise Missed(f"{self.node.name}: {error}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(5.0)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()


async def live(root: Path, seeds: tuple[str, ...]) -> str:
    """Run the daemon and carry out commands; returns why it ended, empty if it was asked to."""
    with StateDirectory(root) as state:
        home = read_home(state)
        log = DaemonLog(state.log, home.settings.control.log_level, quiet=True)
        async with open_daemon(state, home, log, seeds) as driver:
            driver.begin()
            commands = asyncio.create_task(obey(driver))
            await asyncio.wait({commands, driver.halted}, return_when=asyncio.FIRST_COMPLETED)
            if driver.halted.done():
                commands.cancel()
                return driver.halted.result()
            return commands.result()


async def obey(driver: Driver) -> str:
    """One command after another until standard input ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        match line.split():
            case ["wait", count]:
                answer = await wait(driver, int(count))
            case ["exchange", count]:
                answer = await exchange(driver, int(count))
            case ["rest", seconds]:
                driver.lags_s.clear()
                await asyncio.sleep(float(seconds))
                answer = {}
            case ["load", seconds]:
                driver.lags_s.clear()
                answer = await exchange(driver, sys.maxsize, float(seconds))
            case _:
                answer = {"error": f"no such command: {line.strip()}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return ""


async def wait(driver: Driver, partners: int) -> dict[str, Any]:
    until = time.monotonic() + WAIT_S
    while len(driver.node.work.seen.partners) < partners:
        if time.monotonic() > until:
            return {"error": f"sees {len(driver.node.work.seen.partners)} partners, not {partners}"}
        await asyncio.sleep(PAUSE_S)
    return {}


async def exchange(driver: Driver, count: int, seconds: float | None = None) -> dict[str, Any]:
    """Until `count` exchanges that this node started went well, or for so many seconds.

    `as_planned` counts those that used the plan's codecs: nodes that are close ask for finer ones.
    """
    work = driver.node.work
    exchanges, mix = work.exchanges, work.plan.mix
    outcomes = exchanges.outcomes
    began = last = time.monotonic()
    first = done = outcomes.totals().initiated_ok
    turn = as_planned = 0
    while done - first < count and (seconds is None or time.monotonic() - began < seconds):
        fragment = FragmentId(turn % len(outcomes.fragments))
        turn += 1
        if exchanges.is_busy(fragment):
            await asyncio.sleep(PAUSE_S)
            continue
        distance = outcomes.fragments[fragment].distance
        codecs = (mix.codec_request, mix.codec_reply)
        finer = distance is not None and choose_codecs(*codecs, distance) != codecs
        driver.start_exchange(fragment)
        while exchanges.is_busy(fragment):  # noqa: ASYNC110  (exchanges wake nobody)
            await asyncio.sleep(PAUSE_S)
        before, done = done, outcomes.totals().initiated_ok
        if done > before:
            last = time.monotonic()
            as_planned += not finer
        elif time.monotonic() - last > EXCHANGE_S:
            reasons = dict(outcomes.totals().reasons)
            return {"error": f"no exchange has gone well for {EXCHANGE_S:g} s: {reasons}"}
        else:
            await asyncio.sleep(PAUSE_S)
    return {"ok": done - first, "as_planned": as_planned, "seconds": time.monotonic() - began}


def main() -> int:
    root, *seeds = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        error = runner.run(live(Path(root), tuple(seeds)))
    if error:
        sys.stderr.write(f"{error}\n")
    return 1 if error else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.exit(status)
