"""What is in a file: its bytes without compression, as UTF-8, and the documents in them.

The name says what it is. A file of records (`.jsonl`, `.ndjson`, `.json.lines`) has an object a line, whose text is in one
named field; a `.parquet` file has a column of that name. Anything else is text. `.gz`, `.bz2`, `.xz` and `.zst` are
undone first. Nothing is guessed: text is UTF-8 unless another encoding was named, and what cannot be read so is an
error that says where.

Documents of records end; a text file is one text that goes on in the next unit and the next file, so that nothing is
ever put into a text that was not there. Where duplicates are looked for, a text's documents are its paragraphs, but for
short ones: a speaker's name is no duplicate.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, cast

from peerlm.data.units import Unit
from peerlm.errors import ConfigError

UTF_8 = "utf-8"
BLOCK_BYTES = 1 << 20

PARAGRAPH_CHARS_MIN = 100
"""Of a paragraph that may be a duplicate of another."""

HEAD_BYTES = 8000
"""Of a file's beginning, in which a text has no zero byte."""

ROWS = 256
"""Of a parquet file, read at once."""


class Format(StrEnum):
    TEXT = "text"
    RECORDS = "records"
    PARQUET = "parquet"


class Shape(NamedTuple):
    """What a name says of a file."""

    format: Format
    compression: str
    """A suffix such as `.gz`; empty: none."""


class Document(NamedTuple):
    text: str
    ends: bool
    """What follows is another document."""
    compared: bool = True
    """It may be left out as a duplicate."""


SUFFIXES = {".jsonl": Format.RECORDS, ".ndjson": Format.RECORDS, ".json.lines": Format.RECORDS}
SUFFIXES[".parquet"] = Format.PARQUET

_MAGICS = {
    b"\x1f\x8b": "is compressed by gzip: its name must end in .gz",
    b"\xfd7zXZ\x00": "is compressed by xz: its name must end in .xz",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: its name must end in .zst",
    b"PAR1": "is a parquet file: its name must end in .parquet",
    b"%PDF-": "is a PDF, not text; extract its text first, or leave it out",
    b"PK\x03\x04": "is a zip archive, not text; unpack it first, or leave it out",
    b"\xff\xfe": "is not UTF-8 but perhaps UTF-16; name its encoding, convert it, or leave it out",
    b"\xfe\xff": "is not UTF-8 but perhaps UTF-16; name its encoding, convert it, or leave it out",
}


def shape_of(path: str) -> Shape:
    name = path.partition("?")[0] if path.startswith(("http://", "https://")) else path
    name = name.lower()
    compression = next((suffix for suffix in _OPENERS if name.endswith(suffix)), "")
    name = name.removesuffix(compression)
    found = next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), Format.TEXT)
    return Shape(found, compression)


def encoding_named(name: str) -> str:
    """The one name of an encoding. Raises `ConfigError`: there is none of this name."""
    try:
        " ".encode(name)  # there are others, of bytes to bytes
        return codecs.lookup(name).name
    except (LookupError, UnicodeError):
        raise ConfigError(f"encoding = {name!r}: no such encoding of text") from None


# -------------------------------------------------------------------------- bytes of a whole file


def unpacked(stream: BinaryIO, compression: str, path: str, where: str) -> Iterator[bytes]:
    """A file's bytes in order, decompressed. Raises `ConfigError`: cut off, or damaged."""
    try:
        source = _OPENERS[compression](stream) if compression else stream
        while block := source.read(BLOCK_BYTES):
            yield block
    except EOFError:
        raise ConfigError(
            f"{where}: {path} is cut off: its compressed data ends too soon; get it again"
        ) from None
    except ImportError:
        raise ConfigError(
            f"{where}: {path} needs a package that is missing: pip install 'peerlm[zstd]'"
        ) from None
    except (ConfigError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # each library has errors of its own
        if not compression:
            raise
        raise ConfigError(
            f"{where}: {path} is damaged, or no {compression} file: {_line(error)}"
        ) from None


def as_utf_8(blocks: Iterator[bytes], encoding: str, path: str, where: str) -> Iterator[bytes]:
    """The same text in UTF-8. Raises `ConfigError`: it is not in this encoding."""
    if encoding == UTF_8:
        yield from blocks
        return
    decoder, offset = codecs.getincrementaldecoder(encoding)(), 0
    try:
        for block in blocks:
            yield decoder.decode(block).encode()
            offset += len(block)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        near = offset + getattr(error, "start", 0)
        raise ConfigError(
            f"{where}: {path} is not {encoding} near byte {near}; name its encoding, convert it, or leave it out"
        ) from None


def _open_gzip(stream: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", gzip.GzipFile(fileobj=stream))


def _open_zstd(stream: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", _zstd().ZstdFile(stream))


def _zstd() -> ModuleType:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14
    except ImportError:
        from backports import zstd
    module: ModuleType = zstd
    return module


_OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": _open_gzip,
    ".bz2": lambda stream: cast("BinaryIO", bz2.BZ2File(stream)),
    ".xz": lambda stream: cast("BinaryIO", lzma.LZMAFile(stream)),  # noqa: SIM115
    ".zst": _open_zstd,
}


# ---------------------------------------------------------------------------- documents of a unit


def texts(unit: Unit, paragraphs: bool, path: str, where: str) -> list[Document]:
    """What a unit of a text file says, as it is, in one document or in one a paragraph.

    Raises:
        ConfigError: not text, or not UTF-8.
    """
    if unit.offset == 0:
        _check_head(unit.data[:HEAD_BYTES], path, where)
    text = _decoded(unit.data, unit.offset, path, where)
    if not paragraphs:
        return [Document(text, ends=False, compared=False)]
    return [
        Document(part, ends=False, compared=len(part) >= PARAGRAPH_CHARS_MIN)
        for part in _paragraphs(text)
    ]


_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


def _paragraphs(text: str) -> Iterator[str]:
    """They join to the text: blank lines belong to what is before them."""
    at = 0
    for blank in _BLANK_LINES.finditer(text):
        yield text[at : blank.end()]
        at = blank.end()
    if at < len(text):
        yield text[at:]


def records(unit: Unit, field: str, path: str, where: str) -> list[Document]:
    """The field of every line that is not blank, in order; null is an empty text.

    Raises:
        ConfigError: not UTF-8; a line is no JSON object, or has no such field, or no text in it.
    """
    at, data = unit.offset, unit.data
    if at == 0:
        _check_head(data[:HEAD_BYTES], path, where)
        data = data.removeprefix(codecs.BOM_UTF8)
        at += len(unit.data) - len(data)
    found = []
    for line in data.split(b"\n"):
        if line and not line.isspace():
            text = _decoded(line, at, path, where)
            found.append(Document(_field(text, field, f"{where}: {path} at byte {at}"), ends=True))
        at += len(line) + 1
    return found


def _field(line: str, field: str, place: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: not a line of JSON: {_line(error)}") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: not a JSON object")
    if field not in record:
        raise ConfigError(f"{place}: no field {field!r}{_instead(list(record))}")
    return _text_of(record[field], field, place)


def _text_of(value: object, field: str, place: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{place}: field {field!r} holds {type(value).__name__}, not text")
    return _SURROGATE.sub("\ufffd", value)


_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which JSON can say and no encoding can."""


def _instead(names: list[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:8])
    return f"; there are: {shown}" if names else ""


def rows(stream: BinaryIO, field: str, path: str, where: str) -> Iterator[Document]:
    """The column of a parquet file, row by row. `stream` must be able to seek.

    Raises:
        ConfigError: no such file, no such column, no text in it, or no pyarrow.
    """
    place = f"{where}: {path}"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"{place} needs a package that is missing: pip install 'peerlm[parquet]'"
        ) from None
    try:
        file = parquet.ParquetFile(stream)
        names = file.schema_arrow.names
        if field not in names:
            raise ConfigError(f"{place}: no column {field!r}{_instead(names)}")
        for batch in file.iter_batches(ROWS, columns=[field]):
            for value in batch.column(0).to_pylist():
                yield Document(_text_of(value, field, place), ends=True)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{place} is damaged, or no parquet file: {_line(error)}") from None


def _decoded(data: bytes, offset: int, path: str, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: {path} is not UTF-8 at byte {offset + error.start} "
            f"(0x{data[error.start]:02x}); name its encoding, convert it, or leave it out"
        ) from None


def _check_head(head: bytes, path: str, where: str) -> None:
    for magic, what in _MAGICS.items():
        if head.startswith(magic):
            raise ConfigError(f"{where}: {path} {what}")
    if (zero := head.find(0)) >= 0:
        raise ConfigError(f"{where}: {path} is no text (a zero at byte {zero}); leave it out")


def _line(error: Any) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
