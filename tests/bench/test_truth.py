"""What nodes tell makes tables and figures; the network of their own cuts without a word."""

from __future__ import annotations

import itertools
import json
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from bench.truth_net import Network, address_of
from bench.truth_told import Tables, first_times, last_change
from peerlm.bench.rows import Missed

IDS = {"aa": 1, "bb": 2, "cc": 3}


def tables(folder: Path, **lines: list[dict[str, object]]) -> Tables:
    """`n1=[...]`: what node 1 has written."""
    paths = {number: folder / f"{number}.told" for number in IDS.values()}
    for name, told in lines.items():
        paths[int(name[1:])].write_text("".join(json.dumps(line) + "\n" for line in told))
    found = Tables(paths, dict(IDS))
    found.read()
    return found


def began(at: float) -> dict[str, object]:
    return {"at": at, "what": "began", "peer": ""}


def member(at: float, peer: str, state: str) -> dict[str, object]:
    return {"at": at, "what": "member", "peer": peer, "state": state}


def test_tables_are_what_was_told_last_and_begin_anew_with_the_node(tmp_path: Path) -> None:
    seen = tables(
        tmp_path,
        n1=[began(1), member(2, "bb", "alive"), member(3, "cc", "alive"), member(5, "bb", "dead")],
        n2=[began(1), {"at": 2, "what": "link_up", "peer": "aa", "dialled": True}],
    )
    assert (seen.state(1, 2), seen.state(1, 3), seen.state(2, 1)) == ("dead", "alive", "unknown")
    assert seen.is_linked(2, 1)
    assert not seen.see_all_alive()
    with seen.paths[2].open("a") as file:
        file.write(json.dumps(began(6)) + "\n" + '{"at": 7, "wh')
    seen.read()
    assert not seen.is_linked(2, 1)
    assert last_change(seen.told, 2.0) == 3.0


def test_only_the_first_verdict_after_the_crash_counts(tmp_path: Path) -> None:
    seen = tables(
        tmp_path,
        n1=[began(1), member(4, "cc", "dead"), member(12, "cc", "dead"), member(13, "cc", "dead")],
        n2=[began(1), member(11, "cc", "dead"), member(11.5, "aa", "dead")],
    )
    assert first_times(seen.told, "dead", of=[3], by=[1, 2], since=10.0) == {(1, 3): 2, (2, 3): 1}


@pytest.fixture
def net() -> object:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        return Network(4)
    except Missed as error:
        pytest.skip(str(error))


def test_a_pulled_plug_and_a_cut_cable_lose_what_is_sent_and_say_nothing(net: Network) -> None:
    with closing(net):
        sockets = {}
        for node in (1, 2, 4):
            with net.at(node):
                sockets[node] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sockets[node].bind((address_of(node), 7))
            sockets[node].settimeout(0.3)

        words = (str(number).encode() for number in itertools.count())

        def hears(node: int, sender: int) -> bool:
            word = next(words)
            sockets[sender].sendto(word, (address_of(node), 7))
            try:
                while sockets[node].recv(16) != word:
                    pass  # an earlier word that waited for its receiver's hardware address
            except TimeoutError:
                return False
            return True

        for node in (2, 4):  # a new port may take the kernel a second to open
            assert any(hears(node, sender=1) for _ in range(10))
        net.part()
        assert hears(2, sender=1)
        assert not hears(4, sender=1)
        net.rejoin()
        assert hears(4, sender=1)
        net.pull_plug(2)
        assert not hears(2, sender=1)
        assert hears(4, sender=1)
        net.put_plug(2)
        assert hears(2, sender=1)
        for each in sockets.values():
            each.close()
