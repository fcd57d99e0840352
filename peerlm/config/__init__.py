"""Settings: one frozen dataclass per owner, one line of documentation per field.

There are two files. `plan.toml` is what the swarm agrees on: it is signed by the run's root, hashed,
and carries a revision. `node.toml` is this machine's own: paths, ports, limits; it is never hashed
and never leaves the machine. Both are read strictly: an unknown section or field, a wrong type or a
value out of range is a `ConfigError` that names the field, the value and what is allowed.

Every field carries its meaning, unit and effect in its metadata, so the commented files that
`peerlm init` writes and docs/settings.md come from here and cannot drift.
"""

from __future__ import annotations

from peerlm.config.node import (
    WRITERS,
    ControlSection,
    HostSection,
    LimitsSection,
    LocalDataSection,
    LocalTrainSection,
    NetworkSection,
    NodeSettings,
    ObserveSection,
    PageSection,
    StoreSection,
)
from peerlm.config.plan import (
    MODULE_KINDS,
    PRESETS,
    DataSection,
    MixSection,
    ModelSection,
    Plan,
    RunSection,
    SwarmSection,
    TrainSection,
)
from peerlm.config.reading import (
    INT_MAX,
    differences,
    from_dict,
    preset,
    read_toml,
    to_dict,
    told,
    with_changes,
)

__all__ = [
    "INT_MAX",
    "MODULE_KINDS",
    "PRESETS",
    "WRITERS",
    "ControlSection",
    "DataSection",
    "HostSection",
    "LimitsSection",
    "LocalDataSection",
    "LocalTrainSection",
    "MixSection",
    "ModelSection",
    "NetworkSection",
    "NodeSettings",
    "ObserveSection",
    "PageSection",
    "Plan",
    "RunSection",
    "StoreSection",
    "SwarmSection",
    "TrainSection",
    "differences",
    "from_dict",
    "preset",
    "read_toml",
    "to_dict",
    "told",
    "with_changes",
]
