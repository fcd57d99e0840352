"""Which encoding each file of a source is in, where nobody has named one: `--encoding auto`.

UTF-8 can be told from everything else, since no other text is valid UTF-8 for long: every file is read once for that, all
of it. A byte order mark says the rest. What is left are the code pages, which only the language tells apart; that is
chardet's to judge, from lines that are no UTF-8, among encodings that text is in fact kept in. It is told of enough such
characters, or not asked: a file of few is taken to be as the others of its source, if those are all of one encoding.

A file that is UTF-8 in some lines and not in others has two encodings, and is refused where the second begins. Two code
pages in one file can be told only if one of them cannot read the other: then reading it ends at that byte. Encodings in
which every byte is ASCII (ISO-2022-JP, UTF-7) look like ASCII.

What was found becomes part of the job, so whoever makes tokens of it reads the same characters.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from peerlm.data import formats, sources
from peerlm.data.formats import UTF_8, Format, shape_of
from peerlm.data.sources import Pause, Source, SourceFile
from peerlm.errors import ConfigError

AUTO = "auto"

HEAD_BYTES = 8192
"""Of a file's beginning: a byte order mark, and zeros, which are in UTF-16 alone."""

SAMPLE_BYTES = 1 << 16
"""Of lines that are no UTF-8."""

LINE_BYTES_MAX = 1 << 20
"""What goes on longer is taken in parts."""

SIGNS_MIN = 8
"""Bytes beyond ASCII, in fewer of which no language is to be seen."""

CONFIDENCE_MIN = 0.02
"""Below it chardet has seen nothing that it knows."""

MIXED_SHARE = 0.05
"""Of lines beyond ASCII that are UTF-8: more are no accident."""

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")

PAGES = (
    *(f"windows-{number}" for number in range(1250, 1259)),
    *("iso-8859-2", "iso-8859-5", "iso-8859-7", "koi8-r", "koi8-u", "ibm866", "macroman"),
    *("tis-620", "gb18030", "big5", "big5-hkscs", "cp932", "euc-jp", "cp949"),
)


class Look(NamedTuple):
    """What was seen of a file."""

    head: bytes
    sample: bytes
    """Lines that are no UTF-8."""
    right: int
    wrong: int
    """Lines beyond ASCII that are UTF-8, and that are not."""
    first_right: int
    first_wrong: int
    """Bytes at which the first of each is; of `wrong` the byte itself. -1: there is none."""


def found(
    source: Source,
    pause: Pause = lambda _: None,
    progress: Callable[[int], object] = lambda _: None,
) -> dict[str, str]:
    """Path → encoding, of all files of text. Reads each to its end; `progress` is told the bytes of them that are done.

    Raises:
        ConfigError: a file cannot be read, has two encodings, or does not show which it has.
    """
    names: list[str | None] = []
    done = 0
    for name, file in zip(each(source, source.files, pause), source.files, strict=True):
        names.append(name)
        done += file.size or 0
        progress(done)
    return settled(source, names)


def each(
    source: Source, files: Iterable[SourceFile], pause: Pause = lambda _: None
) -> Iterator[str | None]:
    """Of each of these files its encoding; empty: it does not show; None: it is no text. Raises as `found` does."""
    with sources.explained(source.url, source.where):
        fs, _ = sources.file_system(source.url)
        for file in files:
            if shape_of(file.path).format == Format.PARQUET:
                yield None
            else:
                yield verdict(_looked(fs, file, source, pause), file.path, source.where)


def settled(source: Source, names: Iterable[str | None]) -> dict[str, str]:
    """Path → encoding, from what `each` says of all files. Raises `ConfigError`: of one it does not show."""
    named = [(f.path, n) for f, n in zip(source.files, names, strict=True) if n is not None]
    taken = {path: name for path, name in named if name}
    unclear = [path for path, name in named if not name]
    if unclear:
        taken |= dict.fromkeys(unclear, _of_the_others(taken, unclear, source.where))
    return taken


def others_than_utf_8(taken: Mapping[str, str]) -> dict[str, str]:
    return {path: encoding for path, encoding in taken.items() if encoding != UTF_8}


def of_all(source: Source, others: Mapping[str, str]) -> dict[str, str]:
    """Path → encoding, of all files of text. `others`: what `others_than_utf_8` said."""
    texts = (f.path for f in source.files if shape_of(f.path).format != Format.PARQUET)
    return {path: others.get(path, UTF_8) for path in texts}


def counted(taken: Mapping[str, str]) -> dict[str, int]:
    """Encoding → files, the most first."""
    counts = Counter(taken.values())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _of_the_others(taken: Mapping[str, str], unclear: list[str], where: str) -> str:
    others = sorted(set(taken.values()) - {UTF_8})
    if len(others) == 1:
        return others[0]
    more = f", nor do {len(unclear) - 1} more" if len(unclear) > 1 else ""
    raise ConfigError(
        f"{where}: {unclear[0]} is not UTF-8 and does not show which encoding it has{more}: name it with --encoding, convert "
        "it, or leave it out"
    )


def _looked(fs: Any, file: SourceFile, source: Source, pause: Pause) -> Look:
    compression = shape_of(file.path).compression
    with sources.in_order(fs, file, source.where, pause) as stream:
        return look(formats.unpacked(stream, compression, file.path, source.where))


def look(blocks: Iterable[bytes]) -> Look:
    """Everything that `verdict` goes by. Holds a line, or `LINE_BYTES_MAX` of one, and the sample."""
    head, sample = b"", bytearray()
    right = wrong = at = 0
    first_right = first_wrong = -1
    for piece in _pieces(blocks):
        if len(head) < HEAD_BYTES:
            head += piece[: HEAD_BYTES - len(head)]
        if piece.isascii():
            at += len(piece)
            continue
        for line in piece.splitlines(keepends=True) if b"\r" in piece else _lines(piece):
            if not line.isascii():
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    wrong += 1
                    first_wrong = at + error.start if first_wrong < 0 else first_wrong
                    sample += line[: SAMPLE_BYTES - len(sample)]
                else:
                    right += 1
                    first_right = at if first_right < 0 else first_right
            at += len(line)
    return Look(head, bytes(sample), right, wrong, first_right, first_wrong)


def _pieces(blocks: Iterable[bytes]) -> Iterable[bytes]:
    """Whole lines; of a very long one, whole characters if it is UTF-8."""
    held = b""
    for block in blocks:
        held += block
        end = held.rfind(b"\n") + 1
        if not end and len(held) >= LINE_BYTES_MAX:
            end = len(held) - 1
            while end > len(held) - 4 and held[end] & 0xC0 == 0x80:
                end -= 1
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _lines(piece: bytes) -> list[bytes]:
    *whole, rest = piece.split(b"\n")
    return [line + b"\n" for line in whole] + [rest]


def verdict(seen: Look, path: str, where: str) -> str:
    """The encoding's one name; empty: it does not show. Raises `ConfigError`: it has two, or is no text."""
    for mark, encoding in MARKS:
        if seen.head.startswith(mark):
            return encoding
    if 0 in seen.head:
        encoding = _detected(seen.head, WIDE)
        if not encoding:
            raise ConfigError(
                f"{where}: {path} is no text (a zero at byte {seen.head.find(0)}); leave it out"
            )
        return encoding
    if not seen.wrong:
        return UTF_8
    _require_one(seen, path, where)
    signs = sum(byte >= 0x80 for byte in seen.sample)
    return _detected(seen.sample, PAGES) if signs >= SIGNS_MIN else ""


def _require_one(seen: Look, path: str, where: str) -> None:
    is_mixed = seen.right >= MIXED_SHARE * (seen.right + seen.wrong)
    if is_mixed and (seen.right >= 3 or seen.right >= seen.wrong):
        begins = f"UTF-8 up to byte {seen.first_wrong} and not there"
        if seen.first_wrong < seen.first_right:
            begins = (
                f"not UTF-8 at byte {seen.first_wrong}, and UTF-8 from byte {seen.first_right} on"
            )
        raise ConfigError(
            f"{where}: {path} has two encodings: it is {begins}; convert it, or leave it out"
        )


def _detected(sample: bytes, among: Iterable[str]) -> str:
    try:
        import chardet
    except ImportError:
        raise ConfigError(
            "--encoding auto needs a package that is missing: pip install 'peerlm[encoding]'"
        ) from None
    said = chardet.detect(sample, include_encodings=among)
    name = said["encoding"]
    if name is None or name.lower() == "ascii" or (said["confidence"] or 0) < CONFIDENCE_MIN:
        return ""
    return formats.encoding_named(name)
