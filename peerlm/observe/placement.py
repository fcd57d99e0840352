"""Who holds which stages, made from what `peerlm status --json` says: for `peerlm placement`.

Members that hold the whole model train by themselves, so they are hosts of no stage for the others; each has a row all
the same. What another node thinks is not known here: for that, ask there.
"""

from __future__ import annotations

from typing import Any

Status = dict[str, Any]

READY, LOADING, DRAINING = "ready", "loading", "draining"
WHOLE = "whole"

OVER = frozenset({"draining", "settling", "done"})
HOLDING = OVER | {"ready", "training"}
"""Phases of a member that has the weights of its stages; of these, those after the last step of the run."""


def placement_of(s: Status) -> dict[str, Any]:
    """The object of `peerlm placement --json`; docs/placement.md explains it."""
    count = s["stages"]["count"]
    nodes = [_node(m, s) for m in s["members"] if m["state"] in ("alive", "suspect")]
    stages = [_stage(number, nodes, s) for number in range(count)]
    return {
        "run": s["run_name"],
        "node": s["node_id"],
        "is_over": s["state"] in OVER,
        "stages": stages,
        "nodes": nodes,
        "lacking": [e["stage"] for e in stages if not e["ready"]] if count > 1 else [],
        "single": [e["stage"] for e in stages if len(e["ready"]) == 1] if count > 1 else [],
    }


def _node(m: Status, s: Status) -> dict[str, Any]:
    count, is_own = s["stages"]["count"], m["id"] == s["node_id"]
    held = _run(m["stages"], count) if m["phase"] else []
    target = _run(m["target"], count) if m["auto"] else held
    return {
        "id": m["id"],
        "auto": m["auto"],
        "phase": m["phase"],
        "held": held,
        "target": target,
        "states": _states(m, held, target, count),
        "tokens_per_s": m["tokens_per_s"],
        "flops_s": m["flops_s"],
        "line_bytes_s": m["line_bytes_s"],
        "delay_s": m["delay_s"],
        "away_s": m["away_s"],
        "paces": m["paces"],
        "busy": m.get("busy"),  # an older daemon does not say
        "texts": m.get("texts", 0),
        "offers": m["offers"],
        "why": _why(m, held, target, s["placement"]["why"] if is_own else None) + _old(m),
    }


def _run(ends: list[int], count: int) -> list[int]:
    """First and last as stages; none where the first is above the last, or beyond what there is."""
    return list(range(ends[0], ends[1] + 1)) if ends[0] <= ends[1] < count else []


def _states(m: Status, held: list[int], target: list[int], count: int) -> dict[str, str]:
    """By stage (as text, for JSON)."""
    if len(held) == count > 1:
        return {str(stage): WHOLE for stage in held}
    have = DRAINING if m["draining"] else READY if m["phase"] in HOLDING else LOADING
    found = {str(stage): LOADING for stage in target}
    for stage in held:
        found[str(stage)] = have if stage in target else DRAINING
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _why(m: Status, held: list[int], target: list[int], own: str | None) -> str:
    """Why a node holds what it holds: of this node its last decision, of others what they say."""
    if m["draining"]:
        return "is going to leave"
    if not m["auto"]:
        return "its owner has fixed its stages"
    if own:
        return own
    if held != target:
        return f"loads what it is going to hold: {_shown(target)}"
    return "decided by itself" if held else "has not decided yet"


def _old(m: Status) -> str:
    """Why no text begins with what it holds, if so."""
    if not m.get("behind"):  # an older daemon does not say
        return ""
    if m["weights_tokens"] is None:  # it has begun anew since they were compared
        return "; no texts: its weights were old beside another host's"
    return (
        f"; no texts: its weights are of {m['weights_tokens']:,} tokens, old beside another host's"
    )


def _stage(number: int, nodes: list[dict[str, Any]], s: Status) -> dict[str, Any]:
    def those(state: str) -> list[str]:
        return [n["id"] for n in nodes if n["states"].get(str(number)) == state]

    ready = those(READY)
    return {
        "stage": number,
        "ready": ready,
        "loading": those(LOADING),
        "draining": those(DRAINING),
        "tokens_per_s": round(sum(n["tokens_per_s"] for n in nodes if n["id"] in ready), 1),
        "busy": _mean([n["busy"] for n in nodes if n["id"] in ready and n["busy"] is not None]),
        "spare": [n["id"] for n in nodes if _could_hold(number, n, s["placement"]["stages"])],
    }


def _mean(shares: list[float]) -> float | None:
    return round(sum(shares) / len(shares), 2) if shares else None


def _could_hold(stage: int, node: dict[str, Any], needs: list[Status]) -> bool:
    """Whether it decides by itself and has room for this stage beside what it holds."""
    if not node["auto"] or str(stage) in node["states"] or stage >= len(needs):
        return False
    run = [*node["target"], stage]
    hull = range(min(run), max(run) + 1)
    host = sum(needs[at]["host_bytes"] for at in hull)
    device = sum(needs[at]["device_bytes"] for at in hull)
    offers = node["offers"]
    if offers["device_bytes"] is None:
        return bool(host + device <= offers["host_bytes"])
    return bool(host <= offers["host_bytes"] and device <= offers["device_bytes"])


def _shown(stages: list[int]) -> str:
    if not stages:
        return "none"
    return str(stages[0]) if len(stages) == 1 else f"{stages[0]}-{stages[-1]}"
