"""The other local workers, as processes: started by rank 0, gone when it is, and missed when one dies.

`python -m peerlm.train.ranks RANK SIZE FILE PARENT` is one of them; its `Setup` comes on standard input.
No torch until that has been read, so that all ranks can import it at once.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys

from peerlm.config import NodeSettings, Plan
from peerlm.errors import DeviceLost, PeerlmError
from peerlm.model.plan import fragments
from peerlm.train import protocol
from peerlm.train.limits import die_with, limit_memory
from peerlm.train.protocol import Frames, Setup


class Ranks:
    """Starts ranks 1 to `size` − 1.

    descriptor: of the file through which all find each other. ended: becomes readable, each of them, when a
    rank ends.

    Raises:
        DeviceLost: this system has none of what groups are made of.
    """

    def __init__(self, size: int, setup: Setup) -> None:
        if sys.platform != "linux":
            raise DeviceLost(f"train.local_workers = {size}: needs Linux; use 1")
        self.descriptor = os.memfd_create("peerlm-ranks")
        os.set_inheritable(self.descriptor, True)
        self._processes = [self._start(rank, size, setup) for rank in range(1, size)]
        self.ended = [os.pidfd_open(process.pid) for process in self._processes]

    def check(self, patience_s: float = 0.0) -> None:
        """Raises `DeviceLost` if one has ended, or does so within `patience_s`."""
        watch = select.poll()
        for descriptor in self.ended:
            watch.register(descriptor, select.POLLIN)
        if not watch.poll(int(1000 * patience_s)):
            return
        for rank, process in enumerate(self._processes, 1):
            if (status := process.poll()) is not None:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
                raise DeviceLost(f"local worker {rank} {how}; what it said is in the log")

    def _start(self, rank: int, size: int, setup: Setup) -> subprocess.Popen[bytes]:
        places = (rank, size, self.descriptor, os.getpid())
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-X", "faulthandler", "-m", "peerlm.train.ranks"),
                *map(str, places),
            ],
            stdin=subprocess.PIPE,
            pass_fds=[self.descriptor],
        )
        assert process.stdin is not None
        with process.stdin as its_input:
            its_input.write(protocol.frame(setup))
        return process


def main(arguments: list[str]) -> int:
    """Exit status: 1 after a failure, which is on stderr. Never 0: ranks end by being killed."""
    try:
        follow(arguments)
    except PeerlmError as error:
        sys.stderr.write(f"local worker {arguments[0]}: {error}\n")
    return 1


def follow(arguments: list[str]) -> None:
    """Be the rank that the arguments say, until killed. Raises `PeerlmError`."""
    rank, size, descriptor, parent = (int(argument) for argument in arguments)
    if not die_with(parent):
        return
    (setup,) = Frames().feed(sys.stdin.buffer.read())
    assert isinstance(setup, Setup), setup
    plan = protocol.unpacked(Plan, setup.plan)
    settings = protocol.unpacked(NodeSettings, setup.settings)
    limit_memory(settings.limits.memory_bytes // size)

    from peerlm.train.device import device_of_rank, use_threads
    from peerlm.train.group import Group
    from peerlm.train.hands import Hands
    from peerlm.train.learner import Learner

    use_threads(max(1, setup.threads // size))
    device = device_of_rank(settings.train.device, rank, size)
    group = Group(rank, size, descriptor, device)
    learner = Learner(plan, device, compiled=settings.train.compile, group=group)
    Hands(learner, fragments(plan), None, group).follow()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
