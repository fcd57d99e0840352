"""What `peerlm doctor` says of the machine: device, open files, ports, clock.

A service is let see less than a person's shell: fewer devices, fewer open files. So a running daemon's own word
(`status`, as `peerlm status --json` has it) counts. What the shell sees is looked at where no daemon runs, and to
find a device that the daemon is kept from.
"""

from __future__ import annotations

import resource
import shutil
import socket
import subprocess
import sys
import time
from typing import Any

from peerlm.cli.finding import Finding
from peerlm.config import NodeSettings

FILES_MIN = 4096
TORCH_S = 60.0
CLOCK_S = 10.0
"""Until timedatectl is given up: where its service does not answer, it waits longer than a person would."""

Status = dict[str, Any] | None
"""Of the running daemon; None where there is none."""


def clock() -> Finding:
    if shutil.which("timedatectl") is None:
        return Finding(
            "clock", None, f"{time.strftime('%F %T')} here; whether it is kept by NTP is not known"
        )
    command = ["timedatectl", "show", "-p", "NTPSynchronized", "--value"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=CLOCK_S)
    except (OSError, subprocess.SubprocessError):
        return Finding("clock", None, f"{time.strftime('%F %T')} here; timedatectl does not say")
    if done.stdout.strip() == "yes":
        return Finding("clock", True, "kept by NTP")
    cure = "timedatectl set-ntp true: certificates have dates"
    return Finding("clock", None, f"{time.strftime('%F %T')} here, not kept by NTP", cure)


# ----------------------------------------------------------------------------------------- files


def files(status: Status) -> Finding:
    if status is None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = None if hard == resource.RLIM_INFINITY else hard
        return _enough(most, "this shell", f"ulimit -Hn {FILES_MIN}")
    if "files_max" not in status["daemon"]:
        return Finding("files", None, "this older daemon does not say how many it may have open")
    cure = f"as a service LimitNOFILE={FILES_MIN} in its unit, else ulimit -Hn {FILES_MIN} before `peerlm up`"
    return _enough(status["daemon"]["files_max"], "the daemon", cure)


def _enough(most: int | None, whose: str, cure: str) -> Finding:
    is_enough = most is None or most >= FILES_MIN
    text = f"{whose} may have {'any number of' if most is None else most} files and sockets open at once"
    return Finding("files", is_enough, text, "" if is_enough else cure)


# ---------------------------------------------------------------------------------------- device


def device(status: Status, settings: NodeSettings) -> Finding:
    """What the worker trains on, by the daemon's word; what torch finds here while there is no worker."""
    worker = {} if status is None else status["worker"]
    wanted = worker.get("device_wanted", settings.train.device)
    match worker.get("state"):
        case "running":
            return _trained_on(worker["device"], wanted)
        case "backing_off":
            cure = 'see `peerlm logs`; if no device is found: train.device = "auto", or a service with --cuda'
            text = f"{wanted}; the worker died: {worker['last_error']}"
            return Finding("device", False, text, cure)
        case "starting":
            return Finding("device", None, f"{wanted}; the worker is starting")
        case "off":
            found = _here(wanted)
            text = f"the daemon has no worker now; of this shell, not of the daemon: {found.text}"
            return Finding("device", None if found.ok else False, text, found.cure)
    return _here(wanted)


def _trained_on(used: str, wanted: str) -> Finding:
    """A worker that was to find the best one is on the CPU: is there one that it has not found?"""
    text = f"{wanted}; the worker trains on {used}"
    if wanted == "auto" and used == "cpu" and (seen := _seen_here()):
        text += f"; torch {seen[0]} in this shell sees {seen[1]} CUDA devices"
        cure = 'as a service, install it with --cuda; if the CPU is meant, train.device = "cpu"'
        return Finding("device", not seen[1], text, cure if seen[1] else "")
    return Finding("device", True, text)


def _here(wanted: str) -> Finding:
    """What torch finds in this shell."""
    try:
        version, devices = _asked()
    except LookupError as error:
        return Finding("device", False, str(error))
    text = f"{wanted}; torch {version} sees {devices} CUDA devices"
    is_there = not wanted.startswith("cuda") or devices > int(wanted.partition(":")[2] or 0)
    cure = (
        ""
        if is_there
        else 'train.device = "auto", or see nvidia-smi; as a service, install it with --cuda'
    )
    return Finding("device", is_there, text, cure)


def _seen_here() -> tuple[str, int] | None:
    try:
        return _asked()
    except LookupError:
        return None


def _asked() -> tuple[str, int]:
    """Torch's version, and how many CUDA devices it sees in this shell. Raises `LookupError`: it does not load."""
    script = "import torch; print(torch.__version__, torch.cuda.device_count())"
    command = [sys.executable, "-c", script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TORCH_S)
    except subprocess.TimeoutExpired:
        raise LookupError(f"torch does not load within {TORCH_S:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise LookupError(f"torch does not load: {said[-1]}")
    version, devices = done.stdout.split()
    return version, int(devices)


# ----------------------------------------------------------------------------------------- ports


def ports(status: Status, settings: NodeSettings) -> Finding:
    """Where the daemon listens; where there is none, whether it could."""
    if status is None:
        return _free(settings)
    listening = status["daemon"].get("listening")
    if listening is None:
        return Finding("ports", None, "this older daemon does not say on which it listens")
    host = listening["host"]
    where = {"": "all addresses", "0.0.0.0": "all IPv4 addresses"}.get(host, host)
    text = f"listening on {in_words(listening['ports'])} of {where}"
    if _is_loopback(host):
        return Finding("ports", True, f"{text}: only this machine can reach them")
    return Finding("ports", True, f"{text}; others must reach them through any firewall")


def in_words(numbers: list[int]) -> str:
    """Three in a row are told as `7700 to 7702`."""
    first = numbers[0]
    if numbers == list(range(first, first + len(numbers))):
        return f"{first} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _free(settings: NodeSettings) -> Finding:
    network = settings.network
    if network.port == 0:
        return Finding("ports", True, "free ones are picked at the start")
    wanted = list(range(network.port, network.port + 3))
    taken = [port for port in wanted if not _is_free(network.host, port)]
    text = in_words(wanted)
    if taken:
        cure = "find out by whom with `ss -ltnp`, or set network.port"
        return Finding("ports", False, f"{text}: {', '.join(map(str, taken))} in use", cure)
    return Finding("ports", True, f"{text} are free; others must reach them through any firewall")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
