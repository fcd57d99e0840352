"""A machine of its own with a real systemd: this machine's files under an overlay, booted in a container.

What it writes goes to a folder of the test's; nothing of the machine it runs on is changed, and its own
services do not start. peerlm is installed in /opt/peerlm, with the system's own Python where that has the version
of the one that runs the test (else with that one), and the packages of the latter. Needs root, `systemd-nspawn` (package systemd-container), and a systemd that can be booted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from needs import missing

import peerlm
from peerlm.bench.cgroups import swept
from peerlm.bench.namespaces import entered, ip, new_namespace

BOOT_S = 90.0
POLL_S = 0.2
COMMAND_S = 60.0

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

SCRIPT = """\
#!/opt/peerlm/bin/python
import sys
from peerlm.cli.main import main
sys.exit(main())
"""


class Machine:
    """Boot it, run commands in it, power it off, boot it again."""

    def __init__(self, folder: Path, namespace: int) -> None:
        self._folder = folder
        self._namespace = namespace
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0
        self.root = folder / "root"
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(parents=True)
        self._install()

    def _install(self) -> None:
        upper = self._folder / "upper"
        own_units = upper / "etc/systemd/system"
        own_units.mkdir(parents=True)
        os.setxattr(own_units, "trusted.overlay.opaque", b"y")  # none of the host's services
        (upper / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (upper / "etc/hostname").write_text("machine\n")
        place = upper / "opt/peerlm"
        site = place / "lib" / VERSION / "site-packages"
        site.mkdir(parents=True)
        (place / "bin").mkdir()
        own = Path("/usr/bin", VERSION)
        home = own.parent if own.exists() else Path("/opt/python/bin")
        (place / "pyvenv.cfg").write_text(f"home = {home}\n")
        (place / "bin/python").symlink_to(home / VERSION)
        (site / "peerlm.pth").write_text("/opt/source\n/opt/packages\n")
        (place / "bin/peerlm").write_text(SCRIPT)
        (place / "bin/peerlm").chmod(0o755)
        for name in ("python", "source", "packages"):
            (upper / "opt" / name).mkdir()

    # ------------------------------------------------------------------------------- its life

    def boot(self) -> None:
        layers = f"lowerdir=/,upperdir={self._folder}/upper,workdir={self._folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        source = Path(peerlm.__file__).parent.parent
        packages = Path(psutil.__file__).parent.parent
        with (self._folder / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                [
                    *(
                        "systemd-nspawn",
                        "-q",
                        "-D",
                        self.root,
                        "--boot",
                        "--register=no",
                        "--keep-unit",
                    ),
                    *("--console=pipe", f"--machine={self._folder.name}"),
                    f"--network-namespace-path=/proc/{os.getpid()}/fd/{self._namespace}",
                    f"--bind-ro={sys.base_prefix}:/opt/python",
                    f"--bind-ro={source}:/opt/source",
                    f"--bind-ro={packages}:/opt/packages",
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self.wait("it has booted", self._is_up, BOOT_S)

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, (self._folder / "console").read_text()
        children = psutil.Process(self._nspawn.pid).children()
        self._init = children[0].pid if children else 0
        return bool(children) and self.ask("systemctl", "is-system-running") in (
            "running",
            "degraded",
        )

    def power_off(self) -> None:
        """In order, as a person would."""
        assert self._nspawn is not None
        self.run("systemctl", "poweroff", check=False)
        self._nspawn.wait(BOOT_S)
        self._unmount()

    def close(self) -> None:
        """At once. May be called again."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            if self._init:
                os.kill(self._init, signal.SIGKILL)
            self._nspawn.terminate()
            self._nspawn.wait(BOOT_S)
        self._unmount()

    def _unmount(self) -> None:
        if os.path.ismount(self.root):
            subprocess.run(["umount", "-R", self.root], check=True)

    # ------------------------------------------------------------------------------- commands

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """As its root."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), "-m", "-p", "-n", "-u", "-i", "-C", *words],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if check and done.returncode != 0:
            self.show()
            pytest.fail(f"{words}: {done.stdout}{done.stderr}")
        return done

    def ask(self, *words: str) -> str:
        """What it answers, whether or not that is a failure."""
        return self.run(*words, check=False).stdout.strip()

    def unit(self, name: str) -> str:
        """A property of the service."""
        return self.ask("systemctl", "show", "peerlm.service", "-p", name, "--value")

    def wait(self, what: str, is_so: Callable[[], bool], limit_s: float = 60.0) -> float:
        """Returns the seconds it took; fails when it is not so in time."""
        began = time.monotonic()
        while not is_so():
            if time.monotonic() - began > limit_s:
                self.show()
                pytest.fail(f"{what}: not within {limit_s:.0f} s")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def show(self) -> None:
        """What systemd knows of the service, for who has to find out why a test failed."""
        print(self.ask("systemctl", "status", "peerlm.service", "--no-pager", "-l"))
        print(self.ask("journalctl", "-u", "peerlm.service", "-n", "60", "--no-pager"))


@contextmanager
def machine(folder: Path, address: str, gateway: str) -> Iterator[tuple[Machine, int]]:
    """A machine at `address`, not booted yet, and the namespace of somebody at `gateway` beside it."""
    if os.geteuid() != 0 or not shutil.which("systemd-nspawn") or not shutil.which("ip"):
        missing("needs root, systemd-nspawn (package systemd-container) and ip (iproute2)")
    beside, inside = new_namespace(), new_namespace()
    with entered(beside):
        ip(
            f"link add eth0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{inside}",
            f"addr add {gateway}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
        )
    with entered(inside):
        ip(f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up")
    made = Machine(folder, inside)
    with swept("payload", "supervisor"):
        try:
            yield made, beside
        finally:
            made.close()
        os.close(inside)
        os.close(beside)
