"""A line of `peerlm doctor`: what was looked at, whether it is well, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

MARKS = {True: "ok", False: "bad", None: "?"}


@dataclass(frozen=True, slots=True)
class Finding:
    """`ok`: None where it cannot be known. `cure`: what to do, where something is to be done."""

    what: str
    ok: bool | None
    text: str
    cure: str = ""

    def __str__(self) -> str:
        cure = f" – {self.cure}" if self.cure else ""
        return f"{MARKS[self.ok]:<4} {self.what:<12} {self.text}{cure}"
