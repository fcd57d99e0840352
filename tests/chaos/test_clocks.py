"""A clock that is wrong: what a program that goes by it sees, where libfaketime is installed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from peerlm.bench.rows import Missed
from peerlm.chaos import clocks
from peerlm.chaos.clocks import Clock, library

TELL = "import time; print(time.time(), time.monotonic(), flush=True)"


def test_without_the_library_it_is_said_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(Missed, match="install the package faketime"):
        library(tmp_path)


def test_it_is_found_where_distributions_put_it(tmp_path: Path) -> None:
    place = tmp_path / "usr/lib/x86_64-linux-gnu/faketime"
    place.mkdir(parents=True)
    (place / clocks.NAME).touch()
    assert library(tmp_path) == place / clocks.NAME


def test_steps_add_up_and_can_be_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "library", lambda: Path("lib.so"))
    clock = Clock(tmp_path / "clock")
    for seconds in (3600.0, -7200.0):
        clock.step(seconds)
    assert (tmp_path / "clock").read_text() == "-3600.000\n"
    clock.set_right()
    assert float((tmp_path / "clock").read_text()) == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "clock"]


def test_a_program_goes_by_it_and_still_counts_time_as_ever(tmp_path: Path) -> None:
    try:
        library()
    except Missed:
        pytest.skip("no libfaketime")
    clock = Clock(tmp_path / "clock")
    clock.step(86_400.0)
    command = clock.program([sys.executable, "-c", TELL])
    wall_before, before = time.time(), time.monotonic()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    wall, counted = map(float, said)
    assert 86_400 <= wall - wall_before < 86_460
    assert before <= counted < before + 60
