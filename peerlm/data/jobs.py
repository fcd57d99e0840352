"""A job as files in the swarm's store: all that other nodes need to make the same shards.

`job.json` has the URL, the files that were listed with their sizes and versions, the recipe, the grid, the sweep that it is
about, and what the text is to be read with; what earlier sweeps have found is beside it: `encodings.json`, `tokenizer.json`, and the
duplicates to leave out in `left_out`. All come from a peer and may be anybody's work, so what is read is
checked, and a node reads only what all may read: sources on the network, and folders that its settings name. It
lists the source itself, before and after, and goes on if that gives the same files.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from peerlm.data import denials, formats, sources, versions
from peerlm.data.clean import Clean
from peerlm.data.encodings import AUTO
from peerlm.data.prepared import Job, Recipe, Sweep
from peerlm.data.sources import Source, SourceFile
from peerlm.data.units import GRID, Grid
from peerlm.data.vocabulary import ENTRIES_MAX
from peerlm.errors import ChunkCorrupt, ConfigError
from peerlm.store.manifest import TASKS_MAX
from peerlm.types import printable

FORMAT = "peerlm-job-2"

JOB_FILE, TOKENIZER_FILE = "job.json", "tokenizer.json"
ENCODINGS_FILE, LEFT_OUT_FILE = "encodings.json", "left_out"
FILES = (JOB_FILE, TOKENIZER_FILE, ENCODINGS_FILE, LEFT_OUT_FILE)

BYTES_MAX = 64 << 20
"""Of each file. Four of them are a duplicate."""

FILES_MAX = 500_000
PATH_CHARS_MAX = 4096
URL_CHARS_MAX = 4096

NETWORK = frozenset(("http", "https", *denials.CREDENTIALS, *sources.PACKAGES))
"""Kinds of URL that mean the same on every machine."""

_CLOUDS = ("fd00:ec2::/32", "fd20:ce::/32", "100.100.100.200", "168.63.129.16", "192.0.0.192")
KEYS = tuple(ip_network(network) for network in _CLOUDS)
"""Beside what is link-local, where clouds give out a machine's keys and settings: those of Amazon, Google, Alibaba, Microsoft and Oracle, in
this order."""

PLACE = np.dtype("<u4")

BEYOND = 1 << 50
"""More than any size here."""


def is_of_network(url: str) -> bool:
    """Other nodes can read the same there, and nothing in the URL may be a secret."""
    if "::" in url or sources.kind_of(url) not in NETWORK:
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if _is_of_one_machine(parts.hostname or ""):
        return False
    return not parts.password and not (sources.is_web(url) and (parts.username or parts.query))


def _is_of_one_machine(host: str) -> bool:
    """What answers there knows this machine alone: a cloud gives out the machine's own keys so. However the host is written, as far
    as that shows without asking for its address."""
    host = unicodedata.normalize("NFKC", host).replace("\N{IDEOGRAPHIC FULL STOP}", ".").rstrip(".")
    if "%" in host:  # an address on one of this machine's lines, or a disguise
        return True
    for read in (ip_address, _as_numbers):
        with suppress(ValueError):
            address = read(host)
            address = getattr(address, "ipv4_mapped", None) or address
            return address.is_link_local or any(address in keys for keys in KEYS)
    return host.endswith(".internal")


def _as_numbers(host: str) -> IPv4Address:
    """As the C library reads it: one to four numbers, octal behind a 0 and hexadecimal behind 0x, the last for all bytes that
    are left. 2852039166 is 169.254.169.254. Raises `ValueError`."""
    bases = {"0x": 16, "0X": 16}
    *firsts, last = [
        int(n, bases.get(n[:2], 8 if n.startswith("0") else 10)) for n in host.split(".")
    ]
    return IPv4Address(sum(n << 8 * (3 - place) for place, n in enumerate(firsts)) + last)


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
    if "\0" in path:
        return False
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def listed_here(job: Job, folders: Sequence[str]) -> None:
    """Look whether this node finds the same files. Raises `ConfigError`: it may not, cannot, or does not."""
    source = job.source
    require_may_read(source.url, folders, source.where)
    require_unchanged(source)
    if _is_plain_path(source.url) and not all(_is_below(f.path, folders) for f in source.files):
        raise ConfigError(f"{source.where}: a file leads out of the folders that may be read")


def require_unchanged(source: Source) -> None:
    """Look whether it is as it was listed. Raises `ConfigError`."""
    found = {file.path: file for file in sources.listed(source.url, source.where).files}
    if found.keys() != {file.path for file in source.files}:
        raise ConfigError(
            f"{source.where}: {len(source.files)} files were listed in {printable(source.url[:200])}, this node finds "
            f"{len(found)}, not all the same"
        )
    for wanted in source.files:
        _require_same(wanted, found[wanted.path], source.where)


def _require_same(wanted: SourceFile, here: SourceFile, where: str) -> None:
    path = printable(wanted.path[:200])
    if here.size != wanted.size:
        raise ConfigError(
            f"{where}: {path} has {here.size} bytes on this node and had {wanted.size} when it was listed"
        )
    if here.version != wanted.version and here.version and wanted.version:
        raise ConfigError(
            f"{where}: {path} is another version on this node, {here.version}, than was listed, {printable(wanted.version)}: "
            "it was written since, or is a copy"
        )


def differences(under_way: Job, asked: Job) -> list[str]:
    """Options of `peerlm data add` in which two jobs of one source differ."""
    mine, theirs = under_way.recipe, asked.recipe
    is_other = {
        "--encoding": mine.encoding != theirs.encoding,
        "--field": mine.text_field != theirs.text_field,
        "--nfc or --nfkc": mine.clean.unicode != theirs.clean.unicode,
        "--dedup": mine.clean.exact != theirs.clean.exact,
        "--near": mine.clean.near != theirs.clean.near,
        "--tokenizer": _tokens(under_way) != _tokens(asked),
    }
    return [option for option, is_so in is_other.items() if is_so]


def _tokens(job: Job) -> tuple[int, bytes | None, int]:
    return job.entries, None if job.entries else job.tokenizer, job.vocab


# --------------------------------------------------------------------------------------- as bytes


def encode(job: Job) -> dict[str, bytes]:
    """Its files: path → bytes. Raises `ConfigError`: it is too much to share out."""
    clean = job.recipe.clean
    body = {
        "format": FORMAT,
        "sweep": job.sweep,
        "url": job.source.url,
        "files": [[f.path, f.size, f.ranges, f.version] for f in job.source.files],
        "encoding": job.recipe.encoding,
        "text_field": job.recipe.text_field,
        "clean": [clean.unicode, clean.control, clean.exact, clean.near],
        "vocab": job.vocab,
        "entries": job.entries,
        "versions": dict(job.versions),
        "grid": list(job.grid),
    }
    _require_count(job, len(job.source.files), FILES_MAX, "files")
    uncut = replace(job, sweep=Sweep.TOKENS) if job.sweep is Sweep.ENCODINGS else job
    _require_count(job, len(uncut.tasks), TASKS_MAX - 1, "tasks")
    left_out = sum(map(len, job.left_out.values())) + 2 * len(job.left_out)
    _require_count(job, left_out, BYTES_MAX // PLACE.itemsize, "duplicates to leave out")
    files = {JOB_FILE: _as_json(body)}
    if len(files[JOB_FILE]) > BYTES_MAX:
        raise ConfigError(
            f"{job.source.where}: the names of {len(job.source.files):,} files take {len(files[JOB_FILE]):,} bytes, and "
            f"{BYTES_MAX:,} can be told to other nodes; make it here, with --here"
        )
    if job.encodings:
        files[ENCODINGS_FILE] = _as_json(_by_name(job))
    if job.tokenizer is not None:
        files[TOKENIZER_FILE] = job.tokenizer
    if job.left_out:
        files[LEFT_OUT_FILE] = _packed(job.left_out)
    return files


def _require_count(job: Job, count: int, most: int, what: str) -> None:
    if count > most:
        raise ConfigError(
            f"{job.source.where}: {count:,} {what}, and {most:,} can be told to other nodes; make it here, with --here"
        )


def _as_json(body: object) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _by_name(job: Job) -> dict[str, list[int]]:
    """Encoding → numbers of the files that are in it."""
    found: dict[str, list[int]] = {}
    for number, file in enumerate(job.source.files):
        if file.path in job.encodings:
            found.setdefault(job.encodings[file.path], []).append(number)
    return found


def _encodings(named: object, files: Sequence[SourceFile]) -> dict[str, str]:
    if not isinstance(named, dict):
        raise ValueError("encodings without names")
    found = {}
    for name, numbers in named.items():
        encoding = formats.encoding_named(_text(name, 64))
        for number in numbers:
            found[files[_count(number, len(files) - 1)].path] = encoding
    return found


def _packed(left_out: Mapping[int, frozenset[int]]) -> bytes:
    """Of each task that has some: its number, how many, and which."""
    rows = ([task, len(places), *sorted(places)] for task, places in sorted(left_out.items()))
    return b"".join(np.array(row, PLACE).tobytes() for row in rows)


def _unpacked(data: bytes) -> dict[int, frozenset[int]]:
    if len(data) % PLACE.itemsize:
        raise ValueError("half a duplicate")
    numbers = np.frombuffer(data, PLACE)
    found: dict[int, frozenset[int]] = {}
    at, last = 0, -1
    while at < len(numbers):
        task, count = map(int, numbers[at : at + 2])
        places = numbers[at + 2 : at + 2 + count]
        if task <= last or not 0 < count == len(places):
            raise ValueError("duplicates of no task, or of too few")
        found[task] = frozenset(places.tolist())
        at, last = at + 2 + count, task
    return found


def read(found: Mapping[str, bytes], where: str) -> Job:
    """From its files, those of `FILES` that there are. Raises `ChunkCorrupt`: it is no job."""
    try:
        return _from_files(found, where)
    except (KeyError, TypeError, ValueError, RecursionError, ConfigError) as error:
        raise ChunkCorrupt(f"{where}: not a job: {printable(repr(error)[:200])}") from None


def _from_files(found: Mapping[str, bytes], where: str) -> Job:
    body = json.loads(found[JOB_FILE])
    if body["format"] != FORMAT:
        raise ValueError(f"its format is {str(body['format'])[:60]!r}, this peerlm reads {FORMAT}")
    unicode, control, exact, near = body["clean"]
    clean = Clean(_text(unicode, 16), _flag(control), _flag(exact), float(near))
    encoding = _text(body["encoding"], 64)
    if encoding != AUTO:
        formats.encoding_named(encoding)
    if not 0 < len(body["files"]) <= FILES_MAX:
        raise ValueError("no files, or too many")
    files = tuple(_file(*row) for row in body["files"])
    encodings = json.loads(found.get(ENCODINGS_FILE, b"{}"))
    job = Job(
        Source(_text(body["url"], URL_CHARS_MAX), where, files),
        Recipe(encoding, _text(body["text_field"], 256), clean),
        found.get(TOKENIZER_FILE),
        _count(body["vocab"], 1 << 24),
        _unpacked(found.get(LEFT_OUT_FILE, b"")),
        _grid(body["grid"]),
        _encodings(encodings, files) if encoding == AUTO else {},
        _count(body["entries"], ENTRIES_MAX),
        Sweep(body["sweep"]),
        versions.read(body["versions"]),
    )
    size = sum(file.size or job.grid.stride for file in files)
    if size // job.grid.stride + len(files) > 2 * TASKS_MAX or not 0 < job.count <= TASKS_MAX:
        raise ValueError("too many tasks, or none")
    return job


def _file(path: Any, size: Any, ranges: Any, version: Any) -> SourceFile:
    return SourceFile(
        _text(path, PATH_CHARS_MAX),
        None if size is None else _count(size),
        _flag(ranges),
        _text(version, sources.VERSION_CHARS_MAX),
    )


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
