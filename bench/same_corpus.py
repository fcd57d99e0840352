"""One text, read from a local file, over HTTP, from S3 and from a real HDFS: is it the same corpus?

A node adds it with `peerlm data add`, once from each place: by itself (`--here`), and, from all but the file, as a job that any
node could take part in. The web server breaks some of its answers off, S3 is moto's, HDFS a name node and a data node
(`bench.hdfs_here`), read by its own protocol and by its web interface. Promised: all have one manifest hash, so that they are
stored once. For comparison the text is added with one more byte.

    make rig-hdfs                   # gets the servers of HDFS
    python -m bench.same_corpus
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import report
from bench.hdfs_here import Hdfs, hdfs_in
from bench.report import Missed, Row, say
from bench.served import bucket_of, s3_here, web_of
from bench.store_nodes import BRIEF, LOCAL, PLAN, SMALL, Stores, begun
from peerlm.bench.nodes import running
from peerlm.cli.demo_nodes import DemoNode

HERE = ("--here",)

ADD_S = 300.0

BROKEN = 2
"""Answers of the web server that end half-way, of each reading."""


def text_of(lines: int) -> bytes:
    return "".join(f"line {number} é€😀 of some length\n" for number in range(lines)).encode()


def added(node: DemoNode, url: str, name: str, *options: str) -> dict[str, Any]:
    """What `peerlm data add` says of it. Raises `Missed`: it was refused."""
    state = ("--json", "--state", str(node.layout.root))
    work = begun(["data", "add", url, "--name", name, "--tokenizer", "bytes", *options, *state])
    out, error = work.communicate(timeout=ADD_S)
    if work.returncode:
        raise Missed(f"data add {url}: {error.strip()}")
    said: dict[str, Any] = json.loads(out)
    return said


def places(stack: ExitStack, folder: Path, text: bytes, hdfs: Hdfs) -> Iterator[tuple[str, str]]:
    """Where it can be read from now on, in words, and the URL. `hdfs` has it as /plays/one.txt."""
    file = folder / "plays.txt"
    file.write_bytes(text)
    yield "a file", str(file)
    web = stack.enter_context(web_of(text))
    web.breaks = 2 * BROKEN
    yield "HTTP", web.url
    yield "S3", f"{stack.enter_context(bucket_of(stack.enter_context(s3_here()), text))}/one.txt"
    yield "HDFS", f"hdfs://{hdfs.address}/plays/one.txt"
    yield "HDFS's web interface", f"webhdfs://{hdfs.web}/plays/one.txt"


def manifests(node: DemoNode, urls: Mapping[str, str]) -> tuple[dict[str, str], dict[str, float]]:
    """Way of adding → the manifest's hash, and seconds that it took."""
    found: dict[str, str] = {}
    took_s: dict[str, float] = {}
    for number, (place, url) in enumerate(urls.items()):
        for how, options in (("by one node", HERE), ("as a job", ())):
            if place == "a file" and not options:
                continue  # another node could not read it
            began = time.monotonic()
            name = f"plays-{number}-{len(options)}"
            found[f"{place}, {how}"] = added(node, url, name, *options)["manifest"]
            took_s[f"{place}, {how}"] = time.monotonic() - began
            say(f"{place}, {how}: {found[f'{place}, {how}'][:8]}")
    return found, took_s


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    text = text_of(args.lines)
    with ExitStack() as stack:
        (folder / "hdfs").mkdir()
        hdfs = stack.enter_context(hdfs_in(folder / "hdfs", text))
        urls = dict(places(stack, folder, text, hdfs))
        # after the places: it has their credentials in its environment
        node = alone(stack, folder)
        found, took_s = manifests(node, urls)
        longer = folder / "longer.txt"
        longer.write_bytes(text + b"!")
        other = added(node, str(longer), "longer", *HERE)["manifest"]
    yield Row("text", len(text) / 1e6, "MB")
    yield Row("places it was read from", len(urls), at_least=5)
    yield Row("times it was added", len(found))
    yield Row("different manifests of it", len(set(found.values())), at_most=1)
    yield Row("its manifest", next(iter(found.values()))[:16])
    yield Row("the same manifest with one byte more", int(other in found.values()), at_most=0)
    for way, seconds in took_s.items():
        yield Row(f"from {way}", seconds, "s")


def alone(stack: ExitStack, folder: Path) -> DemoNode:
    """One node, until the end."""
    swarm = stack.enter_context(
        running(Stores(folder / "nodes", 1, {**PLAN, **SMALL, **BRIEF}, LOCAL))
    )
    swarm.begin()
    return swarm.nodes[0]


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--lines", type=int, default=200_000, help="of text [200000]")
    return report.perform("same_corpus", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
