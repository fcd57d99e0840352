"""Files as they are, for the swarm's store: what each is called below a URL, and its bytes in chunks.

Nothing is decoded or left out but names that start with a dot, as everywhere (`sources`). Chunks have one size whatever
the file, so a file that is added twice, or again after a change at its end, has the same chunks up to there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from peerlm.data import sources
from peerlm.data.sources import Pause, Source, SourceFile
from peerlm.errors import ConfigError
from peerlm.store.manifest import CHUNK_BYTES, path_below

MAGIC = re.compile(r"[*?\[]")

SUFFIXES = re.compile(
    r"\.(txt|text|md|html?|jsonl?|ndjson|lines|csv|tsv|parquet|arrow|gz|bz2|xz|zst|zip|tar|tgz)$"
)
"""What a file's name ends with and a name in the store need not."""


def placed(source: Source) -> list[tuple[str, SourceFile]]:
    """Each file with its path below the URL, in order: of a folder below it, of a glob below the last folder without a
    wildcard; a single file has its name alone.

    Raises:
        ConfigError: a path that cannot be one in the store.
    """
    with sources.explained(source.url, source.where):
        _, path = sources.file_system(source.url)
    root = _root(path)
    found = []
    for file in source.files:
        below = _below(file.path, root, is_web=sources.is_web(source.url))
        try:
            found.append((path_below(below), file))
        except ValueError as error:
            raise ConfigError(
                f"{source.where}: {file.path!r} cannot be kept under its name: {error}"
            ) from None
    return found


def _root(path: str) -> str:
    """The folder part of what a URL names, up to the first wildcard."""
    parts = path.rstrip("/").split("/")
    wild = next((at for at, part in enumerate(parts) if MAGIC.search(part)), len(parts))
    return "/".join(parts[:wild])


def _below(path: str, root: str, *, is_web: bool) -> str:
    if is_web:
        return urlsplit(path).path.rstrip("/").rpartition("/")[2] or "index"
    if path.startswith(f"{root}/"):
        return path.removeprefix(root).lstrip("/")
    return path.rpartition("/")[2]


def chunks(fs: Any, file: SourceFile, where: str, pause: Pause = lambda _: None) -> Iterator[bytes]:
    """The file's bytes, all chunks but the last of the full size. Holds one. Raises `ConfigError`: it cannot be read."""
    if file.size == 0:
        return
    with sources.in_order(fs, file, where, pause) as stream:
        while data := stream.read(CHUNK_BYTES):
            yield data


def name_of(url: str) -> str:
    """What a URL's last part without a wildcard suggests as a name in the store; empty: nothing."""
    for link in url.split("::"):
        path = link.partition("?")[0].partition("#")[0] if "://" in link else link
        parts = [part for part in (path.partition("://")[2] or path).split("/") if part]
        plain = [part for part in parts if not MAGIC.search(part) and part not in (".", "..")]
        if plain and (name := _as_name(plain[-1])):
            return name
    return ""


def _as_name(part: str) -> str:
    name = part.lower()
    while (shorter := SUFFIXES.sub("", name)) not in ("", name):
        name = shorter
    return re.sub(r"[^a-z0-9._-]+", "-", name).lstrip("._-").rstrip("-")[:96]


def about(url: str) -> str:
    """A URL as it may be shown to everybody: without what may be a secret in it."""
    shown = []
    for part in url.split("::"):
        bare = part.partition("?")[0] if "://" in part else part
        shown.append(re.sub(r"://[^/@]*@", "://", bare))
    return "::".join(shown)
