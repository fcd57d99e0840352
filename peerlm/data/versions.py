"""What others have written and a corpus depends on: the same text and recipe give other tokens with another release of it.

A job names them as its asker has them, and a node that has others takes no part, so what several nodes make is what one makes.
Each is asked for in the sweeps alone that use it: who only makes tokens needs no library that finds duplicates.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from peerlm.data import clean
from peerlm.data.encodings import AUTO
from peerlm.data.prepared import Job, Sweep
from peerlm.errors import ConfigError
from peerlm.types import printable

UNICODE, PRINTS = "Unicode", "fingerprints"
"""What Python knows of characters; how near fingerprints are made. All others are packages."""

EXTRAS = {"datasketch": "dedup", "chardet": "encoding"}
"""Package → the extra of peerlm that brings it."""

NAMES_MAX, CHARS_MAX = 16, 64


def of(job: Job) -> dict[str, str]:
    """As they are here, of all sweeps that the job has. Raises `ConfigError`: a package is missing."""
    names = dict.fromkeys(name for sweep in Sweep for name in _used(job, sweep))
    return {name: _here(name, job.source.where) for name in names}


def require_same(job: Job) -> None:
    """Raises `ConfigError`: this node has others, or not all of them."""
    where = job.source.where
    for name in _used(job, job.sweep):
        wanted, here = job.versions.get(name, ""), _here(name, where)
        if wanted != here:
            raise ConfigError(
                f"{where}: it is made with {name} {printable(wanted) or '?'} and this node has {here}, which may make other "
                "tokens of the same text: it takes no part"
            )


def read(found: Mapping[str, object]) -> dict[str, str]:
    """Of a job that comes from elsewhere. Raises `ValueError`."""
    if not isinstance(found, dict) or len(found) > NAMES_MAX:
        raise ValueError("no versions, or too many")
    if not all(
        isinstance(v, str) and len(v) <= CHARS_MAX and len(n) <= CHARS_MAX for n, v in found.items()
    ):
        raise ValueError("a version that is none")
    return dict(found)


def _used(job: Job, sweep: Sweep) -> list[str]:
    cleaning = job.recipe.clean
    match sweep:
        case Sweep.ENCODINGS:
            return ["chardet"] if job.recipe.encoding == AUTO else []
        case Sweep.PRINTS:
            used = [UNICODE] if cleaning.compares or (job.entries and cleaning.unicode) else []
            used += [PRINTS, "datasketch"] if cleaning.near else []
            return [*used, "tokenizers"] if job.entries else used
        case Sweep.TOKENS:
            used = [UNICODE] if cleaning.unicode else []
            return [*used, "tokenizers"] if job.entries or job.tokenizer is not None else used


def _here(name: str, where: str) -> str:
    if name == UNICODE:
        return unicodedata.unidata_version
    if name == PRINTS:
        return clean.PRINTS
    try:
        return version(name)
    except PackageNotFoundError:
        extra = EXTRAS.get(name)
        what = f"peerlm[{extra}]" if extra else name
        raise ConfigError(
            f"{where}: it needs the package {name}, which is missing here: pip install '{what}'"
        ) from None
