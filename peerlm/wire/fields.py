"""What messages are made of: kinds of fields with their bounds, and the base of every struct.

A kind is a type with what it may hold at most (`wire.bounds`), and `wire.codec` holds what comes against it. A bound
is as wide as what is true can be, and no wider: it is what one message may cost whoever reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from peerlm.types import HOST_LETTERS
from peerlm.wire.bounds import Exactly, Made, Most

Id4 = Annotated[bytes, Exactly(4)]
Id16 = Annotated[bytes, Exactly(16)]
Exactly8 = Annotated[bytes, Exactly(8)]
Hash32 = Annotated[bytes, Exactly(32)]
Key32 = Annotated[bytes, Exactly(32)]
Signature = Annotated[bytes, Exactly(64)]
Host = Annotated[str, Most(255), Made(HOST_LETTERS)]
Word = Annotated[str, Most(64)]
Line = Annotated[str, Most(400)]
Port = Annotated[int, Most(65_535)]
Count = Annotated[int, Most(2**62)]
Link = Annotated[bytes, Most(2048)]
Chain = Annotated[tuple[Link, ...], Most(6)]


@dataclass(frozen=True, slots=True)
class Struct:
    """Base of everything that can be encoded; `code` is its number on the wire."""

    code: ClassVar[int] = 0


@dataclass(frozen=True, slots=True)
class Message(Struct):
    """Base of what can be sent by itself."""
