"""Curves for TensorBoard: an event file for each life of a node, in a folder of its own.

TensorBoard reads all files of a folder as one run, so a node that is started again goes on where it was. The records
are made by TensorBoard's own library, but handed to the disk here, at once: its own file writer does that on a hidden
thread, and imports TensorFlow where there is one.
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from peerlm.daemon.writers.csv import write_all
from peerlm.observe.curves import Origin, Reading
from peerlm.observe.history import short
from peerlm.store.disk import explained


class TensorboardWriter:
    """Raises `StateError` when it cannot write, and is then not used again: its last record may be torn."""

    def __init__(self, origin: Origin, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._records = (
            event_pb2.Event,
            summary_pb2.Summary,
            RecordWriter,
        )
        wall = time.time()
        name = f"events.out.tfevents.{wall:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / short(origin.node_id) / name
        with explained("write", self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
        try:
            self._put(self._event(wall_time=wall, file_version="brain.Event:2"))
        except BaseException:
            self.close()
            self._path.unlink(missing_ok=True)
            raise

    def write(self, reading: Reading) -> None:
        value = self._summary.Value
        scalars = [value(tag=name, simple_value=v) for name, v in reading.values.items()]
        summary = self._summary(value=scalars)
        self._put(self._event(wall_time=reading.at, step=reading.step, summary=summary))

    def _put(self, event: Any) -> None:
        record = io.BytesIO()
        self._records(record).write(event.SerializeToString())
        with explained("write", self._path):
            write_all(self._fd, record.getvalue())

    def close(self) -> None:
        os.close(self._fd)
