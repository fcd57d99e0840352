"""`peerlm data` and `peerlm store`, with a desk that only a dictionary is behind."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_scene import Cli, assert_one_line
from desk_scene import ME, OTHER, FakeDesk, chunk_of, desk, node

from peerlm.cli import copies
from peerlm.cli.copies import Copies, wait_copies
from peerlm.cli.desk_here import progress
from peerlm.errors import StateError
from peerlm.store.manifest import CHUNK_BYTES, Kind, of_files

__all__ = ["desk"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    root = tmp_path / "Texts"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("To be, or not to be.\n" * 500)
    (root / "sub" / "b.bin").write_bytes(bytes(range(256)) * 10)
    (root / "sub" / "empty").touch()
    return root


# -------------------------------------------------------------------------------------- data add


def test_files_go_in_as_they_are_and_come_out_again(
    peerlm: Cli, desk: FakeDesk, texts: Path, tmp_path: Path
) -> None:
    added = peerlm("data", "add", texts, "--as", "files", "--json")
    assert added.code == 0, added
    told = json.loads(added.out)
    assert (told["name"], told["files"], told["chunks"]) == ("texts", 3, 2)
    assert (told["replicas_least"], told["is_durable"]) == (2, True)
    assert told["about"] == str(texts)
    out = tmp_path / "out"
    assert peerlm("data", "get", "texts", out).code == 0
    for file in ("a.txt", "sub/b.bin", "sub/empty"):
        assert (out / file).read_bytes() == (texts / file).read_bytes()
    assert desk.connections == 0


def test_what_is_there_already_costs_nothing(peerlm: Cli, desk: FakeDesk, texts: Path) -> None:
    add = ("data", "add", texts, "--as", "files")
    assert peerlm(*add).code == 0
    desk.put_bytes = 0
    said = peerlm(*add)
    assert said.code == 0
    assert desk.put_bytes == 0
    assert "durable: 2 nodes have all of it on their disks; 3 are wanted" in said.out


def test_text_becomes_a_corpus(peerlm: Cli, desk: FakeDesk, texts: Path) -> None:
    options = ("--tokenizer", "bytes", "--name", "hamlet", "--json", "--nfc", "--dedup")
    told = json.loads(peerlm("data", "add", texts / "a.txt", *options).out)
    assert (told["kind"], told["tokens"], told["files"]) == ("corpus", 10500, 1)
    shown = json.loads(peerlm("data", "show", "hamlet", "--json").out)
    assert shown["meta"]["vocab"] == 256
    assert (shown["tokens"], shown["documents"], shown["shards"]) == (10500, 1, 1)
    assert peerlm("data", "ls").out.splitlines()[1].split()[4:8] == ["1", "1", "1", "10.5"]


def test_a_vocabulary_of_its_own_is_in_the_corpus(peerlm: Cli, desk: FakeDesk, texts: Path) -> None:
    add = ("data", "add", texts / "a.txt", "--tokenizer", "train:300", "--json")
    told = json.loads(peerlm(*add).out)
    assert (told["shards"], told["files"]) == (1, 2)
    assert [file.path for file in desk.manifest("a").files][-1] == "tokenizer.json"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("nosuch://x/y",), ("nosuch", "Protocol not known")),
        (("memory://nothing-there",), ("not found",)),
        (("sub/empty", "--as", "files"), ("there is nothing in it",)),
        (("sub/b.bin",), ("b.bin is no text",)),
        (("cut.gz",), ("cut.gz is cut off",)),
        (("**/*",), ("cannot be a name", "--name")),
        (("a.txt", "--name", "Plays"), ("'Plays' cannot be a name",)),
        (("a.txt", "--tokenizer", "train:5"), ("a vocabulary has 257 to",)),
        (("a.txt", "--encoding", "utf-99"), ("no such encoding",)),
    ],
)
def test_what_cannot_be_added_is_said_in_one_line(
    peerlm: Cli,
    desk: FakeDesk,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    import gzip

    (texts / "cut.gz").write_bytes(gzip.compress(b"text " * 1000)[:-9])
    monkeypatch.chdir(texts)
    tokenizer = () if "--tokenizer" in options or "files" in options else ("--tokenizer", "bytes")
    assert_one_line(peerlm("data", "add", *options, *tokenizer), 2, *words)
    assert not desk.records


def test_credentials_that_are_missing_are_named(
    peerlm: Cli, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    done = peerlm("data", "add", "s3://bucket/plays", "--as", "files")
    assert_one_line(done, 2, "AWS_ACCESS_KEY_ID")


def test_a_name_that_is_taken_is_refused_before_anything_is_put(
    peerlm: Cli, desk: FakeDesk, texts: Path
) -> None:
    desk.has("texts", [("a.txt", [b"other"])])
    done = peerlm("data", "add", texts, "--as", "files")
    assert_one_line(done, 3, "the name texts is taken", ME[:8], "--name", "peerlm data rm texts")
    assert desk.put_bytes == 0
    assert peerlm("data", "add", texts, "--as", "files", "--replace").code == 0
    assert len(desk.manifest("texts").files) == 3


def test_what_all_nodes_together_have_no_room_for(peerlm: Cli, desk: FakeDesk, texts: Path) -> None:
    desk.nodes = [node(ME, capacity_bytes=5000), node(OTHER, capacity_bytes=5000)]
    done = peerlm("data", "add", texts, "--as", "files")
    assert_one_line(done, 3, "do not fit", "offer 10 kB together", "store.bytes")
    desk.nodes = []
    assert_one_line(peerlm("data", "add", texts), 3, "no live node offers room", "store.enabled")


def test_what_does_not_fit_beside_what_is_there(peerlm: Cli, desk: FakeDesk, texts: Path) -> None:
    """The source has 13 060 bytes: one node has room for them, one for 4 kB, one is full."""
    desk.nodes = [node(ME, capacity_bytes=14_000, used_bytes=13_000)]
    desk.nodes += [node(OTHER, capacity_bytes=10_000, used_bytes=6_000)]
    desk.nodes += [node("cc" * 16, capacity_bytes=10_000, used_bytes=12_000)]
    add = ("data", "add", texts, "--as", "files")
    needs = "3 replicas of 13.1 kB need 39.2 kB, and 17.1 kB are free for it"
    done = peerlm(*add)
    assert_one_line(done, 3, needs, "0 B at cccccccc, 4 kB at bbbbbbbb", "--replicas", "--wait 0")
    assert_one_line(peerlm(*add, "--replicas", "2"), 3, "2 replicas of 13.1 kB need 26.1 kB")
    assert desk.put_bytes == 0, "it is said before anything is put"
    assert peerlm(*add, "--replicas", "1").code == 0
    assert peerlm(*add, "--wait", "0", "--name", "later").code == 0


def test_what_is_on_other_nodes_already_needs_no_room_there(
    peerlm: Cli, desk: FakeDesk, texts: Path
) -> None:
    desk.has("texts", [("old", [b"something else"])])
    desk.nodes = [node(ME), node(OTHER, capacity_bytes=20_000, used_bytes=19_000)]
    replace = ("data", "add", texts, "--as", "files", "--replace")
    desk.copies = lambda wanted: 1
    done = peerlm(*replace)
    assert_one_line(done, 3, "1 replica on other nodes of 13.1 kB need", "1 kB at bbbbbbbb")
    assert [file.path for file in desk.manifest("texts").files] == ["old"]
    desk.copies = lambda wanted: 2
    assert peerlm(*replace).code == 0


def test_text_is_measured_by_its_tokens(peerlm: Cli, desk: FakeDesk, texts: Path) -> None:
    desk.nodes = [node(ME), node(OTHER, capacity_bytes=20_000, used_bytes=16_000)]
    done = peerlm("data", "add", texts / "a.txt", "--tokenizer", "bytes")
    assert_one_line(done, 3, "2 replicas of 5.25 kB need 10.5 kB")


def test_who_is_full_is_said_when_copies_do_not_come(
    peerlm: Cli, desk: FakeDesk, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerlm.cli.copies.STANDSTILL_S", 0.0)
    monkeypatch.setattr("peerlm.cli.copies.LOOK_S", 0.001)
    desk.copies = lambda wanted: 1
    add = ("data", "add", texts, "--as", "files")
    done = peerlm(*add)
    assert done.code == 1
    assert "nothing is copied any more: see `peerlm store status`" in done.err
    desk.nodes = [node(ME), node(OTHER, capacity_bytes=1_100_000, lacking=2)]
    assert "no room is left at bbbbbbbb; raise store.bytes" in peerlm(*add).err


def test_who_may_write_no_names_reads_nothing_in_vain(
    peerlm: Cli, desk: FakeDesk, texts: Path
) -> None:
    desk.said = {"may_write": False}
    assert_one_line(peerlm("data", "add", texts), 3, "without the role store")


def test_alone_there_is_one_copy(peerlm: Cli, desk: FakeDesk, texts: Path) -> None:
    desk.nodes, desk.copies = [node(ME), node(OTHER, is_live=False)], lambda wanted: 1
    done = peerlm("data", "add", texts, "--as", "files")
    assert done.code == 0
    assert "there is one copy, here" in done.out


def test_nobody_need_wait(peerlm: Cli, desk: FakeDesk, texts: Path) -> None:
    desk.copies = lambda wanted: 1
    done = peerlm("data", "add", texts, "--as", "files", "--wait", "0")
    assert done.code == 0
    assert "not waited for copies; 3 replicas are wanted" in done.out


def test_copies_are_waited_for_until_there_are_enough() -> None:
    desk, now, told = FakeDesk(), 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    desk.copies = lambda wanted: 1 + int(now > wanted[0])
    hashes = [chunk_of(bytes([n])).hash for n in range(5)]
    found = wait_copies(desk, hashes, 3, lambda *at: told.append(at), lambda: now, sleep)  # type: ignore[arg-type]
    assert found == Copies(least=2, possible=2, waiting=0)
    assert now > max(wanted[0] for wanted in hashes)
    assert told[-1] == (5, 5, "on 2 nodes")


def test_waiting_ends_when_nothing_is_copied_any_more() -> None:
    desk, now = FakeDesk(copies=lambda wanted: 1), 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    hashes = [chunk_of(b"x").hash]
    found = wait_copies(desk, hashes, 2, lambda *_: None, lambda: now, sleep)  # type: ignore[arg-type]
    assert found == Copies(least=1, possible=2, waiting=1)
    assert copies.STANDSTILL_S <= now < 2 * copies.STANDSTILL_S


# --------------------------------------------------------------------------------- looking at it


def test_each_file_has_its_own_encoding_and_it_is_said_which(
    peerlm: Cli, desk: FakeDesk, tmp_path: Path
) -> None:
    add = ("data", "add", tmp_path, "--name", "letters", "--tokenizer", "bytes")
    german = (
        "Für die Größe der Bäume gibt es kein Maß, und für Müller schon gar nicht: „übermäßig“.\n"
    )
    (tmp_path / "a.txt").write_bytes(german.encode("cp1252"))
    (tmp_path / "b.txt").write_bytes(german.encode())
    assert_one_line(peerlm(*add), 2, "a.txt is not UTF-8 at byte 1 (0xfc)")
    assert_one_line(peerlm(*add, "--encoding", "cp12"), 2, "'cp12': no such encoding")
    done = peerlm(*add, "--encoding", "auto", "--json")
    assert done.code == 0, done
    assert done.err == "encodings taken: cp1252 for 1 file, utf-8 for 1 file\n"
    assert json.loads(done.out)["tokens"] == 2 * len(german.encode())
    (tmp_path / "c.txt").write_bytes(german.encode() + german.encode("cp1252"))
    two = peerlm(*add, "--encoding", "auto")
    assert_one_line(two, 2, "c.txt has two encodings: it is UTF-8 up to byte", "and not there")


def test_ls_shows_the_fewest_replicas_of_each(peerlm: Cli, desk: FakeDesk) -> None:
    manifest = desk.has("plays", [("a", [b"1", b"2"]), ("b", [b"2"])])
    desk.has("other", [("a", [b"3"])])
    desk.pin("plays", True)
    desk.copies = lambda wanted: 1 if wanted == manifest.chunks[1].hash else 3
    lines = peerlm("data", "ls").out.splitlines()
    assert lines[0].split() == [
        "name",
        "kind",
        "size",
        "files",
        "shards",
        "documents",
        "tokens",
        "replicas",
        "verified",
        "writer",
        "age",
    ]
    one = ["other", "files", "1", "B", "1", "–", "–", "–", "3", "of", "3", "–"]
    assert lines[1].split()[:12] == one
    assert lines[2].split()[:11] == ["plays*", "files", "3", "B", "2", *"–––", "1", "of", "3"]
    rows = json.loads(peerlm("data", "ls", "--json").out)
    assert [row["replicas_least"] for row in rows] == [3, 1]
    assert [row["shards"] for row in rows] == [None, None]
    assert "there is nothing in the store" in peerlm_of_none(peerlm, desk)


def peerlm_of_none(peerlm: Cli, desk: FakeDesk) -> str:
    desk.records.clear()
    return peerlm("data", "ls").out


def test_a_manifest_that_cannot_be_had_is_no_hindrance(peerlm: Cli, desk: FakeDesk) -> None:
    desk.has("plays", [("a", [b"1"])])
    desk.chunks = {}
    desk.manifest = _refuse  # type: ignore[method-assign]
    assert peerlm("data", "ls").out.splitlines()[1].split()[:3] == ["plays", "files", "–"]


def _refuse(*_: Any) -> Any:
    from peerlm.errors import StateError

    raise StateError("it is not here")


def test_show_tells_where_chunks_are_and_which_have_too_few(peerlm: Cli, desk: FakeDesk) -> None:
    manifest = desk.has("plays", [("a", [b"1", b"2", b"3"])])
    counts = dict(zip((c.hash for c in manifest.chunks), (0, 2, 3), strict=True))
    desk.copies, desk.silent = lambda wanted: counts[wanted], [OTHER]
    found = json.loads(peerlm("data", "show", "plays", "--json").out)["found"]
    assert found == {
        "least": 0,
        "replicas": {"0": 1, "2": 1, "3": 1},
        "under_replicated": 1,
        "unreadable": 1,
        "nodes": [{"id": ME, "chunks": 2}],
        "silent": [OTHER],
    }
    out = peerlm("data", "show", "plays", "--files").out
    for line in (
        "3 wanted; 1 chunk in 0, 1 chunk in 2, 1 chunk in 3",
        "bbbbbbbb did not answer",
        "a  3 B",
    ):
        assert line in out, out
    assert_one_line(
        peerlm("data", "show", "poems"), 3, "nothing of the name poems", "peerlm data ls"
    )


def test_show_says_when_chunks_here_were_last_read(peerlm: Cli, desk: FakeDesk) -> None:
    desk.has("plays", [("a", [b"1", b"2", b"3"])])
    assert "3 chunks here, when they came; not since" in peerlm("data", "show", "plays").out
    at = time.time() - 3 * 86_400
    desk.checks = lambda here: {"here": here, "unknown": 1, "oldest": at}
    shown = peerlm("data", "show", "plays").out
    assert "3 chunks here, within the last 3 d; 1 not since they came" in shown
    said = json.loads(peerlm("data", "show", "plays", "--json").out)["checked_here"]
    assert said == {"here": 3, "unknown": 1, "oldest": at}

    def is_old(_: int) -> dict[str, Any]:
        raise StateError("the store's desk does not know 'checked' with these arguments")

    desk.checks = is_old
    assert json.loads(peerlm("data", "show", "plays", "--json").out)["checked_here"] is None


def test_when_a_name_was_last_verified_is_remembered(peerlm: Cli, desk: FakeDesk) -> None:
    desk.has("plays", [("a", [b"1", b"2"])])
    desk.has("other", [("a", [b"3"])])
    assert "not here so far: `peerlm data verify plays`" in peerlm("data", "show", "plays").out
    desk.wall = time.time() - 2 * 3600
    assert peerlm("data", "verify", "plays").code == 0
    shown = peerlm("data", "show", "plays").out
    assert "verified  2 h ago, from this node: all of it as it should be" in shown
    lines = peerlm("data", "ls").out.splitlines()
    assert [line.split()[11:13] for line in lines[1:]] == [["–", ME[:8]], ["2", "h"]]
    said = json.loads(peerlm("data", "show", "plays", "--json").out)
    assert (said["verified_at"], said["verified_missing"]) == (desk.wall, 0)
    found = {one["name"]: one for one in json.loads(peerlm("data", "ls", "--json").out)}
    assert found["other"]["verified_at"] is None
    assert found["plays"]["verified_at"] == desk.wall
    desk.copies = lambda wanted: 0
    assert peerlm("data", "verify", "plays").code == 1
    assert "2 chunks could not be had" in peerlm("data", "show", "plays").out
    assert "2 h, 2 missing" in peerlm("data", "ls").out


def test_a_daemon_of_the_release_before_verifies_and_does_not_remember(
    peerlm: Cli, desk: FakeDesk
) -> None:
    desk.has("plays", [("a", [b"1"])])
    for record in desk.records.values():
        del record["verified_at"], record["verified_missing"]
    desk.is_old = True
    assert "all as they should be" in peerlm("data", "verify", "plays").out
    assert peerlm("data", "ls").out.splitlines()[1].split()[11] == "–"
    assert "not here so far" in peerlm("data", "show", "plays").out


def test_rm_asks_and_spares_what_is_pinned(
    peerlm: Cli, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.has("plays", [("a", [b"1"])])
    assert peerlm("data", "pin", "plays").code == 0
    assert_one_line(peerlm("data", "rm", "plays", "--yes"), 3, "is pinned", "--off")
    assert peerlm("data", "pin", "plays", "--off").code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert peerlm("data", "rm", "plays").code == 130
    assert "plays" in desk.records
    assert peerlm("data", "rm", "plays", "--yes").out == "removed plays\n"
    assert not desk.records


@pytest.mark.parametrize("of", ["data", "checkpoint"])
def test_rm_and_pin_say_what_it_was_to_programs(peerlm: Cli, desk: FakeDesk, of: str) -> None:
    desk.has("plays", [("a", [b"1"])])
    record = desk.records["plays"]
    assert json.loads(peerlm(of, "pin", "plays", "--json").out) == {**record, "is_pinned": True}
    off = peerlm(of, "pin", "plays", "--off", "--json")
    assert json.loads(off.out) == {**record, "is_pinned": False}
    assert json.loads(peerlm(of, "rm", "plays", "--yes", "--json").out) == record
    assert not desk.records


# ------------------------------------------------------------------------------- reading all of it


def test_get_goes_on_where_it_ended(peerlm: Cli, desk: FakeDesk, tmp_path: Path) -> None:
    parts = [b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"the end"]
    manifest = desk.has("plays", [("big", parts), ("small", [b"whole"])])
    desk.lost = {manifest.chunks[2].hash}
    done = peerlm("data", "get", "plays", tmp_path)
    assert_one_line(done, 3, "big: object", "is not here")
    assert not (tmp_path / "big").exists()
    desk.lost, desk.reads = set(), []
    assert peerlm("data", "get", "plays", tmp_path).code == 0
    assert (tmp_path / "big").read_bytes() == b"".join(parts)
    assert manifest.chunks[0].hash not in desk.reads
    desk.reads = []
    (tmp_path / "small").write_bytes(b"WHOLE")
    told = json.loads(peerlm("data", "get", "plays", tmp_path, "--json").out)
    assert told == {"name": "plays", "files": 2, "kept": 1, "bytes": 2 * CHUNK_BYTES + 12}
    assert desk.reads == [manifest.chunks[3].hash]
    assert {path.name for path in tmp_path.iterdir()} >= {"big", "small"}
    assert not list(tmp_path.glob(".*peerlm-part"))


def test_verify_says_what_cannot_be_had(peerlm: Cli, desk: FakeDesk) -> None:
    manifest = desk.has("plays", [("a", [b"1", b"2"]), ("b", [b"2", b"3"])])
    assert "3 chunks, 3 B, all as they should be" in peerlm("data", "verify", "plays").out
    damaged = manifest.chunks[1].hash
    desk.copies = lambda wanted: (
        3 if wanted in {c.hash for c in manifest.chunks} - {manifest.chunks[0].hash} else 0
    )
    del desk.chunks[damaged]
    desk.reads = []
    done = peerlm("data", "verify", "plays")
    assert (done.code, done.err) == (1, "peerlm: 2 of 3 chunks of plays cannot be had\n")
    assert f"{manifest.chunks[0].hash.hex()[:8]}  a: on no node" in done.out
    assert f"{damaged.hex()[:8]}  a, b: object" in done.out
    assert manifest.chunks[0].hash not in desk.reads, "nobody is waited for who is not there"
    missing = json.loads(peerlm("data", "verify", "plays", "--json").out)["missing"]
    assert [one["files"] for one in missing] == [["a"], ["a", "b"]]


# ----------------------------------------------------------------------------------------- store


@pytest.mark.parametrize(
    ("said", "nodes", "answer", "is_whole"),
    [
        ({}, [node(ME), node(OTHER), node("cc" * 16)], "yes: everything is in as many", True),
        ({}, [node(ME), node(OTHER)], "as far as there are nodes: 2 offer room", False),
        ({}, [node(ME), node(OTHER, lacking=7)], "not yet: 7 replicas are still to be made", False),
        (
            {"is_full": True},
            [node(ME, lacking=1)],
            "not yet: 1 replicas are still to be made; this node is full",
            False,
        ),
        ({}, [node(ME), node(OTHER, is_live=False)], "not while a node is away", False),
        ({"unfound": 2}, [node(ME)], "2 chunks are looked for in vain", False),
        ({}, [], "no live node offers room", False),
    ],
)
def test_store_status_answers_in_a_sentence(
    peerlm: Cli,
    desk: FakeDesk,
    said: dict[str, Any],
    nodes: list[dict[str, Any]],
    answer: str,
    is_whole: bool,
) -> None:
    desk.has("plays", [("a", [b"1"])])
    desk.nodes, desk.said = nodes, said
    assert peerlm("store", "status").out.startswith(answer)
    assert json.loads(peerlm("store", "status", "--json").out)["is_whole"] is is_whole


def test_store_status_of_an_empty_store(peerlm: Cli, desk: FakeDesk) -> None:
    assert peerlm("store", "status").out.startswith("there is nothing in the store\n")


def test_store_status_shows_each_node(peerlm: Cli, desk: FakeDesk) -> None:
    desk.nodes = [node(ME, label="rack 1"), node(OTHER, is_live=False), node("cc" * 16)]
    known = {"why": "could not show chunk abcd", "for_s": 60.0}
    desk.said = {"distrusted": ["cc" * 16], "distrust": {"cc" * 16: known}}
    desk.said |= {"scrubbed": desk.scrubs, "trouble": "disk full", "hedged_bytes": 3 * 10**6}
    out = peerlm("store", "status").out
    for line in (
        "room      1 MB used of 1 GB offered",
        "trouble   disk full",
        "hedged    3 MB came twice, for a node was slow",
        "3 read in 2 s, 1 damaged or gone",
        "aaaaaaaa*  1 GB    1 MB  0        rack 1  here",
        "bbbbbbbb   1 GB    1 MB  –        –       away",
        "cccccccc   1 GB    1 MB  0        –       distrusted for 1 min: could not show chunk abcd",
    ):
        assert line in out, out


def test_a_daemon_of_the_release_before_is_shown_with_what_it_says(
    peerlm: Cli, desk: FakeDesk
) -> None:
    desk.nodes = [node(ME), node("cc" * 16)]
    says = desk.status()
    del says["checkpoints_kept_back"], says["distrust"], says["hedged_bytes"]
    desk.status = lambda: {**says, "distrusted": ["cc" * 16]}  # type: ignore[method-assign]
    assert peerlm("store", "status").out.splitlines()[-1].endswith("  distrusted")
    assert peerlm("checkpoint", "ls").code == 0


def test_checkpoints_that_stay_for_want_of_copies_are_said(peerlm: Cli, desk: FakeDesk) -> None:
    desk.publish("checkpoint-000000000001", of_files(Kind.CHECKPOINT, [], {}), replaces=True)
    assert len(peerlm("checkpoint", "ls").out.splitlines()) == 2
    assert "optimizer" not in peerlm("checkpoint", "ls").out
    with_one = of_files(Kind.CHECKPOINT, [], {"optimizer": "muon"})
    desk.publish("checkpoint-000000000001", with_one, replaces=True)
    assert "with optimizer" in peerlm("checkpoint", "ls").out
    desk.said = {"checkpoints_kept_back": "1 older than store.checkpoints_kept stay: why"}
    assert peerlm("checkpoint", "ls").out.splitlines()[2] == desk.said["checkpoints_kept_back"]
    assert desk.said["checkpoints_kept_back"] in peerlm("store", "status").out
    assert len(json.loads(peerlm("checkpoint", "ls", "--json").out)) == 1


def test_scrub_and_repair(peerlm: Cli, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peerlm("store", "scrub").out == "3 read in 2 s, 1 damaged or gone\n"
    assert json.loads(peerlm("store", "scrub", "--json").out) == desk.scrubs
    assert peerlm("store", "repair").out == "0 copied, nothing lacks here\n"
    assert desk.repairs == 1
    monkeypatch.setattr("peerlm.cli.store.STANDSTILL_S", 0.0)
    monkeypatch.setattr("peerlm.cli.store.LOOK_S", 0.001)
    desk.said = {"unread": 4}
    done = peerlm("store", "repair", "--json")
    assert (done.code, json.loads(done.out)) == (1, {"lacked": 4, "lacking": 4})


@pytest.mark.parametrize(
    "command",
    [
        ("data", "ls"),
        ("data", "add", "x"),
        ("data", "show", "x"),
        ("store", "status"),
        ("store", "scrub"),
    ],
)
def test_without_a_daemon_it_is_said_how_to_start_one(
    peerlm: Cli, founded: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    assert_one_line(
        peerlm(*command, "--state", founded), 3, "no peerlm daemon runs on", "peerlm up"
    )
    assert_one_line(peerlm(*command, "--state", tmp_path / "none"), 3, "no node in", "peerlm init")


def test_every_key_is_on_the_page(peerlm: Cli, desk: FakeDesk, texts: Path, tmp_path: Path) -> None:
    desk.said = {"scrubbed": desk.scrubs}
    manifest = desk.has("plays", [("a", [b"1"])])
    outcomes = [
        peerlm("data", "add", texts, "--as", "files", "--json"),
        peerlm("data", "ls", "--json"),
        peerlm("data", "show", "plays", "--files", "--json"),
        peerlm("data", "get", "plays", tmp_path / "out", "--json"),
        peerlm("store", "status", "--json"),
        peerlm("store", "scrub", "--json"),
        peerlm("store", "repair", "--json"),
    ]
    desk.lost = {manifest.chunks[0].hash}
    outcomes.append(peerlm("data", "verify", "plays", "--json"))
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
    keys = {key for outcome in outcomes for key in keys_of(json.loads(outcome.out))}
    assert len(keys) > 50
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def keys_of(value: Any) -> Iterator[str]:
    """But for counts by number and by a manifest's own words."""
    match value:
        case dict():
            for key, inner in value.items():
                if not key.isdigit():
                    yield key
                if key != "meta":
                    yield from keys_of(inner)
        case list():
            for inner in value:
                yield from keys_of(inner)


def test_progress_is_shown_on_a_terminal_whatever_files_are_called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("putting", in_bytes=True) as tell:
        tell(1_000_000, None, "")
        tell(2_000_000, 10_000_000, "a[/b].txt")
    with progress("plays: chunks") as tell:
        tell(3, 10, "on 2 nodes")
    said = capsys.readouterr().err
    assert "putting a[/b].txt" in said
    assert "plays: chunks on 2 nodes" in said
    assert "3/10" in said


# ------------------------------------------------------------------------ manifests of a liar


def evil(desk: FakeDesk, files: list[tuple[str, bytes]], meta: dict[str, Any]) -> None:
    listed = [(path, [chunk_of(data)] if data else []) for path, data in files]
    for _, data in files:
        desk.put(data)
    desk.publish("evil", of_files(Kind.FILES, listed, meta))


@pytest.mark.parametrize(
    "meta",
    [
        {"tokens": 10**400, "documents": -(10**400)},
        {"x" * 100_000: 1},
        {"a\x1b[2J": "\x1b[2J\n"},
        {"m": "\ud800"},
        {str(number): number for number in range(10_000)},
    ],
)
def test_what_a_manifest_says_of_itself_cannot_spoil_a_list(
    peerlm: Cli, desk: FakeDesk, meta: dict[str, Any]
) -> None:
    evil(desk, [("a", b"x")], meta)
    for words in (("data", "ls"), ("data", "show", "evil"), ("data", "show", "evil", "--files")):
        said = peerlm(*words)
        assert said.code == 0, said
        assert "\x1b" not in said.out
        assert len(said.out) < 20_000


@pytest.mark.parametrize(
    "files",
    [
        [("n" * 300, b"x")],
        [("n" * 245, b"x")],
        [("a", b"x"), ("a/b", b"y")],
        [("a/b", b"x"), ("a", b"y")],
    ],
)
def test_paths_that_cannot_be_are_said_in_one_line(
    peerlm: Cli, desk: FakeDesk, tmp_path: Path, files: list[tuple[str, bytes]]
) -> None:
    evil(desk, files, {})
    said = peerlm("data", "get", "evil", tmp_path / "out")
    if said.code:
        assert_one_line(said, 3)
    assert "internal" not in said.err


def test_what_is_in_the_way_of_a_file_is_said_in_one_line(
    peerlm: Cli, desk: FakeDesk, tmp_path: Path
) -> None:
    evil(desk, [("a", b"x")], {})
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    assert_one_line(peerlm("data", "get", "evil", out), 3, "a")
    (tmp_path / "file").write_text("x")
    assert peerlm("data", "get", "evil", tmp_path / "file").code == 2
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "a").symlink_to("a")
    assert peerlm("data", "get", "evil", loop).code in (0, 1, 3)
