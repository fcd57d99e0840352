"""The rig of containers: what can be said of it without an engine. `make rig` is the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peerlm.chaos.scenario import Scenario

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"

INTERRUPTED = f"""
import os, signal, sys
from contextlib import contextmanager

sys.path.insert(0, {str(DEPLOY)!r})
import rig

def tell(*words):
    print(*words, flush=True)

@contextmanager
def engine(folder):
    tell("folder", folder)
    try:
        yield "unix:///nowhere", "base"
    finally:
        tell("engine ended")

class Rig:
    def __init__(self, *about):
        pass

    def up(self):
        pass

    def build(self):
        tell("building")
        signal.pause()

    def down(self):
        os.kill(os.getpid(), signal.SIGTERM)
        tell("taken down")

rig.engine, rig.Rig, rig.os.geteuid = engine, Rig, lambda: 0
sys.exit(rig.main())
"""


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(DEPLOY)
    import rig

    return rig


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_told_to_end_takes_everything_down_before(number: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "SCENARIO": ""},
    ) as process:
        assert process.stdout is not None
        folder = process.stdout.readline().split()[1]
        assert Path(folder).is_dir()
        assert process.stdout.readline() == "building\n"
        process.send_signal(number)
        told, complained = process.communicate(timeout=30)
    assert told.splitlines() == ["taken down", "engine ended"], "told twice, it did it once"
    assert complained == "rig: interrupted; everything is taken down\n"
    assert process.returncode == 130
    assert not Path(folder).exists()


def test_what_a_failed_build_left_is_taken_down_too(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Failing:
        def __init__(self, *_: object) -> None: ...

        def up(self) -> None: ...

        def build(self) -> None:
            raise rig.RigFailed("no room")

        def down(self) -> None:
            done.append("down")

    monkeypatch.setattr(rig, "Rig", Failing)
    with pytest.raises(rig.RigFailed, match="no room"):
        rig.play(Scenario("x", 2, 1.0), "unix:///nowhere", "base")
    assert done == ["down"]


@pytest.mark.parametrize("is_stuck", [False, True])
def test_what_is_labelled_is_removed_and_what_stays_is_told(
    rig: Any, monkeypatch: pytest.MonkeyPatch, is_stuck: bool
) -> None:
    there = {
        ("ps", rig.OWN): {"c1", "c2"},
        ("ps", rig.BUILT): {"c3"},
        ("network", rig.OWN): {"n1"},
        ("volume", rig.OWN): {"v1"},
        ("images", rig.BUILT): {"i1"},
    }

    def run(*words: str, **_: object) -> str:
        if words[0] != "docker" or words[1] != "-H":
            raise rig.RigFailed("compose: no such project")
        return "\n".join(there[words[3], words[-1].removeprefix("label=")])

    def remove(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        for names in there.values():
            names -= set(command) - ({"v1"} if is_stuck else set())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(rig, "run", run)
    monkeypatch.setattr(rig.subprocess, "run", remove)
    project = rig.Rig(Scenario("x", 2, 1.0), "unix:///nowhere", "base")
    if is_stuck:
        with pytest.raises(rig.RigFailed, match="docker volume v1"):
            project.down()
    else:
        project.down()
    assert set().union(*there.values()) == ({"v1"} if is_stuck else set())


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("torch-2", "setuptools-84", "peerlm-0"):
        (wheels / f"{name}-py3-none-any.whl").write_text(name)
    return wheels


def test_without_a_network_only_peerlms_own_wheel_is_made_anew(
    rig: Any, monkeypatch: pytest.MonkeyPatch, fetched: Path
) -> None:
    asked: list[str] = []

    def run(*words: object, **_: object) -> str:
        asked.extend(map(str, words))
        made = Path(asked[asked.index("--wheel-dir") + 1])
        (made / "peerlm-1-py3-none-any.whl").write_text("new")
        return ""

    monkeypatch.setattr(rig, "run", run)
    rig.make_wheels(fetched)
    assert "--no-index" in asked
    assert asked[asked.index("--find-links") + 1] == str(fetched)
    assert sorted(w.name.partition("-py3")[0] for w in fetched.iterdir()) == [
        "peerlm-1",
        "setuptools-84",
        "torch-2",
    ]


def test_a_build_that_fails_leaves_the_wheels_that_there_were(
    rig: Any, monkeypatch: pytest.MonkeyPatch, fetched: Path
) -> None:
    def run(*_: object, **__: object) -> str:
        raise rig.RigFailed("pip")

    monkeypatch.setattr(rig, "run", run)
    with pytest.raises(rig.RigFailed):
        rig.make_wheels(fetched)
    assert len(list(fetched.iterdir())) == 3


@pytest.mark.parametrize("lacking", ["torch", "setuptools"])
def test_what_lacks_for_a_build_without_a_network_is_fetched(
    rig: Any, monkeypatch: pytest.MonkeyPatch, fetched: Path, lacking: str
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(rig, "run", lambda *words, **_: asked.append(words))
    for wheel in fetched.glob(f"{lacking}-*"):
        wheel.unlink()
    rig.make_wheels(fetched)
    assert asked == [(DEPLOY / "fetch-wheels.sh",)]
