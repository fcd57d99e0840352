"""A real command on a terminal of its own: a pseudo-terminal of 80 × 24 that a test reads and types on."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

CODES = re.compile(r"\x1b\[[0-9;?<>=]*[ -/]*[@-~]|\x1b[\]P][^\x07\x1b]*(?:\x07|\x1b\\)")
SOON_S = 60.0


class Terminal:
    """`said`: all that was written on it; `text`: without what moves the cursor and sets colours."""

    def __init__(self, process: subprocess.Popen[bytes], ours: int) -> None:
        self.process = process
        self._ours = ours
        self.said = ""

    @property
    def text(self) -> str:
        return CODES.sub("", self.said)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_text(self, words: str) -> None:
        self._read_until(lambda: words in self.text, words)

    def wait_end(self) -> int:
        """Its exit code."""
        self._read_until(lambda: self.process.poll() is not None, "the end")
        self._read(0.0)
        return self.process.wait()

    def _read_until(self, holds: object, what: str) -> None:
        deadline = time.monotonic() + SOON_S
        while not holds():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"{what!r} did not come: {self.text[-2000:]}"
            self._read(0.1)

    def _read(self, wait_s: float) -> None:
        while select.select([self._ours], [], [], wait_s)[0]:
            try:
                self.said += os.read(self._ours, 65_536).decode(errors="replace")
            except OSError:  # nobody has the other end any more
                return
            wait_s = 0.0


@contextmanager
def on_terminal(*args: object, **environment: str) -> Iterator[Terminal]:
    """Runs `peerlm` with these arguments."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "peerlm", *map(str, args)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
