"""What lies in the swarm's store on one machine: kills, flipped bits, and what durable writing costs.

A process puts chunks and manifests, now and then by way of a pull, and says the name of each once it is durable; it is
killed with SIGKILL at a random moment, again and again. Promised: whatever it had said reads back bit by bit after
every kill, and nothing half-written stays. Then one bit in each of many chunks is flipped. Promised: a full pass of scrubbing
finds every one and nothing else, and no damaged byte is returned by reading. Last, chunks of the usual size are put
beside `cp` with an fsync of each file, in turns, and a small one among as many as a large store has.

    python -m bench.store_disk
    python -m bench.store_disk --kills 1000 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from blake3 import blake3

from bench import report
from bench.report import Missed, Row, say
from peerlm.daemon.scrubbing import Scrubbing
from peerlm.errors import ChunkCorrupt, StateError
from peerlm.store.layout import Layout, StateDirectory
from peerlm.store.manifest import CHUNK_BYTES, Chunk, Kind, of_files
from peerlm.store.objects import PIECE_BYTES, Objects
from peerlm.types import ObjectHash, WallTime

KILL_AFTER_S_MAX = 0.15
SIZES = (1, 700, 700, 4096, 4096, 20_000, 40_000, 40_000, 100_000, PIECE_BYTES + 5)
LIMIT_BYTES = 1 << 40
"""Nothing comes near it; but room is counted."""


# --------------------------------------------------------------------------------------- kills


@dataclass(slots=True)
class Killed:
    """What came of a row of kills."""

    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    """Acknowledged objects that were missing or changed after some kill."""
    litter: int = 0
    """Half-written files that a kill left, all of which were swept."""
    left: int = 0
    """Those that were not."""


def contents(seed: int, kill: int) -> Iterator[bytes]:
    """What the writer puts after so many kills: chunks, and a manifest of every four."""
    rng, chunks = random.Random(f"{seed} {kill}"), []
    while True:
        data = rng.randbytes(rng.choice(SIZES))
        chunks.append(Chunk(ObjectHash(blake3(data).digest()), len(data)))
        yield data
        if len(chunks) == 4:
            yield of_files(Kind.FILES, [("part", chunks)], {"of": str(kill)}).encode()
            chunks = []


def put_for_ever(root: Path, seed: int, kill: int, told: int) -> None:
    """Put, and write to `told` the name of each once it is durable."""
    rng = random.Random(f"way {seed} {kill}")
    with StateDirectory(root) as state:
        objects = Objects(state, LIMIT_BYTES)
        for data in contents(seed, kill):
            name = ObjectHash(blake3(data).digest())
            match rng.randrange(4):
                case 0:
                    partial = objects.begin(name, len(data), is_chunk=True)
                    for at in range(0, len(data), PIECE_BYTES):
                        partial.write_at(at, data[at : at + PIECE_BYTES])
                    partial.finish()
                case 1:
                    objects.put(data)
                    objects.put_chunk(data)
                case _:
                    objects.put_chunk(data)
            os.write(told, name)


def killed_writer(root: Path, seed: int, kill: int, after_s: float) -> list[ObjectHash]:
    """Start the writer and SIGKILL it after so many seconds; returns what it acknowledged."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child only writes files
        child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            put_for_ever(root, seed, kill, write_end)
        finally:
            os._exit(1)  # reached only when it raises
    os.close(write_end)
    with open(read_end, "rb") as reading:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        said = reading.read()
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise Missed("the writer ended by itself")
    return [ObjectHash(said[at : at + 32]) for at in range(0, len(said), 32)]


def kill_often(root: Path, kills: int, seed: int) -> Killed:
    """Raises `Missed` when the writer fails by itself."""
    found, rng = Killed(), random.Random(seed)
    StateDirectory(root).close()
    known: dict[ObjectHash, bytes] = {}
    for kill in range(kills):
        said = killed_writer(root, seed, kill, rng.uniform(0, KILL_AFTER_S_MAX))
        known |= dict(zip(said, contents(seed, kill), strict=False))
        found.kills += 1
        found.acknowledged += len(said)
        found.litter += _litter(root)
        StateDirectory(root).close()
        found.left += _litter(root)
        found.lost += len(_lost(Objects(Layout(root)), known))
    return found


def _litter(root: Path) -> int:
    return sum(1 for folder in ("objects", "chunks") for _ in (root / folder).glob(".*"))


def _lost(objects: Objects, known: dict[ObjectHash, bytes]) -> list[ObjectHash]:
    here = dict(objects.chunks)
    lost = []
    for name, data in known.items():
        try:
            same = here.get(name) == len(data) and objects.read_verified(name) == data
        except (ChunkCorrupt, StateError):
            same = False
        if not same:
            lost.append(name)
    return lost


# --------------------------------------------------------------------------------------- flips


@dataclass(frozen=True, slots=True)
class Flipped:
    """What came of chunks in each of which one bit was flipped."""

    flips: int
    found: int
    """By a full pass, and told."""
    wrongly: int
    """Sound chunks that were called damaged, or are gone."""
    returned: int
    """Damaged chunks that reading returned."""
    seconds: float
    """The pass."""


def flip_many(root: Path, flips: int, seed: int) -> Flipped:
    """In `root`, twice as many chunks as flips: every other one stays as it is."""
    rng = random.Random(seed)
    StateDirectory(root).close()
    data = [rng.randbytes(rng.randrange(1, 6000)) for _ in range(2 * flips)]
    names = _lay(root, data)
    victims = set(names[::2])
    _flip(root, victims, rng)
    returned = 0
    reading = Objects(Layout(root))
    for name in victims:
        try:
            reading.read_verified(name)
            returned += 1
        except ChunkCorrupt:
            continue
    _lay(root, data)
    _flip(root, victims, rng)
    told, found = asyncio.run(_scrub(Objects(Layout(root))))
    sound = {name for name, _ in Objects(Layout(root)).chunks}
    wrongly = len(told - victims) + len(set(names) - victims - sound)
    return Flipped(flips, len(told & victims), wrongly, returned, found)


def _lay(root: Path, data: Iterable[bytes]) -> list[ObjectHash]:
    """As they lie there once they were put; to put thousands durably takes a while."""
    names = []
    for each in data:
        names.append(ObjectHash(blake3(each).digest()))
        (root / "chunks" / names[-1].hex()).write_bytes(each)
    return names


def _flip(root: Path, victims: Iterable[ObjectHash], rng: random.Random) -> None:
    for name in victims:
        path = root / "chunks" / name.hex()
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


async def _scrub(objects: Objects) -> tuple[set[ObjectHash], float]:
    told: set[ObjectHash] = set()
    with ThreadPoolExecutor(1) as pool:
        scrubbing = Scrubbing(
            objects,
            pool,
            lambda name, reason: told.add(name),
            days=0.0,
            wall=lambda: WallTime(0.0),
            rng=random.Random(1),
        )
        found = await scrubbing.scrub_now()
    if found.damaged != len(told):
        raise Missed(f"{found.damaged} damaged chunks were counted and {len(told)} told")
    return told, found.seconds


# ---------------------------------------------------------------------------------------- rate


def put_rates(root: Path, rounds: int, chunks: int, seed: int) -> tuple[float, float]:
    """Seconds in which so many chunks of the usual size are put, and copied by `cp` with an fsync each: medians of
    rounds that follow one another."""
    source, mine, yours = root / "source", [], []
    source.mkdir()
    for turn in range(rounds):
        rng = random.Random(f"{seed} {turn}")
        data = [rng.randbytes(CHUNK_BYTES) for _ in range(chunks)]
        for i, each in enumerate(data):
            (source / f"{i:04}").write_bytes(each)
        os.sync()
        state = root / f"state-{turn}"
        StateDirectory(state).close()
        objects = Objects(Layout(state), LIMIT_BYTES)
        began = time.monotonic()
        for each in data:
            objects.put_chunk(each)
        mine.append(time.monotonic() - began)
        yours.append(_copied(source, root / f"copy-{turn}"))
        for folder in (state, root / f"copy-{turn}"):
            shutil.rmtree(folder)
    return median(mine), median(yours)


def _copied(source: Path, target: Path) -> float:
    began = time.monotonic()
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in (*sorted(target.iterdir()), target):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return time.monotonic() - began


def room_ms(root: Path, kept: int, times: int) -> float:
    """Milliseconds to find room for a chunk, under a limit, where so many are kept. Median."""
    StateDirectory(root).close()
    for i in range(kept):
        (root / "chunks" / blake3(b"%d" % i).hexdigest()).write_bytes(b"x")
    objects, took = Objects(Layout(root), LIMIT_BYTES), []
    for i in range(times):
        began = time.monotonic()
        partial = objects.begin(ObjectHash(blake3(b"new %d" % i).digest()), 1, is_chunk=True)
        took.append(time.monotonic() - began)
        partial.discard()
    return 1000 * median(took)


# -------------------------------------------------------------------------------------- report


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    say(f"{args.kills} kills")
    killed = kill_often(folder / "kills", args.kills, args.seed)
    yield Row("kills of a writer", killed.kills, at_least=args.kills)
    yield Row("objects acknowledged before them", killed.acknowledged)
    yield Row("of them lost or changed after a kill", killed.lost, at_most=0)
    yield Row("half-written files that kills left", killed.litter, at_least=1)
    yield Row("half-written files left after the next start", killed.left, at_most=0)
    say(f"{args.flips} flips")
    flipped = flip_many(folder / "flips", args.flips, args.seed)
    yield Row("chunks with a flipped bit", flipped.flips)
    yield Row("found by a pass of scrubbing", flipped.found, at_least=args.flips)
    yield Row("sound chunks called damaged", flipped.wrongly, at_most=0)
    yield Row("damaged chunks that reading returned", flipped.returned, at_most=0)
    say(f"{args.rounds} rounds of {args.chunks} chunks")
    put_s, copy_s = put_rates(folder, args.rounds, args.chunks, args.seed)
    mb = args.chunks * CHUNK_BYTES / 1e6
    yield Row("chunks of 4 MiB put", mb / put_s, "MB/s")
    yield Row("`cp`, and an fsync of each file", mb / copy_s, "MB/s")
    yield Row("put as a share of that", copy_s / put_s)
    say("room")
    for kept in (0, args.kept):
        took_ms = room_ms(folder / f"room-{kept}", kept, 100)
        yield Row(f"room for a chunk under a limit, {kept:,} kept", took_ms, "ms")


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--kills", type=int, default=200)
    flags.add_argument("--flips", type=int, default=1000)
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--rounds", type=int, default=5, help="of putting and copying")
    flags.add_argument("--chunks", type=int, default=32, help="of 4 MiB in each of them")
    flags.add_argument(
        "--kept", type=int, default=20_000, help="small chunks that room is found among"
    )
    return report.perform("store_disk", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
