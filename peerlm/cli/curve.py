"""A curve over time in characters: each is two dots wide and four high (Braille).

A plain function from numbers to lines. Where a value is missing the pen is lifted, as on a node's page.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of a dot, by row and column in its character."""

BLANK = 0x2800
WIDTH_MIN, HEIGHT_MIN = 4, 2

DAY_S = 86_400.0

Dot = tuple[int, int]


def plot(
    times: Sequence[float],
    values: Sequence[float | None],
    width: int,
    height: int,
    form: Callable[[float], str],
    *,
    is_log: bool = False,
) -> list[str]:
    """`height` lines of at most `width` characters: the curve with its scale at the left and, below, from when to
    when it goes. `form` writes a value; empty where there is no curve yet or no room for one."""
    scaled = [_scaled(value, is_log) for value in values]
    known = [value for value in scaled if value is not None]
    if len(known) < 2:
        return []
    low, high = _range(known)
    rows = height - 1
    if rows < HEIGHT_MIN:
        return []
    labels = _labels(low, high, rows, lambda v: form(math.exp(v) if is_log else v))
    margin = max(map(len, labels)) + 2
    columns = width - margin
    if columns < WIDTH_MIN:
        return []
    dots = _dots(times, scaled, (low, high), (2 * columns, 4 * rows))
    pictures = _characters(dots, columns, rows)
    lines = [
        f"{label:>{margin - 2}} ▏{picture}" for label, picture in zip(labels, pictures, strict=True)
    ]
    return [*lines, " " * margin + _span(min(times), max(times), columns)]


def moment(at: float, now: float) -> str:
    """A wall time as people here read it; with its day when that is not clear."""
    form = "%H:%M:%S" if abs(now - at) < DAY_S / 2 else "%d %b %H:%M"
    return time.strftime(form, time.localtime(at))


def _scaled(value: float | None, is_log: bool) -> float | None:
    if value is None or not is_log:
        return value
    return math.log(value) if value > 0 else None


def _range(known: Sequence[float]) -> tuple[float, float]:
    low, high = min(known), max(known)
    if high - low < 1e-9:
        room = abs(low) * 0.05 + 1e-6
        return low - room, high + room
    return low, high


def _labels(low: float, high: float, rows: int, form: Callable[[float], str]) -> list[str]:
    labels = [""] * rows
    if rows >= 5:
        labels[rows // 2] = form(high + (low - high) * (rows // 2 + 0.5) / rows)
    labels[0], labels[-1] = form(high), form(low)
    return labels


def _dots(
    times: Sequence[float],
    values: Sequence[float | None],
    ends: tuple[float, float],
    size: tuple[int, int],
) -> Iterator[Dot]:
    """Column and row, from the upper left, of all dots of the line."""
    (low, high), (width, height) = ends, size
    first, span = min(times), max(1e-9, max(times) - min(times))
    before: Dot | None = None
    for at, value in zip(times, values, strict=True):
        if value is None:
            before = None
            continue
        dot = (
            round((at - first) / span * (width - 1)),
            round((high - value) / (high - low) * (height - 1)),
        )
        yield from _line(before or dot, dot)
        before = dot


def _line(start: Dot, end: Dot) -> Iterator[Dot]:
    """Dots without a gap."""
    (x, y), (to_x, to_y) = start, end
    steps = max(abs(to_x - x), abs(to_y - y), 1)
    for step in range(steps + 1):
        yield round(x + (to_x - x) * step / steps), round(y + (to_y - y) * step / steps)


def _characters(dots: Iterator[Dot], columns: int, rows: int) -> list[str]:
    cells = [[BLANK] * columns for _ in range(rows)]
    for x, y in dots:
        cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
    return ["".join(map(chr, row)) for row in cells]


def _span(first: float, last: float, width: int) -> str:
    """The ends of the time axis, as far as there is room."""
    start, end = moment(first, last), moment(last, last)
    return f"{start}{end:>{width - len(start)}}" if len(start) + len(end) < width else end[:width]
