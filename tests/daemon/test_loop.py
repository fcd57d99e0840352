"""The driver: our own faults end the daemon, what could not be saved is tried again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peerlm import effects as fx
from peerlm.daemon import loop as driving
from peerlm.daemon.answers import _counters
from peerlm.daemon.log import DaemonLog
from peerlm.daemon.loop import Driver
from peerlm.daemon.worker_process import torch_environment
from peerlm.errors import StateError, Unreachable
from peerlm.events import Event, SaveFailed
from peerlm.store import disk
from peerlm.store.layout import StateDirectory


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    with StateDirectory(tmp_path / "node") as state:
        yield state


@pytest.fixture
def log(state: StateDirectory) -> Iterator[DaemonLog]:
    log = DaemonLog(state.log, "info", quiet=True)
    yield log
    log.close()


async def test_our_own_fault_ends_the_daemon_and_the_worlds_does_not(
    state: StateDirectory, log: DaemonLog
) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        driver = Driver(state, log, tasks)
        loop.set_exception_handler(driver.on_loop_fault)
        loop.call_exception_handler({"message": "m", "exception": OSError(24, "too many files")})
        loop.call_exception_handler({"message": "m", "exception": Unreachable("connect", "x")})
        loop.call_exception_handler({"message": "m"})
        assert not driver.halted.done()
        loop.call_exception_handler({"message": "m", "exception": ValueError("a bug")})
        assert driver.halted.result() == "internal error: ValueError('a bug'); see `peerlm logs`"
        driver.end()
    assert "a bug" in state.log.read_text()
    assert state.log.stat().st_mode & 0o777 == 0o600


async def test_what_could_not_be_saved_is_tried_again_the_newest_only(
    state: StateDirectory, log: DaemonLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "SAVE_AGAIN_S", 0.01)
    posted: list[Event] = []
    tries: list[bytes] = []
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    def write(path: Path, data: bytes) -> None:
        tries.append(data)
        if len(tries) < 3:
            raise StateError("the disk is full")
        loop.call_soon_threadsafe(written.set)

    monkeypatch.setattr(disk, "write_atomic", write)
    async with asyncio.TaskGroup() as tasks:
        driver = Driver(state, log, tasks)
        driver._began = True
        monkeypatch.setattr(driver, "post", posted.append)
        for data in (b"old", b"new"):
            tasks.create_task(driver._save(fx.Save("address_book", data)))
        async with asyncio.timeout(5):
            await written.wait()
        driver.end()
    assert tries == [b"old", b"new", b"new"]
    assert posted == [SaveFailed("address_book", "the disk is full")] * 2
    assert driver._unsaved == {}


async def test_what_changes_while_it_is_saved_is_waited_for_too(
    state: StateDirectory, log: DaemonLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two who write names at once: the first waits until the second's is on the disk, or hears that it cannot be."""
    kept: list[bytes] = []
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        driver = Driver(state, log, tasks)

        def save(data: bytes) -> None:
            saving = tasks.create_task(driver._save(fx.Save("catalog", data)))
            driver._saves.add(saving)
            saving.add_done_callback(driver._saves.discard)

        def write(path: Path, data: bytes) -> None:
            if data == b"first":
                loop.call_soon_threadsafe(save, b"second")
            kept.append(data)

        monkeypatch.setattr(disk, "write_atomic", write)
        save(b"first")
        await asyncio.sleep(0)
        await driver.saved("catalog")
        assert kept[-1] == b"second"
        driver.end()


def test_counters_are_one_flat_map_of_our_own_words() -> None:
    one, two = Counter({"garbage": 2}), Counter({"dropped_corrupt": 3})
    driver: Any = SimpleNamespace(
        links=SimpleNamespace(counters=one),
        introduction=SimpleNamespace(counters=one),
        bulk=SimpleNamespace(counters=two),
        serving=SimpleNamespace(counters=Counter()),
    )
    assert _counters(driver) == {
        "links_garbage": 2,
        "introduction_garbage": 2,
        "bulk_dropped_corrupt": 3,
    }


def test_a_worker_is_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERLM_TOKEN", "peerlm1-secret")
    monkeypatch.setenv("HOME", "/home/ada")
    given = torch_environment(threads=2)
    assert "PEERLM_TOKEN" not in given
    assert (given["HOME"], given["OMP_NUM_THREADS"]) == ("/home/ada", "2")


def test_a_log_line_is_one_line_whatever_a_peer_says(
    state: StateDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    log = DaemonLog(state.log, "info")
    log.write("info", "refused", {"why": "\x1b[2J\n12:00:00 error: the run is over"})
    log.close()
    said: Any = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said
