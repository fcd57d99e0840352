"""Whether the Host header of a request names this machine.

A web page from elsewhere can have its own name point here, and would then be of the same origin as what we
serve. Addresses cannot be pointed elsewhere; names can, so only names that were given count.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Collection


def is_ours(host: str, names: Collection[str]) -> bool:
    """`host` as in the header, with a port or without; `names` in small letters."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rsplit(":", 1)[0]
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return name.lower() in names
