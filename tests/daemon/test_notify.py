"""What a service manager hears of a node."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerlm.daemon.notify import TELL_S, TEXT_CHARS_MAX, Health, Notifier

STARTING = Health(False, False, "seeking")
READY = Health(True, False, "training")
STOPPING = Health(True, True, "leaving")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(5)
        yield end


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_what_is_new_is_said_once_and_life_each_time(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname(), watchdog_s=6.0)
    told = []
    for health in (STARTING, STARTING, READY, READY, STOPPING):
        notifier.tell(health)
        told.append(heard(manager))
    notifier.close()
    assert told == [
        ["WATCHDOG=1", "STATUS=seeking"],
        ["WATCHDOG=1"],
        ["WATCHDOG=1", "READY=1", "STATUS=training"],
        ["WATCHDOG=1"],
        ["WATCHDOG=1", "STOPPING=1", "STATUS=leaving"],
    ]


def test_without_a_watchdog_only_news_are_sent(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())
    notifier.tell(READY)
    notifier.tell(READY)
    notifier.tell(Health(True, False, "done"))
    assert heard(manager) == ["READY=1", "STATUS=training"]
    assert heard(manager) == ["STATUS=done"]
    notifier.close()


def test_a_name_in_the_abstract_space(tmp_path: Path) -> None:
    name = f"peerlm-{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        notifier = Notifier(f"@{name}")
        notifier.tell(READY)
        assert heard(end) == ["READY=1", "STATUS=training"]
        notifier.close()


def test_what_a_busy_manager_has_not_heard_is_said_again(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname(), watchdog_s=6.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as crowd:
        crowd.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                crowd.sendto(b"x" * 2000, manager.getsockname())
    notifier.tell(READY)  # there is no room
    while heard(manager)[0].startswith("x"):
        notifier.tell(READY)
        if "READY=1" in (said := heard(manager)):
            break
    assert "READY=1" in said
    notifier.close()


def test_a_peers_text_cannot_command_the_terminal(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())
    notifier.tell(Health(False, False, "a\x1b[2Jb\x9bc"))
    (status,) = heard(manager)
    assert status.startswith("STATUS=a")
    assert "\x1b" not in status
    assert "\x9b" not in status
    notifier.close()


def test_text_is_one_line_of_bounded_length(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())
    notifier.tell(Health(True, False, "a\nREADY=0\n" + "b" * 1000))
    _, status = heard(manager)
    assert status.startswith("STATUS=a READY=0 b")
    assert len(status) == len("STATUS=") + TEXT_CHARS_MAX
    notifier.close()


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens"])
def test_no_manager_is_no_reason_to_fail(address: str) -> None:
    notifier = Notifier(address, watchdog_s=1.0)
    notifier.tell(READY)
    notifier.close()
    notifier.tell(STOPPING)
    notifier.close()


def test_the_watchdog_is_fed_three_times_in_its_time() -> None:
    assert Notifier("", watchdog_s=1.5).pause_s == 0.5
    assert Notifier("", watchdog_s=60.0).pause_s == TELL_S
    assert Notifier().pause_s == TELL_S
