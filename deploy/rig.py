"""A rig of containers, from nothing to a report: `make rig`, or `make rig SCENARIO=FILE`.

Builds the image without a network, brings the nodes of a scenario up with compose, makes the trouble that the file says
(`peerlm chaos` plays the same files with namespaces), prints the same report, takes everything down and leaves
nothing behind, also when it is interrupted (Ctrl-C, SIGTERM, a closed terminal). Needs root: nodes in containers are asked how they are through /proc.

Where Docker's engine runs it is used, with the image PEERLM_BASE (python:3.11-slim-bookworm). Else, as root and with
dockerd, debootstrap and ip installed, an engine of its own is started in a network namespace of its own, from which
nothing can be reached, on a base system that is made once and kept in the user's cache. Compose is whatever there is: `docker
compose`, else `docker-compose`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from containers import PROJECT, Containers, ContainerSwarm, Engine, check

from peerlm.bench.cgroups import swept
from peerlm.bench.founding import options
from peerlm.chaos.course import Course
from peerlm.chaos.scenario import Scenario, read_scenario
from peerlm.chaos.verdict import missed_bars
from peerlm.chaos.world import node_settings_of, plan_of
from peerlm.cli.chaos import report_lines
from peerlm.cli.leash import die_with_parent, interrupt_on_terminate, undisturbed
from peerlm.errors import ConfigError, PeerlmError

HERE = Path(__file__).parent
ROOT = HERE.parent
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,procps"
BASE = "peerlm-rig-base"
ENGINE_S = 30.0
INTERRUPTED = 130

OWN = f"com.docker.compose.project={PROJECT}"
BUILT = f"peerlm.image={PROJECT}"
LEFTOVERS = (
    (("ps", "-aq"), OWN, ("rm", "--force", "--volumes")),
    (("ps", "-aq"), BUILT, ("rm", "--force", "--volumes")),
    (("network", "ls", "-q"), OWN, ("network", "rm")),
    (("volume", "ls", "-q"), OWN, ("volume", "rm", "--force")),
    (("images", "-q"), BUILT, ("rmi", "--force")),
)
"""How to list what may be left of a rig, by which label, and how to remove it."""

SCENARIO = HERE / "scenarios/containers.toml"


class RigFailed(PeerlmError):
    """In one line."""


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def run(*words: str | Path, **more: Any) -> str:
    """Raises `RigFailed` with the last thing it said."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise RigFailed(f"{' '.join(map(str, words[:4]))}: {said}")
    return str(done.stdout)


# ---------------------------------------------------------------------------------- the engine


@contextmanager
def engine(folder: Path) -> Iterator[tuple[str, str]]:
    """(address of its socket, image to build on)."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        raise RigFailed(
            f"DOCKER_HOST={host}: nodes are asked through /proc, so the engine must be this machine's: unix://…"
        )
    if shutil.which("docker") is None:
        raise RigFailed("docker is not installed")
    if (
        subprocess.run(["docker", "-H", host, "info"], capture_output=True, check=False).returncode
        == 0
    ):
        yield host, os.environ.get("PEERLM_BASE", "python:3.11-slim-bookworm")
        return
    for program in ("docker", "dockerd", "debootstrap", "ip", "nsenter"):
        if shutil.which(program) is None:
            raise RigFailed(f"no engine runs, and there is no {program} to start one with")
    if os.geteuid() != 0:
        raise RigFailed("no engine runs; to start one of its own this needs root")
    base = base_system()
    namespace = f"peerlm-rig-{os.getpid()}"
    run("ip", "netns", "add", namespace)
    try:
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        host = f"unix://{folder}/docker.sock"
        with (folder / "dockerd.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{namespace}", "dockerd", "-H", host),
                    *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/run"),
                    *("--pidfile", f"{folder}/pid"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
        with swept("docker"):
            try:
                wait_for_engine(host, process)
                run("docker", "-H", host, "import", base, BASE)
                yield host, BASE
            finally:
                with undisturbed():
                    end_engine(process, folder)
    finally:
        with undisturbed():
            run("ip", "netns", "del", namespace)


def end_engine(process: subprocess.Popen[bytes], folder: Path) -> None:
    """With all that it runs, and what is mounted in its folder."""
    process.terminate()
    try:
        process.wait(ENGINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        if (place := line.split()[1]).startswith(str(folder)):
            subprocess.run(["umount", "-l", place], check=False)


def wait_for_engine(host: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + ENGINE_S
    while subprocess.run(
        ["docker", "-H", host, "info"], capture_output=True, check=False
    ).returncode:
        if process.poll() is not None or time.monotonic() > end:
            raise RigFailed("dockerd does not start; it wants root, cgroups and iptables")
        time.sleep(0.2)


def base_system() -> Path:
    """A small Debian as a tar file, made at the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "peerlm"
    kept = cache / f"rig-{SUITE}.tar"
    if not kept.exists():
        say("making a base system (once)")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, folder)
            making = kept.with_suffix(".making")
            run("tar", "-C", folder, "--exclude=./proc/*", "--exclude=./sys/*", "-cf", making, ".")
            making.rename(kept)
    return kept


# ---------------------------------------------------------------------------------- the swarm


class Rig:
    """The compose project of a scenario."""

    def __init__(self, scenario: Scenario, host: str, base: str) -> None:
        self._host = host
        local = {"limits.threads": 1, **node_settings_of(scenario)}
        self._environment = os.environ | {
            "DOCKER_HOST": host,
            "DOCKER_BUILDKIT": "0",
            "PEERLM_IMAGE": PROJECT,
            "PEERLM_BASE": base,
            "PEERLM_INIT": " ".join(
                ("--preset", scenario.preset, *options("--set", plan_of(scenario)))
            ),
            "PEERLM_UP": " ".join(options("--set-node", local)),
        }
        self._nodes = scenario.nodes
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        self._compose = ("docker", "compose") if plugin.returncode == 0 else ("docker-compose",)

    def compose(self, *words: str) -> str:
        file = ("-p", PROJECT, "-f", str(HERE / "compose.yaml"))
        return run(*self._compose, *file, *words, env=self._environment)

    def build(self) -> None:
        make_wheels(HERE / "wheels")
        say("building the image, without a network")
        self.compose("build", "init")

    def up(self) -> None:
        self.compose("up", "-d", "--no-build", "--scale", f"node={self._nodes - 1}")

    def down(self) -> None:
        """Raises `RigFailed` with what is left all the same."""
        say("taking it down")
        try:
            self.compose("--profile", "chaos", "down", "--volumes", "--timeout", "20")
        except RigFailed as error:  # there may be nothing yet, or half of it
            say(f"rig: {error}")
        for list_them, label, remove in LEFTOVERS:
            if left := self._labelled(list_them, label):
                subprocess.run(
                    ["docker", "-H", self._host, *remove, *left], capture_output=True, check=False
                )
        if left := [
            f"{words[0]} {name}"
            for words, label, _ in LEFTOVERS
            for name in self._labelled(words, label)
        ]:
            raise RigFailed(f"could not be removed: docker {', '.join(left)}")

    def _labelled(self, words: Sequence[str], label: str) -> list[str]:
        told = run("docker", "-H", self._host, *words, "--filter", f"label={label}")
        return sorted(set(told.split()))


def make_wheels(wheels: Path) -> None:
    """All that the image is made of; without a network, once everything else has been fetched for these versions. peerlm's own is
    always made anew. Raises `RigFailed`."""
    fetched = max((w.stat().st_mtime for w in wheels.glob("torch-*.whl")), default=0.0)
    wanted = max((ROOT / f).stat().st_mtime for f in ("pyproject.toml", "constraints.txt"))
    if fetched < wanted or not any(wheels.glob("setuptools-*.whl")):
        say("fetching wheels")
        run(HERE / "fetch-wheels.sh", env=os.environ | {"PYTHON": sys.executable})
        return
    with tempfile.TemporaryDirectory() as made:
        run(
            *(sys.executable, "-m", "pip", "wheel", "--no-deps"),
            *("--no-index", "--find-links", wheels, "--wheel-dir", made, ROOT),
        )
        for old in wheels.glob("peerlm-*.whl"):
            old.unlink()
        for wheel in Path(made).glob("peerlm-*.whl"):
            shutil.move(wheel, wheels)


def play(scenario: Scenario, host: str, base: str) -> list[str]:
    """Print the report; what it misses."""
    rig = Rig(scenario, host, base)
    docker = Engine(host.removeprefix("unix://"))
    swarm = ContainerSwarm(scenario.nodes, docker, rig.up)
    try:
        rig.build()
        report = Course(scenario, Containers(swarm, docker), say, faults=True).run()
    finally:
        with undisturbed():
            rig.down()
    for line in report_lines(report):
        sys.stdout.write(f"{line}\n")
    return missed_bars(report)


def main() -> int:
    interrupt_on_terminate()
    path = Path(os.environ.get("SCENARIO") or SCENARIO)
    folder = Path(tempfile.mkdtemp(prefix="peerlm-rig-"))
    try:
        scenario = read_scenario(read(path), str(path))
        check(scenario, str(path))
        if os.geteuid() != 0:
            raise RigFailed("this needs root")
        with engine(folder) as (host, base):
            missed = play(scenario, host, base)
    except PeerlmError as error:
        if isinstance(error.__context__, PeerlmError):  # what it was taken down for
            say(f"rig: {error.__context__}")
        say(f"rig: {error}")
        return 1
    except KeyboardInterrupt:
        say("rig: interrupted; everything is taken down")
        return INTERRUPTED
    finally:
        with undisturbed():
            shutil.rmtree(folder, ignore_errors=True)
    for what in missed:
        say(f"rig: {what}")
    return bool(missed)


def read(path: Path) -> str:
    """Raises `ConfigError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
