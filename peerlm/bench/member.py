"""A daemon in a process of its own that mixes when told to: `python -m peerlm.bench.member STATE SEED...`

The daemon is the real one, with its sockets, threads and snapshots; it has no worker, and exchanges
start by command instead of after outer steps. A line of words on standard input, a line of JSON on
standard output:

    wait N             until N partners can be mixed with
    exchange COUNT     start COUNT exchanges of all fragments in turn, one at a time, until they are done
    renew SEED NUMBER  take the prepared weights of node NUMBER (anew), and forget past distances
    round              start an exchange of every fragment, all at once, until each has been mixed
    served             the same, but peers start them
    tally              what exchanges have come to since the daemon began
    rest SECONDS       nothing; the daemon's lags are counted from here
    load SECONDS       one exchange after another for so long; the daemon's lags are counted from here

A round is what a node does when all its fragments come to their outer step at once, by `driver.start_exchange`
alone: a fragment that a peer is mixing already need not be started, and one whose partners were all busy
is started again. Nodes that have mixed are close, and nodes that are close ask for finer codecs than the
plan's: so `renew` before each round puts them as far apart as they were and lets them forget, and rounds
tell how many fragments would have asked for another codec.

The end of standard input is the end of the process. `Member` is the other end of the pipe.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from peerlm.bench.child import Child
from peerlm.bench.founding import Place
from peerlm.bench.rows import STAGES
from peerlm.bench.weights import prepare
from peerlm.cli.demo_nodes import DemoNode
from peerlm.daemon.log import DaemonLog
from peerlm.daemon.loop import Driver
from peerlm.daemon.main import open_daemon, read_home
from peerlm.events import ExchangeEnded, ExchangeServed
from peerlm.mix.codec import choose_codecs
from peerlm.mix.fragment import SlowFragment
from peerlm.store.layout import StateDirectory
from peerlm.types import FragmentId

PAUSE_S = 0.005
"""Between two looks at whether an exchange is over."""

WAIT_S = 60.0
EXCHANGE_S = 30.0
"""Longest time from one finished exchange to the next."""

LOOK_S = 0.02
"""Fragments that were given up without a word are started again after this at the latest."""


class Member(Child):
    """The process, from outside. `node` gives the folder, the log and the questions to ask."""

    def __init__(self, node: DemoNode, *seeds: str, place: Place | None = None) -> None:
        command = [sys.executable, "-m", "peerlm.bench.member", str(node.layout.root), *seeds]
        at = None if place is None else place.at(node.number)
        super().__init__(node.name, command, node.output, at)
        self.node = node


# ------------------------------------------------------------------------------------- inside


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
            case ["renew", rng_seed, number]:
                answer = await renew(driver, int(rng_seed), int(number))
            case ["round"]:
                answer = await mix_all(driver, starts=True)
            case ["served"]:
                answer = await mix_all(driver, starts=False)
            case ["tally"]:
                answer = tally(driver)
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


async def renew(driver: Driver, rng_seed: int, number: int) -> dict[str, Any]:
    """φ as it was prepared. What the last round has taught is no longer so, and is forgotten."""
    exchanges = driver.node.work.exchanges
    for index, state in exchanges.outcomes.fragments.items():
        fragment = FragmentId(index)
        while exchanges.is_busy(fragment):  # over for whoever started it, not yet for us
            await something(driver)

        def fill(slow: SlowFragment, fragment: FragmentId = fragment) -> None:
            prepare(slow.phi, fragment, rng_seed, number)

        await driver.slow.on(fragment, fill)
        state.last.clear()
        state.distance = None
    return {}


async def mix_all(driver: Driver, *, starts: bool) -> dict[str, Any]:
    """Until every fragment has been mixed since `renew`, and none is under way."""
    work = driver.node.work
    exchanges, states = work.exchanges, work.exchanges.outcomes.fragments
    fragments = [FragmentId(index) for index in range(len(states))]
    began = heard = time.monotonic()
    left = len(states)
    while True:
        waiting = [fragment for fragment in fragments if not states[fragment].last]
        busy = {fragment for fragment in fragments if exchanges.is_busy(fragment)}
        if not waiting and not busy:
            break
        if len(waiting) < left:
            left, heard = len(waiting), time.monotonic()
        elif time.monotonic() - heard > EXCHANGE_S:
            reasons = dict(exchanges.outcomes.totals().reasons)
            return {"error": f"no exchange has gone well for {EXCHANGE_S:g} s: {reasons}"}
        for fragment in waiting if starts else ():
            if fragment not in busy:
                driver.start_exchange(fragment)
        await something(driver)
    ended = time.monotonic()
    planned = (work.plan.mix.codec_request, work.plan.mix.codec_reply)
    finer = [s for s in states.values() if choose_codecs(*planned, s.distance or 1.0) != planned]
    return {"began": began, "ended": ended, "finer": len(finer)}


async def something(driver: Driver) -> None:
    """Until an exchange has ended, or a moment has gone by."""
    try:
        async with asyncio.timeout(LOOK_S):
            await driver.next_of(ExchangeEnded, ExchangeServed)
    except TimeoutError:
        pass


def tally(driver: Driver) -> dict[str, Any]:
    totals = driver.node.work.exchanges.outcomes.totals()
    return {
        "wire_bytes": driver.bulk.counters["bytes_sent"],
        "exchanges": totals.initiated_ok,
        "busy": totals.busy,
        "clipped": totals.clipped,
        **{f"{stage}_us": driver.bulk.counters[f"{stage}_us"] for stage in STAGES},
    }


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
