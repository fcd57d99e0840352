"""Where text comes from: a file, a directory, a glob, any fsspec URL, or the text that ships with peerlm.

Text is read as UTF-8 and nothing else, piece by piece, so a corpus may be larger than memory. A piece
ends after a line end where there is one within its size, because a tokenizer that merges characters
would otherwise make different tokens of the two halves of a cut word. Files of a directory are read
in the order of their names, so that everyone who reads the same files gets the same tokens.

Whatever is wrong with a source is for a person to mend, so every failure here is a `ConfigError` of
one line. This module never guesses an encoding and never skips a file it cannot read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peerlm.data.sources import SHIPPED as SHIPPED
from peerlm.data.sources import explained, files_of
from peerlm.errors import ConfigError

PIECE_BYTES = 1 << 20
"""Most bytes of text in memory at once, but for the tokens made of them."""


def documents(source: str, where: str) -> Iterator[str]:
    """The text of `source` in non-empty pieces of at most `PIECE_BYTES`, file after file.

    Args:
        source: `shipped`, or an fsspec URL: file, directory (read recursively, names that start with
            a dot left out), glob, `http(s)://`, `memory://` and others.
        where: What named the source, for error messages: "plan.toml: data.source".

    Raises:
        ConfigError: while iterating: nothing there, nothing in it, unreadable, or not UTF-8.
    """
    with explained(source, where):
        fs, paths = files_of(source)
        if not paths:
            raise ConfigError(f"{where} = {source!r}: no files match")
        some = False
        for path in paths:
            for piece in _pieces(fs, path, where):
                some = True
                yield piece
    if not some:
        raise ConfigError(f"{where} = {source!r}: there is no text in it")


def _pieces(fs: Any, path: str, where: str) -> Iterator[str]:
    """One file as strings, cut after a line end where possible and never inside a character."""
    with fs.open(path, "rb") as file:
        offset, rest = 0, b""
        more = True
        while more or rest:
            while more and len(rest) < PIECE_BYTES:  # a network may give few bytes at a time
                block = file.read(PIECE_BYTES - len(rest))
                rest, more = rest + block, bool(block)
            end = _cut(rest) if more else len(rest)
            if end:
                yield _decoded(rest[:end], path, offset, where)
            offset, rest = offset + end, rest[end:]


def _cut(block: bytes) -> int:
    """Where a full block that is not the file's last may end: its last line end, or else before its
    last character, which may be incomplete and has at most 4 bytes."""
    if line_end := block.rfind(b"\n") + 1:
        return line_end
    start = len(block) - 1
    while start > len(block) - 4 and block[start] & 0xC0 == 0x80:
        start -= 1
    return start


def _decoded(block: bytes, path: str, offset: int, where: str) -> str:
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: {path} is not UTF-8 at byte {offset + error.start} "
            f"(0x{block[error.start]:02x}); convert it, or leave it out"
        ) from None
