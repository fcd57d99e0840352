"""Token shards: the corpus as flat files, each named by the BLAKE3 hash of its bytes.

A shard is a 16-byte header and then token ids, little-endian, so a reader maps it into memory and
copies out the few kilobytes of a batch. Since a shard's name is its hash, it is an object like any
other: the plan lists the names, peers donate the files, and whoever holds them all has the corpus.

Making shards is streaming (one shard in memory), safe against a kill at any byte (written beside,
synced, renamed) and idempotent: the same text and tokenizer give the same files.

The last `val_fraction` of the tokens is held out for validation. No window of the one part touches
the other.

Where the plan says how many tokens each shard has, a corpus can be read while some of its shards are still to come: what it
is cut into is the same, and what lies in them waits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import blake3
import numpy as np
import numpy.typing as npt

from peerlm.data.corpus import documents
from peerlm.data.extents import held_out
from peerlm.data.tokenizer import BYTES, TokenIds, Tokenizer, token_dtype
from peerlm.errors import ChunkCorrupt, ConfigError
from peerlm.store import disk
from peerlm.store.manifest import CHUNK_BYTES, Chunk, Kind, Manifest, of_files
from peerlm.types import ObjectHash

SHARD_TOKENS = 8_000_000
TOKENIZER_FILE = "tokenizer.json"
MAGIC = b"plmtoken"
VERSION = 1
HEADER = struct.Struct("<8sBBHI")
"""Magic, version, bytes per token, zero, tokens. 16 bytes, so that the ids stay aligned."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard on this disk."""

    hash: str
    """BLAKE3 of the file, 64 hex digits: its name."""
    tokens: int
    path: Path


def prepare(
    source: str,
    tokenizer: Tokenizer,
    out_dir: Path,
    shard_tokens: int = SHARD_TOKENS,
    vocab: int = 0,
    progress: Callable[[int], None] = lambda tokens: None,
    where: str = "data.source",
) -> list[ShardInfo]:
    """Turn the text of `source` into shards in `out_dir`, in the order in which they are to be read.

    `vocab` is the plan's, where it is more than the tokenizer's: models have spare ids.
    `progress` is told the tokens written so far after every shard. Memory stays at a few shards
    whatever the corpus is.

    Raises:
        ConfigError: the source cannot be used; see `corpus.documents`.
        StateError: `out_dir` cannot be written.
    """
    assert 0 < shard_tokens < 1 << 32, "a header counts tokens in 32 bits"
    with disk.explained("make", out_dir):
        out_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    shards: list[ShardInfo] = []
    vocab = max(vocab, tokenizer.vocab)
    ids = (tokenizer.encode(piece) for piece in documents(source, where))
    for shard_ids in _regrouped(ids, shard_tokens):
        shards.append(_write_shard(shard_ids, vocab, out_dir))
        progress(sum(shard.tokens for shard in shards))
    return shards


def _regrouped(pieces: Iterable[TokenIds], size: int) -> Iterator[TokenIds]:
    """The same ids in arrays of `size`, the last one shorter."""
    waiting: list[TokenIds] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count >= size:
            joined = np.concatenate(waiting)
            whole = count - count % size
            yield from (joined[at : at + size] for at in range(0, whole, size))
            waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


def shard_bytes(ids: TokenIds, vocab: int) -> bytes:
    """The file of a shard: the same ids and vocabulary give the same bytes."""
    body = np.ascontiguousarray(ids, token_dtype(vocab))
    return HEADER.pack(MAGIC, VERSION, body.dtype.itemsize, 0, len(body)) + body.tobytes()


def shard_tokens_max(vocab: int) -> int:
    """How many tokens of a vocabulary fit a shard that is one chunk of the swarm's store."""
    return (CHUNK_BYTES - HEADER.size) // token_dtype(vocab).itemsize


def tokens_in(size_bytes: int, vocab: int) -> int:
    """How many tokens a shard's file of this size has, if it is whole."""
    return (size_bytes - HEADER.size) // token_dtype(vocab).itemsize


def _write_shard(ids: TokenIds, vocab: int, out_dir: Path) -> ShardInfo:
    """Whole or not at all; nothing to do if the file is there already."""
    data = shard_bytes(ids, vocab)
    digest = blake3.blake3(data).hexdigest()
    path = out_dir / digest
    if not (path.is_file() and path.stat().st_size == len(data)):
        with disk.AtomicFile(path) as file:
            file.write(data)
    return ShardInfo(digest, len(ids), path)


# ---------------------------------------------------------------------------- in the swarm's store


class ShardFact(NamedTuple):
    """What a manifest says of a shard."""

    hash: ObjectHash
    size: int
    """Bytes of its file."""
    tokens: int


def shard_fact(data: bytes, tokens: int) -> ShardFact:
    return ShardFact(ObjectHash(blake3.blake3(data).digest()), len(data), tokens)


def corpus_manifest(
    made: Sequence[ShardFact], tokenizer: bytes | None, vocab: int, documents: int
) -> tuple[Manifest, tuple[bytes, ...]]:
    """The manifest of a corpus, and the chunks of its tokenizer's file, which the store must have too.

    It tells nothing of the source, so the same shards in the same order have the same manifest.

    Args:
        made: All shards, in order.
        tokenizer: A JSON file; None: a token is a byte.
        vocab: That the shards were made with.
        documents: In all shards.

    Raises:
        ConfigError: no shards, since there was no text.
    """
    if not made:
        raise ConfigError("there is no text in the source, so there is no corpus")
    file = tokenizer or b""
    parts = tuple(file[at : at + CHUNK_BYTES] for at in range(0, len(file), CHUNK_BYTES))
    files: list[tuple[str, tuple[Chunk, ...]]] = [
        (f"shard-{number:05}.tokens", (Chunk(fact.hash, fact.size),))
        for number, fact in enumerate(made)
    ]
    if parts:
        chunks = tuple(Chunk(ObjectHash(blake3.blake3(part).digest()), len(part)) for part in parts)
        files.append((TOKENIZER_FILE, chunks))
    meta = {
        "tokens": sum(fact.tokens for fact in made),
        "documents": documents,
        "vocab": vocab,
        "tokenizer": blake3.blake3(file).hexdigest() if parts else BYTES,
        "shard_tokens": [fact.tokens for fact in made],
    }
    return of_files(Kind.CORPUS, files, meta), parts


class Corpus:
    """Shards in order, read as one long sequence of tokens. Safe to share between threads once all of them are here.

    Raises:
        ConfigError: no shards; a file that is no shard; ids that do not fit `vocab`.
        ChunkCorrupt: a shard has another length than its header says: fetch it again.
    """

    def __init__(self, shards: Sequence[TokenIds], vocab: int, val_fraction: float) -> None:
        tokens = [len(shard) for shard in shards]
        self._begin(shards.__getitem__, tokens, vocab, val_fraction, ())

    @classmethod
    def arriving(
        cls,
        read: Callable[[int], TokenIds],
        tokens: Sequence[int],
        vocab: int,
        val_fraction: float,
        absent: Collection[int],
    ) -> Corpus:
        """One of which some shards are still to come. `read`: a shard that is here; `tokens`: of each shard; `absent`: which
        are not here. Raises besides: ConfigError: a shard has other than its `tokens`."""
        corpus = cls.__new__(cls)
        corpus._begin(read, tokens, vocab, val_fraction, absent)
        return corpus

    def _begin(
        self,
        read: Callable[[int], TokenIds],
        tokens: Sequence[int],
        vocab: int,
        val_fraction: float,
        absent: Collection[int],
    ) -> None:
        self._read = read
        self._counts = list(tokens)
        self._ends = np.cumsum(self._counts)
        self.vocab = vocab
        self.tokens = int(self._ends[-1])
        self.shard_tokens_most = max(self._counts)
        """Of the largest of them."""
        self.val_tokens = held_out(self.tokens, val_fraction)
        self.train_tokens = self.tokens - self.val_tokens
        self._shards: list[TokenIds | None] = [None] * len(self._counts)
        self.absent_are(absent)

    @classmethod
    def open(
        cls,
        paths: Sequence[Path],
        vocab: int,
        val_fraction: float = 0.0,
        tokens: Sequence[int] = (),
        absent: Collection[int] = (),
    ) -> Corpus:
        """Map the shards at `paths` into memory, in this order. `vocab` is the plan's, and so are `tokens`, of each shard,
        where it says them; then some may be `absent` for now.

        Headers and lengths are checked now; ids when they are read, since reading them all would
        cost a start of a large corpus minutes. That the bytes are those of the hash was checked
        when the file came.
        """
        if not paths:
            raise ConfigError(
                "the corpus has no shards: data.shards is empty and no local text was given"
            )
        if not tokens:
            return cls([_mapped(path, vocab) for path in paths], vocab, val_fraction)
        return cls.arriving(
            lambda number: _mapped(paths[number], vocab), tokens, vocab, val_fraction, absent
        )

    # --------------------------------------------------------------------------- what is here

    def absent_are(self, absent: Collection[int]) -> None:
        """These shards are not here now, and all others are: read them from now on. Raises as the constructors."""
        absent = set(absent)
        for number, shard in enumerate(self._shards):
            if number in absent:
                self._shards[number] = None
            elif shard is None:
                self._shards[number] = self._opened(number)
        gaps = [shard is None for shard in self._shards]
        self.is_whole = not any(gaps)
        """All shards are here."""
        self._gaps_before = np.concatenate(([0], np.cumsum(gaps)))

    @property
    def absent(self) -> set[int]:
        """Shards that are not here."""
        return {number for number, shard in enumerate(self._shards) if shard is None}

    def _opened(self, number: int) -> TokenIds:
        shard = self._read(number)
        if len(shard) != self._counts[number]:
            raise ConfigError(
                f"shard {number} of the corpus has {len(shard)} tokens, the plan's data.shard_tokens says "
                f"{self._counts[number]}: set data.source once more"
            )
        return shard

    def are_here(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Of each stretch of tokens, from `starts` to before `stops`, whether all of it can be read now."""
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, stops - 1, side="right")
        here: npt.NDArray[np.bool_] = self._gaps_before[first] == self._gaps_before[last + 1]
        return here

    def is_here(self, start: int, stop: int) -> bool:
        return bool(self.are_here(np.array([start]), np.array([stop]))[0])

    @property
    def has_held_out(self) -> bool:
        """All text for validation is here, or there is none."""
        return not self.val_tokens or self.is_here(self.train_tokens, self.tokens)

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Tokens `start` to `start + length`, shape (length,), across shards if need be.

        Raises:
            ConfigError: an id is not below the vocabulary: the shard belongs to another tokenizer.
        """
        assert start >= 0, start
        assert 0 < length <= self.tokens - start, (start, length, self.tokens)
        ids = np.empty(length, np.int64)
        filled = 0
        index = int(np.searchsorted(self._ends, start, side="right"))
        while filled < length:
            shard = self._shards[index]
            assert shard is not None, f"shard {index} is not here"
            at = start + filled - (int(self._ends[index]) - len(shard))
            part = shard[at : at + length - filled]
            ids[filled : filled + len(part)] = part
            filled, index = filled + len(part), index + 1
        if (highest := int(ids.max())) >= self.vocab:
            raise ConfigError(
                f"the corpus holds token id {highest} near token {start}, but data.vocab = {self.vocab}: "
                "these shards were made with another tokenizer"
            )
        return ids


def _mapped(path: Path, vocab: int) -> npt.NDArray[Any]:
    """The ids of one shard, checked against its header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(HEADER.size)
    except OSError as error:
        raise ConfigError(f"shard {path}: cannot be read: {error.strerror}") from None
    if len(header) < HEADER.size:
        raise ChunkCorrupt(f"shard {path}: {size} bytes, shorter than a header")
    magic, version, width, _, tokens = HEADER.unpack(header)
    if magic != MAGIC or version != VERSION:
        raise ConfigError(
            f"shard {path}: not a token shard of version {VERSION} (starts with {header[:9]!r})"
        )
    dtype = token_dtype(vocab)
    if width != dtype.itemsize:
        raise ConfigError(
            f"shard {path}: {width} bytes per token, but data.vocab = {vocab} needs {dtype.itemsize}: "
            "it was made with another tokenizer"
        )
    if tokens == 0 or size != HEADER.size + tokens * width:
        raise ChunkCorrupt(
            f"shard {path}: {size} bytes, but its header promises {tokens} tokens of {width} bytes"
        )
    mapped: npt.NDArray[Any] = np.memmap(path, dtype, mode="r", offset=HEADER.size, shape=(tokens,))
    return mapped


def require_one_batch(
    tokens: int, val_fraction: float, batch: int, context: int, where: str = "corpus"
) -> None:
    """Refuse a corpus too short to train on.

    The training part must hold one batch of windows (`context` + 1 tokens each) and one window more,
    the room in which passes shift against each other; the held-out part, if any, one window.

    Raises:
        ConfigError: with the tokens there and the tokens needed.
    """
    window = context + 1
    val = held_out(tokens, val_fraction)
    train, need = tokens - val, (batch + 1) * window
    if train < need:
        raise ConfigError(
            f"{where} is shorter than one batch: {train} tokens to train on, {need} needed "
            f"(train.batch = {batch}, model.context = {context}); use more text or a smaller batch"
        )
    if val_fraction > 0 and val < window:
        raise ConfigError(
            f"{where} is shorter than one batch of validation: {val} tokens held out, {window} needed "
            f"(model.context = {context}); use more text, a larger data.val_fraction, or 0 for none"
        )
