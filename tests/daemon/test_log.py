"""Where entries go: the journal in fields, the terminal in lines, the file as JSON; never a token."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerlm.daemon.log import JOURNAL_BYTES_MAX, DaemonLog

SECRET = "peerlm1-c2VjcmV0"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "journal"))
        end.settimeout(5)
        yield end


def fields_of(datagram: bytes) -> dict[str, str]:
    """As the journal reads them: name, newline, eight bytes of length, text, newline."""
    fields = {}
    while datagram:
        name, rest = datagram.split(b"\n", 1)
        length = int.from_bytes(rest[:8], "little")
        fields[name.decode()] = rest[8 : 8 + length].decode()
        assert rest[8 + length : 9 + length] == b"\n"
        datagram = rest[9 + length :]
    return fields


def test_the_journal_gets_fields_and_levels(
    tmp_path: Path, journal: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    log = DaemonLog(tmp_path / "log", "info", journal=journal.getsockname())
    log.write("warning", "hello_refused", {"why": "two\nlines", "token": SECRET, "none": ""})
    log.write("debug", "quiet", {})
    log.write("info", "phase", {"is": "training"})
    log.close()
    assert fields_of(journal.recv(1 << 16)) == {
        "MESSAGE": "hello_refused why=two\ufffdlines token=peerlm1-[removed]",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "peerlm",
        "PEERLM_EVENT": "hello_refused",
        "PEERLM_WHY": "two\ufffdlines",
        "PEERLM_TOKEN": "peerlm1-[removed]",
        "PEERLM_NONE": "",
    }
    assert fields_of(journal.recv(1 << 16))["MESSAGE"] == "phase is=training"
    assert capsys.readouterr().err == ""
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (first["event"], second["is"]) == ("hello_refused", "training")
    assert SECRET not in (tmp_path / "log").read_text()


def test_long_entries_are_cut_and_a_journal_that_is_gone_costs_the_entry(
    tmp_path: Path, journal: socket.socket
) -> None:
    log = DaemonLog(tmp_path / "log", "info", journal=journal.getsockname())
    log.write("error", "internal", {"traceback": "Traceback\n" + "x" * 100_000})
    fields = fields_of(journal.recv(1 << 20))
    assert len(fields["MESSAGE"]) == JOURNAL_BYTES_MAX
    assert "\n" in fields["MESSAGE"]
    (tmp_path / "journal").unlink()
    log.write("info", "phase", {})
    log.close()
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_the_terminal_gets_time_and_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = DaemonLog(tmp_path / "log", "info")
    log.write("warning", "hello_refused", {"why": SECRET})
    log.close()
    time, _, line = capsys.readouterr().err.partition(" ")
    assert len(time) == len("00:00:00")
    assert line == "warning: hello_refused why=peerlm1-[removed]\n"
