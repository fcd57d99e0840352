"""What the service manager of this machine is told: that the node is ready, how it goes, that it lives.

systemd hands a service the address of a datagram socket and, if it has a watchdog, a time. Assignments
such as READY=1 go there, one a line (sd_notify(3)). What is sent here comes from the loop itself, so a loop
that is stuck says nothing, and the watchdog ends it. Where nobody has given an address all of this is
silent, and nothing here ever makes the daemon fail.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from peerlm.types import printable

TELL_S = 1.0
"""How often the state is looked at; the watchdog is fed at least three times in its time."""

TEXT_CHARS_MAX = 300


@dataclass(frozen=True, slots=True)
class Health:
    """What a service manager can be told of a node."""

    is_ready: bool
    is_stopping: bool
    text: str


class Notifier:
    """Speaks to the service manager.

    Args:
        address: of its socket, as in NOTIFY_SOCKET; empty: there is none.
        watchdog_s: it ends a service that says nothing for so long; None: it does not watch.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        # A name that starts with @ is in the kernel's abstract space, where it starts with a zero byte.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog_s = watchdog_s
        self._socket: socket.socket | None = None
        self._said = Health(False, False, "")
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def pause_s(self) -> float:
        """Time until `tell` is due again."""
        return TELL_S if self._watchdog_s is None else min(TELL_S, self._watchdog_s / 3)

    def tell(self, health: Health) -> None:
        """Report; only what is new is said again, and that we live."""
        lines = ["WATCHDOG=1"] if self._watchdog_s is not None else []
        if health.is_ready and not self._said.is_ready:
            lines.append("READY=1")
        if health.is_stopping and not self._said.is_stopping:
            lines.append("STOPPING=1")
        # Some of the text may be a peer's: a terminal must not obey it.
        if health.text != self._said.text:
            lines.append(f"STATUS={printable(' '.join(health.text.split()))[:TEXT_CHARS_MAX]}")
        if self._send(lines):
            self._said = health

    async def keep_telling(self, health: Callable[[], Health]) -> None:
        """Tell for as long as the loop turns. Runs until cancelled."""
        if self._socket is None:
            return
        while True:
            self.tell(health())
            await asyncio.sleep(self.pause_s)

    def close(self) -> None:
        """Say nothing any more. May be called again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, lines: list[str]) -> bool:
        """Whether it went out. A manager that is busy is told again; one that is gone is no reason to fail."""
        if self._socket is not None and lines:
            try:
                self._socket.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return False
        return True
