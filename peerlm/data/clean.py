"""What is taken out of a text before it becomes tokens, and which documents are left out since others say the same.

Two passes, so that it does not matter who works: in the first, the *fingerprints* of every task's documents are taken,
wherever that is done; then `duplicates` says of all of them, in the order of tasks, which documents to leave out: those
that have come before. In the second pass each task is made without its own. The exact fingerprint is a hash of the
cleaned text; the near one a MinHash of its runs of five words (Broder 1997), compared through banded hashing
(Leskovec, Rajaraman and Ullman, ch. 3), both by `datasketch`. Near ones are estimates: at 128 hashes a similarity is
known to ± 0.04.

Pure. A memory of every fingerprint that is new, and of the number of every document that is to be left out, is kept while
duplicates are looked for, in one process: some 100 bytes a document, some 3 kB of one that is new where near ones are looked
for. So whoever looks is told how many there are, and may stop.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3

from peerlm.errors import ConfigError

FORMS = ("", "NFC", "NFD", "NFKC", "NFKD")

_DROPPED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
"""Control characters but tab and line end, and the byte-order mark wherever files were once joined."""

_WORD = re.compile("[\u3040-\u9fff]|[^\\W\u3040-\u9fff]+")
"""A run of letters; where words are not set apart, a character."""

SHINGLE_WORDS = 5
HASHES = 128
NEAR_MIN = 0.5
"""Banded hashing of so many hashes finds too few of what is less similar."""

SCHEME, SEED = "affine32", 1
"""Of the random numbers of a MinHash: others, other fingerprints."""

PRINTS = f"minhash {SCHEME} {SEED} {HASHES} {SHINGLE_WORDS}"
"""Near fingerprints of other machines can be compared with ours if theirs is the same."""

KEPT_TOLD = 4096
"""`duplicates` says each time after so many more how many documents it remembers."""

EXACT_BYTES = 16
NEAR_BYTES = 4 * HASHES


@dataclass(frozen=True, slots=True)
class Clean:
    """What is done to every document. Part of what a corpus is: other options, other shards.

    Raises:
        ConfigError: a value that there is not.
    """

    unicode: str = ""
    """Unicode normal form, such as NFC; empty: characters stay as they are."""
    control: bool = True
    """Control characters and byte-order marks go, line ends become \\n."""
    exact: bool = False
    """Documents that have come before are left out."""
    near: float = 0.0
    """So are those that share this much of their runs of words with an earlier one: 0.5 to 1; 0 for none."""

    def __post_init__(self) -> None:
        if self.unicode not in FORMS:
            raise ConfigError(
                f"clean.unicode = {self.unicode!r}: not one of {', '.join(FORMS[1:])}"
            )
        if self.near and not NEAR_MIN <= self.near <= 1:
            raise ConfigError(f"clean.near = {self.near}: a similarity from {NEAR_MIN} to 1, or 0")

    @property
    def compares(self) -> bool:
        """Duplicates are left out, so there is a first pass."""
        return self.exact or self.near > 0


class Fingerprint(NamedTuple):
    """Of one document; empty bytes where nothing is compared."""

    exact: bytes = b""
    near: bytes = b""


def cleaned(text: str, clean: Clean) -> str:
    if clean.control:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = _DROPPED.sub("", text)
    if clean.unicode and not unicodedata.is_normalized(clean.unicode, text):  # type: ignore[arg-type]
        text = unicodedata.normalize(clean.unicode, text)  # type: ignore[arg-type]
    return text


def fingerprint(text: str, clean: Clean) -> Fingerprint:
    """Of a cleaned document. Space around it does not count, nor, for the near one, capitals and what is no word.

    Raises:
        ConfigError: near duplicates are asked for without their package.
    """
    exact = blake3(text.strip().encode()).digest(EXACT_BYTES)
    if not clean.near:
        return Fingerprint(exact)
    words = _WORD.findall(text.lower())
    if not words:
        return Fingerprint(exact)
    runs = [
        " ".join(words[at : at + SHINGLE_WORDS]).encode()
        for at in range(max(1, len(words) - SHINGLE_WORDS + 1))
    ]
    sketch = _blank(_datasketch()).copy()
    sketch.update_batch(runs)
    return Fingerprint(exact, np.asarray(sketch.hashvalues, "<u4").tobytes())


def duplicates(
    found: Iterable[tuple[int, Iterable[Fingerprint]]],
    clean: Clean,
    kept: Callable[[int], object] = lambda _: None,
) -> Mapping[int, frozenset[int]]:
    """Task → the numbers of its documents that are to be left out; of each lot of duplicates the first one stays.

    `found`: the number of each task and its documents' fingerprints, in the order of tasks. Fingerprints of other
    options, or damaged ones, are an error of the caller's. `kept` is told how many it remembers; what it raises ends this.

    Raises:
        ConfigError: near duplicates are asked for without their package.
    """
    seen: set[bytes] = set()
    index = _Near(clean.near) if clean.near else None
    out: dict[int, frozenset[int]] = {}
    remembered = 0
    for task, prints in found:
        again = set()
        for number, print_ in enumerate(prints):
            if not print_.exact:
                continue
            if print_.exact in seen or (
                index is not None and print_.near and index.is_known(print_.near)
            ):
                again.add(number)
            seen.add(print_.exact)
            remembered += 1
            if remembered % KEPT_TOLD == 0:
                kept(remembered)
        if again:
            out[task] = frozenset(again)
    return out


class _Near:
    """All that has come so far, but what is like something earlier."""

    def __init__(self, similarity: float) -> None:
        self._library = _datasketch()
        self._similarity = similarity
        self._banded = self._library.MinHashLSH(threshold=similarity, num_perm=HASHES)
        self._kept: list[Any] = []

    def is_known(self, near: bytes) -> bool:
        """Whether something like it has come; if not, it has now."""
        assert len(near) == NEAR_BYTES, len(near)
        sketch = _sketch(self._library, np.frombuffer(near, "<u4"))
        if any(
            self._kept[other].jaccard(sketch) >= self._similarity
            for other in self._banded.query(sketch)
        ):
            return True
        self._banded.insert(len(self._kept), sketch)
        self._kept.append(sketch)
        return False


@cache
def _blank(library: ModuleType) -> Any:
    """Of no words. Copies share its random numbers, which cost more than the rest of a short document."""
    return library.MinHash(num_perm=HASHES, seed=SEED, scheme=SCHEME)


def _sketch(library: ModuleType, values: Any) -> Any:
    blank = _blank(library)
    return library.MinHash(
        seed=SEED, scheme=SCHEME, hashvalues=values, permutations=blank.permutations
    )


def _datasketch() -> ModuleType:
    try:
        import datasketch
    except ImportError:
        raise ConfigError(
            "clean.near needs a package that is missing: pip install 'peerlm[dedup]'"
        ) from None
    module: ModuleType = datasketch
    return module
