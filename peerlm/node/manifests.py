"""What the names of the store stand for: manifests that this node knows, reads from its disk, or looks for.

A name brings a manifest's hash and nothing more. Who offers room gets the manifest itself first, as it gets any chunk,
and reads it; only then is it known which chunks the name needs (`store.catalog`). When no living name stands for a
manifest any more, nothing is needed for its sake.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from peerlm.effects import Effect, Log, ReadManifest
from peerlm.events import ManifestRead
from peerlm.node.intake import Intake, Outcome
from peerlm.node.leftovers import Leftovers
from peerlm.node.makers import Makers
from peerlm.node.register import Register
from peerlm.store.catalog import Catalog
from peerlm.types import Instant, ObjectHash, PeerId, short
from peerlm.wire.message import NameRecord

Living = Mapping[ObjectHash, NameRecord]
"""Of each manifest that living names stand for, the record that wants most replicas."""


class Manifests:
    """`lacked`: those that are being looked for, and their bytes. `fresh`: who made what was named lately."""

    def __init__(
        self, catalog: Catalog, register: Register, fresh: Makers, leftovers: Leftovers
    ) -> None:
        self._catalog, self._register = catalog, register
        self._fresh, self._leftovers = fresh, leftovers
        self.lacked: dict[ObjectHash, int] = {}
        self._replicas: dict[ObjectHash, int] = {}
        """Of each manifest whose chunks the catalog knows, in how many replicas."""
        self._reading: set[ObjectHash] = set()
        """Manifests that are being read from the disk, and taken in."""
        self._passed_over: set[ObjectHash] = set()
        """Manifests that list more chunks than can be known."""
        self._named = 0
        """Manifests that living names stand for."""
        self._intake = Intake(catalog, register.replicas_of)

    @property
    def unread(self) -> int:
        """Named, and not known yet."""
        return self._named - len(self._replicas)

    @property
    def is_busy(self) -> bool:
        """There is more to `take_in`."""
        return self._intake.is_busy

    # ------------------------------------------------------------------------------------- names

    def living(self) -> Living:
        living: dict[ObjectHash, NameRecord] = {}
        for entry in self._register.living():
            manifest, record = ObjectHash(entry.record.manifest), entry.record
            known = living.setdefault(manifest, record)
            if record.replicas > known.replicas:
                living[manifest] = record
        self._named = len(living)
        return living

    def forget_but(self, living: Living) -> bool:
        """Nothing else is needed any more. Whether there was anything else."""
        gone = self._catalog.manifests - living.keys()
        for manifest in gone:
            self._forget(manifest)
        self._passed_over &= living.keys()
        self.lacked = {h: size for h, size in self.lacked.items() if h in living}
        return bool(gone)

    def seek(
        self, living: Living, here: Container[ObjectHash], now: Instant, *, pulls: bool
    ) -> list[Effect]:
        """Have those read that are `here`, and look for the others, if this node `pulls` what it lacks."""
        effects: list[Effect] = []
        for manifest, record in living.items():
            if self._replicas.get(manifest) == record.replicas or manifest in self._reading:
                continue
            if manifest in self._passed_over:
                continue
            if manifest in here:
                self._reading.add(manifest)
                effects.append(ReadManifest(manifest))
            elif pulls and manifest not in self.lacked:
                self.lacked[manifest] = record.size
                self._fresh.heard(manifest, (PeerId(record.writer),), now)
        return effects

    def _forget(self, manifest: ObjectHash) -> None:
        """No name stands for it any more: what is in no other manifest may go at once."""
        self._catalog.let_go(manifest)
        self._passed_over.clear()  # there is room for others
        del self._replicas[manifest]
        self._fresh.forget(manifest)
        self._leftovers.nameless((manifest,))
        self.tidy()

    def tidy(self) -> None:
        """Go on with what the forgotten ones listed."""
        if self._catalog.is_untidy:
            gone = self._catalog.tidy()
            self._leftovers.nameless(gone, is_all=not self._catalog.is_untidy)

    # ----------------------------------------------------------------------------------- objects

    def came(self, object_hash: ObjectHash) -> bool:
        """Whether it is one that was looked for."""
        return self.lacked.pop(object_hash, None) is not None

    def lost(self, object_hash: ObjectHash) -> bool:
        """Whether it is one that is known: it is looked for again, and its chunks stay known."""
        if object_hash not in self._replicas:
            return False
        for record in self._register.records_of(object_hash):
            self.lacked[object_hash] = record.size
        return True

    def unreadable(self, manifest: ObjectHash) -> None:
        """It could not be read."""
        self._reading.discard(manifest)

    def read(self, event: ManifestRead) -> None:
        """Its chunks are there to be taken in; call `take_in` until it is no more busy."""
        self._reading.add(event.manifest)
        self._intake.add(event)

    def take_in(self, now: Instant) -> tuple[ObjectHash | None, list[Effect]]:
        """Go on. The manifest that is known from now on, if one is, and what to tell."""
        taken = self._intake.step()
        if taken is None:
            return None, []
        read, replicas, outcome = taken
        self._reading.discard(read.manifest)
        match outcome:
            case Outcome.NAMELESS:
                return None, []
            case Outcome.TOO_MANY:
                fields = (("manifest", short(read.manifest)), ("chunks", len(read.chunks)))
                self._passed_over.add(read.manifest)
                return None, [Log("warning", "too_many_chunks", fields)]
        if read.manifest not in self._replicas:
            writer = PeerId(self._register.records_of(read.manifest)[0].writer)
            self._fresh.heard(read.manifest, (writer, *read.makers), now, read.made)
        self._replicas[read.manifest] = replicas
        return read.manifest, []

    def is_as_wanted(self, manifest: ObjectHash) -> bool:
        """It is known in as many replicas as its names want now."""
        return self._register.replicas_of(manifest) == self._replicas.get(manifest)
