"""Models that no machine of this size can hold are refused before anything is made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from peerlm.config import NodeSettings, Plan, with_changes
from peerlm.daemon import memory
from peerlm.daemon.memory import (
    OFFERED,
    OFFERED_OF_DEVICE,
    cache_of_texts,
    keep_reading,
    memory_of,
    require_memory,
)
from peerlm.errors import ConfigError
from peerlm.events import MemoryRead
from peerlm.types import Memory


def test_a_model_that_cannot_fit_is_refused_with_figures() -> None:
    huge = with_changes(Plan(), {"model.dim": "1000000000"}, "--set")
    with pytest.raises(ConfigError, match=r"parameters takes [\d,.]+ GB .* has 24\.0 GB"):
        require_memory(huge, range(1), 24 * 10**9)


@pytest.mark.parametrize(("free", "texts"), [(400, 100), (64 << 30, 1 << 30)])
def test_texts_get_a_share_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int, texts: int
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert cache_of_texts() == texts


def test_one_that_fits_is_not() -> None:
    require_memory(Plan(), range(1), 10**9)


@pytest.mark.parametrize(
    ("answer", "device", "bytes_offered"),
    [
        ("echo 1000", "auto", 800 * 2**20),
        ("test $4 = 3 && echo 500", "cuda:3", 400 * 2**20),
        ("echo 1000", "cpu", None),
        ("echo no devices were found; exit 6", "auto", None),
        ("echo [N/A]", "auto", None),
    ],
)
def test_a_device_offers_what_its_driver_says_is_free(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    device: str,
    bytes_offered: int | None,
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    settings = with_changes(NodeSettings(), {"train.device": device}, "test")
    assert memory_of(settings).device == bytes_offered


def test_what_a_person_says_of_the_device_counts() -> None:
    settings = with_changes(NodeSettings(), {"host.device_bytes": 7}, "test")
    assert memory_of(settings).device == 7


NVIDIA = """case $1 in
*memory.free) echo 1000 ;;
*) printf '%s, 300\\n1, 70\\n[N/A], 5\\n' $PPID ;;
esac"""


@pytest.mark.parametrize(("answer", "taken"), [(NVIDIA, 300 << 20), ("echo 1000", 7 << 20)])
def test_what_the_node_has_of_a_device_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, taken: int
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = memory_of(NodeSettings(), Memory(7 << 20, 0)).device
    assert found == int(OFFERED_OF_DEVICE * ((1000 << 20) + taken))


def test_what_the_node_has_of_the_host_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30))
    settings = with_changes(NodeSettings(), {"train.device": "cpu"}, "test")
    assert OFFERED * (1 << 30) < memory_of(settings).host < OFFERED * (9 << 30)


async def test_it_is_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "READ_S", 0.0)
    heard: asyncio.Queue[object] = asyncio.Queue()
    settings = with_changes(NodeSettings(), {"host.memory_bytes": 9, "train.device": "cpu"}, "test")
    task = asyncio.ensure_future(keep_reading(settings, lambda: Memory(0, 0), heard.put_nowait))
    assert [await heard.get() for _ in range(2)] == [MemoryRead(Memory(None, 9))] * 2
    task.cancel()
    said = with_changes(NodeSettings(), {"host.memory_bytes": 9, "host.device_bytes": 9}, "test")
    await keep_reading(said, lambda: Memory(0, 0), heard.put_nowait)
