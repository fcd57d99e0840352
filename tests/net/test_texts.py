"""Texts through stages on real nodes: whatever node asks, and whoever dies on the way, the text is the same.

Nothing is trained, so that both hosts of a stage have the same weights.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import openai
import pytest
from swarm import (
    PEERLM,
    Node,
    Swarm,
    assert_refused,
    at_once,
    environment,
    peerlm,
    succeed,
    wait_for,
)

pytestmark = pytest.mark.timeout(180)

LENGTH = 160
ASKED = ("generate", "ROMEO:", "--tokens", LENGTH, "--temperature", 1.5, "--seed", 4, "--swarm")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """The first node holds stage 0, two others stage 1."""
    swarm = Swarm(tmp_path_factory.mktemp("texts"))
    try:
        founder = swarm.found("--set", "model.stages=2", "--host", "0", **{"host.sessions": "12"})
        for _ in range(2):
            swarm.join(founder, "", "--host", "1", **{"train.enabled": "false"})
        for node in swarm.nodes[1:]:
            node.wait(lambda s: s["snapshot"]["number"], "it has weights")
        yield swarm
    finally:
        swarm.close()


@pytest.fixture(scope="module")
def url(swarm: Swarm) -> Iterator[str]:
    """Of `peerlm serve --swarm` on a node that holds stage 1; more texts at once than stage 0 has room for."""
    node = swarm.nodes[1]
    command = ["serve", "--swarm", "--port", "0", "--sessions", "16", "--queue", "8"]
    with subprocess.Popen(
        [*PEERLM, *command, "--state", str(node.folder)],
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as serving:
        try:
            assert serving.stdout is not None
            said = serving.stdout.readline()
            found = re.search(r"http://[\d.:]+", said)
            assert found is not None, said
            yield found[0]
        finally:
            serving.kill()


def active(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        figures = answer.read().decode()
    return int(float(re.findall(r"^peerlm_serve_active_sessions (.*)$", figures, re.M)[0]))


def as_shown(text: str) -> str:
    """By a command, to a terminal."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def test_the_published_client_gets_the_texts_that_generate_writes(swarm: Swarm, url: str) -> None:
    asked = ("generate", "ROMEO:", "--tokens", 24, "--temperature", 0, "--swarm")
    written = succeed(*asked, "--state", swarm.nodes[2].folder)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        (model,) = [found.id for found in client.models.list()]
        ask = partial(client.completions.create, model=model, prompt="ROMEO:", max_tokens=24)
        whole = ask(temperature=0, logprobs=2).choices[0]
        assert "ROMEO:" + as_shown(whole.text) + "\n" == written
        assert len(whole.logprobs.token_logprobs) == 24
        streamed = [chunk.choices[0] for chunk in ask(temperature=0, stream=True)]
        assert "".join(part.text for part in streamed) == whole.text
        assert streamed[-1].finish_reason == "length"
        assert ask(temperature=1, top_p=1e-6).choices[0].text == whole.text
        stop = whole.text[9:11]
        stopped = ask(temperature=0, stop=stop).choices[0]
        assert (stopped.text, stopped.finish_reason) == (
            whole.text[: whole.text.find(stop)],
            "stop",
        )
        chat = partial(
            client.chat.completions.create,
            model=model,
            messages=[{"role": "user", "content": "hi"}],
            max_completion_tokens=12,
            seed=3,
        )
        said = chat(logprobs=True, top_logprobs=2).choices[0]
        assert len(said.logprobs.content) == 12
        parts = [chunk.choices[0].delta.content or "" for chunk in chat(stream=True)]
        assert "".join(parts) == said.message.content
        endless = ask(max_tokens=4000, stream=True)
        assert next(iter(endless)).choices[0].finish_reason is None
        endless.close()
        wait_for(lambda: active(url) == 0, "who has gone holds no slot")


async def test_forty_clients_at_once_are_answered_or_asked_to_come_again(
    swarm: Swarm, url: str
) -> None:
    """Some wait in vain for a place in the queue, and some for a slot of a host."""
    seen: set[str] = set()

    def look() -> None:
        for node in swarm.nodes:
            seen.update(member["state"] for member in node.status().get("members", []))

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        model = (await client.models.list()).data[0].id

        async def one(number: int) -> str:
            try:
                stream = await client.completions.create(
                    model=model, prompt=f"{number}:", max_tokens=40, stream=True
                )
                ends = [chunk.choices[0].finish_reason async for chunk in stream]
            except openai.APIError as error:
                return str(error.code)
            return str(ends[-1])

        asked = asyncio.gather(*map(one, range(40)))
        while not asked.done():
            await asyncio.to_thread(look)
        ends = Counter(await asked)
    assert seen == {"alive"}, "nobody is suspected meanwhile"
    assert set(ends) <= {"length", "queue_full", "hosts_full"}
    assert 12 <= ends["length"] < 40
    assert active(url) == 0
    counters = swarm.nodes[0].status()["daemon"]["counters"]
    assert counters["texts_laps"] > 12 * 40 / 16


def stage_servers(node: Node) -> int:
    return node.said().count("stage_server_started")


def test_a_host_that_is_killed_takes_no_text_with_it(swarm: Swarm) -> None:
    founder, one, other = swarm.nodes
    whole, also = at_once(
        *(partial(succeed, *ASKED, "--state", node.folder) for node in (founder, other))
    )
    assert len(whole) >= LENGTH // 2
    assert also == whole, "whoever asks"
    for victim in (one, other):
        wait_for(lambda: stage_servers(one) and stage_servers(other), "both are ready")
        command = [*PEERLM, *map(str, ASKED), "--state", str(founder.folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as asking:
            assert asking.stdout is not None
            text = b""
            while len(text) < 20:
                text += os.read(asking.stdout.fileno(), 1 << 16)
            victim.kill()
            text += asking.stdout.read()
        assert asking.returncode == 0
        assert text.decode().replace("\r", "\n") == whole, "as a terminal shows it"
        victim.up()
        victim.wait(lambda s: s["state"] == "ready", "it is back")


def test_a_node_that_holds_a_part_has_its_sample_text_written_through_the_others(
    swarm: Swarm,
) -> None:
    node = swarm.nodes[1]
    why = "nothing is learnt yet"
    url = str(node.wait(lambda s: s["sample"]["why"] == why, "it says why there is none")["page"])
    ask = urllib.request.Request(url + "sample", method="POST", headers={"X-Peerlm": "sample"})
    with urllib.request.urlopen(ask, timeout=20) as answer:
        assert answer.status == 202
    sample = node.wait(lambda s: not s["sample"]["writing"], "it is written", 120)["sample"]
    assert sample["through_swarm"]
    assert sample["text"]
    assert sample["why"] == ""


def test_what_cannot_be_asked_for_is_one_line(swarm: Swarm, tmp_path: Path) -> None:
    founder = ("--state", swarm.nodes[0].folder)
    part, both, empty, nobody, long = at_once(
        lambda: peerlm("generate", "ROMEO:", *founder),
        lambda: peerlm("generate", "ROMEO:", "--swarm", "--model", tmp_path, *founder),
        lambda: peerlm("generate", "", "--swarm", *founder),
        lambda: peerlm("generate", "ROMEO:", "--swarm", "--state", tmp_path / "none"),
        lambda: peerlm("generate", "x" * 33, "--tokens", 1, "--swarm", *founder),
    )
    assert_refused(part, 3, "holds a part of the model", "--swarm")
    assert_refused(both, 2, "--swarm and --model")
    assert_refused(empty, 2, "prompt is empty")
    assert_refused(nobody, 3, "no node in")
    assert long.err == "peerlm: the prompt has 33 tokens; the model reads the last 32\n"
