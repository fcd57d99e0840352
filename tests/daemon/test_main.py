"""A whole daemon in this process, before its first event: what it promises around the node."""

from __future__ import annotations

import asyncio
import json
from importlib import resources
from pathlib import Path

import jsonschema

from peerlm.cli.main import main
from peerlm.daemon.answers import _health
from peerlm.daemon.log import DaemonLog
from peerlm.daemon.main import _serve_setup, open_daemon, read_home
from peerlm.store.layout import StateDirectory

SMALL = ("--set", "model.dim=16", "--set", "model.heads=2", "--set", "model.hidden=16")
HERE = ("--set-node", "network.host=127.0.0.1", "--set-node", "network.port=0")


async def test_a_crash_of_the_bulk_thread_ends_the_daemon_and_health_fits_the_schema(
    tmp_path: Path,
) -> None:
    assert main(["init", "--state", str(tmp_path / "node"), *SMALL, *HERE]) == 0
    with StateDirectory(tmp_path / "node") as state:
        left = state.objects / ("ab" * 32)
        left.write_bytes(b"fetched once")
        log = DaemonLog(state.log, "info", quiet=True)
        async with asyncio.timeout(10), open_daemon(state, read_home(state), log) as driver:
            assert not left.exists()
            text = resources.files("peerlm.observe").joinpath("status.schema.json").read_text()
            jsonschema.validate(_health(driver), json.loads(text)["properties"]["daemon"])

            def bug() -> None:
                raise AssertionError("a promise broken")

            driver.bulk._mover.call(bug)
            assert "internal error: AssertionError('a promise broken')" in await driver.halted
        log.close()
        assert "a promise broken" in state.log.read_text()
        wide = [p for p in state.root.rglob("*") if p.stat().st_mode & 0o077]
        assert wide == []


async def test_a_stage_server_is_set_up_with_the_device_that_is_trained_on(tmp_path: Path) -> None:
    here = (*HERE, "--set-node", "train.device=cuda:3")
    assert main(["init", "--state", str(tmp_path / "node"), *SMALL, *here]) == 0
    with StateDirectory(tmp_path / "node") as state:
        home, log = read_home(state), DaemonLog(state.log, "info", quiet=True)
        async with asyncio.timeout(10), open_daemon(state, home, log) as driver:
            assert _serve_setup(home, driver, state).device == "cuda:3"
        log.close()
