"""The command as the shell sees it: codes, streams, signals, and how fast it is there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from cli_scene import Cli

from peerlm.cli.main import explain, main
from peerlm.errors import (
    AuthError,
    ChunkCorrupt,
    ConfigError,
    DeviceLost,
    StateError,
    Unreachable,
    WireError,
)

PEERLM = (sys.executable, "-m", "peerlm")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (StateError("x"), 3),
        (AuthError("expired", "x"), 4),
        (Unreachable("connect", "x"), 5),
        (WireError("x"), 1),
        (ChunkCorrupt("x"), 1),
        (DeviceLost("x"), 1),
    ],
)
def test_every_kind_of_error_has_its_code(error: Exception, code: int) -> None:
    assert explain(error) == (code, "x")


def test_an_error_of_the_system_names_the_file() -> None:
    assert explain(FileNotFoundError(2, "No such file", "/a")) == (1, "/a: No such file")


def test_a_fault_of_ours_is_a_line_and_a_traceback_only_on_request(
    peerlm: Cli, monkeypatch: pytest.MonkeyPatch, founded: Path
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr("peerlm.cli.status.ask", fail)
    outcome = peerlm("why", "--state", founded)
    assert outcome.code == 1
    assert outcome.err.startswith("peerlm: internal error: ZeroDivisionError: of nothing;")
    monkeypatch.setenv("PEERLM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["why", "--state", str(founded)])


def test_ctrl_c_is_130_and_silent(
    peerlm: Cli, monkeypatch: pytest.MonkeyPatch, founded: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("peerlm.cli.status.ask", interrupt)
    outcome = peerlm("why", "--state", founded)
    assert (outcome.code, outcome.err.strip()) == (130, "")


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    shell = f"{sys.executable} -m peerlm plan show --state {tmp_path}/node | true"
    subprocess.run(
        [*PEERLM, "init", "--state", str(tmp_path / "node")], check=True, capture_output=True
    )
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("streams", "code", "err"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 1, "peerlm: standard output: No space left on device\n"),
    ],
)
def test_streams_that_are_closed_or_full(streams: str, code: int, err: str) -> None:
    for command in ("version", "sim mixing --runs 2 --rounds 2"):
        shell = f"{sys.executable} -m peerlm {command} {streams}"
        for unbuffered in ("", "1"):
            environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
            done = subprocess.run(
                ["bash", "-c", shell], env=environment, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (code, err), command


def test_version_is_there_at_once_and_loads_little() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    took = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [*PEERLM, "version"], env=environment, capture_output=True, text=True, check=True
        )
        took.append(time.perf_counter() - start)
    assert done.stdout.startswith("peerlm ")
    assert min(took) < 0.5  # 0.1 s on an idle machine; this one may be busy


def test_no_command_loads_torch_or_sockets_before_it_needs_them() -> None:
    code = (
        "import sys\n"
        "from peerlm.cli.main import COMMANDS, cli\n"
        "import click\n"
        "for name in COMMANDS: cli.get_command(click.Context(cli), name)\n"
        "print(sorted({'torch', 'zmq', 'uvloop', 'rich', 'tokenizers', 'fsspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def test_usage_errors_are_a_line_that_says_where_to_read_more(peerlm: Cli) -> None:
    outcome = peerlm("join")
    assert outcome.code == 2
    assert outcome.err.startswith("peerlm: Missing ")
    assert outcome.err.endswith("; see `peerlm join --help`\n")
    assert outcome.err.count("\n") == 1


def test_click_is_asked_to_raise_not_to_exit() -> None:
    assert issubclass(click.UsageError, click.ClickException)
    assert main(["status", "--no-such-option"]) == 2
