"""A node alone with a folder, a text or a machine that is not fit: one line, and no more harm than need be.

What can be known at the start ends the command. What comes later, or may pass, leaves the node a
member that says what is wrong.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from swarm import Node, Outcome, assert_refused, at_once, init, peerlm, succeed, wait_for

from peerlm.identity import files
from peerlm.identity.chain import claimed_run
from peerlm.identity.root import SignedPlan, verify_plan
from peerlm.mix.sketch import sketch
from peerlm.model.plan import fragments
from peerlm.store import snapshot
from peerlm.store.layout import Layout
from peerlm.store.snapshot import Contents, FragmentState
from peerlm.types import RunId, WallTime

pytestmark = pytest.mark.timeout(120)

POWERLESS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Has root heed the permissions of files."""

STILL = {"train.enabled": "false"}
"""A node that never starts a worker, once it has weights."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "founded"
    init(folder, **STILL)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A founder's folder that holds no weights yet."""
    return Path(shutil.copytree(pristine, tmp_path / "node"))


@pytest.fixture
def folders(pristine: Path, tmp_path: Path) -> list[Path]:
    """Three of them."""
    return [Path(shutil.copytree(pristine, tmp_path / f"node{n}")) for n in range(3)]


@pytest.fixture
def node_of() -> Iterator[Callable[[Path], Node]]:
    """`node_of(folder)`; when the scene ends nothing of it lives, and its log has no traceback."""
    nodes: list[Node] = []

    def make(folder: Path) -> Node:
        nodes.append(Node(folder))
        return nodes[-1]

    yield make
    for node in nodes:
        node.end_all()
        assert "Traceback" not in node.said()
        assert "internal error" not in node.said()


def up(folder: Path, *args: object, **changes: object) -> Outcome:
    return peerlm("up", "--state", folder, *args, timeout_s=20, **changes)


def set_node(folder: Path, **settings: str) -> None:
    """Change node.toml as a person would."""
    lines = ["[train]", "enabled = false", "[network]", 'host = "127.0.0.1"', "port = 0"]
    sections: dict[str, list[str]] = {"train": lines[:2], "network": lines[2:]}
    for name, value in settings.items():
        section, _, field = name.partition("__")
        kept = [x for x in sections.get(section, [f"[{section}]"]) if not x.startswith(field)]
        sections[section] = [*kept, f"{field} = {value}"]
    text = "\n".join(line for section in sections.values() for line in section)
    (folder / "node.toml").write_text(text + "\n")


def plan_in(folder: Path) -> SignedPlan:
    run_id, root = claimed_run(files.read_chain_file(folder))
    return verify_plan(files.read_plan(folder), root, run_id)


def put_snapshot(folder: Path, tokens: int, run_id: RunId | None = None) -> Path:
    """Keep weights in the folder as a daemon would; the file they are in."""
    plan = plan_in(folder)
    own_run, _ = claimed_run(files.read_chain_file(folder))
    rng = np.random.default_rng(tokens)
    states = []
    for spec in fragments(plan.plan):
        phi = rng.normal(size=spec.size).astype(np.float32)
        shown = tuple(float(x) for x in sketch(phi, plan.plan.run.rng_seed, spec.id))
        states.append(FragmentState(spec.id, 1, phi, np.zeros_like(phi), shown))
    contents = Contents(
        run_id=run_id or own_run,
        plan_hash=plan.plan_hash,
        plan_revision=plan.revision,
        tokens={(files.read_keys(folder).peer_id, 1): tokens},
        own_tokens=tokens,
        epoch=1,
        wall=WallTime(time.time()),
    )
    return snapshot.write(Layout(folder), contents, fragments(plan.plan), states).path


# ------------------------------------------------------------------------------------- the text


TEXTS = {
    "missing": (None, "no such file"),
    "empty": (b"", "no text"),
    "not UTF-8": (b"caf\xe9 " * 5000, "UTF-8"),
    "shorter than a batch": (b"too short", "batch"),
}


def test_a_text_that_cannot_be_used(tmp_path) -> None:
    def begin(number: int, name: str) -> Outcome:
        content, node = TEXTS[name][0], tmp_path / str(number)
        if content is not None:
            (tmp_path / name).write_bytes(content)
        done = peerlm("init", "--state", node, "--data", tmp_path / name)
        assert not node.exists()
        return done

    begun = at_once(*(partial(begin, number, name) for number, name in enumerate(TEXTS)))
    for done, (name, (_, words)) in zip(begun, TEXTS.items(), strict=True):
        assert_refused(done, 2, str(tmp_path / name), words)


def test_own_text_that_has_gone_leaves_a_member(tmp_path, node_of) -> None:
    text = tmp_path / "letters.txt"
    text.write_text("Dear Sir, I have nothing to say.\n" * 2000)
    init(tmp_path / "node", "--data", "local", **{"data.local": str(text)})
    put_snapshot(tmp_path / "node", 100)
    text.unlink()
    node = node_of(tmp_path / "node")
    node.up()
    said = node.wait(lambda s: str(text) in str(s["why"]), "it says which text")
    assert said["state"] == "ready"
    assert "data.local" in succeed("why", "--state", node.folder)


def test_shared_text_that_is_gone_is_awaited_from_others(folder, node_of) -> None:
    put_snapshot(folder, 100)
    set_node(folder, train__enabled="true")
    for kept in (folder / "objects").iterdir():
        kept.unlink()
    node = node_of(folder)
    node.up()
    node.wait(
        lambda s: "corpus" in str(s["why"]) and s["state"] == "ready", "it says what it lacks"
    )


# ------------------------------------------------------------------------------------ the ports


def test_a_port_that_is_taken(folders) -> None:
    with ExitStack() as stack:
        bases = []
        for offset in range(3):
            taken = stack.enter_context(socket.socket())
            bases.append(free_base())
            taken.bind(("127.0.0.1", bases[-1] + offset))
            taken.listen()
        tried = at_once(
            *(partial(up, f, "--port", base) for f, base in zip(folders, bases, strict=True))
        )
    for offset, (done, base) in enumerate(zip(tried, bases, strict=True)):
        assert_refused(done, 2, f"port {base + offset}", "in use")


def free_base() -> int:
    """Three free ports in a row."""
    while True:
        doors = [socket.socket() for _ in range(3)]
        try:
            doors[0].bind(("127.0.0.1", 0))
            base = int(doors[0].getsockname()[1])
            for offset in (1, 2):
                doors[offset].bind(("127.0.0.1", base + offset))
            return base
        except (OSError, OverflowError):
            continue
        finally:
            for door in doors:
                door.close()


def test_a_default_port_that_is_taken_is_replaced_and_the_new_one_kept(folder, node_of) -> None:
    put_snapshot(folder, 100)
    set_node(folder, network__port="7700")
    node = node_of(folder)
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 7700))
            taken.listen()
        except OSError:
            pass  # somebody else has it: as good
        node.up()
        ports = set(node.wait(bool, "it runs") and node.ports())
        assert 7700 not in ports
        node.kill()
        node.up()
        node.wait(bool, "it runs again")
        assert set(node.ports()) == ports, "where its peers look for it"


# ----------------------------------------------------------------------------------- the folder


def test_no_node_and_no_daemon(tmp_path, folder) -> None:
    there, none = ("--state", folder), ("--state", tmp_path / "none")
    for done in at_once(
        *(partial(peerlm, c, *none) for c in ("up", "status", "peers", "why", "invite"))
    ):
        assert_refused(done, 3, "no node")
    for done in at_once(*(partial(peerlm, c, *there) for c in ("status", "why", "pause", "stop"))):
        assert_refused(done, 3, "peerlm up")


def test_a_snapshot_of_another_run(folder) -> None:
    put_snapshot(folder, 100, RunId(b"another run's id"))
    assert_refused(up(folder), 3, "snapshot", "is of run")


def test_a_plan_of_another_run(tmp_path, folder) -> None:
    init(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "plan", folder / "plan")
    assert_refused(up(folder), 3, "plan", "is of run")


def test_a_damaged_file(folders) -> None:
    paths = [f / name for f, name in zip(folders, ("identity", "chain", "plan"), strict=True)]
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    for done, path in zip(at_once(*(partial(up, f) for f in folders)), paths, strict=True):
        assert_refused(done, 3, str(path))


def test_a_setting_that_is_not_allowed(folder) -> None:
    set_node(folder, limits__threads="-1")
    assert_refused(up(folder), 2, "node.toml", "limits.threads", "-1")


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root, no setpriv")
def test_a_folder_that_cannot_be_written(folder) -> None:
    folder.chmod(0o500)
    try:
        done = up(folder, before=POWERLESS if os.getuid() == 0 else ())
    finally:
        folder.chmod(0o700)
    assert_refused(done, 3, "node", "permission denied")


def test_a_file_system_that_is_read_only(pristine, tmp_path) -> None:
    mount(tmp_path, "tmpfs", "size=32m")
    try:
        folder = Path(shutil.copytree(pristine, tmp_path / "node"))
        mount(tmp_path, "tmpfs", "remount,ro")
        assert_refused(up(folder), 3, "read-only")
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def mount(where: Path, kind: str, how: str) -> None:
    done = subprocess.run(["mount", "-t", kind, "-o", how, kind, where], capture_output=True)
    if done.returncode:
        pytest.skip("may not mount here")


# --------------------------------------------------------------------------------- the snapshots


def test_a_damaged_snapshot_is_passed_over(folder, node_of) -> None:
    put_snapshot(folder, 100)
    newest = put_snapshot(folder, 200)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    node = node_of(folder)
    node.up()
    said = node.wait(lambda s: s["state"] == "ready", "it has weights")
    assert said["swarm_tokens"] == 100
    assert "going on from snapshot 1, taken at 100 tokens" in node.said()
    assert "snapshot 2 cannot be used" in node.said()


def test_a_limit_on_the_disk_skips_snapshots(folder, node_of) -> None:
    put_snapshot(folder, 100)
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    set_node(folder, limits__disk_bytes=str(used + 10_000), limits__snapshot_every_s="1.0")
    node = node_of(folder)
    node.up()
    said = node.wait(lambda s: s["snapshot"]["error"], "a snapshot fails")
    assert "limits.disk_bytes" in said["snapshot"]["error"]
    assert said["state"] == "ready"
    assert any("limits.disk_bytes" in line for line in said["why"])
    assert snapshot.load(Layout(folder)).snapshot is not None, "the old one is as it was"


def test_a_full_disk(pristine, tmp_path, node_of) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount(place, "tmpfs", "size=16m")
    try:
        folder = Path(shutil.copytree(pristine, place / "node"))
        put_snapshot(folder, 100)
        set_node(folder, limits__snapshot_every_s="1.0")
        node = node_of(folder)
        node.log = tmp_path / "node.out"
        node.up()
        node.wait(lambda s: s["snapshot"]["number"] > 1, "it takes snapshots")
        fill(place / "filler")
        said = node.wait(lambda s: s["snapshot"]["error"], "a snapshot fails")
        assert said["state"] == "ready"
        assert any("snapshots fail" in line for line in said["why"])
        (place / "filler").unlink()
        node.wait(lambda s: not s["snapshot"]["error"], "there is room again")
        node.end_all()
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(path: Path) -> None:
    """To the last byte."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


# ---------------------------------------------------------------------------------- the machine


def test_cuda_where_there_is_none(folder, node_of) -> None:
    put_snapshot(folder, 100)
    set_node(folder, train__enabled="true", train__device='"cuda"')
    node = node_of(folder)
    node.up()
    said = node.wait(lambda s: "cuda" in str(s["why"]), "it says what is wrong")
    assert "cuda" in said["worker"]["last_error"]
    assert "Traceback" not in str(said["why"])
    node.wait(lambda s: s["worker"]["restarts"] >= 1, "it tries again, later and later")


def test_cuda_where_there_is_none_and_a_run_is_to_begin(folder, node_of) -> None:
    set_node(folder, train__enabled="true", train__device='"cuda"')
    node = node_of(folder)
    node.up()
    node.wait(lambda s: "cuda" in str(s["why"]), "it says why there are no weights yet")
    assert wait_for(lambda: node.status()["worker"]["last_error"], "the error is kept")
