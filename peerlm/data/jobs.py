"""A job as files in the swarm's store: all that other nodes need to make the same shards.

`job.json` has the URL, the files that were listed with their sizes, the recipe, the grid and the duplicates to leave out;
`tokenizer.json` is there unless a token is a byte. Both come from a peer and may be anybody's work, so what is read is
checked, and a node reads only what all may read: sources on the network, and folders that its settings name. It
lists the source itself and goes on if that gives the same files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peerlm.data import denials, formats, sources
from peerlm.data.clean import Clean
from peerlm.data.encodings import AUTO
from peerlm.data.prepared import Job, Recipe
from peerlm.data.sources import Source, SourceFile
from peerlm.data.units import GRID, Grid
from peerlm.errors import ChunkCorrupt, ConfigError
from peerlm.store.manifest import TASKS_MAX
from peerlm.types import printable

FORMAT = "peerlm-job-1"

JOB_FILE, TOKENIZER_FILE = "job.json", "tokenizer.json"

BYTES_MAX = 64 << 20
"""Of each file."""

FILES_MAX = 500_000
PATH_CHARS_MAX = 4096
URL_CHARS_MAX = 4096

NETWORK = frozenset(("http", "https", *denials.CREDENTIALS, *sources.PACKAGES))
"""Kinds of URL that mean the same on every machine."""

BEYOND = 1 << 50
"""More than any size here."""


def is_of_network(url: str) -> bool:
    """Other nodes can read the same there, and nothing in the URL may be a secret."""
    if "::" in url or sources.kind_of(url) not in NETWORK:
        return False
    parts = urlsplit(url)
    if _is_link_local(parts.hostname or ""):
        return False
    return not parts.password and not (sources.is_web(url) and (parts.username or parts.query))


def _is_link_local(host: str) -> bool:
    """What answers there knows this machine alone: a cloud gives out the machine's own keys so."""
    try:
        return ip_address(host).is_link_local
    except ValueError:
        return host.endswith(".internal")


def require_may_read(url: str, folders: Sequence[str], where: str) -> None:
    """Raises `ConfigError`: this node reads nothing there for others."""
    if is_of_network(url) or (_is_plain_path(url) and _is_below(url, folders)):
        return
    raise ConfigError(
        f"{where}: this node reads nothing below {printable(url[:200])!r} for others: it is no place on the network, and "
        "in no folder of store.folders in node.toml"
    )


def _is_plain_path(url: str) -> bool:
    return "::" not in url and "://" not in url and url != sources.SHIPPED


def _is_below(path: str, folders: Sequence[str]) -> bool:
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def listed_here(job: Job, folders: Sequence[str]) -> None:
    """Look whether this node finds the same files. Raises `ConfigError`: it may not, cannot, or does not."""
    source = job.source
    require_may_read(source.url, folders, source.where)
    here = sources.listed(source.url, source.where)
    found = {file.path: file.size for file in here.files}
    wanted = {file.path: file.size for file in source.files}
    if found.keys() != wanted.keys():
        raise ConfigError(
            f"{source.where}: {len(wanted)} files were listed in {printable(source.url[:200])}, this node finds "
            f"{len(found)}, not all the same"
        )
    other = next((path for path, size in wanted.items() if found[path] != size), None)
    if other is not None:
        raise ConfigError(
            f"{source.where}: {printable(other[:200])} has {found[other]} bytes on this node and had {wanted[other]} when "
            "it was listed"
        )
    if _is_plain_path(source.url) and not all(_is_below(path, folders) for path in wanted):
        raise ConfigError(f"{source.where}: a file leads out of the folders that may be read")


# --------------------------------------------------------------------------------------- as bytes


def encode(job: Job) -> bytes:
    """`job.json`. Raises `ConfigError`: it is too much to share out."""
    clean = job.recipe.clean
    body = {
        "format": FORMAT,
        "url": job.source.url,
        "files": [[f.path, f.size, f.ranges] for f in job.source.files],
        "encoding": job.recipe.encoding,
        "text_field": job.recipe.text_field,
        "clean": [clean.unicode, clean.control, clean.exact, clean.near],
        "vocab": job.vocab,
        "left_out": [[task, sorted(places)] for task, places in sorted(job.left_out.items())],
        "grid": list(job.grid),
    }
    if job.recipe.encoding == AUTO:
        body["encodings"] = _by_name(job)
    data = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    if len(data) > BYTES_MAX or len(job.source.files) > FILES_MAX or len(job.tasks) > TASKS_MAX:
        raise ConfigError(
            f"{job.source.where}: {len(job.source.files):,} files are too many to share out; make it here, with --here"
        )
    return data


def _by_name(job: Job) -> dict[str, list[int]]:
    """Encoding → numbers of the files that are in it."""
    found: dict[str, list[int]] = {}
    for number, file in enumerate(job.source.files):
        if file.path in job.encodings:
            found.setdefault(job.encodings[file.path], []).append(number)
    return found


def _encodings(body: Mapping[str, Any], files: Sequence[SourceFile]) -> dict[str, str]:
    named = body["encodings"]
    if not isinstance(named, dict):
        raise ValueError("encodings without names")
    found = {}
    for name, numbers in named.items():
        encoding = formats.encoding_named(_text(name, 64))
        for number in numbers:
            found[files[_count(number, len(files) - 1)].path] = encoding
    return found


def read(data: bytes, tokenizer: bytes | None, where: str) -> Job:
    """Raises `ChunkCorrupt`: it is no job."""
    try:
        return _from_json(json.loads(data), tokenizer, where)
    except (KeyError, TypeError, ValueError, RecursionError, ConfigError) as error:
        raise ChunkCorrupt(f"{where}: not a job: {printable(repr(error)[:200])}") from None


def _from_json(body: Mapping[str, Any], tokenizer: bytes | None, where: str) -> Job:
    if body["format"] != FORMAT:
        raise ValueError(f"its format is {str(body['format'])[:60]!r}, this peerlm reads {FORMAT}")
    unicode, control, exact, near = body["clean"]
    clean = Clean(_text(unicode, 16), _flag(control), _flag(exact), float(near))
    encoding = _text(body["encoding"], 64)
    if encoding != AUTO:
        formats.encoding_named(encoding)
    if not 0 < len(body["files"]) <= FILES_MAX:
        raise ValueError("no files, or too many")
    files = tuple(
        SourceFile(
            _text(path, PATH_CHARS_MAX), None if size is None else _count(size), _flag(ranges)
        )
        for path, size, ranges in body["files"]
    )
    job = Job(
        Source(_text(body["url"], URL_CHARS_MAX), where, files),
        Recipe(encoding, _text(body["text_field"], 256), clean),
        tokenizer,
        _count(body["vocab"], 1 << 24),
        {_count(task): frozenset(map(_count, places)) for task, places in body["left_out"]},
        _grid(body["grid"]),
        _encodings(body, files) if encoding == AUTO else {},
    )
    size = sum(file.size or job.grid.stride for file in files)
    if size // job.grid.stride + len(files) > 2 * TASKS_MAX or len(job.tasks) > TASKS_MAX:
        raise ValueError("too many tasks")
    return job


def _grid(value: Sequence[Any]) -> Grid:
    stride, slack, record_max = map(_count, value)
    grid = Grid(stride, slack, record_max)
    if not 4 < slack < stride <= GRID.stride or not record_max <= GRID.record_max:
        raise ValueError("a grid that nobody uses")
    return grid


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{str(value)[:80]!r} is no text, or too long")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{str(value)[:80]!r} is not true or false")
    return value


def _count(value: Any, most: int = BEYOND) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{str(value)[:80]!r} is no count")
    return value
