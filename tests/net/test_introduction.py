from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from peerlm.daemon import introduction, resolve
from peerlm.daemon.introduction import Introduction
from peerlm.errors import ConfigError, Unreachable
from peerlm.events import HelloCame, IntroductionAnswered, IntroductionFailed
from peerlm.types import RunId
from peerlm.wire.codec import encode
from peerlm.wire.message import Hello, Ping, Refusal, Welcome

BOTH_LOOPS = True
HELLO = Hello(1, RunId(bytes(16)), (b"certificate",))
WELCOME = Welcome(1, RunId(bytes(16)), (b"certificate",), 7701, 7702, "127.0.0.1")


@pytest_asyncio.fixture
async def door(box) -> AsyncIterator[Introduction]:
    door = await Introduction.listen(box.post, "127.0.0.1", 0)
    yield door
    await door.close()


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - a counter tells nobody
            await asyncio.sleep(0.002)


async def say(door: Introduction, data: bytes) -> asyncio.StreamWriter:
    """A bare guest that sends these bytes and stays."""
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(data)
    return writer


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize("answer", [WELCOME, Refusal("stranger", "token of another run")])
async def test_a_hello_is_heard_and_answered(door, box, answer) -> None:
    address = f"tcp://127.0.0.1:{door.port}"
    door.dial(address, HELLO)
    came = await box.wait(HelloCame)
    assert (came.hello, came.from_host) == (HELLO, "127.0.0.1")
    door.answer(came.route, answer)
    assert await box.wait(IntroductionAnswered) == IntroductionAnswered(
        address, "127.0.0.1", answer
    )


async def test_names_and_bare_addresses_can_be_dialled(door, box) -> None:
    door.dial(f"localhost:{door.port}", HELLO)
    door.answer((await box.wait(HelloCame)).route, WELCOME)
    assert (await box.wait(IntroductionAnswered)).host == "127.0.0.1"


async def test_a_guest_by_ipv4_at_a_dual_stack_door_has_an_ipv4_address(box) -> None:
    door = await Introduction.listen(box.post, "", 0)
    door.dial(f"127.0.0.1:{door.port}", HELLO)
    assert (await box.wait(HelloCame)).from_host == "127.0.0.1"
    door.dial(f"[::1]:{door.port}", HELLO)
    assert (await box.wait(HelloCame)).from_host == "::1"
    await door.close()


async def failure(door: Introduction, box, address: str) -> tuple[str, str]:
    door.dial(address, HELLO)
    failed = await box.wait(IntroductionFailed, timeout_s=9)
    assert failed.address == address
    return failed.step, failed.detail


@pytest.mark.parametrize("address", ["", "tcp://", "host:0", "host:99999", "host:x", "a b:7700"])
async def test_what_is_no_address_fails_to_resolve(door, box, address) -> None:
    step, detail = await failure(door, box, address)
    assert step == "resolve"
    assert "tcp://host:7700" in detail


async def test_an_unknown_name_fails_to_resolve(door, box, monkeypatch) -> None:
    def nobody(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    step, detail = await failure(door, box, "nowhere.invalid:7700")
    assert (step, detail) == ("resolve", "nowhere.invalid: Name or service not known")


async def test_a_silent_name_server_does_not_hold_the_loop(monkeypatch) -> None:
    answer_at_last = threading.Event()

    def slow(*_args, **_kwargs):
        answer_at_last.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(Unreachable, match="no name server answered"):
        await resolve.resolve("slow.invalid", timeout_s=0.05)
    answer_at_last.set()


async def test_a_closed_port_is_refused(door, box) -> None:
    step, detail = await failure(door, box, f"127.0.0.1:{closed_port()}")
    assert step == "connect"
    assert "refused" in detail


async def test_silence_is_told_from_refusal(door, box, monkeypatch) -> None:
    async def swallow(ip: str, port: int) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(resolve, "_connect", swallow)
    with pytest.raises(Unreachable, match=r"no answer from 192\.0\.2\.1 port 7700") as caught:
        await resolve.connect_first(("192.0.2.1",), 7700, timeout_s=0.05)
    assert caught.value.step == "connect"


@pytest.mark.parametrize(
    ("banner", "line"),
    [
        (b"", "gave no answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not as a peerlm node"),
        (b"HTTP/1.1 400 Bad\r\n\r\n", "not as a peerlm node"),
        (framed(b"\xc1"), "not as a peerlm node"),
        (framed(encode(Ping(1, ()))), "Ping is no answer"),
        (framed(encode(WELCOME))[:20], "gave no answer"),
    ],
)
async def test_a_stranger_that_listens_fails_the_handshake(
    door, box, monkeypatch, banner, line
) -> None:
    monkeypatch.setattr(introduction, "HANDSHAKE_TIMEOUT_S", 0.2)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    step, detail = await failure(door, box, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert step == "handshake"
    assert line in detail
    server.close()


async def test_a_stranger_that_hangs_up_fails_the_handshake(door, box) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    step, detail = await failure(door, box, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert step == "handshake"
    assert "hung up" in detail
    server.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
        framed(b""),
        framed(b"\xc1"),
        framed(encode(Ping(1, ()))),
        framed(bytes(16_385)),
        framed(encode(HELLO) + b"x"),
    ],
)
async def test_garbage_at_the_door_is_counted_and_the_next_hello_heard(door, box, data) -> None:
    garbage = await say(door, data)
    hello = await say(door, framed(encode(HELLO)))
    await box.wait(HelloCame)
    await until(lambda: door.counters["garbage"] == 1)
    assert box.events == []
    garbage.close()
    hello.close()


async def test_the_silent_are_seen_off(door, box, monkeypatch) -> None:
    monkeypatch.setattr(introduction, "HANDSHAKE_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(framed(encode(HELLO))[:9])
    assert await reader.read() == b""
    assert door.counters["guests_silent"] == 1
    writer.close()


async def test_a_crowd_of_silent_strangers_does_not_keep_a_guest_out(
    door, box, monkeypatch
) -> None:
    monkeypatch.setattr(introduction, "GUESTS_MAX", 20)
    crowd = [await say(door, b"\0") for _ in range(60)]
    door.dial(f"127.0.0.1:{door.port}", HELLO)
    door.answer((await box.wait(HelloCame)).route, WELCOME)
    await box.wait(IntroductionAnswered)
    assert len(door._guests) <= 20
    for writer in crowd:
        writer.close()


async def test_one_address_has_a_budget(door, box, monkeypatch) -> None:
    monkeypatch.setattr(introduction, "HELLOS_PER_S", 0.001)
    monkeypatch.setattr(introduction, "HELLOS_BURST", 3.0)
    flood = [await say(door, framed(encode(HELLO))) for _ in range(10)]
    await until(lambda: door.counters["over_budget"] == 7)
    assert len(box.of(HelloCame)) == 3
    for writer in flood:
        writer.close()


async def test_budgets_are_kept_of_a_bounded_number_of_addresses(door, monkeypatch) -> None:
    monkeypatch.setattr(introduction, "ADDRESSES_MAX", 10)
    for n in range(100):
        door._within_budget(f"10.0.0.{n}")
    assert len(door._budgets) == 10


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_an_ipv6_host_has_one_budget_however_many_addresses_it_picks(a, b, same) -> None:
    assert (introduction._network_of(a) == introduction._network_of(b)) == same


async def test_answering_who_has_hung_up_is_counted(door) -> None:
    door.answer(b"\x00gone", WELCOME)
    assert door.counters["answers_undeliverable"] == 1


async def test_too_many_introductions_at_once_fail_at_once(door, box, monkeypatch) -> None:
    monkeypatch.setattr(introduction, "DIALS_MAX", 0)
    assert (await failure(door, box, "127.0.0.1:7700"))[0] == "connect"


async def test_closing_ends_introductions_under_way(box) -> None:
    door = await Introduction.listen(box.post, "127.0.0.1", 0)
    door.dial(f"127.0.0.1:{door.port}", HELLO)
    await box.wait(HelloCame)
    await door.close()
    assert not door._dials


async def test_a_taken_base_port_is_a_line_or_another_port(door, box) -> None:
    with pytest.raises(ConfigError, match=r"in use: set network.port in node.toml"):
        await Introduction.listen(box.post, "127.0.0.1", door.port)
    other = await Introduction.listen(box.post, "127.0.0.1", door.port, or_free=True)
    assert other.port not in (0, door.port)
    await other.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://h:1", ("h", 1)),
        ("h:1", ("h", 1)),
        ("h", ("h", 7700)),
        ("[::1]:9", ("::1", 9)),
        ("::1", ("::1", 7700)),
        (" tcp://10.0.0.1:7700/ ", ("10.0.0.1", 7700)),
    ],
)
def test_forms_of_addresses(text: str, expected: tuple[str, int]) -> None:
    assert resolve.parse_address(text) == expected


THREADS_OF_A_DIAL = """
import asyncio, socket, sys
from pathlib import Path
import uvloop
from peerlm.daemon.resolve import connect_first
async def dial():
    with socket.create_server(("127.0.0.1", 0)) as door:
        before = set(Path("/proc/self/task").iterdir())
        ip, connection = await connect_first(("127.0.0.1",), door.getsockname()[1])
        connection.close()
        sys.exit(len(set(Path("/proc/self/task").iterdir()) - before))
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(dial())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted as Linux shows them")
def test_dialling_takes_no_threads() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS_OF_A_DIAL], check=False)
    assert done.returncode == 0, f"{done.returncode} threads more"
