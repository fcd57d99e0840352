"""How the demo is seen: a live screen on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from peerlm.cli import views, words
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.demo_story import Scene

LINE_EVERY_S = 10.0
EVENTS_SHOWN = 8
NODE_COLUMNS = ("", "state", "tokens/s", "loss", "val", "swarm tokens", "exchanges", "sent")
COLOURS = {
    **views.COLOURS,
    "killed": "bold red",
    "fetching": "yellow",
    "seeking": "yellow",
    "mixing, no worker yet": "yellow",
}


class View(Protocol):
    def say(self, line: str) -> None:
        """Something happened."""

    def show(self, scene: Scene) -> None:
        """How things stand now."""

    def close(self) -> None: ...


class Lines:
    """A line when something happens, and one every ten seconds. No control codes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began = time.monotonic()
        self._next_s = 0.0

    def say(self, line: str) -> None:
        elapsed = time.monotonic() - self._began
        print(f"{elapsed:6.1f} s  {line}", file=self._out, flush=True)

    def show(self, scene: Scene) -> None:
        if scene.elapsed_s >= self._next_s and scene.tokens:
            self._next_s = scene.elapsed_s + LINE_EVERY_S
            self.say(
                f"{progress(scene)}; {swarm(scene)}; {' | '.join(map(node_line, scene.nodes))}"
            )

    def close(self) -> None:
        pass


class Screen:
    """Redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._began = time.monotonic()
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._scene: Scene | None = None
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
        self._live.start()

    def say(self, line: str) -> None:
        self._events.append(f"{time.monotonic() - self._began:6.1f} s  {line}")
        if self._scene is not None:
            self.show(self._scene)

    def show(self, scene: Scene) -> None:
        self._scene = scene
        self._live.update(screen(scene, list(self._events)), refresh=True)

    def close(self) -> None:
        self._live.stop()


def view_on(out: TextIO) -> View:
    return Screen(Console(file=out, highlight=False)) if out.isatty() else Lines(out)


# ------------------------------------------------------------------------------------ the parts


def screen(scene: Scene, events: list[str]) -> RenderableType:
    table = Table(box=None, header_style="bright_black", padding=(0, 2, 0, 0), pad_edge=False)
    for at, column in enumerate(NODE_COLUMNS):
        table.add_column(column, justify="left" if at < 2 else "right", no_wrap=True)
    for node in scene.nodes:
        state, *figures = node_cells(node)
        table.add_row(node.name, Text(state, style=COLOURS.get(state, "")), *figures)
    return Group(
        views.progress_bar(scene.tokens, max(scene.budget, 1)),
        Text(progress(scene)),
        Text(swarm(scene)),
        Text(),
        table,
        Text(),
        *(Text(event, style="bright_black") for event in events),
    )


def progress(scene: Scene) -> str:
    """`42 % of 3.1 M tokens, 17 k/s, about 1 min 40 s left`."""
    if not scene.tokens:
        return "starting"
    return (
        f"{min(100, 100 * scene.tokens // scene.budget)} % of {words.count(scene.budget)} tokens, "
        f"{words.count(scene.rate)}/s, {words.time_left(scene.tokens, scene.budget, scene.rate)}"
    )


def swarm(scene: Scene) -> str:
    """`validation loss 2.31, distance 0.9 %, sent 12 MB (all-reduce: 300 MB)`."""
    return (
        f"validation loss {words.loss(scene.val_loss)}, distance {words.share(scene.distance)}, "
        f"sent {words.size(scene.bytes_sent)} (all-reduce: {words.size(scene.bytes_allreduce)})"
    )


def node_cells(node: DemoNode) -> tuple[str, ...]:
    """State and figures of one node, as `NODE_COLUMNS` after the first."""
    s = node.status
    if s is None:
        return (node.state, *[words.ABSENT] * 6)
    fetch = s["fetch"]
    state = node.state
    if state == "fetching" and fetch["total_bytes"]:
        state += f" {words.size(fetch['bytes'])} of {words.size(fetch['total_bytes'])}"
    if state == "training" and s["worker"]["state"] != "running":
        state = "mixing, no worker yet"
    return (
        state,
        words.count(s["worker"]["tokens_per_s"]),
        words.loss(s["loss"]),
        words.loss(s["val_loss"]),
        words.count(s["swarm_tokens"]),
        f"{s['exchanges']['ok']}",
        words.size(node.bytes_sent),
    )


def node_line(node: DemoNode) -> str:
    """The same for a plain line."""
    state, rate, loss, _, _, exchanges, sent = node_cells(node)
    if node.status is None:
        return f"{node.name} {state}"
    return f"{node.name} {state} {rate}/s loss {loss} {exchanges} exchanges {sent}"
