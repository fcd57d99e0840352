"""peerlm whose daemon also tells what it sees: `python -m peerlm.bench.telling up --state DIR` and the like.

Beside the state directory, in STATE.told, it writes a line of JSON whenever a member changes in its
table, a link comes or goes, an answer to a probe arrives, with the time by the monotonic clock, which
all processes of a machine share. The daemon's log has the verdicts too, but no links and no returns.
Nothing else about the daemon differs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from peerlm import effects as fx
from peerlm.cli.main import main as peerlm
from peerlm.daemon import main as daemon
from peerlm.daemon.log import DaemonLog
from peerlm.daemon.loop import Driver
from peerlm.effects import Effect
from peerlm.events import Event, LinkDown, LinkUp, Received
from peerlm.store.layout import StateDirectory
from peerlm.types import PeerId
from peerlm.wire.message import Ack, Ping

PINGS_MAX = 1024
"""Probes whose answer is waited for; most answers that never come belong to the dead."""


class TellingDriver(Driver):
    """The daemon's driver, overheard."""

    def __init__(self, state: StateDirectory, log: DaemonLog, tasks: asyncio.TaskGroup) -> None:
        super().__init__(state, log, tasks)
        self._told = told_path(state.root).open("a", encoding="ascii", buffering=1)
        self._pings: dict[tuple[PeerId, int], float] = {}
        self._introduced: dict[str, float] = {}
        self._opened: dict[PeerId, float] = {}
        self._dialled: dict[PeerId, bool] = {}
        self._tell("began")

    def post(self, event: Event) -> None:
        match event:
            case LinkUp(peer=peer, dialled=dialled):
                self._dialled[peer] = dialled
                self._tell("link_up", peer, dialled=dialled)
                if dialled and (began := self._opened.pop(peer, None)) is not None:
                    self._tell("introduced", peer, took_s=time.monotonic() - began)
            case LinkDown(peer=peer):
                self._tell("link_down", peer, dialled=self._dialled.get(peer, False))
            case Received(peer=peer, message=Ack(seq=seq)):
                if (sent := self._pings.pop((peer, seq), None)) is not None:
                    self._tell("answered", peer, took_s=time.monotonic() - sent)
        super().post(event)

    def _perform_all(self, effects: list[Effect]) -> None:
        super()._perform_all(effects)
        for change in self.node.company.membership.changes():
            self._tell("member", change.peer, state=change.new.name.lower())

    def _perform(self, effect: Effect) -> None:
        match effect:
            case fx.Send(peer=peer, message=Ping(seq=seq)) if len(self._pings) < PINGS_MAX:
                self._pings[peer, seq] = time.monotonic()
            case fx.Introduce(address=address):
                self._introduced[_host_of(address)] = time.monotonic()
            case fx.OpenLink(peer=peer, host=host) if host in self._introduced:
                self._opened[peer] = self._introduced.pop(host)
            case fx.Log(event="overslept"):
                self._tell("overslept")
        super()._perform(effect)

    def _tell(self, what: str, peer: PeerId | None = None, **facts: Any) -> None:
        line = {"at": time.monotonic(), "what": what, "peer": peer.hex() if peer else "", **facts}
        self._told.write(json.dumps(line) + "\n")


def told_path(root: Path) -> Path:
    return root.with_name(root.name + ".told")


def told_since(root: Path, since: float) -> list[dict[str, Any]]:
    """Lines of the daemon whose state directory this is, after that time."""
    lines = map(json.loads, told_path(root).read_text("ascii").splitlines())
    return [line for line in lines if line["at"] > since]


def _host_of(address: str) -> str:
    return address.removeprefix("tcp://").rpartition(":")[0]


def main() -> int:
    with mock.patch.object(daemon, "Driver", TellingDriver):
        return peerlm()


if __name__ == "__main__":
    sys.exit(main())
