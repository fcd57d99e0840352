"""Bounds that a field's type can carry: `Annotated[bytes, Exactly(16)]`, `Annotated[int, Most(9)]`.

For numbers a bound is about the value, for bytes, text and tuples about the length; `Made` is about
the letters of a text. Integers are never negative and floats always finite.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exactly:
    length: int


@dataclass(frozen=True, slots=True)
class Most:
    value: float


@dataclass(frozen=True, slots=True)
class Least:
    value: float


@dataclass(frozen=True, slots=True)
class Made:
    letters: frozenset[str]
