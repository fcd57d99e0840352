"""Figures as people read them. Plain functions from numbers to short text; nothing is coloured."""

from __future__ import annotations

ABSENT = "–"


def count(n: float) -> str:
    """1234567 → `1.23 M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= limit:
            return (
                f"{n / limit:.3g} {unit}" if abs(n) < 999.5 * limit else f"{n / limit:.0f} {unit}"
            )
    return f"{n:.0f}"


def size(n: float) -> str:
    """Bytes: 1234567 → `1.23 MB`."""
    text = count(n)
    return f"{text}B" if " " in text else f"{text} B"


def some(n: int, thing: str) -> str:
    """1 → `1 file`, 2 → `2 files`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def span(seconds: float) -> str:
    """Seconds: 75 → `1 min 15 s`, 5400 → `1 h 30 min`."""
    whole = round(seconds)
    for unit, name, smaller, smaller_name in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def ago(seconds: float) -> str:
    """A time that has passed, short enough for a column: 75 → `1 min`."""
    return " ".join(span(seconds).split()[:2])


def loss(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def share(value: float | None) -> str:
    """0.0123 → `1.2 %`."""
    if value is None:
        return ABSENT
    return f"{value:.2g}" if value >= 10 else f"{100 * value:.2g} %"


def time_left(done: int, budget: int, rate: float) -> str:
    """When the budget will be used up at the present rate; honest when there is none."""
    if done >= budget:
        return "budget reached"
    if rate <= 0:
        return "time left unknown"
    return f"about {span((budget - done) / rate)} left"


def counts(values: dict[str, int]) -> str:
    """`{"ok": 3, "timed_out": 1}` → `3 ok, 1 timed out`."""
    return (
        ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in values.items() if n) or "none yet"
    )
