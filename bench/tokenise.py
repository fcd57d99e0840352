"""Tokens per second of making a corpus, ÷ those of the tokenizer library's own `encode_batch`, on the same cores.

Ours is everything between a source and finished shards: processes that are started, files read, taken apart and decoded,
tokens, shards, their way into this process and their hashes. The library's is `encode_batch` alone, with its threads, over
texts that are in memory already. They take turns, so that load hits both alike. The corpus is the text that ships with
peerlm, repeated, or any source; the vocabulary is trained on it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import report
from bench.report import Row, say
from peerlm.bench.rows import Missed
from peerlm.data import making, prepared
from peerlm.data.corpus import documents
from peerlm.data.prepared import Job, Made
from peerlm.data.processes import processors
from peerlm.data.shards import shard_fact
from peerlm.data.sources import SHIPPED, listed
from peerlm.data.vocabulary import trained

RATIO_MIN = 0.9
CORES = processors()
FAST = "encode_batch_fast"
BATCH = 64
"""Pieces that the library gets at once: some megabytes of text."""


def measure(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    if args.source == SHIPPED:
        file = folder / "text.txt"
        file.write_text("".join(documents(SHIPPED, "--source")) * args.repeat)
        source = listed(str(file), "--source")
    else:
        source = listed(args.source, "--source")
    job = Job(source)
    say(f"{source.size_bytes / 1e6:.1f} MB; training a vocabulary of {args.vocab}")
    job = replace(job, tokenizer=trained(job, args.vocab))
    say("reading the text for the library")
    pieces = [piece for text in texts(job) for piece in prepared.pieces_of(text)]
    size = sum(len(piece.encode()) for piece in pieces)
    yield Row("text", size / 1e6, "MB")
    yield Row("vocabulary", args.vocab, "tokens")
    parties = (ours, partial(librarys, pieces, "encode_batch"), partial(librarys, pieces, FAST))
    rounds = [[measured(job) for measured in parties] for _ in range(args.rounds)]
    counts = {tokens for round_ in rounds for tokens, _ in round_}
    if len(counts) > 1:
        raise Missed(f"they did not do the same: {sorted(counts)} tokens")
    yield Row("tokens", counts.pop())
    mine, batch, fast = ([tokens / s for tokens, s in side] for side in zip(*rounds, strict=True))
    yield Row(f"made into shards, {CORES} processes", statistics.median(mine), "tokens/s")
    yield Row("encode_batch", statistics.median(batch), "tokens/s")
    yield Row("encode_batch_fast, which keeps no offsets", statistics.median(fast), "tokens/s")
    ratios = sorted(a / b for a, b in zip(mine, batch, strict=True))
    yield Row("made ÷ encode_batch, median", statistics.median(ratios), at_least=RATIO_MIN)
    yield Row(f"of {len(ratios)} rounds", f"{ratios[0]:.2f} to {ratios[-1]:.2f}")
    ratios = sorted(a / b for a, b in zip(mine, fast, strict=True))
    yield Row("made ÷ encode_batch_fast, median", statistics.median(ratios))


def texts(job: Job) -> Iterator[str]:
    for number in range(len(job.tasks)):
        for portion in prepared.portions(job, number):
            yield from (document.text for document in portion.documents)


def ours(job: Job) -> tuple[int, float]:
    """Tokens, and seconds."""
    began = time.perf_counter()
    made = list(making.shards(job, processes=CORES))
    tokens = sum(shard_fact(m.data, m.tokens).tokens for m in made if isinstance(m, Made))
    return tokens, time.perf_counter() - began


def librarys(pieces: Sequence[str], method: str, job: Job) -> tuple[int, float]:
    from tokenizers import Tokenizer

    inner = Tokenizer.from_buffer(job.tokenizer or b"")
    encode = getattr(inner, method)
    began = time.perf_counter()
    tokens = 0
    for at in range(0, len(pieces), BATCH):
        found = encode(pieces[at : at + BATCH], add_special_tokens=False)
        tokens += sum(len(one.ids) for one in found)
    return tokens, time.perf_counter() - began


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--source", default=SHIPPED, help="a file, a folder or a URL [shipped]")
    flags.add_argument("--repeat", type=int, default=10, help="of the shipped text [10]")
    flags.add_argument("--vocab", type=int, default=8192, help="entries of the vocabulary [8192]")
    flags.add_argument("--rounds", type=int, default=3, help="of each [3]")
    return report.perform("tokenise", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
