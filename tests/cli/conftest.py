"""The real command in this process, a node made once, and a daemon that only answers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peerlm.cli.main import main
from peerlm.store.layout import Layout

sys.path.append(str(Path(__file__).parent))

from cli_scene import SMALL, Cli, FakeDaemon, Outcome, answer_of, sample_summary, serving


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PEERLM_STATE", "STATE_DIRECTORY", "PEERLM_TOKEN", "PEERLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("peerlm.cli.state.SERVICE_STATE", tmp_path / "no-service")


@pytest.fixture
def peerlm(capsys: pytest.CaptureFixture[str]) -> Cli:
    """`peerlm("init", "--state", folder)` runs the command; gives code, stdout, stderr."""

    def run(*args: object) -> Outcome:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def _founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("founded") / "node"
    assert main(["init", "--state", str(folder), *SMALL]) == 0
    return folder


@pytest.fixture
def founded(_founded: Path, tmp_path: Path) -> Path:
    """A folder in which `peerlm init` has been run."""
    return Path(shutil.copytree(_founded, tmp_path / "node"))


@pytest.fixture
def daemon(founded: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(Layout(founded), [], {"status": answer_of(sample_summary())})

    async def handle(command: str, args: dict[str, Any]) -> dict[str, Any]:
        fake.asked.append((command, args))
        answer = fake.answers.get(command, {})
        if isinstance(answer, Exception):
            raise answer
        if command in ("stop", "leave"):
            fake.layout.control_socket.unlink()
        return dict(answer)

    with serving(fake.layout, handle):
        yield fake
