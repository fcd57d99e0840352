"""How long it takes to exchange a whole model, beside others who do the same in the same minutes.

Each who takes part is a *party*: processes on loopback that stand ready, and go through one round after
another. Rounds of all parties take turns, so that a slow minute of the machine hits all alike, and the
first of each is not counted. Of two peerlm nodes one starts the exchanges of all fragments; of more,
all start at once with partners drawn at random, and the round ends when every node has mixed every
fragment with somebody. A round of a rival is what its own file says (peerlm/bench/rivals/).

What would distort a figure is an error: a node that asked for another codec than was to be measured, a
difference that was clipped. Snapshots are not written meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from math import isqrt
from pathlib import Path
from typing import Any, Protocol

from peerlm.bench.child import Child, ask_all, cpu_seconds, forget_peaks, peak_mb
from peerlm.bench.founding import Place, Values
from peerlm.bench.lines import place_of
from peerlm.bench.member import Member
from peerlm.bench.mixers import mixers
from peerlm.bench.rival import interpreter_of, rival
from peerlm.bench.rows import FP32_BYTES, Missed, Round, codecs_of, exchange_row, grown, with_ratios
from peerlm.cli.plan import current_plan
from peerlm.model.plan import fragments, parameter_count

RNG_SEED = 1
VOCAB = 256
WIDTHS_PER_HIDDEN = 8
"""Inner width of the model's one block ÷ its outer width."""


class Party(Protocol):
    """Processes that average a model when they are told to."""

    @property
    def name(self) -> str: ...

    @property
    def children(self) -> Sequence[Child]: ...

    def prepare(self) -> float:
        """Get ready for a round; the seconds that its users have to wait for this too."""

    def round(self) -> float:
        """Its seconds."""

    def counts(self) -> Mapping[str, int]:
        """So far, of all of them: `wire_bytes` that were sent, and more if they like."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured: `megabytes` of fp32 parameters on `nodes` nodes, with each codec and each
    security, beside `rivals`, in so many rounds each."""

    megabytes: float
    nodes: int
    rounds: int
    codecs: tuple[str, ...]
    securities: tuple[str, ...]
    rivals: tuple[str, ...]
    link: str = ""
    """Empty: loopback."""


Tell = Callable[[str], None]
"""Takes a line of progress for whoever watches."""


def measure(asked: Asked, folder: Path, tell: Tell) -> dict[str, Any]:
    """The whole comparison, in `folder`, as the object that `--json` prints.

    Raises:
        PeerlmError: a rival is not installed; nodes do not come up; a round went wrong.
    """
    for name in asked.rivals:
        interpreter_of(name)
    ours, theirs = [], []
    with ExitStack() as stack:
        place = stack.enter_context(place_of(asked.link, asked.nodes))
        for number, (security, codec) in enumerate(product(asked.securities, asked.codecs)):
            tell(f"starting {asked.nodes} nodes, {codec} {security}")
            nodes = peerlm_nodes(folder / f"peerlm-{number}", asked, codec, security, place)
            ours.append(stack.enter_context(nodes))
        parameters = ours[0].parameters
        for name in asked.rivals:
            tell(f"starting {asked.nodes} processes, {name}")
            theirs.append(
                stack.enter_context(rival(name, folder / name, asked.nodes, parameters, place))
            )
        rounds = compare([*ours, *theirs], asked.rounds, tell)
    rows = [exchange_row(name, found, parameters) for name, found in rounds.items()]
    for other in theirs:
        if other.meets:
            name = f"{other.name} with matchmaking"
            rows.append(exchange_row(name, rounds[other.name], parameters, met=True))
    others = [row["name"] for row in rows[len(ours) :]]
    return {
        "mb": FP32_BYTES * parameters / 1e6,
        "parameters": parameters,
        "fragments": ours[0].fragments,
        "nodes": asked.nodes,
        "rounds": asked.rounds,
        "link": asked.link or "loopback",
        "rows": with_ratios(rows, others),
    }


class Peerlm:
    """Nodes of peerlm as a party."""

    def __init__(self, name: str, members: list[Member]) -> None:
        self.name = name
        self.children = members
        plan = current_plan(members[0].node.layout).plan
        self.parameters = parameter_count(plan.model, plan.data.vocab)
        self.fragments = len(fragments(plan))

    def prepare(self) -> float:
        for member in self.children:
            member.tell("renew", RNG_SEED, member.node.number)
        for member in self.children:
            member.hear()
        return 0.0

    def round(self) -> float:
        """Raises `Missed`: it went otherwise than asked."""
        starters = self.children[:1] if len(self.children) == 2 else self.children
        for member in reversed(self.children):
            member.tell("round" if member in starters else "served")
        answers = [member.hear() for member in reversed(self.children)]
        if finer := sum(answer["finer"] for answer in answers):
            raise Missed(f"{self.name}: {finer} fragments came so close that codecs were changed")
        return float(max(a["ended"] for a in answers) - min(a["began"] for a in answers))

    def counts(self) -> Mapping[str, int]:
        """Also `exchanges` that went well, requests that found a partner `busy`, and what time went to.

        Raises:
            Missed: a difference has been clipped.
        """
        tallies = ask_all(self.children, "tally")
        total = {name: sum(tally[name] for tally in tallies) for name in tallies[0]}
        if clipped := total.pop("clipped"):
            raise Missed(f"{self.name}: {clipped} differences were clipped")
        return total


@contextmanager
def peerlm_nodes(
    folder: Path, asked: Asked, codec: str, security: str, place: Place | None = None
) -> Iterator[Peerlm]:
    """Nodes without workers that hold a model and see each other. Raises `PeerlmError`."""
    request, reply = codecs_of(codec)
    plan = {
        **model_of(round(asked.megabytes * 1e6 / FP32_BYTES)),
        "mix.codec_request": request,
        "mix.codec_reply": reply,
        "mix.clip_factor": 1000,
    }
    local = {"network.bulk_security": security, "limits.snapshot_every_s": 1e6}
    with mixers(folder, asked.nodes, plan, RNG_SEED, local, place) as members:
        yield Peerlm(f"peerlm {codec} {security}", members)


def model_of(parameters: int) -> Values:
    """The plan's model of about so many parameters: an embedding, one large block, an output."""
    dim = max(8, isqrt(parameters // (3 * WIDTHS_PER_HIDDEN)) // 8 * 8)
    rest = parameters - (VOCAB + 2) * dim
    return {
        "model.blocks": "feedforward",
        "model.dim": dim,
        "model.hidden": max(8, round(rest / (3 * dim))),
    }


def compare(parties: Sequence[Party], rounds: int, tell: Tell) -> dict[str, list[Round]]:
    """Rounds of each party by name, taken in turns; the first of each is not among them."""
    found: dict[str, list[Round]] = {party.name: [] for party in parties}
    at_rest: dict[int, float] = {}
    for number in range(rounds + 1):
        for party in parties:
            one = one_round(party, at_rest)
            what = f"round {number} of {rounds}" if number else "warm-up"
            tell(f"{what}: {party.name}, {one.seconds:.3f} s")
            if number:
                found[party.name].append(one)
    return found


def one_round(party: Party, at_rest: dict[int, float]) -> Round:
    """`at_rest`: what each process had before its first round, in MB; what is missing is put in."""
    meeting_s = party.prepare()
    processes = [process for child in party.children for process in child.processes()]
    forget_peaks(processes)
    for process in processes:
        at_rest.setdefault(process.pid, peak_mb(process))
    busy, before = cpu_seconds(processes), party.counts()
    seconds = party.round()
    peaks = {process.pid: peak_mb(process) for process in processes}
    return Round(
        seconds=seconds,
        meeting_s=meeting_s,
        cpu_s=cpu_seconds(processes) - busy,
        counts=grown(party.counts(), before),
        rss_mb=max(peaks.values()),
        grown_mb=max(peak - at_rest[pid] for pid, peak in peaks.items()),
    )
