"""Text to token ids and back.

Two kinds: `bytes`, where a token is a byte of UTF-8, which needs no file and loses nothing; and any
tokenizer in the JSON format of the `tokenizers` library. The second is named in a plan by the hash of
its file, so it is built from bytes, wherever they came from.

Ids are kept as uint16 while the vocabulary allows it: half the disk, half the page cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from peerlm.errors import ConfigError

BYTES = "bytes"

ENDS = (
    *("<|endoftext|>", "<|end_of_text|>", "</s>", "<|eos|>", "<eos>", "<EOS>", "[EOS]"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|im_end|>", "<end>", "[SEP]"),
)
"""What tokenizers call the token behind a document: the first that one has. In a text that is made any of them ends it."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What bytes become in a text that are none."""

_FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""A byte's name where tokens are text, and bytes are for what has none."""


def _letters() -> dict[str, int]:
    """A byte's name where all tokens are bytes, as GPT-2 writes them: its letter, or one beyond Latin-1 if that cannot be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(b): b for b in seen} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _letters()

TokenIds = npt.NDArray[np.unsignedinteger[Any]]


def token_dtype(vocab: int) -> np.dtype[Any]:
    """The little-endian type that ids below `vocab` are kept in: uint16 up to 65536, then uint32."""
    return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


class Tokenizer(Protocol):
    """What the rest of peerlm needs of a tokenizer."""

    @property
    def vocab(self) -> int:
        """Number of ids: every id is below it."""

    @property
    def end(self) -> int | None:
        """What stands behind a document; None: it has no token for that."""

    @property
    def ends(self) -> frozenset[int]:
        """What ends a text that is being made."""

    def encode(self, text: str) -> TokenIds:
        """Ids of `text`, shape (tokens,), of `token_dtype(vocab)`. No special tokens are added."""

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        """The same of several texts, on one core, and faster. Raises: ConfigError, it has no tokens for one."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of `ids`. What is not valid text becomes U+FFFD, since a model may say anything."""

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text, in UTF-8: it may be part of a character."""


class ByteTokenizer:
    """A token is a byte of UTF-8."""

    vocab = 256
    end = None
    ends = frozenset[int]()

    def encode(self, text: str) -> TokenIds:
        raw = text.encode(
            "utf-8", errors="replace"
        )  # a lone surrogate, from a terminal, becomes "?"
        return np.frombuffer(raw, np.uint8).astype(token_dtype(self.vocab))

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: npt.ArrayLike) -> str:
        return np.asarray(ids).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token % self.vocab])


class JsonTokenizer:
    """A tokenizer of the `tokenizers` library. `data` keeps the file's bytes, to store and to hash.

    Raises:
        ConfigError: `data` is not such a file.
    """

    def __init__(self, data: bytes, where: str = "data.tokenizer") -> None:
        import tokenizers

        try:
            self._inner = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises plain Exception and ValueError
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{where}: not a `tokenizers` JSON file: {reason}") from None
        self._inner.no_truncation()  # a file may ask for both, and would then silently cut or pad the corpus
        self._inner.no_padding()
        ids = self._inner.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise ConfigError(f"{where}: the tokenizer has no tokens")
        self.data, self._where = data, where
        self.vocab: int = max(ids) + 1  # ids may have gaps
        known = [t for name in ENDS if (t := self._inner.token_to_id(name)) is not None]
        self.end: int | None = known[0] if known else None
        self.ends = frozenset(known)

    def encode(self, text: str) -> TokenIds:
        ids = self._inner.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=token_dtype(self.vocab))

    def encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        dtype, encode = token_dtype(self.vocab), self._inner.encode_batch_fast
        try:
            return [np.array(encode([t], add_special_tokens=False)[0].ids, dtype) for t in texts]
        except Exception as error:  # plain ones, as above
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigError(
                f"{self._where}: the tokenizer has no tokens for a piece of this text ({reason}): give it a token for what it "
                "does not know, or take another"
            ) from None

    def decode(self, ids: npt.ArrayLike) -> str:
        text: str = self._inner.decode(np.asarray(ids).tolist(), skip_special_tokens=False)
        return text

    def token_bytes(self, token: int) -> bytes:
        alone, twice = self.decode([token]), self.decode([token] * 2)
        # Many decoders drop the space before a first token.
        text = twice[len(alone) :] if twice.startswith(alone) else alone
        name = self._inner.id_to_token(token) or ""
        if REPLACEMENT not in text:
            return text.encode()
        if byte := _FALLBACK.fullmatch(name):
            return bytes.fromhex(byte[1])
        if all(letter in _BYTES for letter in name):
            return bytes(_BYTES[letter] for letter in name)
        return text.encode()


def load(spec: str, where: str = "data.tokenizer") -> Tokenizer:
    """The tokenizer that a person named: `bytes`, or the path of a JSON file.

    Raises:
        ConfigError: no such file, or not a tokenizer.
    """
    if spec == BYTES:
        return ByteTokenizer()
    try:
        data = Path(spec).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{where} = {spec!r}: cannot be read: {error.strerror}") from None
    return JsonTokenizer(data, f"{where} = {spec!r}")
