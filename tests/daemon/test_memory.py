"""Models that no machine of this size can hold are refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from peerlm.config import NodeSettings, Plan, with_changes
from peerlm.daemon.memory import cache_of_texts, memory_of, require_memory
from peerlm.errors import ConfigError


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
