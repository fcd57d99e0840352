"""The table of members on a screen: of hundreds only the lines that are seen are drawn.

The picked member is kept by its id, whatever the table is sorted by and whoever comes and goes.
"""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from peerlm.cli.top_view import COLUMNS, NUMBERS, SOFT, Row

GAP_WIDE, GAP_CLOSE = 2, 1
HEAD_LINES = 1
SIDEWAYS = 8
"""Columns of the terminal that an arrow moves by."""

TONED = ("state", "phase")


class MembersTable(ScrollView, can_focus=True):
    """Give it rows with `show`; it tells with `Picked` that one was picked."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1_000_000)", "First", show=False),
        Binding("end", "move(1_000_000)", "Last", show=False),
        Binding("left,h", f"sideways(-{SIDEWAYS})", "Left", show=False),
        Binding("right,l", f"sideways({SIDEWAYS})", "Right", show=False),
    ]

    class Picked(Message):
        """Perhaps another than before."""

    def __init__(self, picked: str, id: str) -> None:
        super().__init__(id=id)
        self.rows: list[Row] = []
        self._picked = picked
        self._at = 0
        """Line of the picked member."""
        self._widths = [len(column) for column in COLUMNS]
        self._gap = GAP_WIDE
        self._sorted_by = ""

    @property
    def picked(self) -> Row | None:
        return self.rows[self._at] if self.rows else None

    def show(self, rows: list[Row], sorted_by: str) -> None:
        was_seen = self._is_seen(self._at)
        self.rows, self._sorted_by = rows, sorted_by
        self._widths = [
            max(map(cell_len, column))
            for column in zip(COLUMNS, *(r.cells for r in rows), strict=True)
        ]
        places = {row.key: place for place, row in enumerate(rows)}
        self._at = places.get(self._picked, min(self._at, max(0, len(rows) - 1)))
        self._measure()
        self._pick(self._at, follow=was_seen)

    # ------------------------------------------------------------------------------- moving

    def action_move(self, by: int) -> None:
        self._pick(self._at + by)

    def action_page(self, pages: int) -> None:
        self._pick(self._at + pages * max(1, self._lines - 1))

    def action_sideways(self, by: int) -> None:
        self.scroll_relative(x=by, animate=False)

    def on_click(self, event: Click) -> None:
        place = event.get_content_offset(self)
        if place is not None and place.y >= HEAD_LINES:
            self._pick(place.y - HEAD_LINES + self.scroll_offset.y)

    def on_resize(self) -> None:
        self._measure()
        self._pick(self._at)

    def _measure(self) -> None:
        """Columns stand closer where they would not all fit."""
        bare, gaps = sum(self._widths), len(COLUMNS) - 1
        fits = bare + GAP_WIDE * gaps <= self.scrollable_content_region.width
        self._gap = GAP_WIDE if fits else GAP_CLOSE
        self.virtual_size = Size(bare + self._gap * gaps, len(self.rows) + HEAD_LINES)

    def _pick(self, at: int, *, follow: bool = True) -> None:
        if not self.rows:
            return
        self._at = min(max(0, at), len(self.rows) - 1)
        self._picked = self.rows[self._at].key
        if follow:
            place = Region(self.scroll_offset.x, self._at, 1, 1)
            top = self.scroll_offset.y
            if place.y < top:
                self.scroll_to(y=place.y, animate=False, force=True)
            elif place.y >= top + self._lines:
                self.scroll_to(y=place.y - self._lines + 1, animate=False, force=True)
        self.refresh()
        self.post_message(self.Picked())

    @property
    def _lines(self) -> int:
        """Members that are seen at once."""
        return max(1, self.scrollable_content_region.height - HEAD_LINES)

    def _is_seen(self, at: int) -> bool:
        return self.scroll_offset.y <= at < self.scroll_offset.y + self._lines

    # ------------------------------------------------------------------------------ drawing

    def render_line(self, y: int) -> Strip:
        shift, width = self.scroll_offset.x, self.size.width
        place = y - HEAD_LINES + self.scroll_offset.y
        if y < HEAD_LINES:
            segments = self._head()
        elif place < len(self.rows):
            segments = self._line(self.rows[place], is_picked=place == self._at)
        else:
            segments = []
        return Strip(segments).crop_extend(shift, shift + width, None).apply_style(self.rich_style)

    def _head(self) -> list[Segment]:
        soft, chosen = Style.parse(SOFT), Style(bold=True, underline=True)
        styles = [chosen if column == self._sorted_by else soft for column in COLUMNS]
        return self._cells(COLUMNS, styles)

    def _line(self, row: Row, *, is_picked: bool) -> list[Segment]:
        plain, toned = Style.null(), Style.parse(row.tone) if row.tone else Style.null()
        if not is_picked:
            return self._cells(row.cells, [toned if c in TONED else plain for c in COLUMNS])
        segments = self._cells(row.cells, [plain] * len(COLUMNS))
        mark = Style(reverse=self.has_focus, bold=True, underline=not self.has_focus)
        room = max(0, self.size.width + self.scroll_offset.x - sum(s.cell_length for s in segments))
        whole = [*segments, Segment(" " * room)]
        return [*Segment.apply_style(whole, post_style=mark)]

    def _cells(self, cells: tuple[str, ...], styles: list[Style]) -> list[Segment]:
        segments = []
        for column, cell, width, style in zip(COLUMNS, cells, self._widths, styles, strict=True):
            filling = " " * max(0, width - cell_len(cell))
            text = filling + cell if column in NUMBERS else set_cell_size(cell, width)
            segments += [Segment(text, style), Segment(" " * self._gap)]
        return segments[:-1]
