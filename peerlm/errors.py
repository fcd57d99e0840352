"""The error tree. A class tells the catcher what to do; the message says what, where, which value.

    PeerlmError
    ├── ConfigError     a person must change something, then start again
    ├── StateError      the state directory cannot be used as it is (foreign, locked, read-only, full)
    ├── WireError       the peer sent what it must not: drop, count, distrust
    ├── AuthError       a certificate, token or signature does not hold: refuse, say which step
    ├── Unreachable     nothing wrong with the peer, but it cannot be reached: try another
    ├── ChunkCorrupt    bytes do not match their hash: fetch them again, elsewhere
    └── DeviceLost      the accelerator is gone: leave the device, come back

A broken promise of our own is an `AssertionError`, never one of these.
"""

from __future__ import annotations


class PeerlmError(Exception):
    """Base of all errors peerlm raises on purpose. `str()` is one line fit for a person."""


class ConfigError(PeerlmError):
    """A setting, argument or input file is wrong. Fix it and start again."""


class StateError(PeerlmError):
    """The state directory cannot be used: another run's, locked, read-only, full."""


class Unsaved(StateError):
    """The daemon has ended as it was told, and could not keep its newest progress."""


class Vanished(StateError):
    """What was kept here is gone, or cannot be read any more, and nobody here removed it. Fetch it again."""


class WireError(PeerlmError):
    """A peer's bytes break the protocol. Drop the message, count it, slow the peer down."""


class UnknownMessage(WireError):
    """A message with a number that we do not know. A newer node may: pass over it."""


class AuthError(PeerlmError):
    """A token, certificate chain or signature does not hold. `code` is stable, for machines."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(PeerlmError):
    """A peer or source could not be reached. `step` is resolve, connect, handshake or admission."""

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step


class ChunkCorrupt(PeerlmError):
    """Bytes do not have the hash they should have. Fetch them again, from somebody else."""


class DeviceLost(PeerlmError):
    """The device asked for is absent or has failed."""


def first_cause(group: ExceptionGroup[Exception]) -> Exception:
    """The first error within groups of errors: task groups wrap whatever ends them."""
    first = group.exceptions[0]
    return first_cause(first) if isinstance(first, ExceptionGroup) else first
