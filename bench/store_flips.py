"""Bytes flipped on the disks of running nodes: are all found, is none served, is all repaired?

Four nodes keep some thousand chunks, each on three of them, no more. In each chunk one byte of one copy is flipped, in the
file, under the node that keeps it. Then `peerlm store scrub` runs on all four, and meanwhile a fifth node, without room, reads every
chunk from whoever gives it, held here beside its hash. A copy that is read for somebody before its turn comes is found then,
so what nodes say to have lost is counted: with chunks that differ, each flip once. Repaired is what lies where it lay, as it
was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3

from bench.report import Missed, Row, say
from bench.store_nodes import (
    LOCAL,
    PLAN,
    REPLICAS,
    SMALL,
    Stores,
    begun,
    desk_of,
    replicas,
    wait_for,
)
from peerlm.bench.nodes import running
from peerlm.cli.chunk_reading import Reader
from peerlm.cli.demo_nodes import DemoNode
from peerlm.store.manifest import CHUNK_BYTES, Chunk

SMALL_BYTES = (1 << 10, 128 << 10)
LARGE = 40
"""One chunk in so many is as large as chunks are."""

NAME = "flipped"


def flips(args: argparse.Namespace, folder: Path) -> list[Row]:
    rng = random.Random(args.seed)
    texts = folder / NAME
    _write(texts, args.flips, rng)
    swarm = Stores(folder / "flips", 5, {**PLAN, **SMALL}, {**LOCAL, "store.keep_s": 0})
    swarm.roomless = (5,)
    with running(swarm):
        *keepers, reader = swarm.nodes
        swarm.begin()
        swarm.enter(*swarm.nodes[1:])
        _add(keepers[0], texts)
        chunks = _settled(keepers)
        say("each chunk is on three disks")
        flipped = flip(keepers, chunks, rng)
        began = time.monotonic()
        by_scrub, wrong, absent = _scrubbed(keepers, reader, chunks)
        wait_for(lambda: all(map(is_whole, flipped.items())), "all flips repaired")
        took_s = time.monotonic() - began
        statuses = [_status(node) for node in keepers]
        faults = swarm.tracebacks()
    found = sum(int(status["lost"]) for status in statuses)
    distrusted = {peer for status in statuses for peer in status["distrusted"]}
    sizes = sum(chunk.size for chunk in chunks)
    return [
        Row("bytes flipped on running nodes' disks, each in another chunk", len(flipped)),
        Row("these chunks, in three replicas", sizes / 1e6, "MB"),
        Row("flips found", found, at_least=len(flipped)),
        Row("of them by `peerlm store scrub`, the others when they were to be sent", by_scrub),
        Row("sound copies called damaged", max(0, found - len(flipped)), at_most=0),
        Row("chunks read meanwhile that were not what their hashes say", wrong, at_most=0),
        Row("chunks that could not be read meanwhile", absent, at_most=0),
        Row("nodes that sent wrong bytes to another", len(distrusted), at_most=0),
        Row("flips not repaired", sum(not is_whole(one) for one in flipped.items()), at_most=0),
        Row("found and repaired, all of them, after", took_s, "s"),
        Row("tracebacks of it", faults, at_most=0),
    ]


def _write(texts: Path, count: int, rng: random.Random) -> None:
    """So many files of one chunk each, no two alike."""
    texts.mkdir(parents=True)
    for number in range(count):
        size = CHUNK_BYTES if number % LARGE == 0 else rng.randrange(*SMALL_BYTES)
        (texts / f"{number:05}").write_bytes(rng.randbytes(size))


def _add(node: DemoNode, texts: Path) -> None:
    words = ["data", "add", str(texts), "--as", "files", "--name", NAME, "--wait", str(REPLICAS)]
    work = begun([*words, "--state", str(node.layout.root)])
    _, error = work.communicate(timeout=600)
    if work.returncode:
        raise Missed(f"data add: {error.strip()}")


def _settled(keepers: Sequence[DemoNode]) -> list[Chunk]:
    """All chunks, once each is where it is to be and nowhere else."""
    with desk_of(keepers[0]) as desk:
        chunks = list(desk.manifest(NAME).chunks)
        wait_for(lambda: min(replicas(desk, NAME)) >= REPLICAS, "three replicas")

    def copies(chunk: Chunk) -> int:
        return sum(_file(node, chunk).exists() for node in keepers)

    wait_for(lambda: all(copies(chunk) == REPLICAS for chunk in chunks), "no more than three")
    return chunks


def _file(node: DemoNode, chunk: Chunk) -> Path:
    return node.layout.root / "chunks" / chunk.hash.hex()


def flip(
    keepers: Sequence[DemoNode], chunks: Sequence[Chunk], rng: random.Random
) -> dict[Path, bytes]:
    """Of each chunk one copy of those there are; its file → its hash."""
    flipped: dict[Path, bytes] = {}
    for chunk in chunks:
        path = rng.choice([path for node in keepers if (path := _file(node, chunk)).exists()])
        with path.open("r+b") as file:
            at = rng.randrange(chunk.size)
            file.seek(at)
            (was,) = file.read(1)
            file.seek(at)
            file.write(bytes([was ^ rng.randrange(1, 256)]))
            file.flush()
            os.fsync(file.fileno())
        flipped[path] = chunk.hash
    return flipped


def _scrubbed(
    keepers: Sequence[DemoNode], reader: DemoNode, chunks: Sequence[Chunk]
) -> tuple[int, int, int]:
    """(Damaged by `peerlm store scrub`, chunks that came wrong to the reader meanwhile, such as did not come)."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read, reader, chunks)
        work = [
            begun(["store", "scrub", "--json", "--state", str(node.layout.root)])
            for node in keepers
        ]
        damaged = 0
        for node, one in zip(keepers, work, strict=True):
            out, error = one.communicate(timeout=600)
            if one.returncode:
                raise Missed(f"store scrub at {node.name}: {error.strip()}")
            damaged += int(json.loads(out)["damaged"])
        return damaged, *reading.result()


def _read(node: DemoNode, chunks: Sequence[Chunk]) -> tuple[int, int]:
    wrong = absent = 0
    with Reader(node.layout) as reader:
        for chunk, data in reader.read(chunks):
            if isinstance(data, bytes):
                wrong += blake3(data).digest() != chunk.hash
            else:
                say(f"{chunk.hash.hex()[:8]}: {data}")
                absent += 1
    return wrong, absent


def is_whole(flipped: tuple[Path, bytes]) -> bool:
    path, wanted = flipped
    return path.exists() and blake3(path.read_bytes()).digest() == wanted


def _status(node: DemoNode) -> dict[str, Any]:
    with desk_of(node) as desk:
        return desk.status()
