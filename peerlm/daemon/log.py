"""The daemon's log: facts with names, as JSON lines in the state directory and short lines for people.

An entry is an event word and fields. The file is for machines (`peerlm logs` reads it) and turns
over at 5 MB, keeping one older; standard error is for the person at the terminal. A service's goes to the
journal instead, with level and fields, so that `journalctl -p warning` and `journalctl PEERLM_EVENT=joined`
find it (systemd's native journal protocol). Tokens are taken out of whatever is logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from peerlm.identity.invite import redact
from peerlm.types import printable

FILE_BYTES_MAX = 5_000_000
FILES_KEPT = 1


class DaemonLog:
    """Writes entries; opened once per daemon."""

    def __init__(self, path: Path, level: str, *, quiet: bool = False, journal: str = "") -> None:
        """`journal`: address of the journal's socket, when there is one to write to instead of standard
        error."""
        self._logger = logging.Logger(f"peerlm {path}")
        self._logger.setLevel(level.upper())
        handlers: list[logging.Handler] = [
            _File(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT)
        ]
        handlers[0].setFormatter(_AsJson())
        if not quiet:
            handlers.append(_Journal(journal) if journal else _Stream(sys.stderr))
            handlers[1].setFormatter(_AsLine(timed=not journal))
        for handler in handlers:
            self._logger.addHandler(handler)

    def write(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """One entry. `level`: debug, info, warning or error."""
        record = {"event": event, **fields}
        self._logger.log(
            logging.getLevelNamesMapping()[level.upper()], event, extra={"fact": record}
        )

    def close(self) -> None:
        for handler in list(self._logger.handlers):
            with contextlib.suppress(OSError):
                handler.close()
            self._logger.removeHandler(handler)


class _DropsWhatCannotBeWritten(logging.Handler):
    """A full disk or a closed terminal costs the entry; elsewhere it is said that the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _File(_DropsWhatCannotBeWritten, RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        file = super()._open()
        os.fchmod(file.fileno(), 0o600)
        return file


class _Stream(_DropsWhatCannotBeWritten, logging.StreamHandler[TextIO]):
    pass


PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3}
"""The journal's numbers, which are syslog's."""

JOURNAL_BYTES_MAX = 64_000
"""Of a message; a socket takes about 200 kB, and longer ones are of no use there."""


class _Journal(_DropsWhatCannotBeWritten):
    """Entries as datagrams: a field's name, its length in eight bytes (little endian), its bytes."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            "MESSAGE": self.format(record)[:JOURNAL_BYTES_MAX],
            "PRIORITY": str(PRIORITIES[record.levelname]),
            "SYSLOG_IDENTIFIER": "peerlm",
        }
        for name, value in record.__dict__["fact"].items():
            fields[f"PEERLM_{name.upper()}"] = redact(_shown(value))[:1000]
        with contextlib.suppress(OSError):
            self._socket.sendto(
                b"".join(_journal_field(*field) for field in fields.items()), self._address
            )

    def close(self) -> None:
        self._socket.close()
        super().close()


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            **record.__dict__["fact"],
        }
        return redact(json.dumps(entry, default=str))


class _AsLine(logging.Formatter):
    def __init__(self, *, timed: bool) -> None:
        super().__init__()
        self._timed = timed

    def format(self, record: logging.LogRecord) -> str:
        fact = dict(record.__dict__["fact"])
        event = fact.pop("event")
        fields = " ".join(f"{name}={_shown(value)}" for name, value in fact.items() if value != "")
        if not self._timed:  # the journal has its own time and level
            return redact(f"{event} {fields}".rstrip())
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return redact(f"{_time(record)[11:19]} {level}{event} {fields}".rstrip())


def _shown(value: object) -> str:
    """Text may be a peer's: a terminal must not obey it. Only a traceback keeps its lines."""
    text = str(value)
    if text.startswith("Traceback"):
        return "\n".join(map(printable, text.split("\n")))
    return printable(text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
