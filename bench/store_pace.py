"""How fast a swarm trains while checkpoints of it are made: is nothing stopped for them?

Four nodes train a small model, each held to a pace far below what the processors could do (`train.pace_tokens_s`), so what
is measured is waiting, not arithmetic: a worker makes up for a quarter of a second of it, one step, and for no more. In every other window checkpoints are made one after the other, each until it is in three
replicas. The rate is that of all workers together, between the first and the last report in a window.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from threading import Event

import psutil

from bench.report import Row, say
from bench.store_nodes import LOCAL, PLAN, REPLICAS, desk_of, replicas, wait_for
from peerlm.bench.child import cpu_seconds
from peerlm.bench.nodes import Swarm, processes, running
from peerlm.bench.windows import all_work, rates

NODES = 4
MODEL = {
    "model.blocks": ",".join(("attention", "feedforward") * 4),
    "model.context": 16,
    "train.batch": 1,
    "train.accumulate": 1,
    "train.val_batches": 1,
    "train.optimizer": "sgd",
}
"""Of `small`: short steps that cost little, so that a window has many."""


def training(args: argparse.Namespace, folder: Path) -> list[Row]:
    local = {**LOCAL, "train.pace_tokens_s": args.pace}
    swarm = Swarm(folder / "training", NODES, {**PLAN, **MODEL}, local, preset="small")
    made: list[float] = []
    beside: list[float] = []
    apart: list[float] = []
    busy: list[float] = []
    with running(swarm):
        swarm.start()
        swarm.wait("every worker trains and mixes", lambda: all_work(swarm))
        say("four nodes train")
        size = _bytes(swarm, _make(swarm, [], None))
        for number in range(args.windows):
            for is_beside in (number % 2 == 0, number % 2 != 0):
                if is_beside:
                    beside.append(_beside(swarm, args.window, made))
                else:
                    rate, share = _apart(swarm, args.window)
                    apart.append(rate)
                    busy.append(share)
        faults = swarm.tracebacks()
    return [
        Row("checkpoint of a swarm that trains", size / 1e6, "MB"),
        Row("checkpoints made meanwhile, each in three replicas", len(made), at_least=args.windows),
        Row("one took", mean(made), "s"),
        Row("cores busy outside of it", mean(busy)),
        Row("trained outside of it, four nodes", mean(apart), "tokens/s"),
        Row("÷ what the pace allows", mean(apart) / (NODES * args.pace)),
        Row("trained during checkpoints", mean(beside), "tokens/s"),
        Row("÷ that outside", mean(beside) / mean(apart), at_least=0.95),
        Row("tracebacks meanwhile", faults, at_most=0),
    ]


def _beside(swarm: Swarm, seconds: float, made: list[float]) -> float:
    enough = Event()
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(_make, swarm, made, enough)
        try:
            found = sum(rates(swarm, seconds))
        finally:
            enough.set()
        making.result()
    return found


def _apart(swarm: Swarm, seconds: float) -> tuple[float, float]:
    """Tokens/s, and the part of all cores that is busy with it."""
    of, began = processes(swarm), time.monotonic()
    before = cpu_seconds(of)
    found = sum(rates(swarm, seconds))
    took_s = time.monotonic() - began
    return found, (cpu_seconds(of) - before) / took_s / (psutil.cpu_count() or 1)


def _make(swarm: Swarm, made: list[float], enough: Event | None) -> str:
    """One checkpoint after the other until it is `enough`, or just one; seconds of each. The last one's name."""
    with desk_of(swarm.nodes[0]) as desk:
        while True:
            began = time.monotonic()
            name = desk.checkpoint()
            wait_for(lambda: min(replicas(desk, name)) >= REPLICAS, "three replicas")  # noqa: B023
            made.append(time.monotonic() - began)
            if enough is None or enough.is_set():
                return name


def _bytes(swarm: Swarm, name: str) -> int:
    with desk_of(swarm.nodes[0]) as desk:
        return desk.manifest(name).size_bytes
