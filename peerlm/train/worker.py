"""The worker process: torch lives here, and the network does not.

A daemon starts it as `python -m peerlm.train.worker SOCKET MEMORY PARENT` (two inherited descriptors
and its own process id), sends `Setup`, and from then on both talk as `train.protocol` says. This
file is what makes a process of it: it dies with its daemon whatever happens (the kernel kills it when
the parent's thread ends, and the socket's end of file says so too), keeps within its limits, leaves
the keyboard's interrupt to the daemon, and turns any failure into one line for a person; one that
nobody foresaw leaves a traceback on stderr, the daemon's log, too. It is never restarted in place: the daemon starts another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import traceback

from peerlm.config import NodeSettings, Plan
from peerlm.errors import PeerlmError
from peerlm.model.stages import held_fragments
from peerlm.train import protocol
from peerlm.train.channel import Channel, DaemonGone, tell
from peerlm.train.limits import die_with, limit_memory
from peerlm.train.ranks import Ranks
from peerlm.train.shared import SharedMemory

RANK_ENDS_S = 1.0
"""A rank's end is known so long after its connections broke, at the latest."""

NICENESS = 5
"""Training yields the cores to daemons, which must answer probes in time."""


def main(arguments: list[str]) -> int:
    """Exit status: 0 when stopped or when the daemon went, 1 after a failure it has told."""
    connection, memory, parent = (int(argument) for argument in arguments)
    if not die_with(parent):
        return 0
    # A terminal's Ctrl-C and a service manager's SIGTERM reach the whole group: the daemon decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    os.set_inheritable(connection, False)
    os.set_inheritable(memory, False)
    channel = Channel(socket.socket(fileno=connection))
    try:
        train(channel, memory)
    except DaemonGone:
        return 0
    except PeerlmError as error:  # nothing to look for in our code: the daemon says what is wrong
        return tell(channel, error)
    except Exception as error:
        with contextlib.suppress(OSError):  # nobody may read it
            traceback.print_exc()
            sys.stderr.flush()
        return tell(channel, error)
    return 0


def train(channel: Channel, memory: int) -> None:
    """Set up as told, then learn until told to stop."""
    setup = channel.receive_one()
    assert isinstance(setup, protocol.Setup), setup
    plan, settings = (
        protocol.unpacked(Plan, setup.plan),
        protocol.unpacked(NodeSettings, setup.settings),
    )
    size = settings.train.local_workers
    limit_memory(settings.limits.memory_bytes // size)
    ranks = Ranks(size, setup) if size > 1 else None

    # seconds and hundreds of megabytes: not before death is taken care of
    from peerlm.train.device import device_of_rank, use_threads
    from peerlm.train.group import Group
    from peerlm.train.inner_loop import InnerLoop
    from peerlm.train.stage_loop import StageLoop

    use_threads(max(1, setup.threads // size))
    held = range(setup.first_stage, setup.last_stage + 1)
    specs = held_fragments(plan, held)
    shared = SharedMemory(memory, specs)
    os.close(memory)
    group = None
    if ranks is not None:
        device_of_rank(settings.train.device, size - 1, size)  # said here it is a line for a person
        device = device_of_rank(settings.train.device, 0, size)
        group = Group(0, size, ranks.descriptor, device, ranks.check)
        channel.watch(ranks.ended, ranks.check)
    try:
        if len(held) < plan.model.stages:
            loop: InnerLoop = StageLoop(setup, plan, settings, specs, shared, channel, held)
        else:
            loop = InnerLoop(setup, plan, settings, specs, shared, channel, group)
        loop.begin()
        loop.run()
    except RuntimeError:  # torch's, perhaps for a rank that is no more
        if ranks is not None:
            ranks.check(RANK_ENDS_S)
        raise


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # a broken device can hang the interpreter's own way out
