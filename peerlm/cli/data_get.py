"""`peerlm data get | verify`: everything a name stands for, read through this node's desk, which checks every chunk."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import click

from peerlm.cli import words
from peerlm.cli.chunk_reading import Reader
from peerlm.cli.desk_here import Tell, open_desk, progress
from peerlm.cli.leash import interruption
from peerlm.cli.state import state_option
from peerlm.errors import PeerlmError, StateError
from peerlm.store import disk
from peerlm.store.layout import Layout
from peerlm.store.manifest import FILE as MANIFEST
from peerlm.store.manifest import Kind
from peerlm.types import ObjectHash, printable, short

if TYPE_CHECKING:
    from peerlm.store.manifest import Chunk, File, Manifest

SHOWN = 20
"""Chunks that cannot be had, one a line."""

PART = ".peerlm-part"
"""Ends the name of a file that is not all there yet."""


@click.command(short_help="Copy a name's files into a folder.")
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object; docs/store.md explains it.")
@state_option
@interruption("what has been copied stays, and the same command goes on from there")
def get(layout: Layout, name: str, directory: Path, as_json: bool) -> None:
    """Copy the files of NAME into DIRECTORY, each chunk checked. Files that are there and right stay as they are, and one
    that was cut short goes on where it ended: run it again.

    \b
    Examples:
      peerlm data get plays copy-of-plays/
      peerlm data get checkpoint-0001 /srv/keep --json
    """
    with open_desk(layout) as desk:
        manifest = desk.manifest(name)
    if manifest.kind == Kind.CHECKPOINT:
        with disk.explained("write", directory, "another folder"):
            directory.mkdir(parents=True, exist_ok=True)
        disk.write_atomic(directory / MANIFEST, manifest.encode(), 0o644)
    with Reader(layout) as reader, progress(f"copying {name}", in_bytes=True) as tell:
        fetched = Copying(manifest, directory, reader, tell).run()
    kept = len(manifest.files) - fetched
    if as_json:
        told = {"name": name, "files": len(manifest.files), "kept": kept}
        click.echo(json.dumps({**told, "bytes": manifest.size_bytes}, indent=2))
    else:
        there = f", {kept} of them there already" if kept else ""
        size = words.size(manifest.size_bytes)
        files = words.some(len(manifest.files), "file")
        click.echo(f"{files}, {size} in {directory}{there}")


class _Left(NamedTuple):
    """A file that is not all there."""

    file: File
    chunks: tuple[Chunk, ...]
    here: int
    """Of its chunks, those that are in its part already."""


class Copying:
    """A manifest's files on their way into a folder."""

    def __init__(self, manifest: Manifest, directory: Path, reader: Reader, tell: Tell) -> None:
        self._manifest, self._directory = manifest, directory
        self._reader, self._tell = reader, tell
        self._done = 0

    def run(self) -> int:
        """How many files were not there. Raises: StateError, a chunk cannot be had, or the folder not be written."""
        left = [one for file in self._manifest.files if (one := self._left(file)) is not None]
        wanted = chain.from_iterable(one.chunks[one.here :] for one in left)
        with closing(self._reader.read(wanted)) as found:
            for one in left:
                self._copy(one, islice(found, len(one.chunks) - one.here))
        return len(left)

    def _left(self, file: File) -> _Left | None:
        path, chunks = self._directory / file.path, self._manifest.chunks_of(file)
        sizes = [chunk.size for chunk in chunks]
        if _size(path) == sum(sizes) and _begins(path, chunks) == len(chunks):
            self._advance(sum(sizes))
            return None
        here = _begins(_part_of(path), chunks)
        self._advance(sum(sizes[:here]))
        return _Left(file, chunks, here)

    def _copy(self, one: _Left, found: Iterator[tuple[Chunk, bytes | StateError]]) -> None:
        path = self._directory / one.file.path
        part = _part_of(path)
        with disk.explained("write", path, "another folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
            here_bytes = sum(chunk.size for chunk in one.chunks[: one.here])
            with _opened(part, here_bytes) as out:
                for chunk, data in found:
                    if isinstance(data, StateError):
                        raise StateError(f"{one.file.path}: {data}")
                    out.write(data)
                    self._advance(chunk.size)
                out.flush()
                os.fsync(out.fileno())
            part.replace(path)
            disk.sync_directory(path.parent)

    def _advance(self, size: int) -> None:
        self._done += size
        self._tell(self._done, self._manifest.size_bytes, "")


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{PART}")


def _opened(part: Path, here_bytes: int) -> BinaryIO:
    """For one process alone, behind the first bytes, which were found right. Raises: OSError; StateError, another writes it, or
    has written it since: what is behind a hole would pass for a file."""
    flags = os.O_RDWR | os.O_CLOEXEC | (0 if here_bytes else os.O_CREAT)
    try:
        out = os.fdopen(os.open(part, flags, 0o666), "r+b")
    except FileNotFoundError:
        if not here_bytes:
            raise
        raise _another(part) from None  # it has got its name
    try:
        if not _is_ours(out.fileno(), part) or os.fstat(out.fileno()).st_size < here_bytes:
            raise _another(part)
        out.seek(here_bytes)
        out.truncate()
    except BaseException:
        out.close()
        raise
    return out


def _another(part: Path) -> StateError:
    return StateError(
        f"{part} is being written by another `peerlm data get`: wait for it, or choose another folder"
    )


def _is_ours(fd: int, part: Path) -> bool:
    """From now on until it is closed. Where there are no locks it is taken to be."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    with suppress(FileNotFoundError):  # it has got its name between the opening and the lock
        return os.path.samestat(os.fstat(fd), part.stat())
    return False


def _begins(path: Path, chunks: tuple[Chunk, ...]) -> int:
    """How many of the chunks a file begins with."""
    from blake3 import blake3

    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        for number, chunk in enumerate(chunks):
            if blake3(file.read(chunk.size)).digest() != chunk.hash:
                return number
        return len(chunks)
    return 0


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return -1


# ------------------------------------------------------------------------------------ verify


@click.command(short_help="Read every chunk of a name, and say what cannot be had.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; docs/store.md explains it.")
@state_option
@interruption("nothing was changed")
def verify(layout: Layout, name: str, as_json: bool) -> None:
    """Read every chunk of NAME, from this node's disk or from others, each checked by its hash. Exit code 1 when some cannot
    be had. It takes as long as fetching all that is not here; `peerlm data show` asks who keeps what, and is quick. When it was
    done here last is in `peerlm data ls` and `peerlm data show`.

    \b
    Examples:
      peerlm data verify plays
      peerlm data verify plays --json | jq .missing
    """
    with open_desk(layout) as desk:
        manifest = desk.manifest(name)
        chunks = list(dict.fromkeys(manifest.chunks))
        counts = desk.survey([chunk.hash for chunk in chunks]).counts
    missing = {c.hash: "on no node" for c, n in zip(chunks, counts, strict=True) if not n}
    there = [chunk for chunk in chunks if chunk.hash not in missing]
    with Reader(layout) as reader, progress(f"reading {name}", in_bytes=True) as tell:
        missing |= dict(_unreadable(reader, there, tell))
    _remember(layout, manifest, len(missing))
    size = sum(chunk.size for chunk in chunks)
    if as_json:
        told = {"name": name, "chunks": len(chunks), "bytes": size}
        click.echo(json.dumps({**told, "missing": _missing(manifest, missing)}, indent=2))
    if missing:
        lost = f"{len(missing)} of {len(chunks)} chunks of {name} cannot be had"
        if not as_json:
            _show(manifest, missing)
        raise PeerlmError(lost)
    if not as_json:
        click.echo(
            f"{name}: {words.some(len(chunks), 'chunk')}, {words.size(size)}, all as they should be"
        )


def _remember(layout: Layout, manifest: Manifest, missing: int) -> None:
    """What `peerlm data ls` and `show` say of it. It is no less verified where the daemon cannot remember."""
    from peerlm.store.manifest import manifest_hash

    with suppress(StateError), open_desk(layout) as desk:
        desk.verified(manifest_hash(manifest.encode()), missing)


def _unreadable(
    reader: Reader, chunks: list[Chunk], tell: Tell
) -> Iterator[tuple[ObjectHash, str]]:
    done, total = 0, sum(chunk.size for chunk in chunks)
    for chunk, data in reader.read(chunks):
        done += chunk.size
        tell(done, total, "")
        if isinstance(data, StateError):
            yield chunk.hash, str(data)


def _missing(manifest: Manifest, missing: dict[ObjectHash, str]) -> list[dict[str, Any]]:
    """Each with its files, as many as are shown."""
    paths: dict[ObjectHash, list[str]] = {wanted: [] for wanted in missing}
    for file in manifest.files:
        for chunk in manifest.chunks_of(file):
            if chunk.hash in paths and file.path not in paths[chunk.hash][-1:]:
                paths[chunk.hash].append(file.path)
    return [
        {"chunk": wanted.hex(), "why": why, "files": paths[wanted][:SHOWN]}
        for wanted, why in missing.items()
    ]


def _show(manifest: Manifest, missing: dict[ObjectHash, str]) -> None:
    for one in _missing(manifest, missing)[:SHOWN]:
        where = ", ".join(one["files"][:3])
        click.echo(printable(f"{short(bytes.fromhex(one['chunk']))}  {where}: {one['why']}"))
    if len(missing) > SHOWN:
        click.echo(f"and {len(missing) - SHOWN} more; --json lists all")
