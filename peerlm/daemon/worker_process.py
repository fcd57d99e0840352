"""One worker process as its daemon holds it: the socket, the shared memory, the words not sent yet.

Nothing here waits for a worker that does not read. What is to be said goes to an outbox in which a
message takes the place of an older one of its kind (and fragment), so it holds at most two a fragment
and one of each other kind, however long the worker is stopped. Hops of other nodes wait as they come, up to so many
bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence

from peerlm.model.plan import FragmentSpec
from peerlm.train import protocol, shared
from peerlm.train.protocol import Message
from peerlm.train.shared import SharedMemory
from peerlm.types import FragmentId

RECEIVE_BYTES = 1 << 18

HOPS_BYTES_MAX = 64 << 20
"""Of hops that wait for the worker; what comes beyond is dropped."""

SPINS = "20000"
"""Of a thread that waits for others, before it sleeps. GNU's OpenMP would take 15 times as many."""

HOP_BYTES = 1 << 10
"""What a hop takes besides its stream."""


class WorkerProcess:
    """Raises `OSError` if there is no memory or descriptor left for it. `close` ends it for good."""

    def __init__(self, generation: int, fragments: Sequence[FragmentSpec]) -> None:
        self.generation = generation
        self.is_ready = False
        self.evaluating: int | None = None
        """The swarm's tokens of the φ under evaluation; None if none is."""
        self.asked_to_stop = False
        self.last_words = ""
        self.closed = asyncio.Event()
        self._process: Process | None = None
        self._outbox: dict[tuple[type[Message], FragmentId | int | None], Message] = {}
        self._hops = self._hops_bytes = 0
        self._has_words = asyncio.Event()
        self._memory_file = os.fdopen(shared.allocate(fragments), "r+b", buffering=0)
        self.memory = SharedMemory(self._memory_file.fileno(), fragments)
        self._socket, self._its_socket = socket.socketpair()
        self._socket.setblocking(False)

    async def spawn(self, threads: int, log: int | None) -> None:
        """Start the process. Raises `OSError`."""
        descriptors = (self._its_socket.fileno(), self._memory_file.fileno())
        output = 2 if log is None else log
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-X", "faulthandler", "-m", "peerlm.train.worker"),
                *(str(number) for number in (*descriptors, os.getpid())),
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                env=torch_environment(threads),
            )
        finally:
            self._its_socket.close()  # or its death would not end the stream
            self._memory_file.close()

    def say(self, message: Message) -> None:
        """Send as soon as the socket takes it, after what was said before."""
        key = (type(message), getattr(message, "fragment", None))
        if isinstance(message, protocol.Hop):
            if self._hops_bytes >= HOPS_BYTES_MAX:
                return  # it does not keep up: what is lost is missed, and sent again
            self._hops_bytes += len(message.data) + HOP_BYTES
            self._hops += 1
            key = (protocol.Hop, self._hops)
        self._outbox.pop(key, None)
        self._outbox[key] = message
        self._has_words.set()

    async def send_all(self, first: Message) -> None:
        """Send `first`, then whatever is said, until the worker is gone."""
        loop = asyncio.get_running_loop()
        waiting = protocol.frame(first)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the reader sees it too
            while True:
                await loop.sock_sendall(self._socket, waiting)
                await self._has_words.wait()
                self._has_words.clear()
                waiting = b"".join(map(protocol.frame, self._outbox.values()))
                self._outbox.clear()
                self._hops_bytes = 0

    async def receive(self) -> bytes:
        """The next bytes; none when the worker has closed its end or is gone."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, RECEIVE_BYTES)
        except ConnectionResetError:
            return b""

    async def wait_exit(self) -> int:
        """The exit status, negative for a signal; 0 if it was never spawned. What the process sent
        before can still be received."""
        status = await self._process.wait() if self._process is not None else 0
        with contextlib.suppress(OSError):  # the stream ends now, even if a grandchild holds it
            self._socket.shutdown(socket.SHUT_RD)
        return status

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens if the process is not there (yet, or any more)."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def close(self) -> None:
        """Kill it if it still lives, and let go of everything."""
        self.signal(signal.SIGKILL)
        for end in (self._socket, self._its_socket, self._memory_file):
            end.close()
        self.closed.set()


def torch_environment(threads: int) -> dict[str, str]:
    """Ours, but for the invite: a process that computes has no use for secrets. Its threads wait for each other awake for
    some tens of microseconds, and then asleep: where the cores are others' too, the daemon's for one, who waits awake for
    long keeps from the core just the thread that it waits for."""
    kept = {name: value for name, value in os.environ.items() if name != "PEERLM_TOKEN"}
    return {"GOMP_SPINCOUNT": SPINS, **kept, "OMP_NUM_THREADS": str(threads)}
