"""A node of protocol version 2: what peerlm does today, but all that it says and hears passes through the catalogue and
the codec of that version.

    python tests/wire/older.py up --state FOLDER

What that version did not know it cannot say, and does not hear; what it knew is as it was.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import version_2.codec
import version_2.message

import peerlm.wire.codec
import peerlm.wire.message
import peerlm.wire.versions


def carried(value: Any, catalogue: ModuleType) -> Any:
    """The same in the other catalogue: its fields, what is not there by their defaults."""
    if isinstance(value, tuple):
        return tuple(carried(entry, catalogue) for entry in value if is_known(entry, catalogue))
    if not dataclasses.is_dataclass(value):
        return value
    kind = getattr(catalogue, type(value).__name__)
    fields = [f.name for f in dataclasses.fields(kind) if hasattr(value, f.name)]
    return kind(**{name: carried(getattr(value, name), catalogue) for name in fields})


def is_known(value: Any, catalogue: ModuleType) -> bool:
    """A rumor of a newer kind is passed over."""
    return not dataclasses.is_dataclass(value) or hasattr(catalogue, type(value).__name__)


def speak_version_2() -> None:
    """From now on in this process. Before anything else of peerlm is imported."""
    today, then = peerlm.wire.message, version_2.message
    frame = peerlm.wire.codec.FRAME_BYTES_MAX

    def encode(struct: Any) -> bytes:
        return version_2.codec.encode(carried(struct, then))

    def decode(data: bytes | memoryview, *, bytes_max: int = frame) -> Any:
        return carried(version_2.codec.decode(data, bytes_max=bytes_max), today)

    def decode_as(kind: Any, data: bytes | memoryview, *, bytes_max: int = frame) -> Any:
        old = getattr(then, kind.__name__)
        return carried(version_2.codec.decode_as(old, data, bytes_max=bytes_max), today)

    for function in (encode, decode, decode_as):
        setattr(peerlm.wire.codec, function.__name__, function)
    from peerlm.daemon.link import Links

    send = Links.send

    def send_what_was_known(links: Links, peer: Any, message: Any) -> bool:
        return hasattr(then, type(message).__name__) and send(links, peer, message)

    Links.send = send_what_was_known  # type: ignore[method-assign]
    peerlm.wire.versions.PROTOCOL_VERSION = then.PROTOCOL_VERSION
    peerlm.wire.versions.OLDEST_VERSION = then.PROTOCOL_VERSION - 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    speak_version_2()
    from peerlm.cli.main import main

    sys.exit(main())
