"""A service that is in no run yet: it waits on its control socket to be let in, and says so.

`systemctl start peerlm` must not fail on a machine that has not been enrolled, and whoever enrols it need not
be the service's user. So `peerlm join` hands address and token to the daemon that waits here, which enrols
with its own hands, in its own folder, and goes on as a node. An invite that was laid down for the service
beforehand (a systemd credential) is used at once, as often as it takes; `peerlm join` may overtake it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from peerlm.config import Plan
from peerlm.daemon import control
from peerlm.daemon.enrol import enrol_in
from peerlm.daemon.log import DaemonLog
from peerlm.daemon.notify import Health, Notifier
from peerlm.errors import AuthError, ConfigError, PeerlmError, StateError, first_cause
from peerlm.identity.invite import TOKEN_PREFIX, parse_token
from peerlm.store.layout import StateDirectory, require_own

WAITING = "in no run yet: `peerlm join ADDRESS --token TOKEN` enters one; a member prints both with `peerlm invite`"

AGAIN_S = 30.0
"""Until an invite that did not hold is tried again."""

Change = Callable[[Plan, Mapping[str, str]], None]
"""Writes fields of node.toml for a run of that plan; raises `ConfigError` or `StateError`."""


def wait_until_enrolled(
    root: Path,
    change_settings: Change,
    *,
    notifier: Notifier,
    journal: str = "",
    group: str = "",
    invite: Callable[[], str] = str,
) -> bool:
    """Wait until the folder `root` holds a node; False when told to stop first.

    Args:
        change_settings: for the fields of node.toml that `peerlm join` may bring.
        group: whose members may use the control socket.
        invite: gives what `peerlm invite` printed, or the token alone; empty while there is none.

    Raises `StateError`, `ConfigError` if the folder or the group cannot be used.
    """
    require_own(root)
    with StateDirectory(root) as state:
        log = DaemonLog(state.log, "info", journal=journal)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_Lobby(state, log, change_settings).wait(notifier, group, invite))
        except ExceptionGroup as errors:
            raise first_cause(errors) from None
        finally:
            log.close()


def read_invite(text: str) -> tuple[tuple[str, ...], str]:
    """Addresses and token from the line that `peerlm invite` prints, or from a token alone; first those that stand before the
    token, then others that it names. Raises `AuthError`."""
    words = text.split()
    token = next((word for word in words if word.startswith(TOKEN_PREFIX)), "")
    if not token:
        raise AuthError(
            "malformed", f"the invite holds no token: a token starts with {TOKEN_PREFIX}"
        )
    named = (word for word in words if word.startswith("tcp://"))
    addresses = tuple(dict.fromkeys((*named, *parse_token(token).addresses)))
    if not addresses:
        raise AuthError(
            "malformed", "the invite names no address: write tcp://HOST:PORT before the token"
        )
    return addresses, token


class _Lobby:
    def __init__(self, state: StateDirectory, log: DaemonLog, change_settings: Change) -> None:
        self._state = state
        self._log = log
        self._change_settings = change_settings
        self._attempt: asyncio.Task[None] | None = None
        self._text = WAITING

    async def wait(self, notifier: Notifier, group: str, invite: Callable[[], str]) -> bool:
        loop = asyncio.get_running_loop()
        self._entered: asyncio.Future[bool] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, False)
        self._report(self._text)
        async with asyncio.TaskGroup() as tasks:
            server = await control.serve(self._state, self._handle, group)
            running = [
                tasks.create_task(notifier.keep_telling(self._health)),
                tasks.create_task(self._accept(invite)),
            ]
            try:
                return await self._entered
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):  # else a closed loop would get them
                    loop.remove_signal_handler(number)
                await server.close()
                for task in running:
                    task.cancel()

    def _health(self) -> Health:
        return Health(is_ready=True, is_stopping=False, text=self._text)

    def _end(self, entered: bool) -> None:
        if not self._entered.done():
            self._entered.set_result(entered)

    def _report(self, text: str) -> None:
        self._text = text
        self._log.write("info", "lobby", {"state": text})

    async def _accept(self, invite: Callable[[], str]) -> None:
        """For as long as it takes: an invite may be laid down later, and a clock that is not set yet makes a good
        one look bad."""
        while True:
            try:
                if text := invite().strip():
                    await self._enter(*read_invite(text), wait=True, changes={})
                    return
            except PeerlmError as error:
                if not self._is_trying:
                    self._report(f"the invite that was laid down: {error}; {WAITING}")
            await asyncio.sleep(AGAIN_S)
            if self._attempt is not None:  # a person's, which comes first
                await asyncio.wait([self._attempt])

    @property
    def _is_trying(self) -> bool:
        return self._attempt is not None and not self._attempt.done()

    async def _enter(
        self, addresses: Sequence[str], token: str, *, wait: bool, changes: Mapping[str, str]
    ) -> None:
        """One attempt at a time: a newer one takes the place of an older, whose address may be a slip."""
        if self._attempt is not None:
            self._attempt.cancel()
        attempt = asyncio.create_task(
            enrol_in(
                self._state,
                addresses,
                token,
                wait=wait,
                report=self._report,
                before_keys=lambda plan: self._change_settings(plan, changes),
            )
        )
        self._attempt = attempt
        try:
            await asyncio.wait([attempt])
            if attempt.cancelled():
                raise StateError("another `peerlm join` has taken its place")
            attempt.result()
        except PeerlmError:
            if self._attempt is attempt:
                self._text = WAITING
            raise
        finally:
            attempt.cancel()
        self._end(True)

    async def _handle(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        match command:
            case "join":
                address, token = _text(arguments, "address"), _text(arguments, "token")
                changes = arguments.get("node", {})
                if not isinstance(changes, dict):
                    raise ConfigError("control: node must be an object of fields and values")
                wait = bool(arguments.get("wait", False))
                fields = {str(name): str(value) for name, value in changes.items()}
                await self._enter([address], token, wait=wait, changes=fields)
                return {}
            case "stop" | "leave":
                self._end(False)
                return {}
        raise StateError(self._text)


def _text(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"control: {name} must be text")
    return value
