"""How the swarm's store stands, made from what its desk says: for `peerlm store status`, `peerlm data ls` and `show`.

Everything is as one node knows it now. What lacks on others is by their own word, and how many replicas there are by that
of all live nodes of the store, each asked (a *survey*).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Said = dict[str, Any]


# ------------------------------------------------------------------------------------ the store


def store_of(said: Said, names: Iterable[Said]) -> Said:
    """The object of `peerlm store status --json`; docs/store.md explains it.

    Args:
        said: the desk's `status`.
        names: the desk's `names`.
    """
    live = [node for node in said["nodes"] if node["is_live"]]
    wanted = max((name["replicas"] for name in names), default=0)
    away = len(said["nodes"]) - len(live)
    lacking = sum(node["lacking"] for node in live)
    return {
        "answer": _answer(said, len(live), away, wanted, lacking),
        "is_whole": not (lacking or away or said["unfound"]) and len(live) >= wanted,
        "replicas_wanted": wanted,
        "swarm_lacking": lacking,
        **said,
        "scrubbed": said["scrubbed"] or None,
    }


def _answer(said: Said, live: int, away: int, wanted: int, lacking: int) -> str:
    if not said["names"]:
        return "there is nothing in the store"
    if not live:
        return "no live node offers room: nothing is kept for the swarm"
    missing = f"; {_nodes(away)} away" if away else ""
    if said["unfound"]:
        return f"{said['unfound']} chunks are looked for in vain{missing}"
    if lacking:
        full = "; this node is full" if said["is_full"] else ""
        return f"not yet: {lacking} replicas are still to be made{full}{missing}"
    if away:
        many = f"{_nodes(away)} away; if that goes on, what was there is copied to others"
        return f"not while {many}"
    if live < wanted:
        return f"as far as there are nodes: {live} offer room and have everything, {wanted} replicas are wanted"
    return "yes: everything is in as many replicas as wanted"


def _nodes(count: int) -> str:
    return "a node is" if count == 1 else f"{count} nodes are"


# ----------------------------------------------------------------------------------- one name


def standing_of(
    hashes: Sequence[bytes], counts: Sequence[int], wanted: int, silent: list[str], kept: Said
) -> Said:
    """The part `found` of `peerlm data show --json`: in how many replicas chunks were found.

    Args:
        counts: of each chunk.
        wanted: replicas.
        silent: nodes that did not answer.
        kept: how many of the chunks each node keeps.
    """
    assert len(hashes) == len(counts), (len(hashes), len(counts))
    return {
        "least": min(counts, default=0),
        "replicas": {str(n): count for n, count in sorted(Counter(counts).items())},
        "under_replicated": sum(0 < count < wanted for count in counts),
        "unreadable": sum(count == 0 for count in counts),
        "nodes": [{"id": node, "chunks": count} for node, count in kept.items()],
        "silent": silent,
    }
