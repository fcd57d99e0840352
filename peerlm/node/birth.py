"""What a node is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peerlm.config import NodeSettings
from peerlm.identity.chain import Chain
from peerlm.identity.gate import Gate
from peerlm.identity.keys import NodeKeys
from peerlm.identity.root import SignedPlan
from peerlm.membership.address_book import AddressBook
from peerlm.membership.profile import Profile
from peerlm.node.dial_back import Ports
from peerlm.node.placing import Offered
from peerlm.node.snapshots import Restored
from peerlm.node.stored import Stored
from peerlm.swarm.hosting import Hosting
from peerlm.types import FragmentId, PeerId


@dataclass(frozen=True, slots=True)
class Birth:
    """What a node is made from; all of it comes from the state directory and the sockets."""

    keys: NodeKeys
    chain: Chain
    gate: Gate
    plan: SignedPlan
    settings: NodeSettings
    ports: Ports
    epoch: int
    sizes: Mapping[FragmentId, int]
    """Elements of each fragment of the plan that this node holds."""
    seeds: tuple[str, ...]
    book: AddressBook
    origin: bool
    """This node may make the initial weights."""
    restored: Restored | None
    tallies: tuple[tuple[PeerId, int, int], ...]
    """(peer, boot epoch, tokens) from the snapshot."""
    hosting: Hosting = field(default_factory=Hosting)
    offered: Offered | None = None
    """Of a model in stages: what this node offers, and whether it decides by itself which of them it holds."""
    all_sizes: Mapping[FragmentId, int] = field(default_factory=dict)
    """Then also: elements of each fragment of the plan."""
    stored: Stored = field(default_factory=Stored)
    passes: bytes = b""
    """What `Save("passes")` kept."""
    profile: Profile | None = None
    """Timers other than the plan's preset, which a simulation may compare."""
