"""The swarm's store between real nodes: how fast bytes come and go.

*Speed.* A file is added at one node, read at a node without room from this one donor, then from three; beside `cp` with an
fsync and a download over plain HTTP of the same bytes, in turns. Then a checkpoint of a model is made by four nodes. All
nodes share this machine's disk and processors, so a checkpoint in three replicas is held beside three copies by `cp`.

*Kills* are `bench.store_kills`. *Flips* are `bench.store_flips`: a byte is flipped in each of a thousand chunks on running nodes' disks. *Training* is `bench.store_pace`: how fast
a swarm trains while checkpoints are made.

    python -m bench.store_swarm
    python -m bench.store_swarm --mb 256
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.report import Missed, Row, say
from bench.store_flips import flips
from bench.store_nodes import (
    BRIEF,
    LOCAL,
    PLAN,
    REPLICAS,
    SMALL,
    Stores,
    begun,
    is_settled,
    replicas,
    wait_for,
)
from bench.store_nodes import desk_of as _desk
from bench.store_pace import training
from peerlm.bench.nodes import running
from peerlm.cli.chunk_reading import Reader
from peerlm.cli.demo_nodes import DemoNode
from peerlm.store.manifest import Manifest

# --------------------------------------------------------------------------------------- speed


def copied(source: Path, target: Path, times: int = 1) -> float:
    """MB/s of `cp` with an fsync, so many times over."""
    began = time.monotonic()
    for number in range(times):
        copy = target.with_name(f"{target.name}-{number}")
        shutil.copyfile(source, copy)
        with copy.open("rb+") as file:
            os.fsync(file.fileno())
        copy.unlink()
    return times * source.stat().st_size / (time.monotonic() - began) / 1e6


def downloaded(source: Path, target: Path) -> float:
    """MB/s of a download over plain HTTP from another process, written with an fsync."""
    words = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        [sys.executable, "-u", *words[1:]],
        cwd=source.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split("port ")[1].split()[0]
        began = time.monotonic()
        with (
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{source.name}") as answer,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(answer, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        took = time.monotonic() - began
    finally:
        server.kill()
        server.wait()
    target.unlink()
    return source.stat().st_size / took / 1e6


def fetched(node: DemoNode, name: str) -> float:
    """MB/s at which a node without any of it gets all of it onto its disk, once it has heard of the name."""
    with _desk(node) as desk:
        wait_for(
            lambda: name in [kept["name"] for kept in desk.names()], f"{node.name} knows of {name}"
        )
        manifest = desk.manifest(name)
    began = time.monotonic()
    with Reader(node.layout) as reader:
        size = sum(len(data) for _, data in reader.read(manifest.chunks) if isinstance(data, bytes))
    if size != manifest.size_bytes:
        raise Missed(f"{node.name} got {size} of {manifest.size_bytes} bytes")
    return size / (time.monotonic() - began) / 1e6


def added(node: DemoNode, path: Path, name: str, wait: int) -> float:
    """MB/s of `peerlm data add --as files`, until so many nodes have it."""
    began = time.monotonic()
    words = ["data", "add", str(path), "--as", "files", "--name", name]
    work = begun([*words, "--wait", str(wait), "--state", str(node.layout.root)])
    _, error = work.communicate(timeout=600)
    if work.returncode:
        raise Missed(f"data add: {error.strip()}")
    return path.stat().st_size / (time.monotonic() - began) / 1e6


def speed(args: argparse.Namespace, folder: Path) -> list[Row]:
    path, spare = folder / "bytes", folder / "spare"
    rng = random.Random(args.seed)
    with path.open("wb") as out:
        for _ in range(args.mb):
            out.write(rng.randbytes(1 << 20))
    swarm = Stores(folder / "speed", 5, {**PLAN, **SMALL}, LOCAL)
    swarm.roomless = (4, 5)
    with running(swarm):
        one, two, three, first, second = swarm.nodes
        swarm.begin()
        swarm.enter(first)
        put = added(one, path, "bytes", wait=1)
        say("added at one node")
        single = fetched(first, "bytes")
        cp, web = copied(path, spare), downloaded(path, spare)
        say("read from one donor")
        swarm.enter(two, three, second)
        with _desk(one) as desk:
            wait_for(lambda: min(replicas(desk, "bytes")) >= REPLICAS, "three replicas")
        triple = fetched(second, "bytes")
        cp, web = (cp + copied(path, spare)) / 2, (web + downloaded(path, spare)) / 2
        whole = added(one, _other(path, rng), "others", wait=REPLICAS)
    path.unlink()
    return [
        Row(f"`cp` and fsync of {args.mb} MiB", cp, "MB/s"),
        Row("download of the same over plain HTTP, with an fsync", web, "MB/s"),
        Row("added at one node, durable there", put, "MB/s"),
        Row("÷ cp", put / cp),
        Row("added, durable at three nodes", whole, "MB/s"),
        Row("three copies ÷ cp", REPLICAS * whole / cp),
        Row("fetched by one node from one donor", single, "MB/s"),
        Row("÷ HTTP", single / web),
        Row("fetched by one node from three donors", triple, "MB/s"),
        Row("÷ HTTP", triple / web),
    ]


def _other(path: Path, rng: random.Random) -> Path:
    """As many bytes that nobody has."""
    other = path.with_name("others")
    with other.open("wb") as out:
        for _ in range(path.stat().st_size >> 20):
            out.write(rng.randbytes(1 << 20))
    return other


def checkpoints(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Four nodes that hold all of a model put it into three replicas."""
    plan = {**PLAN, **BRIEF, "model.blocks": ",".join(("attention", "feedforward") * args.blocks)}
    swarm = Stores(folder / "checkpoint", 4, plan, LOCAL, preset="gpt-124m")
    with running(swarm):
        swarm.begin()
        swarm.enter(*swarm.nodes[1:])
        swarm.wait("they have written snapshots", lambda: all(map(is_settled, swarm.nodes)))
        os.sync()
        say("four nodes hold the model")
        node = swarm.nodes[0]
        with _desk(node) as desk:
            began = time.monotonic()
            name = desk.checkpoint()
            gathered_s = time.monotonic() - began
            wait_for(lambda: min(replicas(desk, name)) >= REPLICAS, "three replicas")
            took_s = time.monotonic() - began
            manifest = desk.manifest(name)
        whole = folder / "whole"
        _save(node, manifest, whole)
        cp = copied(whole, folder / "copy", REPLICAS)
    size = manifest.size_bytes
    rate = REPLICAS * size / took_s / 1e6
    return [
        Row("checkpoint", size / 1e6, "MB"),
        Row("gathered by four nodes", gathered_s, "s"),
        Row("in three replicas after", took_s, "s"),
        Row("bytes of all replicas a second", rate, "MB/s"),
        Row("three copies by `cp` with an fsync", cp, "MB/s"),
        Row("÷ cp", rate / cp, at_least=0.6),
    ]


def _save(node: DemoNode, manifest: Manifest, path: Path) -> None:
    with Reader(node.layout) as reader, path.open("wb") as out:
        for _, data in reader.read(manifest.chunks):
            assert isinstance(data, bytes), data
            out.write(data)


PARTS = {
    "flips": flips,
    "speed": speed,
    "checkpoint": checkpoints,
    "training": training,
}


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    rows: list[Row] = []
    for part, call in PARTS.items():
        if part in args.parts:
            rows += call(args, folder)
    return rows


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--mb", type=int, default=512, help="of the file that is timed [512]")
    flags.add_argument("--blocks", type=int, default=12, help="of the model that is kept [12]")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--flips", type=int, default=1000, help="of bytes on disks [1000]")
    flags.add_argument(
        "--pace", type=float, default=60.0, help="of a node that trains, tokens/s [60]"
    )
    flags.add_argument(
        "--window", type=float, default=20.0, help="seconds with checkpoints, or without [20]"
    )
    flags.add_argument("--windows", type=int, default=4, help="of each [4]")
    flags.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of them [all]"
    )
    return report.perform("store_swarm", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
