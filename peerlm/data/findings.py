"""What has to be known of all of a source before a token of it is made, found out task by task: encodings, the vocabulary,
duplicates.

Each is a sweep over the source, or part of one. What a task of it becomes, its *findings*, are a few megabytes of bytes that are
the same whoever makes them, as shards are, so several nodes share a sweep as they share the making of tokens. What follows
from the findings of all tasks, `concluded`, is the job of the next sweep: it is a pure function of them too, so whoever
comes to it, and if two do, it is the same job.

Fingerprints of a document are a byte that says which there are, then these: 17 bytes, with near ones 529. They are read
one after the other and never lie in memory together. A peer may say anything, so of a task no more are read than a source of
its size can have, and whoever makes a task holds to the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from peerlm.data import encodings, formats, prepared, vocabulary
from peerlm.data.clean import EXACT_BYTES, NEAR_BYTES, Fingerprint, duplicates, fingerprint
from peerlm.data.encodings import AUTO
from peerlm.data.formats import Format
from peerlm.data.prepared import Done, Job, Made, Sweep
from peerlm.data.sources import Pause, SourceFile
from peerlm.data.tokenizer import JsonTokenizer
from peerlm.errors import ChunkCorrupt, ConfigError
from peerlm.store.manifest import CHUNK_BYTES

NOTHING, EXACT, NEAR = range(3)
"""What there is of a document."""

SIZES = {NOTHING: 0, EXACT: EXACT_BYTES, NEAR: EXACT_BYTES + NEAR_BYTES}

TOKENIZER_BYTES_MAX = 64 << 20

NAMES_BYTES_MAX = 1 << 20
"""Of the encodings of a task's files, which are 4096 at most."""

DOCUMENT_BYTES_MIN = 8
"""Of a record with a letter in it: {"":"a"}."""

UNPACKED = 100
"""Files that are compressed, or of columns, are no more times longer than they are stored, counted in such documents."""

DOCUMENTS_MAX = 1 << 27
"""Of a task; so many are taken where a file's size is not known."""

Kept = Callable[[int], object]
"""Told how many documents are remembered; what it raises ends it."""


def begun(job: Job) -> Job:
    """The job in its first sweep."""
    return replace(job, sweep=Sweep.ENCODINGS if job.recipe.encoding == AUTO else _second(job))


def _second(job: Job) -> Sweep:
    return Sweep.PRINTS if job.recipe.clean.compares or job.entries else Sweep.TOKENS


def findings(job: Job, number: int, pause: Pause = lambda _: None) -> Iterator[Made | Done]:
    """What is found in task `number` of a sweep before that of tokens, in pieces of a chunk at most. Holds one, and a unit.

    Raises:
        ConfigError: the source cannot be read, or is not what its name and the recipe say, or has too many documents for its size.
    """
    pieces = documents = 0
    for data, count in _pieces(job, number, pause):
        yield Made(number, pieces, data, 0)
        pieces += 1
        documents += count
    yield Done(number, pieces, documents, prepared.stored_bytes(job, number))


def _pieces(job: Job, number: int, pause: Pause) -> Iterator[tuple[bytes, int]]:
    """Each piece, and the documents that are in it."""
    if job.is_vocabulary(number):
        data = vocabulary.trained(job, job.entries)
        yield from ((data[at : at + CHUNK_BYTES], 0) for at in range(0, len(data), CHUNK_BYTES))
    elif job.sweep is Sweep.PRINTS:
        yield from _prints(job, number, pause)
    else:
        task = job.tasks[number]
        files = job.source.files[task.first : task.first + task.files]
        yield json.dumps(list(encodings.each(job.source, files, pause))).encode(), 0


def _prints(job: Job, number: int, pause: Pause) -> Iterator[tuple[bytes, int]]:
    clean, left = job.recipe.clean, prints_bytes_max(job, number)
    waiting, documents = bytearray(), 0
    for portion in prepared.portions(job, number, pause):
        for document in portion.documents:
            if len(waiting) + 1 + SIZES[NEAR] > CHUNK_BYTES:
                yield bytes(waiting), documents
                waiting, documents = bytearray(), 0
            is_one = document.compared and bool(document.text)
            print_ = packed(fingerprint(document.text, clean) if is_one else Fingerprint())
            waiting += print_
            documents += is_one
            if (left := left - len(print_)) < 0:
                raise ConfigError(
                    f"{job.source.where}: {job.path_of(number)}, or a file behind it, has more documents than are compared in "
                    "files of this size; take it without --dedup and --near, or unpack it"
                )
    if waiting:
        yield bytes(waiting), documents


def prints_bytes_max(job: Job, number: int) -> int:
    """Bytes of fingerprints that task `number` may have."""
    task = job.tasks[number]
    files = job.source.files[task.first : task.first + task.files]
    documents = DOCUMENTS_MAX
    if all(file.size is not None for file in files):
        text = prepared.stored_bytes(job, number) * (UNPACKED if _is_packed(files) else 1)
        documents = min(documents, (text + job.grid.slack) // DOCUMENT_BYTES_MIN)
    return documents * (1 + SIZES[NEAR if job.recipe.clean.near else EXACT])


def _is_packed(files: Iterable[SourceFile]) -> bool:
    shapes = [formats.shape_of(file.path) for file in files]
    return any(shape.compression or shape.format == Format.PARQUET for shape in shapes)


def packed(print_: Fingerprint) -> bytes:
    kind = NEAR if print_.near else EXACT if print_.exact else NOTHING
    return bytes((kind,)) + print_.exact + print_.near


def unpacked(pieces: Iterable[bytes], where: str) -> Iterator[Fingerprint]:
    """Raises `ChunkCorrupt`."""
    for data in pieces:
        at = 0
        while at < len(data):
            size = SIZES.get(data[at], len(data))
            exact, near = (
                data[at + 1 : at + 1 + EXACT_BYTES],
                data[at + 1 + EXACT_BYTES : at + 1 + size],
            )
            at += 1 + size
            if at > len(data):
                raise ChunkCorrupt(f"{where}: no fingerprints of documents, or damaged ones")
            yield Fingerprint(exact, near) if size else Fingerprint()


# --------------------------------------------------------------------------------- what follows


def concluded(job: Job, found: Iterable[Iterable[bytes]], kept: Kept = lambda _: None) -> Job:
    """The job of the next sweep. `found`: the pieces of every task of this one, in the order of tasks; each is read before the
    next is asked for.

    Raises:
        ChunkCorrupt: those of the task that was read last are no findings of this job.
        ConfigError: the encoding of a file does not show; or a package is missing; or what `kept` raises.
    """
    where = job.source.where
    if job.sweep is Sweep.ENCODINGS:
        names: list[str | None] = []
        for task, pieces in zip(job.tasks, found, strict=True):
            names += _names(_joined(pieces, NAMES_BYTES_MAX, where), task.files, where)
        taken = encodings.others_than_utf_8(encodings.settled(job.source, names))
        return replace(job, encodings=taken, sweep=_second(job))
    assert job.sweep is Sweep.PRINTS, job.sweep
    clean, each = job.recipe.clean, iter(found)
    if clean.compares:
        prints = (
            (task, unpacked(_bounded(pieces, prints_bytes_max(job, task), where), where))
            for task, pieces in enumerate(islice(each, len(job.tasks)))
        )
        job = replace(job, left_out=duplicates(prints, clean, kept))
    if job.entries:
        job = replace(job, tokenizer=_tokenizer(next(each), where))
    return replace(job, sweep=Sweep.TOKENS)


def _names(data: bytes, count: int, where: str) -> list[str | None]:
    try:
        names = json.loads(data)
        if not isinstance(names, list) or not all(n is None or isinstance(n, str) for n in names):
            raise ValueError("no names")
        if len(names) != count:
            raise ValueError("of too few files, or too many")
        return [formats.encoding_named(name) if name else name for name in names]
    except (ValueError, RecursionError, ConfigError):
        raise ChunkCorrupt(f"{where}: no encodings of files, or damaged ones") from None


def _tokenizer(pieces: Iterable[bytes], where: str) -> bytes:
    made = _joined(pieces, TOKENIZER_BYTES_MAX, where)
    try:
        JsonTokenizer(made, where)
    except ConfigError as error:
        raise ChunkCorrupt(str(error)) from None
    return made


def _joined(pieces: Iterable[bytes], most: int, where: str) -> bytes:
    return b"".join(_bounded(pieces, most, where))


def _bounded(pieces: Iterable[bytes], most: int, where: str) -> Iterator[bytes]:
    """Of what a peer lists, no more than `most`."""
    for piece in pieces:
        most -= len(piece)
        if most < 0:
            raise ChunkCorrupt(f"{where}: no findings of a task are so large")
        yield piece
