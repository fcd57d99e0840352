"""A process of a benchmark: it obeys lines on its standard input and answers each with a line of JSON.

Whatever it measures it measures itself, by the machine's monotonic clock, which all processes share. From
outside come the processor time and the peak of memory, of it and of all that it has started. Nothing of a
child that is closed runs on: it leads a process group of its own. The end of its input is its end, so it
does not outlive whoever started it either.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from peerlm.bench.rows import Missed

END_S = 5.0


class Child:
    """`command`, with `output` for what it writes to standard error; `name` is for people."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        output: Path,
        at: AbstractContextManager[None] | None = None,
    ) -> None:
        """`at`: where it is started."""
        self.name = name
        self._output = output
        with output.open("ab") as log, at or nullcontext():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands = self._process.stdin
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()

    def _read(self, answers: IO[str]) -> None:
        with answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")

    def tell(self, *words: object) -> None:
        """Give a command; `hear` gives its answer."""
        with suppress(BrokenPipeError):  # its last words are heard instead
            self._commands.write(" ".join(map(str, words)) + "\n")
            self._commands.flush()

    def hear(self, limit_s: float | None = None) -> dict[str, Any]:
        """The answer to the oldest command without one.

        Raises:
            Missed: the process has ended, complains, or is silent for so long.
        """
        try:
            line = self._answers.get(timeout=limit_s)
        except queue.Empty:
            raise Missed(f"{self.name}: no answer within {limit_s} s") from None
        if not line:
            raise Missed(f"{self.name} has ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if error := answer.get("error"):
            raise Missed(f"{self.name}: {error}")
        return answer

    def ask(self, *words: object) -> dict[str, Any]:
        """Command and answer at once."""
        self.tell(*words)
        return self.hear()

    def processes(self) -> list[psutil.Process]:
        """Itself and all that it has started."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._commands.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()

    def _last_words(self) -> str:
        lines = self._output.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def ask_all(
    children: Sequence[Child], *words: object, limit_s: float | None = None
) -> list[dict[str, Any]]:
    """The same command to all at once; their answers. Raises `Missed`."""
    for child in children:
        child.tell(*words)
    return [child.hear(limit_s) for child in children]


# ------------------------------------------------------------------------------- seen from outside


def cpu_seconds(of: Sequence[psutil.Process]) -> float:
    """Processor time that they have used so far."""
    times = [process.cpu_times() for process in of]
    return sum(t.user + t.system for t in times)


def forget_peaks(of: Sequence[psutil.Process]) -> None:
    """From here on `peak_mb` counts anew. Linux only; elsewhere there is no peak to forget."""
    for process in of:
        with suppress(OSError):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak_mb(process: psutil.Process) -> float:
    """The most memory (RSS) it has had since `forget_peaks`; what it has now where none is kept."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return float(process.memory_info().rss) / 1e6
