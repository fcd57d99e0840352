"""The service: what would be done to install it, and what the daemon takes from its surroundings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_scene import Cli, assert_one_line

from peerlm.cli import service
from peerlm.cli.service import Folder, Remove, Run, Write, install_steps, uninstall_steps
from peerlm.cli.state import default_folder
from peerlm.cli.surroundings import JOURNAL, Surroundings, surroundings
from peerlm.errors import ConfigError, StateError

UNITS = Path(__file__).parents[2] / "systemd"
HERE = Path("/")
EXECUTABLE = Path("/srv/peerlm/bin/peerlm")


def test_what_install_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    steps = install_steps(HERE, UNITS, EXECUTABLE, "", cuda=True, now=True)
    assert [str(step).split(" (")[0] for step in steps] == [
        "write /etc/systemd/system/peerlm.service",
        "write /etc/systemd/system/peerlm.service.d/cuda.conf",
        "write /etc/sysusers.d/peerlm.conf",
        "make the folder /var/lib/peerlm",
        "run systemd-sysusers /etc/sysusers.d/peerlm.conf",
        "run systemctl daemon-reload",
        "run systemctl enable --now peerlm.service",
    ]
    assert isinstance(steps[0], Write)
    assert f"ExecStart={EXECUTABLE} up --wait " in steps[0].text


def test_a_state_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/peerlm").symlink_to("private/peerlm")  # as systemd leaves it
    steps = install_steps(tmp_path, UNITS, EXECUTABLE, "", cuda=False, now=False)
    assert not [step for step in steps if isinstance(step, Folder | Run)]


def test_an_instance_has_a_folder_of_its_own_and_shares_the_unit(tmp_path: Path) -> None:
    steps = install_steps(tmp_path, UNITS, EXECUTABLE, "gpu1", cuda=False, now=False)
    assert isinstance(steps[0], Write)
    assert steps[0].path == tmp_path / "etc/systemd/system/peerlm@.service"
    assert Folder(tmp_path / "var/lib/peerlm-gpu1") in steps
    assert "StateDirectory=peerlm-%i\n" in steps[0].text
    assert Run(("systemctl", "disable", "--now", "peerlm@gpu1.service")) in uninstall_steps(
        HERE, "gpu1"
    )


def test_the_two_units_differ_only_in_names() -> None:
    one, many = ((UNITS / name).read_text() for name in ("peerlm.service", "peerlm@.service"))
    body = one[one.index("[Unit]") :]
    for name, instance in (
        ("peerlm node:", "peerlm node %i:"),
        ("Directory=peerlm\n", "Directory=peerlm-%i\n"),
        ("/etc/peerlm/invite", "/etc/peerlm/invite-%i"),
    ):
        body = body.replace(name, instance)
    assert many[many.index("[Unit]") :] == body


def test_files_for_an_image_and_away_again(peerlm: Cli, tmp_path: Path) -> None:
    assert peerlm("service", "install", "--cuda", "--root", tmp_path).code == 0
    units = tmp_path / "etc/systemd/system"
    assert f"ExecStart={service.EXEC} up" in (units / "peerlm.service").read_text()
    assert (units / "peerlm.service").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "var/lib/peerlm").stat().st_mode & 0o777 == 0o700
    assert peerlm("service", "install", "--root", tmp_path).code == 0
    gone = peerlm("service", "uninstall", "--root", tmp_path)
    assert gone.code == 0
    assert "the node is kept in" in gone.out
    assert list(units.iterdir()) == []
    assert not (tmp_path / service.SYSUSERS).exists()
    assert uninstall_steps(tmp_path, "") == [], "there is nothing to take away any more"


def test_the_unit_file_of_instances_goes_with_the_last_of_them(peerlm: Cli, tmp_path: Path) -> None:
    units, wants = tmp_path / service.UNITS, tmp_path / service.WANTS
    for instance in ("gpu0", "gpu1"):
        assert peerlm("service", "install", "--root", tmp_path, "--instance", instance).code == 0
    wants.mkdir()
    for instance in ("gpu0", "gpu1"):  # as `systemctl enable` leaves them
        (wants / f"peerlm@{instance}.service").symlink_to("../peerlm@.service")
    assert uninstall_steps(tmp_path, "gpu0") == [], "gpu1 uses it"
    running = {"peerlm@gpu2.service"}
    assert uninstall_steps(tmp_path, "gpu1", running) == [], "gpu2 is not enabled, but runs"
    (wants / "peerlm@gpu0.service").unlink()
    assert uninstall_steps(tmp_path, "gpu1") == [
        Remove(units / "peerlm@.service"),
        Remove(tmp_path / service.SYSUSERS),
    ]
    assert peerlm("service", "install", "--root", tmp_path).code == 0
    assert uninstall_steps(tmp_path, "") == [Remove(units / "peerlm.service")]


def test_a_masked_unit_is_left_alone_and_drop_ins_of_others_stay(
    peerlm: Cli, tmp_path: Path
) -> None:
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    (tmp_path / "null").write_text("")
    (units / "peerlm.service").symlink_to(tmp_path / "null")
    assert_one_line(peerlm("service", "install", "--root", tmp_path), 3, "systemctl unmask")
    assert (tmp_path / "null").read_text() == ""
    (units / "peerlm.service").unlink()
    assert peerlm("service", "install", "--cuda", "--root", tmp_path).code == 0
    (units / "peerlm.service.d/mine.conf").write_text("[Service]\n")
    assert peerlm("service", "install", "--root", tmp_path).code == 0
    assert [p.name for p in (units / "peerlm.service.d").iterdir()] == ["mine.conf"]
    assert peerlm("service", "uninstall", "--root", tmp_path).code == 0
    assert [p.name for p in units.iterdir()] == ["peerlm.service.d"]


def test_a_dry_run_says_what_and_does_nothing(peerlm: Cli, tmp_path: Path) -> None:
    shown = peerlm("service", "install", "--root", tmp_path, "--dry-run")
    assert shown.code == 0
    assert all(line.startswith("would ") for line in shown.out.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_is_refused_with_the_cure(
    peerlm: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "HIDDEN", ("/home",))
    monkeypatch.setattr(sys, "base_prefix", "/home/ada/python")
    with pytest.raises(
        ConfigError, match=r"/home/ada/python is in a home or temporary folder.* /opt/peerlm"
    ):
        service.find_executable()


@pytest.mark.parametrize("name", ["a/b", "A", "-x", "%i", "x" * 33])
def test_bad_names_of_instances(peerlm: Cli, name: str) -> None:
    assert_one_line(peerlm("service", "install", f"--instance={name}", "--dry-run"), 2, "small")


def test_a_file_that_cannot_be_written_is_one_line(peerlm: Cli, tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("")
    assert_one_line(peerlm("service", "install", "--root", tmp_path), 3, "cannot write")


def test_a_command_that_fails_is_one_line() -> None:
    with pytest.raises(Exception, match=r"^sh -c echo this >&2; exit 3: this$"):
        service._run(("sh", "-c", "echo this >&2; exit 3"))


# ------------------------------------------------------------------------------------- surroundings


def test_nothing_around_us() -> None:
    assert surroundings({}) == Surroundings()


def test_what_systemd_says(capfd: pytest.CaptureFixture[str]) -> None:
    status = os.fstat(sys.stderr.fileno())
    around = surroundings(
        {
            "NOTIFY_SOCKET": "/run/systemd/notify",
            "WATCHDOG_USEC": "3000000",
            "WATCHDOG_PID": str(os.getpid()),
            "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
            "CREDENTIALS_DIRECTORY": "/run/credentials/peerlm.service",
        }
    )
    assert around == Surroundings(
        "/run/systemd/notify", 3.0, JOURNAL, "/run/credentials/peerlm.service"
    )


def test_another_process_watchdog_and_another_stream_are_not_ours() -> None:
    around = surroundings(
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1", "JOURNAL_STREAM": "8:1"}
    )
    assert around == Surroundings()


@pytest.mark.parametrize("value", ["soon", "0", "-1"])
def test_a_watchdog_time_that_is_none(value: str) -> None:
    with pytest.raises(ConfigError, match=f"WATCHDOG_USEC = '{value}'"):
        surroundings({"WATCHDOG_USEC": value})


@pytest.mark.parametrize(
    ("text", "invite"), [("-", ""), ("", ""), (" tcp://ada T\n", "tcp://ada T")]
)
def test_the_invite_that_was_laid_down(tmp_path: Path, text: str, invite: str) -> None:
    assert Surroundings(credentials=str(tmp_path)).invite() == ""
    (tmp_path / "invite").write_text(text)
    assert Surroundings(credentials=str(tmp_path)).invite() == invite


def test_an_invite_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "invite").write_bytes(b"\xff")
    with pytest.raises(StateError, match="credential invite: cannot be read"):
        Surroundings(credentials=str(tmp_path)).invite()


def test_the_folder_of_the_service_comes_before_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("peerlm.cli.state.SERVICE_STATE", tmp_path / "peerlm")
    assert default_folder() == tmp_path / "xdg/peerlm"
    (tmp_path / "peerlm").symlink_to("private/peerlm")  # which others than root cannot follow
    assert default_folder() == tmp_path / "peerlm"
    monkeypatch.setenv("STATE_DIRECTORY", "/srv/one:/srv/two")
    assert default_folder() == Path("/srv/one")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_in_the_service_folder_belongs_to_the_service(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    os.chown(folder, 4711, 4711)
    done = subprocess.run(
        [sys.executable, "-m", "peerlm.__main__", "init", "--state", folder],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    owners = {path.relative_to(folder): path.lstat().st_uid for path in folder.rglob("*")}
    assert set(owners.values()) == {4711}, owners
