"""Clients over real sockets: many, rude, slow, gone, and the published library."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch
from http_scene import Server, events, served, until
from ring_scene import LINE_S, Host, Ring, ring_service, staged
from serve_scene import fragment_values, model_of, plan_of
from test_ring_versions import change_under_way

from peerlm.model.export import write_model
from peerlm.model.generate import generate
from peerlm.serve import http, keys
from peerlm.serve import lap as laps
from peerlm.serve.keys import Key
from peerlm.serve.lap import Kind
from peerlm.serve.route import name_of_all
from peerlm.types import PeerId

pytestmark = [pytest.mark.net, pytest.mark.timeout(60)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def alone(prompt: str, tokens: int, kind: str = "hybrid", **sampling: Any) -> str:
    model = model_of(plan_of(kind))
    ids = generate(model, list(prompt.encode()), tokens, **sampling)
    return bytes(ids).decode(errors="replace")


async def test_a_completion_is_what_generate_writes() -> None:
    async with served() as server:
        code, found, headers = await server.post(prompt="ROMEO:", max_tokens=30, temperature=0)
        assert code == 200
        assert found["choices"][0]["text"] == alone("ROMEO:", 30, temperature=0.0)
        assert found["choices"][0]["finish_reason"] == "length"
        assert found["usage"] == {"prompt_tokens": 6, "completion_tokens": 30, "total_tokens": 36}
        assert found["system_fingerprint"] == "v1"
        assert re.fullmatch("req_[0-9a-f]{24}", headers["x-request-id"])
        _, found, _ = await server.post(
            prompt=["A", "B"], n=2, max_tokens=9, seed=4, temperature=0.9, logprobs=1
        )
        texts = [choice["text"] for choice in found["choices"]]
        seeds = zip(("A", "A", "B", "B"), range(4, 8), strict=True)
        assert texts == [alone(p, 9, temperature=0.9, rng_seed=seed) for p, seed in seeds]
        assert len(found["choices"][0]["logprobs"]["token_logprobs"]) == 9
        figures = await server.figures()
        assert "peerlm_serve_generated_tokens_total 66.0" in figures
        assert 'peerlm_serve_requests_total{status="200"} 2.0' in figures
        assert "peerlm_serve_first_token_seconds_count 2.0" in figures


async def test_forty_clients_stream_at_once() -> None:
    async with served(slots=16) as server:

        async def one(number: int) -> tuple[str, str]:
            prompt, text, finish = f"{number}: " + "x" * (number % 30), "", ""
            body = {"model": "plays", "prompt": prompt, "max_tokens": 12, "temperature": 0}
            body |= {"stream": True}
            async with server.session.post(f"{server.url}/v1/completions", json=body) as answer:
                assert answer.status == 200
                async for data in events(answer):
                    if data == "[DONE]":
                        finish += "."
                        continue
                    (choice,) = json.loads(data)["choices"]
                    text += choice["text"]
                    finish += choice["finish_reason"] or ""
            assert finish == "length."
            return prompt, text

        found = await asyncio.gather(*(one(number) for number in range(40)))
        for prompt, text in found[::8]:
            assert text == alone(prompt, 12, temperature=0.0)
        await server.until_quiet()


@pytest.mark.parametrize("stream", [True, False])
async def test_who_goes_away_frees_the_slot(stream: bool) -> None:
    async with served(slots=1) as server:
        body = {"model": "plays", "prompt": "x", "max_tokens": 90_000, "stream": stream}
        request = asyncio.ensure_future(
            server.session.post(f"{server.url}/v1/completions", json=body)
        )
        await until(lambda: server.driver.active)
        assert "peerlm_serve_cache_bytes 1000.0" in await server.figures()
        if stream:
            (await request).close()
        else:
            request.cancel()
        code, _, _ = await server.post(prompt="next", max_tokens=2)
        assert code == 200
        await until(lambda: b'status="499"' in server.metrics.exposition())
        await server.until_quiet()
        assert "peerlm_serve_cache_bytes 0.0" in await server.figures()


async def test_a_full_queue_says_when_to_come_again() -> None:
    async with served(slots=1, queue=1) as server:
        body = {"model": "plays", "prompt": "x", "max_tokens": 90_000, "stream": True}
        url = f"{server.url}/v1/completions"
        waiting = [asyncio.ensure_future(server.session.post(url, json=body)) for _ in range(2)]
        await until(lambda: server.driver.active + server.driver.waiting == 2)
        code, found, headers = await server.post(prompt="one more")
        assert code == 429
        assert found["error"]["code"] == "queue_full"
        assert 1 <= int(headers["Retry-After"]) <= 60
        for request in waiting:
            (await request).close()
        await server.until_quiet()
        assert (await server.post(prompt="one more"))[0] == 200


async def test_where_hosts_are_full_it_is_429_and_where_there_are_none_503() -> None:
    plan = staged(plan_of("hybrid"), 2)
    host = Host(plan, model_of(plan), "a", 0, 1, sessions=1)
    host.fill()
    ring = Ring(plan, [host])
    async with served(service=ring_service(ring)) as server:
        for stream in (False, True):
            code, found, headers = await server.post(prompt="x", stream=stream)
            assert (code, found["error"]["code"]) == (429, "hosts_full")
            assert found["error"]["type"] == "rate_limit_error"
            assert 1 <= int(headers["Retry-After"]) <= 60
        host.forget_all()
        assert (await server.post(prompt="x", max_tokens=2))[0] == 200
        assert re.search(r"^peerlm_serve_rereads_total [1-9]", await server.figures(), re.M)
        ring.kill(host)
        for stream in (False, True):
            code, found, _ = await server.post(prompt="x", stream=stream)
            assert (code, found["error"]["code"]) == (503, "no_host")


async def streamed(server: Server, **body: Any) -> list[dict[str, Any]]:
    """Every chunk."""
    body = {"model": "plays", "temperature": 0, "stream": True, **body}
    async with server.session.post(f"{server.url}/v1/completions", json=body) as answer:
        found = [data async for data in events(answer)]
    assert found[-1] == "[DONE]"
    return [json.loads(data) for data in found[:-1]]


async def test_a_stream_names_the_weights_that_it_goes_on_with() -> None:
    """Its host loads others in mid-text, and the text is read again with them."""
    plan = staged(plan_of("hybrid"), 2)
    hosts = [Host(plan, model_of(plan), name, at, at) for at, name in enumerate("ab")]
    ring, laps_seen = Ring(plan, hosts), 0

    def meddle(source: PeerId, target: PeerId, data: bytes) -> list[tuple[float, bytes]]:
        nonlocal laps_seen
        is_lap = target == hosts[1].peer and laps.read_head(data).kind is Kind.FORWARD
        laps_seen += is_lap
        if is_lap and laps_seen == 8:
            change_under_way(hosts[1], "v2")
        return [(LINE_S, data)]

    ring.meddle = meddle
    async with served(service=ring_service(ring)) as server:
        chunks = await streamed(
            server, prompt="ROMEO:", max_tokens=20, stream_options={"include_usage": True}
        )
        names = [chunk["system_fingerprint"] for chunk in chunks]
        both = name_of_all(("v1", "v1", "v1", "v2"))
        assert list(dict.fromkeys(names)) == ["v1", both]
        assert names[-1] == both, "also beside the usage"
        assert len({chunk["created"] for chunk in chunks}) == 1
        assert ring.gateway.again == 1


async def test_an_answer_of_several_texts_names_the_weights_of_each() -> None:
    plan = staged(plan_of("hybrid"), 2)
    hosts = [Host(plan, model_of(plan, seed), f"h{seed}", 0, 1) for seed in (1, 2)]
    for number, host in enumerate(hosts, 1):
        host.load(model_of(plan, number), f"v{number}")
    ring = Ring(plan, hosts)
    async with served(service=ring_service(ring)) as server:
        seen = set()
        for number in range(1, 9):
            _, one, _ = await server.post(prompt=f"{number}", max_tokens=2)
            seen.add(one["system_fingerprint"])
        assert seen == {"v1", "v2"}, "a text alone names its own"
        _, whole, _ = await server.post(prompt="x", n=8, max_tokens=2)
        assert whole["system_fingerprint"].startswith("stages-")
        chunks = await streamed(server, prompt="x", n=8, max_tokens=2)
        assert chunks[0]["system_fingerprint"] in seen
        assert chunks[-1]["system_fingerprint"].startswith("stages-")


async def test_each_wrong_request_has_one_clear_error_and_disturbs_nobody() -> None:
    async with served() as server:
        body = {"model": "plays", "prompt": "x", "max_tokens": 90_000, "stream": True}
        other = await server.session.post(f"{server.url}/v1/completions", json=body)
        wrong: list[tuple[int, str | None, dict[str, Any]]] = [
            (400, "context_length_exceeded", {"prompt": "x" * 49}),
            (404, "model_not_found", {"prompt": "x", "model": "gpt-4"}),
            (400, None, {"prompt": ""}),
            (400, None, {"prompt": [256]}),
            (400, None, {"prompt": "x", "max_tokens": 100_001}),
            (413, None, {"prompt": "x" * 70_000}),
        ]
        for code, name, change in wrong:
            status, found, _ = await server.post(**change)
            assert (status, found["error"]["code"]) == (code, name)
            assert found["error"]["message"]
        raw: list[tuple[int, str, str, bytes, dict[str, str]]] = [
            (400, "POST", "/v1/completions", b"{", {"Content-Type": "application/json"}),
            (415, "POST", "/v1/completions", b"{}", {"Content-Type": "text/plain"}),
            (404, "GET", "/v1/embeddings", b"", {}),
            (405, "GET", "/v1/completions", b"", {}),
            (403, "GET", "/v1/models", b"", {"Host": "evil.example"}),
            (404, "GET", "/v1/models/other", b"", {}),
            (200, "GET", "/v1/models/plays", b"", {}),
            (200, "GET", "/healthz", b"", {}),
        ]
        for code, method, path, data, headers in raw:
            async with server.session.request(
                method, server.url + path, data=data, headers=headers
            ) as answer:
                assert answer.status == code, path
                if code != 200:
                    assert set((await answer.json())["error"]) == {
                        *("message", "type", "param", "code")
                    }
        assert [data async for data in first(events(other), 3)]
        other.close()


async def first(source: Any, count: int) -> Any:
    async for one in source:
        yield one
        count -= 1
        if not count:
            return


async def test_keys_and_quotas() -> None:
    secret = keys.secret_of(b"1" * 32)
    holders = (Key("ada", keys.hash_of(secret), tokens_a_minute=50, requests_a_minute=2),)
    async with served(keys=holders) as server:
        for headers in ({}, {"Authorization": "Bearer nobody"}, {"Authorization": secret}):
            code, found, _ = await server.post(prompt="x", headers=headers)
            assert (code, found["error"]["code"]) == (401, "invalid_api_key")
        ours = {"Authorization": f"Bearer {secret}"}
        code, found, headers = await server.post(prompt="x", max_tokens=60, headers=ours)
        assert (code, found["error"]["type"]) == (429, "tokens")
        assert "Retry-After" not in headers
        assert (await server.post(prompt="x", max_tokens=9, headers=ours))[0] == 200
        code, found, headers = await server.post(prompt="x", max_tokens=45, headers=ours)
        assert (code, found["error"]["type"]) == (429, "tokens")
        assert 1 <= int(headers["Retry-After"]) <= 60
        assert (await server.post(prompt="x", max_tokens=9, headers=ours))[0] == 200
        code, found, _ = await server.post(prompt="x", max_tokens=1, headers=ours)
        assert (code, found["error"]["type"]) == (429, "requests")
        async with server.session.get(f"{server.url}/metrics") as answer:
            assert answer.status == 401
        async with server.session.get(f"{server.url}/healthz") as answer:
            assert answer.status == 200


async def test_slow_and_silent_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sends nothing, one half a head, one half a body, one never reads its stream."""
    for name in ("HEAD_S", "BODY_S", "STALL_S", "LINGER_S"):
        monkeypatch.setattr(http, name, 0.3)
    async with served(slots=1) as server:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        json_head = head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        for sent, told in ((b"", b""), (head, b""), (json_head % 100 + b"{", b" 408 ")):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(sent)
            assert told in await asyncio.wait_for(reader.read(), 10)
            writer.close()
        body = json.dumps(
            {"model": "plays", "prompt": "x", "max_tokens": 90_000, "stream": True, "logprobs": 5}
        ).encode()
        quiet = socket.socket()
        quiet.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        quiet.connect(("127.0.0.1", server.port))
        quiet.sendall(json_head % len(body) + body)
        await until(lambda: b'status="499"' in server.metrics.exposition())
        await server.until_quiet()
        quiet.close()


async def test_stopping_cuts_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DRAIN_S", 0.2)
    async with served() as server:
        body = {"model": "plays", "prompt": "x", "max_tokens": 90_000, "stream": True}
        answer = await server.session.post(f"{server.url}/v1/completions", json=body)
        found = [data async for data in first(events(answer), 2)]
        closing = asyncio.ensure_future(server.front.close(asyncio.Event()))
        found = [data async for data in events(answer)]
        assert json.loads(found[-1])["error"]["code"] == "stopping"
        await closing


# ---------------------------------------------------------------------------- the published client


def client_of(server: Server, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


async def test_the_published_client_is_at_home() -> None:
    async with served() as server, client_of(server) as client:
        models = [model.id async for model in client.models.list()]
        assert models == ["plays"]
        assert (await client.models.retrieve("plays")).owned_by == "peerlm"
        whole = await client.completions.create(
            model="plays", prompt="ROMEO:", max_tokens=20, temperature=0
        )
        assert whole.choices[0].text == alone("ROMEO:", 20, temperature=0.0)
        said = await client.chat.completions.create(
            model="plays",
            messages=[{"role": "user", "content": "hi"}],
            max_completion_tokens=8,
            seed=3,
            logprobs=True,
            top_logprobs=2,
        )
        text = alone("user: hi\nassistant:", 8, temperature=1.0, rng_seed=3)
        assert said.choices[0].message.content == text
        content = said.choices[0].logprobs.content
        assert len(content) == 8
        assert bytes(b for c in content for b in c.bytes).decode(errors="replace") == text
        streamed, used = "", None
        stream = await client.chat.completions.create(
            model="plays",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=8,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            used = chunk.usage
            if chunk.choices:
                streamed += chunk.choices[0].delta.content or ""
        assert streamed == text
        assert used.completion_tokens == 8


async def test_the_published_client_sees_errors_as_its_own() -> None:
    holders = (Key("ada", keys.hash_of("k"), tokens_a_minute=10),)
    async with served(keys=holders) as server:
        async with client_of(server, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with client_of(server, "k") as client:
            with pytest.raises(openai.NotFoundError):
                await client.completions.create(model="gpt", prompt="x")
            with pytest.raises(openai.BadRequestError) as caught:
                await client.completions.create(model="plays", prompt="x", temperature=9)
            assert caught.value.param == "temperature"
            with pytest.raises(openai.RateLimitError):
                await client.completions.create(model="plays", prompt="x", max_tokens=11)


# -------------------------------------------------------------------------------- the command itself


def test_the_command_serves_a_model_and_ends_cleanly(tmp_path: Path) -> None:
    plan = plan_of("hybrid")
    write_model(tmp_path / "model", plan, fragment_values(plan, model_of(plan)))
    options = ["--model", str(tmp_path / "model"), "--port", "0", "--state", str(tmp_path / "s")]
    process = subprocess.Popen(
        [sys.executable, "-m", "peerlm", "serve", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        url = re.search(r"http://[\d.:]+/v1", said)
        assert url is not None, said
        body = {"model": "plays", "prompt": "ROMEO:", "max_tokens": 10, "temperature": 0}
        request = urllib.request.Request(
            url[0] + "/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            found = json.load(answer)
        assert found["choices"][0]["text"] == alone("ROMEO:", 10, temperature=0.0)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_two_hundred_clients_meet_no_error_but_429_and_memory_stays() -> None:
    async with served(slots=32, queue=100) as server:
        refused = 0

        async def one(number: int) -> int:
            body = {"model": "plays", "prompt": f"{number}", "max_tokens": 40, "stream": True}
            url = f"{server.url}/v1/completions"
            async with server.session.post(url, json=body) as answer:
                if answer.status == 200:
                    found = [data async for data in events(answer)]
                    assert found[-1] == "[DONE]"
                return answer.status

        used = []
        for _ in range(8):
            codes = await asyncio.gather(*(one(number) for number in range(200)))
            assert set(codes) <= {200, 429}
            refused += codes.count(429)
            used.append(psutil.Process().memory_info().rss)
        await server.until_quiet()
        assert refused < 8 * 100
        assert used[-1] - used[2] < 16e6, used
