"""What one task becomes: shards, a pure function of the source's bytes, the recipe and the tokenizer.

Whoever makes a task makes the same shards, so a swarm needs no agreement on who does what, and a task whose maker died is
made again. Nothing here depends on other tasks but what was decided for all of them: encodings, the vocabulary, and the
duplicates to leave out. Where that has to be found out first, a job goes over its source more than once, in *sweeps*
(`findings`).

The text of a unit is given to the tokenizer in pieces, cut after a line end: a library keeps some hundred bytes of notes
for each token of a piece. Tokens of a unit lie in one shard, unless they are too many; files that are no longer than a
stride share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from peerlm.data import formats, sources, units
from peerlm.data.clean import Clean, cleaned
from peerlm.data.encodings import AUTO
from peerlm.data.formats import Document, Format, Shape, shape_of
from peerlm.data.shards import shard_bytes, shard_tokens_max
from peerlm.data.sources import Pause, Source, SourceFile
from peerlm.data.tokenizer import ByteTokenizer, JsonTokenizer, TokenIds, Tokenizer, token_dtype
from peerlm.data.units import GRID, Grid, Task, Unit
from peerlm.errors import ConfigError

PIECE_CHARS = 1 << 16

SAMPLE_BYTES = 32 << 20
"""Of text, that a vocabulary is trained on."""

GAP = "\n\n"
"""Behind a document where the tokenizer has no token for its end."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How text is got out of files."""

    encoding: str = formats.UTF_8
    """`auto`: each file's own, as the job says."""
    text_field: str = "text"
    """Of a record, or the column of a table."""
    clean: Clean = field(default_factory=Clean)


class Sweep(StrEnum):
    """What is made of the source now; each has its own tasks."""

    ENCODINGS = "encodings"
    """Which each file is in, where nobody has said it."""
    PRINTS = "prints"
    """What duplicates are known by, and the vocabulary: of these, what is asked for."""
    TOKENS = "tokens"


@dataclass(frozen=True)
class Job:
    """All that the shards of a corpus depend on, but for the bytes of its source."""

    source: Source
    recipe: Recipe = field(default_factory=Recipe)
    tokenizer: bytes | None = None
    """A JSON file; None: a token is a byte, or it is still to be trained."""
    vocab: int = 0
    """The model's, where it is more than the tokenizer's: models have spare ids."""
    left_out: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """Task → documents that are duplicates (`clean.duplicates`)."""
    grid: Grid = GRID
    """The same for everyone, or else they make different shards."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Of an encoding `auto`: path → encoding, of files that are not UTF-8."""
    entries: int = 0
    """Of a vocabulary that is trained on the text itself; 0: none is."""
    sweep: Sweep = Sweep.TOKENS
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what others have written and the shards depend on (`versions`)."""

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """How the source is cut in this sweep: a task's number is its place here."""
        return units.tasks(self.source.files, lambda file: _splits(file, self), self.grid)

    @property
    def count(self) -> int:
        """Tasks of this sweep: those above, if they are gone through, and behind them the vocabulary, if one is trained."""
        if self.sweep is not Sweep.PRINTS:
            return len(self.tasks)
        return len(self.tasks) * self.recipe.clean.compares + (self.entries > 0)

    def is_vocabulary(self, number: int) -> bool:
        """That is what this task of the sweep is."""
        return self.sweep is Sweep.PRINTS and self.entries > 0 and number == self.count - 1

    def path_of(self, number: int) -> str:
        """Where a task begins, for error messages."""
        return self.source.files[0 if self.is_vocabulary(number) else self.tasks[number].first].path

    def encoding_of(self, file: SourceFile) -> str:
        """Raises `ConfigError`: there is none of this name."""
        if self.recipe.encoding == AUTO:
            return self.encodings.get(file.path, formats.UTF_8)
        return formats.encoding_named(self.recipe.encoding)

    @cached_property
    def vocab_made(self) -> int:
        """That the shards are made with: whoever reads them must know it."""
        return max(self.vocab, tokenizer_of(self.tokenizer).vocab)


class Made(NamedTuple):
    """A shard."""

    task: int
    number: int
    """Within the task."""
    data: bytes
    """The file (see `shards`)."""
    tokens: int


class Done(NamedTuple):
    """A task is made: it has no further shards."""

    task: int
    shards: int
    documents: int
    """That are in them: records, and files of text, each counted where it begins."""
    size_bytes: int
    """Of the source, as it is stored: what a bar of progress is made of."""


class Portion(NamedTuple):
    """A unit, and what is in it."""

    documents: Sequence[Document]
    size_bytes: int
    """Of text, before it was cleaned."""
    is_file: bool
    """See `Unit`."""
    begins: bool
    """It is the first of its file."""


# ----------------------------------------------------------------------------------- shards


def shards(job: Job, number: int, pause: Pause = lambda _: None) -> Iterator[Made | Done]:
    """The shards of task `number`, and that it is done. Holds one shard and one unit.

    Raises:
        ConfigError: the source cannot be read, or is not what its name and the recipe say.
    """
    tokenizer = tokenizer_of(job.tokenizer)
    vocab = job.vocab_made
    left_out = job.left_out.get(number, frozenset())
    made = documents = seen = 0
    for packed in _packed(portions(job, number, pause), job.grid):
        found: list[TokenIds] = []
        for portion in packed:
            kept = [
                document
                for place, document in enumerate(portion.documents, seen)
                if place not in left_out and document.text
            ]
            seen += len(portion.documents)
            found += encoded(kept, tokenizer)
            documents += sum(d.ends for d in kept)
            documents += portion.begins and any(not d.ends for d in kept)
        for ids in _fitting(found, vocab):
            yield Made(number, made, shard_bytes(ids, vocab), len(ids))
            made += 1
    yield Done(number, made, documents, stored_bytes(job, number))


def portions(job: Job, number: int, pause: Pause = lambda _: None) -> Iterator[Portion]:
    """The cleaned documents of a task, unit by unit. Raises as `shards` does."""
    task = job.tasks[number]
    with sources.explained(job.source.url, job.source.where):
        fs, _ = sources.file_system(job.source.url)
        for file in job.source.files[task.first : task.first + task.files]:
            yield from _portions_of(fs, file, task, job, pause)


def tokenizer_of(data: bytes | None) -> Tokenizer:
    """Built once in a process, since it takes as long as some shards."""
    return ByteTokenizer() if data is None else _built(data)


@cache
def _built(data: bytes) -> Tokenizer:
    return JsonTokenizer(data)


# ----------------------------------------------------------------------------- reading a file


def _splits(file: SourceFile, job: Job) -> bool:
    """Its units can be found by seeking."""
    if job.sweep is Sweep.ENCODINGS:
        return False
    shape = shape_of(file.path)
    plain = file.ranges and not shape.compression and shape.format != Format.PARQUET
    return plain and job.encoding_of(file) == formats.UTF_8


def _portions_of(
    fs: Any, file: SourceFile, task: Task, job: Job, pause: Pause
) -> Iterator[Portion]:
    shape = shape_of(file.path)
    where, recipe = job.source.where, job.recipe
    try:
        if shape.format == Format.PARQUET:
            yield from _of_rows(fs, file, shape, job, pause)
            return
        for unit in _units(fs, file, shape, task, job, pause):
            if shape.format == Format.RECORDS:
                found = formats.records(unit, recipe.text_field, file.path, where)
            else:
                found = formats.texts(unit, recipe.clean.compares, file.path, where)
            yield Portion(
                _clean(found, recipe), len(unit.data), unit.is_file, begins=unit.offset == 0
            )
    except units.RecordTooLong as error:
        raise ConfigError(
            f"{where}: {file.path} has a record of more than {job.grid.record_max:,} bytes "
            f"beyond byte {error.offset}; are its lines records?"
        ) from None


def _units(
    fs: Any, file: SourceFile, shape: Shape, task: Task, job: Job, pause: Pause
) -> Iterator[Unit]:
    where = job.source.where
    records = shape.format == Format.RECORDS
    if task.unit is not None:
        assert file.size is not None, file
        unit = units.sought(
            lambda start, end: sources.part(fs, file, start, end, where, pause),
            file.size,
            task.unit,
            records,
            job.grid,
        )
        if unit.data:
            yield unit
        return
    with sources.in_order(fs, file, where, pause) as stream:
        blocks = formats.unpacked(stream, shape.compression, file.path, where)
        text = formats.as_utf_8(blocks, job.encoding_of(file), file.path, where)
        yield from units.in_order(text, records, job.grid)


def _of_rows(fs: Any, file: SourceFile, shape: Shape, job: Job, pause: Pause) -> Iterator[Portion]:
    where = job.source.where
    if shape.compression or not file.ranges:
        reason = "compressed as a whole" if shape.compression else "on a server without ranges"
        raise ConfigError(f"{where}: {file.path} is {reason}, so it cannot be read; make a copy")
    waiting: list[Document] = []
    size, first = 0, True
    with sources.in_order(fs, file, where, pause) as stream:
        for document in formats.rows(stream, job.recipe.text_field, file.path, where):
            waiting.append(document)
            size += len(document.text.encode())
            if size >= job.grid.stride:
                yield Portion(_clean(waiting, job.recipe), size, False, first)
                waiting, size, first = [], 0, False
    if waiting:
        yield Portion(_clean(waiting, job.recipe), size, first, first)


def _clean(documents: Iterable[Document], recipe: Recipe) -> list[Document]:
    return [d._replace(text=cleaned(d.text, recipe.clean)) for d in documents]


def stored_bytes(job: Job, number: int) -> int:
    """Bytes of the source that a task stands for."""
    if job.is_vocabulary(number):
        return min(SAMPLE_BYTES, job.source.size_bytes)
    task, grid = job.tasks[number], job.grid
    files = job.source.files[task.first : task.first + task.files]
    size = sum(file.size or 0 for file in files)
    return size if task.unit is None else min(grid.stride, size - task.unit * grid.stride)


# ----------------------------------------------------------------------------- making shards


def encoded(documents: Sequence[Document], tokenizer: Tokenizer) -> list[TokenIds]:
    """Ids of the documents, in order; behind each that ends, the token for that, or a gap."""
    end = tokenizer.end
    gap = "" if end is not None else GAP
    mark = [] if end is None else [np.array([end], token_dtype(tokenizer.vocab))]
    pieces, ends = [], []
    for document in documents:
        cut = list(pieces_of(document.text + gap if document.ends else document.text))
        pieces += cut
        ends += [False] * (len(cut) - 1) + [document.ends]
    found = tokenizer.encode_all(pieces)
    return list(
        chain.from_iterable(
            [ids, *mark] if last else [ids] for ids, last in zip(found, ends, strict=True)
        )
    )


def pieces_of(text: str) -> Iterator[str]:
    """The text in pieces of at most `PIECE_CHARS`, cut after a line end where there is one."""
    at = 0
    while len(text) - at > PIECE_CHARS:
        end = text.rfind("\n", at, at + PIECE_CHARS) + 1 or at + PIECE_CHARS
        yield text[at:end]
        at = end
    if at < len(text):
        yield text[at:]


def _packed(found: Iterable[Portion], grid: Grid) -> Iterator[list[Portion]]:
    """What shares a shard: neighbours that are whole files, up to a stride together."""
    waiting: list[Portion] = []
    size = 0
    for portion in found:
        if waiting and not (portion.is_file and size + portion.size_bytes <= grid.stride):
            yield waiting
            waiting, size = [], 0
        waiting.append(portion)
        size += portion.size_bytes if portion.is_file else grid.stride
    if waiting:
        yield waiting


def _fitting(found: Sequence[TokenIds], vocab: int) -> Iterator[TokenIds]:
    """The ids in arrays that fit a chunk: one, but for tokenizers that make more of a text than it has bytes."""
    if not found:
        return
    ids = np.concatenate(found)
    most = shard_tokens_max(vocab)
    for at in range(0, len(ids), most):
        yield ids[at : at + most]
