"""Two hundred clients at once, on a swarm whose nodes hold a stage each: how all are answered, and what it does to the swarm.

Three real nodes train a small model in three stages at a pace, and on each of them `peerlm serve --swarm` answers. Clients
of the published library, as many as are asked for, stream a text each, all at once, and when every one has its text they do it
again. Who is told 429 waits for as long as its Retry-After says, and asks again. Counted is whatever a client can be told. Memory is the
largest that the processes of a kind had together in a round, looked at each second. What nodes hold of each other is told by the
daemons themselves (`peerlm.bench.telling`), so that nothing is missed between two looks.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
import psutil

from bench import report
from bench.report import Missed, Row, say
from bench.texts import PLAN, STAGES, Line
from peerlm.bench.nodes import processes_of, running
from peerlm.bench.overlap import PROGRAM
from peerlm.bench.telling import told_since
from peerlm.cli.demo_nodes import DemoNode
from peerlm.cli.leash import die_with_parent
from peerlm.daemon.control import ask
from peerlm.sim.figures import quantiles

GROWTH_MOST = 1.05
"""Of memory, from an early round to the last."""

EARLY = 1
"""The second round: in the first all memory is touched."""

LOOK_S = 1.0
ANSWER_S, END_S = 600.0, 30.0

KINDS = ("daemons", "workers", "stage servers", "HTTP servers")


@dataclass(slots=True)
class Tally:
    """What clients were told, of all rounds."""

    codes: Counter[str] = field(default_factory=Counter)
    """Answers, by status, and for errors by code."""
    hopeless: int = 0
    """429 without a time to come again."""
    broken: list[str] = field(default_factory=list)
    """Texts that ended in an error, and what it was."""
    whole: int = 0
    firsts_s: list[float] = field(default_factory=list)
    """From asking to the first piece of the text, where it was given."""
    tokens: int = 0


class Server:
    """`peerlm serve --swarm` on a node. `url`: where, once it `answers`."""

    def __init__(self, node: DemoNode) -> None:
        self._log = node.layout.root.with_name(f"{node.layout.root.name}.serve.log")
        state = ("--state", str(node.layout.root))
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "peerlm", "serve", "--swarm", "--port", "0", *state],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.url = ""

    def answers(self) -> None:
        """Wait for it. Raises `Missed`: it has ended."""
        assert self.process.stdout is not None
        found = re.search(r"http://[\d.:]+/v1", self.process.stdout.readline())
        if found is None:
            raise Missed(f"peerlm serve did not begin: {self._log.read_text()[-200:]}")
        self.url = found[0]

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(END_S)
        finally:
            self.process.kill()

    @property
    def complaints(self) -> int:
        return self._log.read_text().count("Traceback")


@contextmanager
def serving(nodes: Sequence[DemoNode]) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        servers = []
        for node in nodes:
            servers.append(Server(node))
            stack.callback(servers[-1].end)
        for server in servers:
            server.answers()
        yield servers


# --------------------------------------------------------------------------------------- clients


async def have_text(
    client: openai.AsyncOpenAI, model: str, number: int, tokens: int, tally: Tally
) -> None:
    """One client's text; it asks until it is given one."""
    while True:
        asked_at = time.monotonic()
        try:
            stream = await client.completions.create(
                model=model,
                prompt=f"Enter client {number}:",
                max_tokens=tokens,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
        except openai.APIStatusError as error:
            tally.codes[f"{error.status_code} {error.code}"] += 1
            wait_s = float(error.response.headers.get("retry-after", 0))
            if error.status_code != 429:
                tally.broken.append(str(error))
                return
            tally.hopeless += not wait_s
            await asyncio.sleep(max(wait_s, 1.0))
            continue
        except openai.APIError as error:  # not even a status
            tally.codes["none"] += 1
            tally.broken.append(str(error))
            return
        tally.codes["200"] += 1
        try:
            await _read(stream, asked_at, tokens, tally)
        except openai.APIError as error:
            tally.broken.append(str(error))
        return


async def _read(
    stream: openai.AsyncStream[openai.types.Completion], asked_at: float, tokens: int, tally: Tally
) -> None:
    finish, drawn, has_begun = "", 0, False
    async for chunk in stream:
        if chunk.choices:
            finish = str(chunk.choices[0].finish_reason)
            if not has_begun:
                has_begun = True
                tally.firsts_s.append(time.monotonic() - asked_at)
        if chunk.usage is not None:
            drawn = chunk.usage.completion_tokens
    tally.tokens += drawn
    if (finish, drawn) == ("length", tokens):
        tally.whole += 1
    else:
        tally.broken.append(f"ended with {finish!r} after {drawn} tokens")


class Memory:
    """Bytes of all processes of a kind, the most of each round."""

    def __init__(self, swarm: Line, servers: Sequence[Server]) -> None:
        self._swarm, self._servers = swarm, servers
        self.rounds: list[dict[str, int]] = []

    async def watch(self) -> None:
        """A round, until cancelled."""
        self.rounds.append(dict.fromkeys(KINDS, 0))
        while True:
            for kind, used in (await asyncio.to_thread(self._used)).items():
                self.rounds[-1][kind] = max(self.rounds[-1][kind], used)
            await asyncio.sleep(LOOK_S)

    def _used(self) -> Counter[str]:
        used: Counter[str] = Counter()
        for node in self._swarm.nodes:
            daemon, *others = processes_of(node)
            used["daemons"] += daemon.memory_info().rss
            for process in others:
                try:
                    is_serving = "peerlm.serve.stage_server" in process.cmdline()
                    kind = "stage servers" if is_serving else "workers"
                    used[kind] += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        for server in self._servers:
            used["HTTP servers"] += psutil.Process(server.process.pid).memory_info().rss
        return used

    def rows(self) -> Iterator[Row]:
        early, last = self.rounds[EARLY], self.rounds[-1]
        for kind in KINDS:
            ratio = last[kind] / early[kind]
            yield Row(f"memory of the {kind}, second round", early[kind] / 1e6, "MB")
            yield Row(f"memory of the {kind}, last ÷ second", ratio, at_most=GROWTH_MOST)


async def rounds(args: argparse.Namespace, servers: Sequence[Server], memory: Memory) -> Tally:
    tally = Tally()
    clients = [
        openai.AsyncOpenAI(base_url=s.url, api_key="none", max_retries=0, timeout=ANSWER_S)
        for s in servers
    ]
    model = (await clients[0].models.list()).data[0].id
    await asyncio.gather(*(have_text(client, model, 0, 4, Tally()) for client in clients))
    for number in range(args.rounds):
        before, began = tally.tokens, time.monotonic()
        watching = asyncio.create_task(memory.watch())
        await asyncio.gather(
            *(
                have_text(clients[i % len(clients)], model, i, args.tokens, tally)
                for i in range(args.clients)
            )
        )
        watching.cancel()
        await asyncio.wait([watching])
        rate = (tally.tokens - before) / (time.monotonic() - began)
        told = ", ".join(f"{count} × {code}" for code, count in sorted(tally.codes.items()))
        used = ", ".join(f"{kind} {b / 1e6:.0f} MB" for kind, b in memory.rounds[-1].items())
        say(f"round {number + 1} of {args.rounds}: {rate:.0f} tokens/s; so far {told}; {used}")
    for client in clients:
        await client.close()
    return tally


# ---------------------------------------------------------------------------------------- figure


def measure(args: argparse.Namespace, folder: Path) -> Sequence[Row]:
    local = {"limits.threads": 1, "train.pace_tokens_s": args.pace}
    with running(Line(folder, STAGES, PLAN, local, args.preset, program=PROGRAM)) as swarm:
        swarm.start()
        swarm.wait("the swarm trains", lambda: swarm.tokens > 0)
        for node in swarm.nodes:
            ask(node.layout, "snapshot", timeout_s=60.0)
        with serving(swarm.nodes[: args.servers]) as servers:
            memory = Memory(swarm, servers)
            swarm.look()
            tokens, began = swarm.tokens, time.monotonic()
            tally = asyncio.run(rounds(args, servers, memory))
            swarm.look()
            took_s, trained = time.monotonic() - began, swarm.tokens - tokens
            told = [line for n in swarm.nodes for line in told_since(n.layout.root, began)]
            complaints = sum(server.complaints for server in servers)
        tracebacks = swarm.tracebacks() + complaints
    for line in dict.fromkeys(tally.broken):
        say(f"a text broke off: {line}")
    asked = args.clients * args.rounds
    answers = tally.codes.total()
    refused = sum(n for code, n in tally.codes.items() if code.startswith("429"))
    firsts = quantiles(tally.firsts_s)
    members = [line["state"] for line in told if line["what"] == "member"]
    probes = quantiles(line["took_s"] for line in told if line["what"] == "answered")
    return [
        Row("clients at once", args.clients),
        Row("answers with 200", tally.codes["200"]),
        *(
            Row(f"answers with {code}", count)
            for code, count in sorted(tally.codes.items())
            if code.startswith("429")
        ),
        Row("of those with 429, without Retry-After", tally.hopeless, at_most=0),
        Row("other answers", answers - tally.codes["200"] - refused, at_most=0),
        Row("texts that came whole", tally.whole, at_least=asked, at_most=asked),
        Row("tokens of a text", args.tokens),
        Row("all texts together", tally.tokens / took_s, "tokens/s"),
        Row("asked, and taken on → first token, p50", firsts["p50"], "s"),
        Row("asked, and taken on → first token, p99", firsts["p99"], "s"),
        *memory.rows(),
        Row("members that any node suspected, or lost", len(members), at_most=0),
        Row("links that went", sum(line["what"] == "link_down" for line in told), at_most=0),
        Row("probes, p99", 1000 * (probes["p99"] or 0.0), "ms"),
        Row("tokens trained on meanwhile", trained, at_least=1),
        Row("tracebacks in all logs", tracebacks, at_most=0),
    ]


def main() -> int:
    flags = report.parser(__doc__)
    flags.add_argument("--preset", default="tiny", help="whose model [tiny]")
    flags.add_argument("--clients", type=int, default=200, help="at once [200]")
    flags.add_argument("--rounds", type=int, default=8, help="two at least [8]")
    flags.add_argument("--tokens", type=int, default=64, help="of a text [64]")
    flags.add_argument("--servers", type=int, default=STAGES, help=f"that answer [{STAGES}]")
    flags.add_argument("--pace", type=int, default=200, help="of training, tokens/s a node [200]")
    return report.perform("texts_load", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
