"""Machines on this machine: network namespaces, which share everything but the network.

None has a name: each lives as long as this process holds its descriptor or a process runs in it, and takes
its interfaces with it. So nothing is left behind, however this process ends. Nothing is seen of the
machine's own network, and nothing of it can be reached. Needs root on Linux, and `ip` (iproute2).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from peerlm.bench.rows import Missed

CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000

_libc = ctypes.CDLL(None, use_errno=True)


def new_namespace() -> int:
    """A descriptor that holds it. Raises `Missed` where namespaces cannot be made."""
    if not shutil.which("ip"):
        raise Missed("needs the command `ip` (package iproute2)")
    home = _here()
    if _libc.unshare(CLONE_NEWNET):
        os.close(home)
        why = os.strerror(ctypes.get_errno())
        raise Missed(f"network namespaces cannot be made here ({why}): run it as root, on Linux")
    made = _here()
    _enter(home)
    os.close(home)
    return made


def mount_namespace() -> None:
    """From here on what this process mounts is its own and its children's, and goes with them. Raises `Missed`."""
    if _libc.unshare(CLONE_NEWNS):
        why = os.strerror(ctypes.get_errno())
        raise Missed(f"a mount namespace cannot be made here ({why}): run it as root, on Linux")
    done = subprocess.run(
        ["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Missed(f"mounts cannot be made private here: {done.stderr.strip()}")


@contextmanager
def entered(namespace: int) -> Iterator[None]:
    """In another namespace, and back in today's afterwards; children stay where they were started.
    Main thread only."""
    home = _here()
    try:
        _enter(namespace)
        yield
    finally:
        _enter(home)
        os.close(home)


def ip(*commands: str) -> None:
    """Arguments of `ip`, a command each. Raises `Missed`."""
    done = subprocess.run(
        ["ip", "-batch", "-"],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Missed(f"ip: {(done.stderr or done.stdout).strip().splitlines()[0]}")


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        raise Missed(f"a network namespace is gone: {os.strerror(ctypes.get_errno())}")


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)
