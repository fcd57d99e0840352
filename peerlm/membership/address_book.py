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
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from peerlm.membership.member import Member
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


@lru_cache(maxsize=2048)
def contact_of(record: NodeRecord, chain: tuple[bytes, ...]) -> Contact:
    """The contact a verified record makes. Shared by all books of a process: they are many in a
    simulation, and most entries of one change rarely."""
    return Contact(
        PeerId(record.peer),
        record.host,
        record.intro_port,
        record.control_port,
        record.bulk_port,
        record.epoch,
        record.left,
        chain,
    )


class AddressBook:
    """Contacts by peer, when each was seen last, and the seed addresses a person gave. `version`
    grows with each change worth saving (a new sighting of a known address is not)."""

    def __init__(self, seeds: tuple[str, ...] = ()) -> None:
        self.seeds = seeds
        self.version = 0
        self._contacts: dict[PeerId, Contact] = {}
        self._seen: dict[PeerId, Instant] = {}

    def __len__(self) -> int:
        return len(self._contacts)

    def contacts(self) -> list[Contact]:
        """All of them, by PeerId."""
        return [self._contacts[peer] for peer in sorted(self._contacts)]

    def get(self, peer: PeerId) -> Contact | None:
        return self._contacts.get(peer)

    def seen(self, peer: PeerId) -> Instant:
        """When a peer of the book was last known to live."""
        return self._seen[peer]

    def note(self, record: NodeRecord, alive: Alive, now: Instant) -> None:
        """Remember a verified record."""
        self._put(contact_of(record, alive.chain), now)

    def remember(self, members: Iterable[Member], now: Instant) -> None:
        """Begin with these, who are alive now. There must be room for them."""
        for member in members:
            self._contacts[member.peer] = contact_of(member.record, member.alive.chain)
            self._seen[member.peer] = now
        assert len(self._contacts) <= ENTRIES_MAX, "more than the book holds"

    def add_seeds(self, seeds: tuple[str, ...]) -> None:
        """Addresses a person gave; they go before those of earlier times."""
        merged = tuple(dict.fromkeys((*seeds, *self.seeds)))
        if merged != self.seeds:
            self.seeds = merged
            self.version += 1

    def saw(self, peer: PeerId, now: Instant) -> None:
        """This peer is alive now, where we know it to be."""
        contact = self._contacts.get(peer)
        if contact is not None and not contact.left:
            self._seen[peer] = now

    def drop(self, peer: PeerId) -> None:
        """Forget a peer (it was revoked)."""
        if self._contacts.pop(peer, None) is not None:
            del self._seen[peer]
            self.version += 1

    def to_bytes(self, now: Instant, wall: WallTime) -> bytes:
        """The book as a file."""
        lines = [json.dumps({"format": FORMAT, "seeds": list(self.seeds)})]
        for contact in self.contacts():
            seen_wall = wall - (now - self._seen[contact.peer])
            lines.append(f'{{"seen": {seen_wall:.3f}, {_fixed_part(contact)}')
        return ("\n".join(lines) + "\n").encode()

    def _put(self, contact: Contact, seen: Instant) -> None:
        peer = contact.peer
        before = self._contacts.get(peer)
        if before is None and len(self._contacts) >= ENTRIES_MAX:
            oldest = min(self._contacts, key=lambda p: (self._seen[p], p))
            del self._contacts[oldest], self._seen[oldest]
        self._contacts[peer] = contact
        self._seen[peer] = seen
        if before != contact:
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
        entry = _from_json(line, now, wall)
        if entry is None:
            damaged += 1
        else:
            book._put(*entry)
    book.version = 0
    note = f"address book: {damaged} damaged lines left out, {len(book)} kept" if damaged else ""
    return book, note


@lru_cache(maxsize=1024)
def _fixed_part(contact: Contact) -> str:
    """Its line in the file, without the opening brace and the time."""
    fields = {
        "peer": contact.peer.hex(),
        "host": contact.host,
        "ports": [contact.intro_port, contact.control_port, contact.bulk_port],
        "epoch": contact.epoch,
        "left": contact.left,
        "chain": [base64.b64encode(link).decode() for link in contact.chain],
    }
    return json.dumps(fields)[1:]


def _from_json(line: bytes, now: Instant, wall: WallTime) -> tuple[Contact, Instant] | None:
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
            and math.isfinite(age_s)
        )
        left = bool(raw["left"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if not well_formed:
        return None
    seen = Instant(now - age_s)
    intro, control, bulk = ports
    return Contact(PeerId(peer), host, intro, control, bulk, epoch, left, chain), seen
