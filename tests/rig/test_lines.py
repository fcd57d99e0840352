"""Machines of our own, with the lines that were asked for, and nodes that train over them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peerlm.bench.founding import Place
from peerlm.bench.lines import place_of
from peerlm.cli.main import main

LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    line, _ = listener.accept()
    line.sendall(line.recv(1))
    while line.recv(1 << 16):
        pass
    line.close()
"""
CALL = """
import json, socket, sys, time
line = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
began = time.monotonic()
line.sendall(b"?")
line.recv(1)
answered = time.monotonic()
line.sendall(bytes(int(sys.argv[3])))
line.shutdown(socket.SHUT_WR)
line.recv(1)
print(json.dumps([answered - began, time.monotonic() - answered]))
"""


def timed(place: Place, size: int) -> tuple[float, float]:
    """Seconds until a byte is answered, and until so many more are on the other machine."""
    with place.at(2):
        there = subprocess.Popen(
            [sys.executable, "-c", LISTEN, place.address(2)], stdout=subprocess.PIPE, text=True
        )
    try:
        assert there.stdout is not None
        port = there.stdout.readline().strip()
        with place.at(1):
            done = subprocess.run(
                [sys.executable, "-c", CALL, place.address(2), port, str(size)],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
    finally:
        there.kill()
        there.wait()
        there.stdout.close()
    answered_s, moved_s = json.loads(done.stdout)
    return answered_s, moved_s


def test_a_line_has_its_rate_and_its_delay() -> None:
    with place_of("16mbit,30ms", 2) as place:
        answered_s, moved_s = timed(place, 4_000_000)
    assert 0.06 < answered_s < 0.1
    assert 2.0 < moved_s < 3.5  # two megabytes a second, and TCP's beginning


def test_nothing_of_a_network_is_left_behind() -> None:
    before = Path("/proc/net/dev").read_text().count(":")
    with place_of("100mbit,1ms", 3):
        pass
    assert Path("/proc/net/dev").read_text().count(":") == before


def test_exchanges_cross_such_lines(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "exchange", "--mb", "1", "--rounds", "1", "--codec", "int8:int4"]
    assert main([*arguments, "--link", "40mbit,5ms", "--vs", "tcp", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ours, tcp = found["rows"]
    assert found["link"] == "40mbit,5ms"
    assert tcp["seconds_p50"] > 0.2  # a megabyte each way at five a second
    assert ours["seconds_p50"] > 0.05


def test_training_goes_on_over_such_lines(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "overlap", "--link", "20mbit,10ms", "--pairs", "1", "--seconds", "8"]
    assert main([*arguments, "--pace", "2000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["on_off"] > 0.5
    assert found["exchanges"]["ok"] > 0
    assert found["finished"] > 0.9
    assert 0 < found["of_allowed"] < 2.5
    assert 0.02 < found["probe_s"]["p50"] < 0.5
