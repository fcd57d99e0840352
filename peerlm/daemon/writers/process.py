"""The process of one writer: takes a reading, writes it, says how that went.

Whatever a tool's library does (blocks, ends the process, waits for its network on the way out) it does here. There
is no queue: the next reading is asked for by the answer to the last. When readings end, with the daemon or by its
wish, the writer may finish, for so long and no longer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from peerlm.daemon.writers.csv import CsvWriter
from peerlm.daemon.writers.tensorboard import TensorboardWriter
from peerlm.daemon.writers.wandb import WandbWriter
from peerlm.errors import PeerlmError
from peerlm.observe.curves import Origin, Reading, Writer, reading_of_line

WRITERS: Mapping[str, Callable[[Origin, Path], Writer]] = {
    "csv": CsvWriter,
    "tensorboard": TensorboardWriter,
    "wandb": WandbWriter,
}

REST_S = 30.0
"""A writer that has failed is made again when so much time has passed on the readings."""

CLOSE_S = 3.0
"""Time for a writer to finish when there are no more readings."""

WHY_CHARS_MAX = 300


def main(arguments: list[str]) -> int:
    """Arguments: writer, folder."""
    name, folder = arguments
    # A terminal's Ctrl-C and a service manager's SIGTERM reach the whole group: the daemon decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # what a library prints is no answer
        serve(name, Path(folder), lines_of(sys.stdin.buffer), answers)
    return 0


def lines_of(stream: BinaryIO) -> Iterator[bytes]:
    """Its lines; they are read beside the writer, which may be stuck when they end."""
    lines: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(b"")
        time.sleep(CLOSE_S)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, b"")


def serve(name: str, folder: Path, lines: Iterator[bytes], answers: BinaryIO) -> None:
    """The first line says whose curves they are, each other is a reading; each reading is answered with a line:
    what is wrong, as JSON, empty when nothing is. Until the lines end."""
    first = next(lines, b"")
    if not first:
        return
    origin = Origin(**json.loads(first))
    for why in written(lambda: WRITERS[name](origin, folder), map(reading_of_line, lines)):
        answers.write(json.dumps(why).encode() + b"\n")


def written(make: Callable[[], Writer], readings: Iterator[Reading]) -> Iterator[str]:
    """Write all readings; for each, why it was not written, or nothing."""
    writer: Writer | None = None
    failed_at, why = float("-inf"), ""
    for reading in readings:
        if not why or not 0 <= reading.at - failed_at < REST_S:
            try:
                writer = writer or make()
                writer.write(reading)
                why = ""
            except Exception as error:
                failed_at, why = reading.at, _line(error)
                _close(writer)
                writer = None
        yield why
    _close(writer)


def _close(writer: Writer | None) -> None:
    if writer is not None:
        with contextlib.suppress(Exception):  # it is given up: what is lost is lost
            writer.close()


def _line(error: Exception) -> str:
    said = " ".join(str(error).split())[:WHY_CHARS_MAX]
    return said if isinstance(error, PeerlmError) else f"{type(error).__name__}: {said}"


if __name__ == "__main__":
    status = main(sys.argv[1:])
    os._exit(status)  # the writer is closed: no library may wait for anything more
