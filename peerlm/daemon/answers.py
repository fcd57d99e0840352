"""What the running daemon answers: to a person's commands on the control socket, and to whoever looks.

The commands are those of control.py. Everything is said in the node's own words (`node.status`), with what only
the daemon knows beside it: its process, its sockets, its page.
"""

from __future__ import annotations

import asyncio
import os
import resource
from typing import Any

import psutil

from peerlm import events
from peerlm.daemon import control
from peerlm.daemon.loop import Driver, now
from peerlm.daemon.notify import Health
from peerlm.errors import ConfigError, StateError
from peerlm.identity.root import verify_plan
from peerlm.node import status

SECONDS_MAX = 1e12
"""Of wall time: some thirty thousand years."""


def look(driver: Driver) -> tuple[Health, dict[str, Any]]:
    """What a service manager is told, and what `peerlm status --json` prints."""
    summary = driver.node.summary(now())
    health = Health(
        is_ready=status.is_ready(summary),
        is_stopping=driver.node.is_leaving,
        text=status.headline(summary),
    )
    url = driver.page.url if driver.page is not None else ""
    own = {"sample": driver.sampling.as_json(), "page": url, "daemon": _health(driver)}
    return health, status.as_json(summary) | own


def handler(driver: Driver) -> control.Handler:
    """Local commands of a person, in the node's words."""

    async def handle(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        match command:
            case "status":
                return look(driver)[1]
            case "history":
                return driver.history.since(_seconds(arguments, "since"))
            case "pause":
                driver.post(events.Pause())
            case "resume":
                driver.post(events.Resume())
            case "stop" | "leave":
                driver.post(events.Leave(hands_over=command == "leave"))
                await asyncio.shield(driver.halted)
                return {"unsaved": driver.unsaved()}
            case "reach":
                return await _reach(driver)
            case "snapshot":
                return await _snapshot(driver)
            case "new_plan":
                blob = _bytes(arguments, "plan")
                gate = driver.node.company.gate
                plan = verify_plan(blob, gate.root_public_key, gate.run_id)
                driver.post(events.NewPlan(blob))
                return {"revision": plan.revision}
            case "revoke":
                driver.post(events.NewRevocation(_bytes(arguments, "revocation")))
            case "join":
                name = driver.node.company.plan.plan.run.name
                raise StateError(
                    f"this node is already in run {name}; to enter another run use another --state"
                )
        return {}

    return handle


def _bytes(arguments: dict[str, Any], name: str) -> bytes:
    try:
        return bytes.fromhex(arguments[name])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"control: {name} must be hex") from None


def _seconds(arguments: dict[str, Any], name: str) -> float:
    match arguments.get(name, 0):
        case int() | float() as value if abs(value) < SECONDS_MAX:
            return float(value)
    raise ConfigError(f"control: {name} must be a number of seconds")


async def _reach(driver: Driver) -> dict[str, Any]:
    """Have the others try to dial this node, and wait for what they find."""
    driver.post(events.ReachWanted())
    await driver.next_of(events.ReachWanted)
    back = driver.node.company.dial_back
    while back.is_asking:  # a round ends by itself, whoever answers
        await driver.next_of(events.Event)
    dialled = status.as_json(driver.node.summary(now()))["dialled"]
    return {"dialled": dialled, "answers": {peer.hex(): why for peer, why in back.answers.items()}}


async def _snapshot(driver: Driver) -> dict[str, Any]:
    """Write a snapshot now and wait for it. Raises `StateError` if it fails."""
    if not driver.node.work.installed:
        raise StateError("this node has no weights yet")
    driver.post(events.SnapshotWanted())
    match await driver.next_of(events.SnapshotWritten, events.SnapshotFailed):
        case events.SnapshotWritten(number=number, tokens=tokens):
            return {"number": number, "tokens": tokens}
        case events.SnapshotFailed(reason=reason):
            raise StateError(reason)
    raise AssertionError("another event was waited for")


def _health(driver: Driver) -> dict[str, Any]:
    lags = sorted(driver.lags_s)
    p99 = lags[min(len(lags) - 1, int(0.99 * len(lags)))] if lags else 0.0
    return {
        "pid": os.getpid(),
        "listening": _listening(driver),
        "files_max": _files_max(),
        "rss_mb": round(psutil.Process().memory_info().rss / 1e6, 1),
        "loop_lag_p99_ms": round(1000 * p99, 2),
        "bulk_bytes_sent": driver.bulk.counters["bytes_sent"],
        "bulk_bytes_received": driver.bulk.counters["bytes_received"],
        "bulk_waiting": driver.bulk.waiting,
        "counters": _counters(driver),
    }


def _listening(driver: Driver) -> dict[str, Any]:
    ports = driver.node.company.ports
    host = driver.node.work.settings.network.host
    return {"host": host, "ports": [ports.introduction, ports.control, ports.bulk]}


def _files_max() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _counters(driver: Driver) -> dict[str, int]:
    """What the network side has counted since the start, by part and name."""
    parts = {
        "links": driver.links.counters,
        "introduction": driver.introduction.counters,
        "bulk": driver.bulk.counters,
        "texts": driver.serving.counters,
    }
    return {
        f"{part}_{name}": count
        for part, counters in parts.items()
        for name, count in sorted(dict(counters).items())  # a copy: the bulk thread counts on
    }
