"""Has the sample text of this node's newest weights written, now and then, and keeps it across restarts.

When is `observe.sample`'s to say; written it is by a process of its own (cli/sample.py), of which there is one at a time: no
torch here, and nothing waits for it but its own task. One that takes too long is killed. The text and when it was tried
are kept in the state folder, so a daemon that is started again and again does not write again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import psutil

from peerlm.config import ObserveSection
from peerlm.daemon.worker_process import torch_environment
from peerlm.errors import StateError
from peerlm.observe import sample as samples
from peerlm.observe.sample import TEXT_MAX, WHY_MAX, Sample, Status
from peerlm.store import disk
from peerlm.store.layout import Layout
from peerlm.types import printable

LIFE_S = 300.0
"""A process that has not written its text by then is killed: the machine has no time for it, or no memory."""

FILE_BYTES_MAX = 64 << 10

COMMAND = (sys.executable, "-P", "-m", "peerlm.cli.sample")

Report = Callable[[str, str, Mapping[str, object]], None]
"""Writes to the daemon's log: level, event, fields."""


class Sampling:
    """Of one daemon; call on the loop.

    Args:
        parameters: of the whole model.
        threads: where files are written.
        command: the process that writes.
    """

    def __init__(
        self,
        layout: Layout,
        settings: ObserveSection,
        parameters: int,
        threads: Executor,
        report: Report,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._layout, self._settings, self._parameters = layout, settings, parameters
        self._threads, self._report, self._command = threads, report, command
        self._last = _kept(layout)
        self._why = ""
        self._began = _now()
        self._writing: asyncio.Task[None] | None = None

    def see(self, status: Status, at: float) -> None:
        """Take in what the node says of itself at wall time `at`; call each second."""
        self._why = samples.why_none(self._last, status, self._settings.sample_every_s)
        if self.is_writing:
            return
        every_s, up_s = self._settings.sample_every_s, _now() - self._began
        if samples.is_due(self._last, status, every_s, at, up_s):
            self._begin(status, at)

    def ask(self, status: Status, at: float) -> None:
        """Somebody wants one now."""
        if not self.is_writing and samples.is_to_be_had(self._last, status, at):
            self._begin(status, at)

    @property
    def is_writing(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def as_json(self) -> dict[str, Any]:
        """`sample` of `status --json`."""
        return samples.as_json(self._last, self._why, is_writing=self.is_writing)

    async def close(self) -> None:
        """End what is under way."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    # ---------------------------------------------------------------------------------- inside

    def _begin(self, status: Status, at: float) -> None:
        """Unless the machine has no room for another copy of the weights."""
        free = psutil.virtual_memory().available
        is_here = not samples.is_through_swarm(status)
        if is_here and (why := samples.no_room(self._parameters, free)):
            self._take(replace(self._last, tried_at=at, cpu_s=0.0, error=why))
        else:
            self._writing = asyncio.create_task(self._write(status, at))

    async def _write(self, status: Status, at: float) -> None:
        through_swarm = samples.is_through_swarm(status)
        began = _now()
        try:
            said = await self._said(status["snapshot"]["number"], through_swarm=through_swarm)
        except StateError as error:
            why, took_s = str(error)[:WHY_MAX], round(_now() - began, 2)
            self._report("warning", "sample_failed", {"why": why, "seconds": took_s})
            cpu_s = min(took_s, samples.CPU_S)
            self._take(replace(self._last, tried_at=at, cpu_s=cpu_s, error=why))
            return
        if through_swarm:
            said |= {"snapshot": status["snapshot"]["number"]}
            said |= {"tokens": samples.hosts_tokens(status)}
        written = Sample(**said, at=at, tried_at=at, through_swarm=through_swarm)
        fields = {"snapshot": written.snapshot, "cpu_s": round(written.cpu_s, 2)}
        self._report("info", "sample_written", fields)
        self._take(written)

    def _take(self, sample: Sample) -> None:
        self._last, self._why = sample, sample.error
        self._threads.submit(_keep, self._layout, sample)

    async def _said(self, rng_seed: int, *, through_swarm: bool) -> dict[str, Any]:
        """What the process has printed. Raises `StateError`."""
        out, err, status = await self._run(rng_seed, "swarm" if through_swarm else "here")
        if status:
            lines = _lines(err) or [f"exit status {status}"]
            raise StateError(f"no text was written: {lines[-1]}")
        try:
            said = json.loads(out)
            return {
                "text": str(said["text"]).strip("\n")[:TEXT_MAX],
                "snapshot": int(said["snapshot"]),
                "tokens": int(said["tokens"]),
                "cpu_s": float(said["cpu_s"]),
            }
        except (ValueError, KeyError, TypeError):
            raise StateError("no text was written: its process printed something else") from None

    async def _run(self, rng_seed: int, way: str) -> tuple[bytes, bytes, int]:
        """Its two outputs and its exit status. Raises `StateError`."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *(str(self._layout.root.absolute()), str(os.getpid()), str(rng_seed), way),
                self._settings.sample_prompt,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                env=torch_environment(1),
            )
        except OSError as error:
            raise StateError(f"no text was written: its process cannot start: {error}") from None
        try:
            out, err = await asyncio.wait_for(process.communicate(), LIFE_S)
        except TimeoutError:
            raise StateError(f"no text was written within {LIFE_S:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return out, err, process.returncode or 0


def _lines(data: bytes) -> list[str]:
    return [printable(line) for line in data.decode(errors="replace").splitlines() if line.strip()]


def _kept(layout: Layout) -> Sample:
    """As the last life of the node has left it; none is no harm."""
    with contextlib.suppress(StateError):
        if layout.sample.exists():
            return samples.read_sample(disk.read_file(layout.sample, FILE_BYTES_MAX))
    return Sample()


def _keep(layout: Layout, sample: Sample) -> None:
    with contextlib.suppress(StateError):  # a full disk is told of by the snapshots
        disk.write_atomic(layout.sample, samples.encode(sample))


def _now() -> float:
    return asyncio.get_running_loop().time()
