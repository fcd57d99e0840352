"""Bounds of fields, as protocol version 2 had them."""

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
