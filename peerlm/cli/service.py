"""`peerlm service install | uninstall | status`: this machine's node under systemd.

What is to be done is worked out first, as a list of steps; then they are shown (`--dry-run`) or done, one
after the other. The unit files are those of the folder systemd/ of the source, with the path of this peerlm.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import click

from peerlm.cli.commands import Commands
from peerlm.errors import ConfigError, PeerlmError, StateError
from peerlm.store import disk
from peerlm.types import printable

UNITS = Path("etc/systemd/system")
WANTS = UNITS / "multi-user.target.wants"
UNIT_FILES = ("peerlm.service", "peerlm@.service")
SYSUSERS = Path("etc/sysusers.d/peerlm.conf")
GROUP = "peerlm-operators"
EXEC = "/opt/peerlm/bin/peerlm"
"""The path that the unit files carry."""

HIDDEN = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")
"""What ProtectHome= and PrivateTmp= hide from a service."""

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "StatusText",
    "NRestarts",
    "MainPID",
    "UnitFileState",
)


@dataclass(frozen=True, slots=True)
class Write:
    """A file to be there with this text."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"write {self.path} ({len(self.text.splitlines())} lines)"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder to be there, its owner's alone."""

    path: Path

    def __str__(self) -> str:
        return f"make the folder {self.path}"


@dataclass(frozen=True, slots=True)
class Remove:
    """A file, or a folder if it is empty, not to be there."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"


@dataclass(frozen=True, slots=True)
class Run:
    """A command to succeed."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"run {' '.join(self.words)}"


Step = Write | Folder | Remove | Run


# ------------------------------------------------------------------------------------- what to do


def unit_name(instance: str) -> str:
    return f"peerlm@{instance}.service" if instance else "peerlm.service"


def folder_name(instance: str) -> str:
    """Of its folders below /var/lib and /run."""
    return f"peerlm-{instance}" if instance else "peerlm"


def install_steps(
    root: Path, units: Path, executable: Path, instance: str, *, cuda: bool, now: bool
) -> list[Step]:
    """To have the service below `root`; commands are run only where that is `/`."""
    file = UNIT_FILES[bool(instance)]
    text = (units / file).read_text(encoding="utf-8").replace(EXEC, str(executable))
    steps: list[Step] = [Write(root / UNITS / file, text)]
    if cuda:
        cuda_text = (units / "cuda.conf").read_text(encoding="utf-8")
        steps.append(Write(root / UNITS / f"{file}.d" / "cuda.conf", cuda_text))
    elif (root / UNITS / f"{file}.d" / "cuda.conf").exists():
        steps.append(Remove(root / UNITS / f"{file}.d" / "cuda.conf"))
    steps.append(Write(root / SYSUSERS, (units / "peerlm.sysusers").read_text(encoding="utf-8")))
    state = root / "var/lib" / folder_name(instance)
    if not os.path.lexists(state):
        steps.append(Folder(state))
    if root == Path("/"):
        enable = ("systemctl", "enable", *(("--now",) if now else ()), unit_name(instance))
        steps += [
            Run(("systemd-sysusers", str(root / SYSUSERS))),
            Run(("systemctl", "daemon-reload")),
            Run(enable),
        ]
    return steps


def uninstall_steps(root: Path, instance: str, running: Set[str] = frozenset()) -> list[Step]:
    """To have it no more. What other services of peerlm's use, enabled or `running`, stays, as do state and the group."""
    steps: list[Step] = []
    if root == Path("/"):
        steps.append(Run(("systemctl", "disable", "--now", unit_name(instance))))
    enabled = {path.name for path in (root / WANTS).glob("peerlm@*.service")}
    if not instance or not (enabled | running) - {unit_name(instance)}:
        file, other = UNIT_FILES if not instance else reversed(UNIT_FILES)
        drop_ins = root / UNITS / f"{file}.d"
        gone = (root / UNITS / file, drop_ins / "cuda.conf", drop_ins)
        is_last = not os.path.lexists(root / UNITS / other)
        steps += [
            Remove(path)
            for path in (*gone, *([root / SYSUSERS] if is_last else []))
            if os.path.lexists(path)
        ]
    if root == Path("/"):
        steps.append(Run(("systemctl", "daemon-reload")))
    return steps


def _running_instances() -> set[str]:
    """Units of several nodes on this machine that systemd has in hand."""
    listed = _run(("systemctl", "list-units", "--plain", "--no-legend", "peerlm@*.service"))
    return {line.split()[0] for line in listed.splitlines() if line.split()}


def find_units() -> Path:
    """The folder of unit files: beside an installed peerlm, or in its source. Raises `StateError`."""
    import peerlm

    source = Path(peerlm.__file__).parent.parent / "systemd"
    for folder in (Path(sys.prefix) / "share/peerlm/systemd", source):
        if (folder / "peerlm.service").is_file():
            return folder
    raise StateError("the unit files are missing from this installation; install peerlm again")


def find_executable() -> Path:
    """The `peerlm` of this installation, where a service can see it. Raises `ConfigError`."""
    executable = Path(sys.prefix) / "bin" / "peerlm"
    if not executable.is_file():
        raise ConfigError(f"no {executable}: install peerlm into a virtual environment first")
    for path in (executable, Path(sys.base_prefix)):
        if any(path.is_relative_to(hidden) for hidden in HIDDEN):
            raise ConfigError(
                f"{path} is in a home or temporary folder, which a service cannot see: install peerlm elsewhere, say "
                "`/usr/bin/python3 -m venv /opt/peerlm && /opt/peerlm/bin/pip install -c constraints.txt .`"
            )
    return executable


# ------------------------------------------------------------------------------------- doing it


def carry_out(steps: list[Step], *, dry_run: bool) -> None:
    """Show the steps or do them. Raises `StateError` or `PeerlmError` at the first that fails."""
    for step in steps:
        click.echo(f"would {step}" if dry_run else str(step))
        if not dry_run:
            _do(step)


def _do(step: Step) -> None:
    try:
        match step:
            case Write(path, text):
                if path.is_symlink():
                    raise StateError(
                        f"{path} is a link; if it is masked: systemctl unmask {path.name}"
                    )
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                disk.write_atomic(path, text.encode(), mode=0o644)
            case Folder(path):
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                path.mkdir(mode=0o700)
            case Remove(path):
                if not path.is_dir():
                    path.unlink(missing_ok=True)
                elif not any(path.iterdir()):  # drop-ins of somebody else stay
                    path.rmdir()
            case Run(words):
                _run(words)
    except OSError as error:
        raise StateError(f"cannot {step}: {error.strerror}") from None


def _run(words: tuple[str, ...]) -> str:
    """What it printed. Raises `PeerlmError` with its last line if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise PeerlmError(f"{' '.join(words)}: {said[-1]}")
    return done.stdout


def _require_systemd() -> None:
    """Raises `StateError`."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        raise StateError(
            "systemd does not run this machine: start `peerlm up` by what does, or see "
            "`peerlm service install --dry-run`"
        )


def _prepare(root: Path, *, dry_run: bool) -> None:
    if dry_run or root != Path("/"):
        return
    _require_systemd()
    if os.geteuid() != 0:
        raise StateError("a service is installed by root: sudo peerlm service …, or --dry-run")


# ------------------------------------------------------------------------------------- commands


def _instance(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,31}", value):
        raise click.BadParameter(f"{value!r}: small letters, digits and _ only, at most 32")
    return value


INSTANCE = click.option(
    "--instance",
    metavar="NAME",
    default="",
    callback=_instance,
    help="One of several nodes of this machine: peerlm@NAME, with a state folder of its own.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would be done; do nothing.")
ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("/"),
    metavar="DIR",
    help="Write the files below DIR, for an image, and run nothing.",
)


@click.group(
    cls=Commands,
    commands_at={
        "install": "service:install",
        "uninstall": "service:uninstall",
        "status": "service:status",
    },
    short_help="Run this machine's node under systemd.",
)
def service() -> None:
    """Run this machine's node under systemd: it starts with the machine, is watched, and is restarted.

    \b
    Examples:
      sudo peerlm service install --now && sudo peerlm join ada --token T
      sudo peerlm service install && sudo peerlm init && sudo systemctl start peerlm
      peerlm service status
    """


@click.command(short_help="Put the service in place.")
@INSTANCE
@click.option("--cuda", is_flag=True, help="Let it use NVIDIA devices.")
@click.option("--now", is_flag=True, help="Start it too.")
@ROOT
@DRY_RUN
def install(instance: str, cuda: bool, now: bool, root: Path, dry_run: bool) -> None:
    """Put the service in place: unit file, group of its operators, state folder; and have it start with the
    machine. Running it again brings the unit file up to date.

    \b
    Examples:
      sudo peerlm service install --now
      sudo peerlm service install --cuda --instance gpu1
      peerlm service install --dry-run
    """
    _prepare(root, dry_run=dry_run)
    here = root == Path("/")
    executable = Path(EXEC)
    if here:
        executable = Path(sys.prefix) / "bin" / "peerlm" if dry_run else find_executable()
    steps = install_steps(root, find_units(), executable, instance, cuda=cuda, now=now)
    carry_out(steps, dry_run=dry_run)
    if dry_run and here:
        find_executable()  # says what would be in the way
    if dry_run or not here:
        return
    unit = unit_name(instance)
    if not now:
        at = f" --state /var/lib/{folder_name(instance)}" if instance else ""
        click.echo(
            f"installed; next: systemctl start {unit}; to make a run, `peerlm init{at}` first"
        )
    click.echo(
        f"to enter a run: peerlm join ADDRESS --token TOKEN; who may ask it: members of {GROUP} "
        f"(usermod -aG {GROUP} USER); its log: journalctl -u {unit}"
    )


@click.command(short_help="Stop the service and take it away.")
@INSTANCE
@ROOT
@DRY_RUN
def uninstall(instance: str, root: Path, dry_run: bool) -> None:
    """Stop the service, which leaves its swarm, and take it away. The node's state folder stays.

    \b
    Example:
      sudo peerlm service uninstall
    """
    _prepare(root, dry_run=dry_run)
    running = set()
    if root == Path("/") and Path("/run/systemd/system").is_dir():
        running = _running_instances()
    carry_out(uninstall_steps(root, instance, running), dry_run=dry_run)
    state = root / "var/lib" / folder_name(instance)
    if not dry_run and os.path.lexists(state):
        click.echo(f"the node is kept in {state}; `peerlm rm --state {state}` deletes it")


@click.command(short_help="Show how the service does.")
@INSTANCE
def status(instance: str) -> None:
    """Show what systemd knows of the service: whether it runs, what it says of itself, how often it was
    started again. Exit code 3 when it does not run.

    \b
    Example:
      peerlm service status
    """
    _require_systemd()
    unit = unit_name(instance)
    known = dict(
        line.split("=", 1)
        for line in _run(("systemctl", "show", unit, "-p", ",".join(PROPERTIES))).splitlines()
        if "=" in line
    )
    if known["LoadState"] == "not-found":
        raise StateError(f"{unit} is not installed: sudo peerlm service install")
    click.echo(f"{unit}: {known['ActiveState']} ({known['SubState']}), {known['UnitFileState']}")
    if known["StatusText"]:
        click.echo(printable(known["StatusText"]))
    click.echo(f"process {known['MainPID']}, started again {known['NRestarts']} times")
    if known["ActiveState"] != "active":
        raise StateError(f"{unit} does not run: journalctl -u {unit} says why")
