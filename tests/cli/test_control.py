"""The control socket: what both ends say, and that nothing written on it hurts the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from cli_scene import serving

from peerlm.daemon import control
from peerlm.daemon.control import LINE_BYTES_MAX, NoDaemon, ask
from peerlm.errors import ConfigError, PeerlmError, StateError
from peerlm.store.layout import Layout


async def echo(command: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"command": command, **args}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def say(layout: Layout, raw: bytes) -> bytes:
    """Write bytes as they are, hang up our sending side, and read all that comes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(layout.control_socket))
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, OSError):
            pass  # the daemon hung up while we were still talking
        answer = b""
        while True:
            try:
                more = connection.recv(65536)
            except ConnectionResetError:
                return answer
            if not more:
                return answer
            answer += more


def test_a_command_and_its_arguments_arrive_and_the_result_comes_back(layout: Layout) -> None:
    with serving(layout, echo):
        assert ask(layout, "new_plan", plan="00ff") == {"command": "new_plan", "plan": "00ff"}


def test_several_requests_on_one_connection_get_an_answer_each(layout: Layout) -> None:
    with serving(layout, echo):
        answers = say(layout, b'{"command": "status"}\n{"command": "pause"}\n').splitlines()
    assert [json.loads(a)["result"]["command"] for a in answers] == ["status", "pause"]


def test_a_plan_of_the_largest_size_fits(layout: Layout) -> None:
    plan = "ab" * (512 * 1024)
    with serving(layout, echo):
        assert ask(layout, "new_plan", plan=plan)["plan"] == plan


def test_an_error_of_the_daemon_is_one_line_for_the_person(layout: Layout) -> None:
    async def refuse(command: str, args: dict[str, Any]) -> dict[str, Any]:
        raise ConfigError("revision 3 is older\nthan 4")

    with serving(layout, refuse), pytest.raises(PeerlmError, match=r"^revision 3 is older than 4$"):
        ask(layout, "new_plan")


def test_a_fault_in_the_daemon_is_told_and_survived(layout: Layout) -> None:
    async def stumble(command: str, args: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("plan")

    with serving(layout, stumble):
        for _ in range(2):
            with pytest.raises(PeerlmError, match="internal error in new_plan: KeyError"):
                ask(layout, "new_plan")


def test_numbers_json_cannot_say_become_null(layout: Layout) -> None:
    async def odd(command: str, args: dict[str, Any]) -> dict[str, Any]:
        return {"loss": float("nan"), "members": [{"loss": float("inf")}]}

    with serving(layout, odd):
        assert ask(layout, "status") == {"loss": None, "members": [{"loss": None}]}


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"null\n",
        b'{"command": 3}\n',
        b'{"command": "format_disk"}\n',
        b'{"command": "status"',
        b"\n\n\n",
        b"x" * (LINE_BYTES_MAX + 100),
    ],
)
def test_garbage_gets_a_refusal_or_silence_and_the_next_is_served(
    layout: Layout, garbage: bytes
) -> None:
    with serving(layout, echo):
        for answer in say(layout, garbage).splitlines():
            assert json.loads(answer)["ok"] is False
        assert ask(layout, "status") == {"command": "status"}


def test_half_open_connections_leave_room_for_others(layout: Layout) -> None:
    with serving(layout, echo):
        idle = [socket.socket(socket.AF_UNIX) for _ in range(control.CONNECTIONS_MAX)]
        for connection in idle:
            connection.connect(str(layout.control_socket))
            connection.sendall(b'{"comm')
        with pytest.raises(PeerlmError, match="too many control connections"):
            ask(layout, "status")
        for connection in idle:
            connection.close()
        for _ in range(100):  # they are noticed one by one
            try:
                assert ask(layout, "status") == {"command": "status"}
                return
            except PeerlmError:
                continue
        pytest.fail("the daemon has not noticed that they hung up")


def test_streams_take_no_room_from_commands(layout: Layout) -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with serving(layout, echo, streams={"gateway": stream}), contextlib.ExitStack() as stack:
        for _ in range(control.STREAMS_MAX):
            stack.enter_context(control.dial(layout, "gateway"))
        with pytest.raises(PeerlmError, match="too many such connections"):
            control.dial(layout, "gateway")
        assert ask(layout, "status") == {"command": "status"}


def test_nobody_there_says_how_to_start_it(layout: Layout) -> None:
    with pytest.raises(NoDaemon, match=r"no peerlm daemon runs on .*: start it with `peerlm up`"):
        ask(layout, "status")


def test_a_socket_left_by_a_killed_daemon_counts_as_nobody_and_is_replaced(layout: Layout) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(layout.control_socket))
    dead.close()
    with pytest.raises(NoDaemon):
        ask(layout, "status")
    with serving(layout, echo):
        assert ask(layout, "status") == {"command": "status"}
    assert not layout.control_socket.exists()


def test_a_daemon_that_says_nothing_is_not_awaited_for_ever(layout: Layout) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(layout.control_socket))
        mute.listen()
        with pytest.raises(StateError, match=r"did not answer `status` within 0.05 s"):
            ask(layout, "status", timeout_s=0.05)


def test_a_daemon_that_hangs_up_is_a_clear_line(layout: Layout) -> None:
    with pytest.raises(StateError, match="hung up without an answer"):
        control._result(b"", layout)
    with pytest.raises(StateError, match="without an answer"):
        control._result(b"[" * 100_000, layout)


def test_a_path_longer_than_a_unix_address_works(tmp_path: Path) -> None:
    layout = Layout(tmp_path / ("d" * 120))
    layout.root.mkdir()
    with serving(layout, echo):
        assert layout.control_socket.exists()
        assert ask(layout, "status") == {"command": "status"}


def test_only_the_owner_may_connect(layout: Layout) -> None:
    with serving(layout, echo):
        assert layout.control_socket.stat().st_mode & 0o777 == 0o600


def test_a_group_that_was_named_may_connect_too(layout: Layout) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    with serving(layout, echo, group):
        assert layout.control_socket.stat().st_mode & 0o777 == 0o660
        assert layout.control_socket.stat().st_gid == os.getgid()
        assert layout.root.stat().st_mode & 0o777 == 0o710


def test_a_group_that_is_not_there_is_named(layout: Layout) -> None:
    with pytest.raises(ConfigError, match=r"control\.group = 'no-such-group'"):
        serving(layout, echo, "no-such-group")
