"""What systemd says to a service through its environment: where to report, where to log, what it was given."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peerlm.errors import ConfigError, StateError

JOURNAL = "/run/systemd/journal/socket"

INVITE = "invite"
"""Name of the credential that holds what `peerlm invite` printed."""

NO_INVITE = "-"
"""What the unit sets it to where nobody has laid one down: systemd takes no empty credential."""

INVITE_CHARS_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Of the process: empty or None where no service manager started it."""

    notify_address: str = ""
    watchdog_s: float | None = None
    journal: str = ""
    credentials: str = ""

    def invite(self) -> str:
        """The invite that was laid down for this service, or empty. Raises `StateError`."""
        path = Path(self.credentials, INVITE)
        try:
            if not self.credentials or not path.exists():
                return ""
            with path.open(encoding="ascii") as file:
                text = file.read(INVITE_CHARS_MAX).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"credential {INVITE}: cannot be read: {error}") from None
        return "" if text == NO_INVITE else text


def surroundings(environ: Mapping[str, str]) -> Surroundings:
    """From NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID, JOURNAL_STREAM and CREDENTIALS_DIRECTORY. Raises
    `ConfigError`."""
    return Surroundings(
        notify_address=environ.get("NOTIFY_SOCKET", ""),
        watchdog_s=_watchdog_s(environ),
        journal=JOURNAL if _logs_to_journal(environ.get("JOURNAL_STREAM", "")) else "",
        credentials=environ.get("CREDENTIALS_DIRECTORY", ""),
    )


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    text = environ.get("WATCHDOG_USEC", "")
    if not text or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"WATCHDOG_USEC = {text!r}: must be a number of microseconds above 0")
    return int(text) / 1e6


def _logs_to_journal(stream: str) -> bool:
    """Whether standard error still is the stream that systemd connected to the journal (`device:inode`)."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
