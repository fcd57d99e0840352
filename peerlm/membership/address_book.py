"""Addresses of every node ever known, so that a lost node finds the swarm again.

A list of *live* members is worth nothing after everybody was down, or on the far side of a long
partition; so the book keeps the dead too (memberlist and serf forget them, and their users write a
re-join loop by hand). In memory times are instants of the monotonic clock; on disk they are wall
time. The file is JSON, one line per node: a damaged line costs one address, never the start.

Entries are hints. Whoever answers at an address must still prove who it is.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from typing import Any

from peerlm.types import Instant, PeerId, WallTime
from peerlm.wire.message import Alive, NodeRecord

ENTRIES_MAX = 4096
"""Nodes kept; the one not seen for longest goes first."""

BYTES_MAX = 64 << 20
"""A larger file is not ours."""

FORMAT = "peerlm address book 1"


@dataclass(frozen=True, slots=True)
class Contact:
    """Where a node was last, by its own signed word."""

    peer: PeerId
    host: str
    intro_port: int
    control_port: int
    bulk_port: int
    epoch: int
    left: bool
    seen: Instant
    """When it was last known to live."""
    chain: tuple[bytes, ...]

    @property
    def address(self) -> str:
        """`tcp://host:port` of its introduction port; empty if it cannot be dialled."""
        return address_of(self.host, self.intro_port)


def address_of(host: str, port: int) -> str:
    """`tcp://host:port`, IPv6 in brackets; empty if either is missing."""
    if not host or not port:
        return ""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class AddressBook:
    """Contacts by peer, and the seed addresses a person gave. `version` grows with each change
    worth saving (a new sighting of a known address is not)."""

    def __init__(self, seeds: tuple[str, ...] = ()) -> None:
        self.seeds = seeds
        self.version = 0
        self._contacts: dict[PeerId, Contact] = {}

    def __len__(self) -> int:
        return len(self._contacts)

    def contacts(self) -> list[Contact]:
        """All of them, by PeerId."""
        return [self._contacts[peer] for peer in sorted(self._contacts)]

    def get(self, peer: PeerId) -> Contact | None:
        return self._contacts.get(peer)

    def note(self, record: NodeRecord, alive: Alive, now: Instant) -> None:
        """Remember a verified record."""
        peer = PeerId(record.peer)
        self._put(
            Contact(
                peer,
                record.host,
                record.intro_port,
                record.control_port,
                record.bulk_port,
                record.epoch,
                record.left,
                now,
                alive.chain,
            )
        )

    def saw(self, peer: PeerId, now: Instant) -> None:
        """This peer is alive now, where we know it to be."""
        contact = self._contacts.get(peer)
        if contact is not None and not contact.left:
            self._contacts[peer] = _seen_at(contact, now)

    def drop(self, peer: PeerId) -> None:
        """Forget a peer (it was revoked)."""
        if self._contacts.pop(peer, None) is not None:
            self.version += 1

    def to_bytes(self, now: Instant, wall: WallTime) -> bytes:
        """The book as a file."""
        lines = [json.dumps({"format": FORMAT, "seeds": list(self.seeds)})]
        lines += [json.dumps(_to_json(c, wall - (now - c.seen))) for c in self.contacts()]
        return ("\n".join(lines) + "\n").encode()

    def _put(self, contact: Contact) -> None:
        before = self._contacts.pop(contact.peer, None)
        if before is None and len(self._contacts) >= ENTRIES_MAX:
            oldest = min(self._contacts.values(), key=lambda c: (c.seen, c.peer))
            del self._contacts[oldest.peer]
        self._contacts[contact.peer] = contact
        if before is None or _seen_at(before, contact.seen) != contact:
            self.version += 1


def read_book(data: bytes, now: Instant, wall: WallTime) -> tuple[AddressBook, str]:
    """A book from its file, and a line for the log (empty if all was well). Never raises: what
    cannot be read is left out."""
    book = AddressBook()
    if not data:
        return book, ""
    lines = data.split(b"\n") if len(data) <= BYTES_MAX else []
    try:
        head = json.loads(lines[0]) if lines else None
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            return book, f"address book of {len(data)} bytes is not one; starting an empty one"
        book.seeds = tuple(s for s in head.get("seeds", []) if isinstance(s, str))[:64]
    except (ValueError, TypeError, RecursionError):
        return book, f"address book of {len(data)} bytes is damaged; starting an empty one"
    damaged = 0
    for line in lines[1:]:
        if not line.strip():
            continue
        contact = _from_json(line, now, wall)
        if contact is None:
            damaged += 1
        else:
            book._put(contact)
    book.version = 0
    note = f"address book: {damaged} damaged lines left out, {len(book)} kept" if damaged else ""
    return book, note


def _seen_at(contact: Contact, seen: Instant) -> Contact:
    return replace(contact, seen=seen)


def _to_json(contact: Contact, seen_wall: float) -> dict[str, Any]:
    return {
        "peer": contact.peer.hex(),
        "host": contact.host,
        "ports": [contact.intro_port, contact.control_port, contact.bulk_port],
        "epoch": contact.epoch,
        "left": contact.left,
        "seen": round(seen_wall, 3),
        "chain": [base64.b64encode(link).decode() for link in contact.chain],
    }


def _from_json(line: bytes, now: Instant, wall: WallTime) -> Contact | None:
    try:
        raw = json.loads(line)
        peer = bytes.fromhex(raw["peer"])
        ports = [int(port) for port in raw["ports"]]
        chain = tuple(base64.b64decode(link, validate=True) for link in raw["chain"])
        age_s = max(0.0, wall - float(raw["seen"]))  # a clock set back makes nothing younger
        host, epoch = raw["host"], int(raw["epoch"])
        well_formed = (
            len(peer) == 16
            and len(ports) == 3
            and all(0 <= port <= 65_535 for port in ports)
            and len(chain) <= 6
            and all(len(link) <= 2048 for link in chain)
            and isinstance(host, str)
            and len(host) <= 255
            and 0 <= epoch <= 2**62
            and age_s == age_s
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if not well_formed:
        return None
    seen = Instant(now - age_s)
    intro, control, bulk = ports
    return Contact(PeerId(peer), host, intro, control, bulk, epoch, bool(raw["left"]), seen, chain)
