"""The register of names, kept the same on all nodes: told as rumors, compared page by page.

What comes from a peer is believed when its writer's chain leads to the run's root, allows the writer to store, was not
revoked, and its signature is under the record. When a chain ends does not matter later: a name outlives its writer.
What is old is believed only if its teller is current, or this node is not (`store.current`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

from peerlm.effects import Effect, Send
from peerlm.errors import AuthError, StateError, WireError
from peerlm.node.refusals import MALFORMED, Refusal, Refusals
from peerlm.store.current import ENDS_S, OLD_S, Current
from peerlm.store.manifest import MANIFEST_BYTES_MAX, NAME, Kind
from peerlm.store.names import FLOOR_NAME, Entry, Names
from peerlm.types import Instant, ObjectHash, PeerId, WallTime, after, printable, short
from peerlm.wire.codec import decode_as, encode
from peerlm.wire.message import Named, NameRecord, NamesAsk, NamesGive

COMPARE_S = 60.0
"""How often the register is compared with some node's; and with each new link's."""

GIVEN_MAX = 64
"""Names in one message."""

KINDS = frozenset(Kind)

LAMPORT_MAX = 2**62
"""Of `NameRecord`: who hears of a larger one takes it for nonsense."""

Author = Callable[[Named], PeerId]
"""Who has signed it and may write names. Raises `AuthError`."""

Spread = Callable[[Named, bytes, Instant, PeerId | None], list[Effect]]
"""Tell the swarm: a rumor on a subject, and who need not hear it."""


@dataclass(frozen=True, slots=True)
class Writing:
    """What a name is to stand for."""

    name: str
    kind: Kind
    manifest: ObjectHash | None = None
    """None: the name is removed."""
    size: int = 0
    """Bytes of the manifest."""
    replicas: int = 3
    is_pinned: bool = False
    about: str = ""
    replaces: bool = False
    """It may stand for something else already."""


Write = Callable[[Writing, WallTime, Instant], list[Effect]]
"""`Storing.write`: raises `StateError`, as `Register.write`."""

RaiseFloor = Callable[[int, WallTime, Instant], list[Effect]]
"""`Storing.raise_floor`: raises `StateError`, as `Register.raise_floor`."""


class Register:
    """Of one node.

    Args:
        sign: gives our own record with our signature and chain.
    """

    def __init__(
        self,
        me: PeerId,
        sign: Callable[[NameRecord], Named],
        author: Author,
        spread: Spread,
        rng: random.Random,
        now: Instant,
    ) -> None:
        self.names = Names()
        self.refused = Refusals(now)
        self._me, self._sign, self._author, self._spread = me, sign, author, spread
        self._rng = rng
        self.current = Current(None)
        self.wall = WallTime(0.0)
        """Whoever drives the node sets it anew."""
        self._compare_at = after(now, COMPARE_S)

    # -------------------------------------------------------------------------------- writing

    def write(self, wanted: Writing, wall: WallTime, now: Instant) -> list[Effect]:
        """A new record of ours.

        Raises:
            StateError: the name is taken, cannot be one, or the register is full; or nobody would believe this node.
        """
        name, manifest = wanted.name, wanted.manifest
        if not NAME.fullmatch(name):
            raise StateError(
                f"{name[:100]!r} cannot be a name: small letters, digits and . _ - (at most 96), a letter or digit first"
            )
        if name == FLOOR_NAME:
            raise StateError(f"the name {name} is the store's own; choose another with --name")
        known = self.names.get(name)
        holds = known is not None and known.record.manifest
        if known is not None and holds and not wanted.replaces and holds != (manifest or b""):
            raise StateError(
                f"the name {name} is taken ({known.record.kind}, by node {short(known.record.writer)}); choose another "
                f"with --name, or remove it first: peerlm data rm {name}"
            )
        lamport = self.names.next_lamport(name)
        if lamport > LAMPORT_MAX:
            raise StateError(
                f"the name {name} cannot be written any more: node {short(known.record.writer if known else self._me)} has "
                "given it the largest number that there is; choose another with --name"
            )
        if (
            known is not None and not manifest
        ):  # not of before what it removes, whatever the clock says
            wall = max(wall, WallTime(known.record.wall))
        record = NameRecord(
            name=name,
            kind=wanted.kind,
            manifest=manifest or b"",
            size=wanted.size,
            lamport=lamport,
            writer=self._me,
            wall=wall,
            replicas=wanted.replicas,
            is_pinned=wanted.is_pinned,
            about=printable(wanted.about)[:200].encode()[:200].decode(errors="ignore"),
        )
        return self._publish(record, now)

    def raise_floor(self, floor: int, wall: WallTime, now: Instant) -> list[Effect]:
        """Remove all checkpoints of the series below it that may be (`store.names`). Raises `StateError`, as `write`."""
        if floor <= self.names.floor:
            return []
        record = NameRecord(
            FLOOR_NAME, Kind.CHECKPOINT, b"", 0, floor, self._me, wall, 1, False, ""
        )
        return self._publish(record, now)

    def _publish(self, record: NameRecord, now: Instant) -> list[Effect]:
        if not self.names.is_news(record):
            raise StateError("the register of names is full: remove some first (peerlm data ls)")
        proof = self._sign(record)
        try:
            self._author(proof)
        except AuthError as error:
            raise StateError(f"this node may not write names: {error}") from None
        self.names.merge(record, proof)
        return self._tell(record, proof, now, None)

    # -------------------------------------------------------------------------------- hearing

    def hear(
        self, proof: Named, teller: PeerId | None, now: Instant, *, is_current: bool = False
    ) -> tuple[NameRecord | None, list[Effect]]:
        """A record that somebody told: (it, if it is news; what to tell the others). `is_current`: who told it is."""
        try:
            record = self._believed(proof, is_current=is_current)
        except _Refused as refused:
            self.refused.add(refused.refusal, teller, now)
            return None, []
        if record is None or not self.names.merge(record, proof):
            return None, []
        return record, [] if self._is_old(record) else self._tell(record, proof, now, teller)

    @property
    def is_current(self) -> bool:
        return self.current.holds(self.wall)

    def _is_old(self, record: NameRecord) -> bool:
        return record.wall < self.wall - OLD_S

    def _believed(
        self, proof: Named, *, is_current: bool = True, is_ours: bool = False
    ) -> NameRecord | None:
        """None: it is no news. `is_current`: who told it is. `is_ours`: it comes from our own disk, and was believed before; its
        writer may have been revoked since. Raises `_Refused`."""
        try:
            record = _read(proof)
        except WireError as error:
            raise _Refused(Refusal(MALFORMED, str(error))) from None
        if not self.names.is_news(record):
            return None
        if self._is_old(record) and record.manifest and self.is_current and not is_current:
            return None  # it may have been removed so long ago that nobody has the tombstone
        try:
            if not is_ours and (signer := self._author(proof)) != record.writer:
                raise AuthError("bad_signature", f"node {short(signer)} has signed it")
        except AuthError as error:
            writer = PeerId(record.writer)
            raise _Refused(Refusal(error.code, str(error), record.name, writer)) from None
        return record

    def _tell(
        self, record: NameRecord, proof: Named, now: Instant, teller: PeerId | None
    ) -> list[Effect]:
        return self._spread(proof, b"name" + record.name.encode(), now, teller)

    # ------------------------------------------------------------------------------- comparing

    def compare(self, peer: PeerId) -> list[Effect]:
        """Show a peer what is known here. Who knows nothing is shown it by the other."""
        if not len(self.names):
            return []
        return [
            Send(peer, NamesAsk(low, high, entries, False, self.is_current))
            for low, high, entries in self.names.digests()
        ]

    def asked(self, peer: PeerId, ask: NamesAsk, now: Instant) -> list[Effect]:
        if ask.is_current:
            self._learn(peer, ask, now)
        newer = self.names.newer_than(ask.low, ask.high, ask.entries)
        effects: list[Effect] = [
            Send(peer, NamesGive(tuple(newer[at : at + GIVEN_MAX]), self.is_current))
            for at in range(0, len(newer), GIVEN_MAX)
        ]
        if not ask.reply and self.names.is_behind(ask.entries):
            for low, high, entries in self.names.digests():
                effects.append(Send(peer, NamesAsk(low, high, entries, True, self.is_current)))
        return effects

    def _learn(self, peer: PeerId, ask: NamesAsk, now: Instant) -> None:
        """From one that is current."""
        if not self.is_current:
            old = self.wall - OLD_S
            self.names.prune(ask.low, ask.high, ask.entries, old, self._is_believable)
        self.current.heard(peer, ask.low, ask.high, self.wall, now)

    def _is_believable(self, entry: Entry) -> bool:
        """Others would take it; else that they have not got it says nothing."""
        try:
            return self._author(entry.proof) == entry.record.writer
        except AuthError:
            return False

    def wake(self, linked: Callable[[], Sequence[PeerId]], now: Instant) -> list[Effect]:
        return [*self.refused.wake(now), *self._compare(linked, now)]

    def _compare(self, linked: Callable[[], Sequence[PeerId]], now: Instant) -> list[Effect]:
        if self._compare_at > now:
            return []
        self._compare_at = after(now, COMPARE_S)
        peers = linked()
        self.current.look(peers, self.wall, now)
        self.names.end(self.wall - ENDS_S if self.is_current else -inf)
        return self.compare(self._rng.choice(peers)) if peers and len(self.names) else []

    def deadline(self) -> Instant:
        return self._compare_at

    # --------------------------------------------------------------------------------- keeping

    def encode(self) -> list[str]:
        return [encode(entry.proof).hex() for entry in self.names]

    def restore(self, proofs: Iterable[str], since: WallTime | None = None) -> int:
        """What was kept; returns how many were not believed. `since`: when it was current."""
        self.current = Current(since)
        refused = 0
        for text in proofs:
            try:
                proof = decode_as(Named, bytes.fromhex(text))
            except (ValueError, WireError):
                refused += 1
                continue
            try:
                record = self._believed(proof, is_ours=True)
            except _Refused:
                record = None
            refused += record is None or not self.names.merge(record, proof)
        return refused

    def living(self) -> list[Entry]:
        """Names that stand for something."""
        names = (entry for entry in self.names if entry.record.manifest)
        return [entry for entry in names if entry.record.name != FLOOR_NAME]

    def records_of(self, manifest: ObjectHash) -> list[NameRecord]:
        """Of the names that stand for it."""
        return [e.record for e in self.living() if e.record.manifest == manifest]

    def replicas_of(self, manifest: ObjectHash) -> int:
        """In how many its chunks are wanted; 0: no name stands for it."""
        return max((record.replicas for record in self.records_of(manifest)), default=0)


class _Refused(Exception):
    """A record that is not believed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.why)
        self.refusal = refusal


def _read(proof: Named) -> NameRecord:
    """Raises `WireError`: it makes no sense, whoever has signed it."""
    record = decode_as(NameRecord, proof.record)
    if not NAME.fullmatch(record.name) or record.kind not in KINDS:
        raise WireError("no name, or of no kind")
    if len(record.manifest) not in (0, 32) or not record.replicas >= 1:
        raise WireError("no manifest, or no replicas")
    if record.size > MANIFEST_BYTES_MAX:
        raise WireError("no manifest is so large")
    return record


Kept = tuple[list[str], list[tuple[PeerId, int, str]], WallTime | None]


def read_kept(data: bytes) -> Kept:
    """(names, nodes of the store, when the names were current) of a file that `as_kept` wrote. Raises `StateError`."""
    try:
        body = json.loads(data)
        names = [str(text) for text in body["names"]]
        nodes = [
            (PeerId(bytes.fromhex(p)), int(size), str(label)) for p, size, label in body["nodes"]
        ]
        since = body.get("current")
        if since is not None and not isfinite(since):
            raise ValueError("no time")
    except (KeyError, TypeError, ValueError, RecursionError):
        raise StateError("the register of names is damaged; peers give it back") from None
    return names, nodes, since


def as_kept(
    names: list[str], nodes: Iterable[tuple[PeerId, int, str]], since: WallTime | None
) -> bytes:
    told = [[peer.hex(), size, label] for peer, size, label in nodes]
    body = {"names": names, "nodes": told, "current": since}
    return json.dumps(body).encode()
