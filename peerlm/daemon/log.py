"""The daemon's log: facts with names, as JSON lines in the state directory and short lines for people.

An entry is an event word and fields. The file is for machines (`peerlm logs` reads it) and turns
over at 5 MB, keeping one older; standard error is for the journal or the person at the terminal.
Tokens are taken out of whatever is logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
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

    def __init__(self, path: Path, level: str, *, quiet: bool = False) -> None:
        self._logger = logging.Logger(f"peerlm {path}")
        self._logger.setLevel(level.upper())
        handlers: list[logging.Handler] = [
            _File(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT)
        ]
        handlers[0].setFormatter(_AsJson())
        if not quiet:
            handlers.append(_Stream(sys.stderr))
            handlers[1].setFormatter(_AsLine())
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


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            **record.__dict__["fact"],
        }
        return redact(json.dumps(entry, default=str))


class _AsLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fact = dict(record.__dict__["fact"])
        event = fact.pop("event")
        fields = " ".join(f"{name}={_shown(value)}" for name, value in fact.items() if value != "")
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
