"""A setting's field: its meaning, unit and effect, and what it may be, in its metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], object]


def option(
    default: Any, doc: str, *, unit: str = "", allowed: str = "", ok: Check | None = None
) -> Any:
    """A documented field. `allowed` is the sentence a person sees when `ok(value)` is false."""
    metadata = {"doc": doc, "unit": unit, "allowed": allowed, "ok": ok}
    if isinstance(default, tuple):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def one_of(default: str, choices: tuple[str, ...], doc: str) -> Any:
    return option(default, doc, allowed="one of " + ", ".join(choices), ok=lambda v: v in choices)


def at_least(minimum: float, default: float, doc: str, *, unit: str = "") -> Any:
    return option(default, doc, unit=unit, allowed=f"≥ {minimum}", ok=lambda v: v >= minimum)


def between(low: float, high: float, default: float, doc: str, *, unit: str = "") -> Any:
    return option(
        default, doc, unit=unit, allowed=f"{low} to {high}", ok=lambda v: low <= v <= high
    )
