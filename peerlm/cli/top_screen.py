"""The screen of `peerlm top`: where things stand and which keys there are. What stands there is top_view.py's.

The daemon is asked in another thread (top_asking.py), whose answers come as messages. Colours are those of the
page; with NO_COLOR there are none, and what they mark is bold, underlined or reversed instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.filter import LineFilter, NoColor
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.theme import Theme
from textual.widget import Widget
from textual.widgets import Footer, Static

from peerlm.cli import top_view as view
from peerlm.cli.top_asking import Asking, Heard
from peerlm.cli.top_members import MembersTable

SILENT_S = 3.0
"""From here on it is said that nobody answers."""

TICK_S = 0.5

THEME = Theme(
    name="peerlm",
    primary=view.MARK,
    secondary=view.SOFT,
    accent=view.MARK,
    foreground="#e6e8eb",
    background="#14161a",
    surface="#14161a",
    panel="#1c1f25",
    success=view.GOOD,
    warning=view.WARN,
    error=view.BAD,
    dark=True,
)


class Told(Message):
    """The daemon has answered, or has not."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.heard = heard


class CurvePane(Widget, can_focus=True):
    """One curve, drawn to fit."""

    def __init__(self, heard: Heard, id: str) -> None:
        super().__init__(id=id)
        self._heard = heard
        self._number = 0

    def show(self, heard: Heard, number: int) -> None:
        self._heard, self._number = heard, number
        chosen = view.CURVES[number]
        self.border_title = Text(view.curve_title(chosen, heard.story))
        self.refresh()

    def render(self) -> Text:
        chosen = view.CURVES[self._number]
        return view.curve_text(chosen, self._heard.story, self.size.width, self.size.height)


class Help(ModalScreen[None]):
    """Keys and words."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,question_mark", "dismiss", "Close", key_display="Esc"),
        Binding("q", "app.quit", "Quit"),
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(view.HELP, markup=False)
        yield Footer(compact=True)


class Aside(ModalScreen[None]):
    """More of what the daemon has said last, and goes on saying. `key`: opens and closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter", "dismiss", "Close", key_display="Esc"),
        Binding("q", "app.quit", "Quit"),
    ]

    def __init__(self, key: str, title: str, text: Text) -> None:
        super().__init__()
        self._what = Static(text, markup=False)
        self._title = title
        self._bindings.bind(key, "dismiss", show=False)

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="aside") as pane:
            pane.border_title = Text(self._title)
            yield self._what
        yield Footer(compact=True)

    def show(self, text: Text) -> None:
        self._what.update(text)


class Overview(Screen[None]):
    """Shows what `asking` hears, from `first` on."""

    AUTO_FOCUS = "#members"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "app.quit", "Quit"),
        Binding("s", "sort", "Sort"),
        Binding("c", "curve", "Curve"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("tab", "app.focus_next", "Pane", key_display="Tab"),
        Binding("r", "reverse", "Reverse"),
        Binding("x", "exchanges", "Exchanges"),
        Binding("t", "text", "Text"),
    ]

    def __init__(self, asking: Asking, first: Heard) -> None:
        super().__init__()
        assert first.status is not None, "where nobody answers nothing is shown"
        self._asking = asking
        self._heard = first
        self._status = first.status
        self._answered_at = time.monotonic()
        self._order = 0
        self._is_reversed = False
        self._curve = 0
        self._aside: tuple[Aside, Callable[[], Text]] | None = None
        """What is shown besides, and what it shows."""
        self._trouble = Static(id="trouble", markup=False)
        self._head = Static(id="head", markup=False)
        self._members = MembersTable(self._status["node_id"], id="members")
        self._curve_pane = CurvePane(first, id="curve")
        self._what = Static(markup=False)
        self._events = VerticalScroll(self._what, id="events", can_focus=True)

    def compose(self) -> ComposeResult:
        yield self._trouble
        yield self._head
        yield Container(self._members, self._curve_pane, self._events, id="panes")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._events.border_title = "Events, the latest first"
        self._show()
        self.set_interval(TICK_S, self._show_silence)
        self._asking.start(lambda heard: self.post_message(Told(heard)))

    def on_unmount(self) -> None:
        self._asking.stop()

    # ------------------------------------------------------------------------------ showing

    def on_told(self, told: Told) -> None:
        self._heard = told.heard
        if told.heard.status is not None:
            self._status = told.heard.status
            self._answered_at = time.monotonic()
            self._show()
        self._show_silence()

    def on_resize(self) -> None:
        self._show_head()

    def on_members_table_picked(self) -> None:
        self._name_members()

    def _show(self) -> None:
        self._show_head()
        self._show_members()
        self._show_curve()
        self._show_events()
        self._show_aside()

    def _show_aside(self) -> None:
        if self._aside is not None:
            screen, text = self._aside
            if screen.is_attached:
                screen.show(text())

    def _show_head(self) -> None:
        self._head.update(view.head(self._status, self.app.size.width - 2))

    def _show_members(self) -> None:
        order = view.ORDERS[self._order]
        rows = view.rows(self._status, order, is_reversed=self._is_reversed)
        self._members.show(rows, order.column)
        self._name_members()

    def _name_members(self) -> None:
        table, order = self._members, view.ORDERS[self._order]
        note = table.picked.note if table.picked is not None else ""
        title = view.members_title(len(table.rows), order, note, is_reversed=self._is_reversed)
        table.border_title = Text(title)  # a string would be markup

    def _show_curve(self) -> None:
        self._curve_pane.show(self._heard, self._curve)

    def _show_events(self) -> None:
        pane = self._events
        below = pane.virtual_size.height - pane.scroll_offset.y
        self._what.update(view.events(self._heard.story, self._heard.at))
        if pane.scroll_offset.y:  # somebody reads further down: new ones must not push that away
            self.call_after_refresh(
                lambda: pane.scroll_to(y=pane.virtual_size.height - below, animate=False)
            )

    def _show_silence(self) -> None:
        """The daemon is said to be away as soon as that is known, or when it has kept silent for some time."""
        for_s = time.monotonic() - self._answered_at
        is_away = self._heard.status is None or for_s > SILENT_S
        if is_away:
            self._trouble.update(view.silence(self._heard.trouble, for_s))
        self._trouble.display = is_away

    # --------------------------------------------------------------------------------- keys

    def action_sort(self) -> None:
        self._order = (self._order + 1) % len(view.ORDERS)
        self._is_reversed = False
        self._show_members()

    def action_reverse(self) -> None:
        self._is_reversed = not self._is_reversed
        self._show_members()

    def action_curve(self) -> None:
        self._curve = (self._curve + 1) % len(view.CURVES)
        self._show_curve()

    def action_help(self) -> None:
        self.app.push_screen(Help())

    def action_exchanges(self) -> None:
        title = "Exchanges of the last five minutes, the latest first"
        self._open("x", title, lambda: view.exchanges(self._status))

    def action_text(self) -> None:
        title = "What the latest weights write"
        self._open("t", title, lambda: view.sample(self._status, self._heard.at))

    def _open(self, key: str, title: str, text: Callable[[], Text]) -> None:
        screen = Aside(key, title, text())
        self._aside = (screen, text)
        self.app.push_screen(screen)


class Top(App[None]):
    """Until a key ends it."""

    TITLE = "peerlm top"
    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (70, "-middle"), (130, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (16, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]
    CSS = """
    Overview { layout: vertical; background: $background }
    #trouble { display: none; height: auto; max-height: 4; padding: 0 1; background: $error; color: $background }
    #trouble:nocolor { text-style: reverse }
    #head { height: auto; max-height: 10; padding: 0 1 }
    #panes { layout: grid; grid-size: 2 2; grid-columns: 3fr 2fr; grid-rows: 4fr 3fr; height: 1fr }
    #members, #curve, #events { border-top: solid $panel-lighten-3; padding: 0 1; background: $background;
        border-title-color: $foreground }
    #members, #events, #help, #aside { scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0;
        scrollbar-color: $secondary 50%; scrollbar-background: $background; scrollbar-background-hover: $background;
        scrollbar-background-active: $background }
    #members { column-span: 2 }
    #members:focus, #curve:focus, #events:focus { border-top: heavy $accent; border-title-style: bold }
    #panes > :nocolor:focus { border-title-style: reverse }
    .-narrow #panes { grid-size: 1 3; grid-columns: 1fr; grid-rows: 4fr 3fr 3fr }
    .-narrow #members { column-span: 1 }
    .-wide #panes { grid-columns: 11fr 9fr }
    .-wide #members { column-span: 1; row-span: 2 }
    .-low #panes { grid-size: 1 1; grid-rows: 1fr }
    .-low #members { column-span: 1; row-span: 1 }
    .-low #curve, .-low #events { display: none }
    .-low #head { max-height: 3 }
    Help, Aside { align: center middle; background: $background 60% }
    #help, #aside { width: 74; max-width: 100%; height: auto; max-height: 100%; padding: 0 1; border: round $accent;
        background: $panel }
    """

    def __init__(self, asking: Asking, first: Heard) -> None:
        super().__init__()
        self._overview = Overview(asking, first)
        self.fault: Exception | None = None
        """What of ours went wrong, and ended it."""
        self.register_theme(THEME)
        self.theme = THEME.name

    def get_default_screen(self) -> Overview:
        return self._overview

    # -------------------------------------------------------------------- what textual does else

    def get_line_filters(self) -> Sequence[LineFilter]:
        """With NO_COLOR textual would draw in greys."""
        return [NoColor()] if self.no_color else super().get_line_filters()

    def _handle_exception(self, error: Exception) -> None:
        """Textual would print a traceback; here the command says its line, as after every fault of ours."""
        self.fault = self.fault or error
        if self.is_headless:
            super()._handle_exception(error)
        else:
            self._close_messages_no_wait()
