"""Which generations of nodes talk to each other, so that a swarm can be upgraded one node at a time.

A node speaks its own version and the one before. Who is newer decides: it knows what older nodes read, and refuses
those that it no longer fits, in the introduction, with a line that says what to do. An older node takes whoever is
newer at its word.

What a new version may do so that the one before can follow:

- add a field at the end of a struct, with a default: older nodes read what they know and leave the rest, and what they
  send is filled with the default;
- add a message or a kind of rumor, with a new number: older nodes pass over it.

It may not use maps or lists of more than `codec.ARRAY_LEN_MAX` entries, which older nodes refuse anywhere in a frame;
not move, drop or widen a field; not need an answer to a new message from a node that may not know it; not change the
bytes of the bulk plane (`wire.frame`, `mix.codec`), which tests hold to what they were. Whatever
breaks these rules has to wait until no node of the older version is fitted any more.
"""

from __future__ import annotations

PROTOCOL_VERSION = 3
OLDEST_VERSION = PROTOCOL_VERSION - 1


def fits(version: int) -> bool:
    """Whether a node of this version can be talked to, as far as this one knows."""
    return version >= OLDEST_VERSION


def misfit(version: int) -> str:
    """A line for a person about a node of a version that does not fit."""
    return (
        f"protocol {version} there, {OLDEST_VERSION} to {PROTOCOL_VERSION} here: "
        "update the older node"
    )
