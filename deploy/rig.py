"""A rig of containers, from nothing to a report: `make rig`.

Builds the image without a network, brings five nodes up with compose, kills the first, freezes one, takes one off the
network, kills all at once, and each time waits until everybody mixes again. Prints how long that took, takes
everything down and leaves nothing behind.

Where Docker's engine runs it is used, with the image PEERLM_BASE (python:3.11-slim-bookworm). Else, as root and with
dockerd, debootstrap and ip installed, an engine of its own is started in a network namespace of its own, from which
nothing can be reached, on a base system that is made once and kept in the user's cache. Compose is whatever there is: `docker
compose`, else `docker-compose`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import chaos

HERE = Path(__file__).parent
ROOT = HERE.parent
NODES = 5
PROJECT = "peerlm-rig"
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,procps"
BASE = "peerlm-rig-base"
WELL_S = 120.0
ENGINE_S = 30.0

INIT = (
    "--set swarm.profile=test --set run.token_budget=1000000000000 --set model.dim=32 --set model.heads=2 "
    "--set model.kv_heads=1 --set model.hidden=64 --set model.context=32 --set train.batch=4"
)
UP = "--set-node limits.threads=1 --set-node train.pace_tokens_s=400"


class RigFailed(Exception):
    """In one line."""


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def run(*words: str | Path, **more: Any) -> str:
    """Raises `RigFailed` with the last thing it said."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise RigFailed(f"{' '.join(map(str, words[:4]))}: {said}")
    return done.stdout


# ---------------------------------------------------------------------------------- the engine


@contextmanager
def engine(folder: Path) -> Iterator[tuple[str, str]]:
    """(address of its socket, image to build on)."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
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
            )
        try:
            wait_for_engine(host, process)
            run("docker", "-H", host, "import", base, BASE)
            yield host, BASE
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            for line in reversed(Path("/proc/mounts").read_text().splitlines()):
                if (place := line.split()[1]).startswith(str(folder)):
                    subprocess.run(["umount", "-l", place], check=False)
    finally:
        run("ip", "netns", "del", namespace)


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
    """The compose project, and what its nodes say."""

    def __init__(self, host: str, base: str) -> None:
        self._environment = os.environ | {
            "DOCKER_HOST": host,
            "DOCKER_BUILDKIT": "0",
            "PEERLM_IMAGE": PROJECT,
            "PEERLM_BASE": base,
            "PEERLM_INIT": INIT,
            "PEERLM_UP": UP,
        }
        self.host = host
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        self._compose = ("docker", "compose") if plugin.returncode == 0 else ("docker-compose",)

    def compose(self, *words: str) -> str:
        file = ("-p", PROJECT, "-f", str(HERE / "compose.yaml"))
        return run(*self._compose, *file, *words, env=self._environment)

    def build(self) -> None:
        wheels = HERE / "wheels"
        if not any(wheels.glob("torch-*.whl")):
            say("fetching wheels")
            run(HERE / "fetch-wheels.sh", env=os.environ | {"PYTHON": sys.executable})
        else:  # peerlm's own is always made anew
            for old in wheels.glob("peerlm-*.whl"):
                old.unlink()
            run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", wheels, ROOT)
        say("building the image, without a network")
        self.compose("build", "init")

    def down(self) -> None:
        say("taking it down")
        self.compose("--profile", "chaos", "down", "--volumes", "--timeout", "20")
        subprocess.run(
            ["docker", "rmi", "--force", PROJECT],
            capture_output=True,
            env=self._environment,
            check=False,
        )

    def statuses(self) -> list[dict[str, Any]]:
        """Of nodes that answer."""
        found = []
        names = run(
            "docker",
            "ps",
            "--filter",
            "label=peerlm.node=true",
            "--format",
            "{{.Names}}",
            env=self._environment,
        )
        for name in names.split():
            done = subprocess.run(
                ["docker", "exec", name, "peerlm", "status", "--json"],
                capture_output=True,
                env=self._environment,
                check=False,
            )
            if done.returncode == 0:
                found.append(json.loads(done.stdout))
        return found

    def wait_well(self, what: str) -> float:
        """Seconds until every node trains, mixes and sees all others alive. Raises `RigFailed`."""
        began = time.monotonic()
        while True:
            statuses = self.statuses()
            well = [
                s
                for s in statuses
                if s["participating"]
                and s["state"] == "training"
                and sum(m["state"] == "alive" for m in s["members"]) == NODES
            ]
            if len(well) == NODES:
                return time.monotonic() - began
            if time.monotonic() - began > WELL_S:
                said = "; ".join(f"{s['state']}: {s['why'][0]}" for s in statuses)
                raise RigFailed(
                    f"{what}: {len(well)} of {NODES} nodes are well after {WELL_S:.0f} s: {said}"
                )
            time.sleep(1.0)


Act = Callable[[chaos.Docker, dict[str, Any], random.Random], Awaitable[None]]


def befall(host: str, act: Act, places: list[int]) -> None:
    """Carry an act out on the nodes at these places of the list by name, and undo it."""

    async def work() -> None:
        connector = aiohttp.UnixConnector(host.removeprefix("unix://"))
        async with aiohttp.ClientSession(connector=connector) as session:
            docker, rng = chaos.Docker(session), random.Random(1)
            nodes = await docker.nodes()
            await asyncio.gather(*(act(docker, nodes[place], rng) for place in places))

    asyncio.run(work())


STORY: tuple[tuple[str, Act, list[int]], ...] = (
    ("the first node is killed", chaos.kill, [0]),
    ("a node is frozen", chaos.pause, [1]),
    ("a node is off the network", chaos.cut, [2]),
    ("all nodes are killed at once", chaos.kill, list(range(NODES))),
)


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="peerlm-rig-"))
    rows: list[tuple[str, float]] = []
    try:
        with engine(folder) as (host, base):
            rig = Rig(host, base)
            rig.build()
            try:
                say(f"bringing {NODES} nodes up")
                rig.compose("up", "-d", "--no-build", "--scale", f"node={NODES - 1}")
                rows.append(("all nodes up and mixing", rig.wait_well("at the start")))
                for what, act, places in STORY:
                    say(what)
                    before = max(s["swarm_tokens"] for s in rig.statuses())
                    befall(host, act, places)
                    rows.append((f"{what}; mixing again", rig.wait_well(what)))
                    after = max(s["swarm_tokens"] for s in rig.statuses())
                    if after <= before:
                        raise RigFailed(
                            f"{what}: the swarm has {after:,} tokens, {before:,} before"
                        )
            finally:
                rig.down()
    except RigFailed as error:
        say(f"rig: {error}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for what, seconds in rows:
            sys.stdout.write(f"{what:<45} {seconds:6.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
