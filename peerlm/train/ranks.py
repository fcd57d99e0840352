"""The other local workers, as processes: started by rank 0, gone when it is, and missed when one dies.

`python -m peerlm.train.ranks RANK SIZE FILE PARENT` is one of them; its `Setup` comes on standard input.
No torch until that has been read, so that all ranks can import it at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType

from peerlm.config import NodeSettings, Plan
from peerlm.errors import DeviceLost
from peerlm.model.plan import fragments
from peerlm.train import protocol
from peerlm.train.limits import die_with, limit_memory
from peerlm.train.protocol import Frames, Setup


class Ranks:
    """Starts ranks 1 to `size` − 1. From then on `DeviceLost` is raised in the main thread, wherever it is,
    when one of them ends.

    descriptor: of the file through which all find each other.
    """

    def __init__(self, size: int, setup: Setup) -> None:
        self.descriptor = os.memfd_create("peerlm-ranks")
        os.set_inheritable(self.descriptor, True)
        self._processes = [self._start(rank, size, setup) for rank in range(1, size)]
        signal.signal(signal.SIGCHLD, self._miss)
        self._miss(signal.SIGCHLD, None)  # whoever was gone before

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

    def _miss(self, number: int, frame: FrameType | None) -> None:
        for rank, process in enumerate(self._processes, 1):
            if (status := process.poll()) is not None:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
                raise DeviceLost(f"local worker {rank} {how}; what it said is in the log")


def main(arguments: list[str]) -> int:
    """Exit status: 1 after a failure, which is on stderr. Never 0: ranks end by being killed."""
    rank, size, descriptor, parent = (int(argument) for argument in arguments)
    if not die_with(parent):
        return 1
    (setup,) = Frames().feed(sys.stdin.buffer.read())
    assert isinstance(setup, Setup), setup
    plan = protocol.unpacked(Plan, setup.plan)
    settings = protocol.unpacked(NodeSettings, setup.settings)
    limit_memory(settings.limits.memory_bytes)

    from peerlm.train.device import device_of_rank, use_threads
    from peerlm.train.group import Group
    from peerlm.train.hands import Hands
    from peerlm.train.learner import Learner

    use_threads(max(1, setup.threads // size))
    device = device_of_rank(settings.train.device, rank, size)
    group = Group(rank, size, descriptor, device)
    learner = Learner(plan, device, compiled=settings.train.compile, group=group)
    Hands(learner, fragments(plan), group).follow()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
