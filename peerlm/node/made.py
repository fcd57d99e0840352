"""What this node has made of jobs, kept on its disk: so that when all stop at once, what was made need not be made again.

Of each task a line: the job, and the result as it is told to others. The shards lie in the store already; a line whose shards
are not here any more says nothing. The file is written anew each time, less often the longer it is, and what is lost
of it is made again. Lines of a job that has no name any more are left out.
"""

from __future__ import annotations

from collections.abc import Container

from peerlm.effects import Effect, Save
from peerlm.errors import StateError, WireError
from peerlm.types import Instant, ObjectHash, PeerId, after
from peerlm.wire.codec import decode_as, encode
from peerlm.wire.message import JobResult

FORMAT = "peerlm-made-1"

BYTES_MAX = 256 << 20
"""Some 40 million megabytes of text; of what is beyond it nothing is kept."""

SAVE_S, BYTES_S = 1.0, 2_000_000
"""It is written no more often, and no more bytes of it a second."""

PATIENCE_S = 600.0
"""The name of a job from before the start may come so late."""

Results = dict[int, JobResult]


class Made:
    """Of one node.

    Args:
        kept: what `Save("made")` kept; `read_made` has checked it.
    """

    def __init__(self, me: PeerId, kept: bytes, now: Instant) -> None:
        self._before = read_made(kept, me) if kept else {}
        self._lines: dict[ObjectHash, dict[int, str]] = {}
        self._bytes = 0
        self._is_new = False
        self._save_at, self._patience_ends = now, after(now, PATIENCE_S)

    def before(self, job: ObjectHash) -> list[JobResult]:
        """What was made of it before the start, said once; what of it is still here is to be added again."""
        return list(self._before.pop(job, {}).values())

    def add(self, job: ObjectHash, result: JobResult) -> None:
        line = f"{job.hex()} {encode(result).hex()}\n"
        lines = self._lines.setdefault(job, {})
        if self._bytes + len(line) > BYTES_MAX or lines.get(result.task) == line:
            return
        self._bytes += len(line) - len(lines.get(result.task, ""))
        lines[result.task], self._is_new = line, True

    def forget(self, job: ObjectHash) -> None:
        """It has no name any more."""
        self._bytes -= sum(map(len, self._lines.get(job, {}).values()))
        self._is_new |= self._lines.pop(job, None) is not None

    def named_are(self, jobs: Container[ObjectHash], now: Instant) -> None:
        """All jobs that have a name."""
        if now > self._patience_ends:
            self._before = {job: found for job, found in self._before.items() if job in jobs}

    def save(self, now: Instant) -> list[Effect]:
        """What is new, if it is time to."""
        if not self._is_new or now < self._save_at:
            return []
        self._is_new = False
        data = self.encode()
        self._save_at = after(now, max(SAVE_S, len(data) / BYTES_S))
        return [Save("made", data)]

    def encode(self) -> bytes:
        known = [line for lines in self._lines.values() for line in lines.values()]
        waiting = [
            f"{job.hex()} {encode(result).hex()}\n"
            for job, results in self._before.items()
            for result in results.values()
        ]
        return "".join([f"{FORMAT}\n", *known, *waiting]).encode()


def read_made(data: bytes, me: PeerId) -> dict[ObjectHash, Results]:
    """Raises `StateError`: it is not what this node wrote."""
    found: dict[ObjectHash, Results] = {}
    try:
        first, *lines = data.decode("ascii").splitlines()
        if first != FORMAT:
            raise ValueError("another format")
        for line in lines:
            name, text = line.split(" ")
            job, result = bytes.fromhex(name), decode_as(JobResult, bytes.fromhex(text))
            if len(job) != 32 or result.maker != me:
                raise ValueError("another's result")
            found.setdefault(ObjectHash(job), {})[result.task] = result
    except (ValueError, WireError):
        raise StateError("what was made of jobs cannot be read; it is made again") from None
    return found
