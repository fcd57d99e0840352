"""A real HDFS, a name node and a data node on this machine: the corpus is that of a local file, of HTTP and of S3, and a
checkpoint is written to it.

`make rig-hdfs` gets the servers (`bench.hdfs_here` says what they need), and fails where they cannot be had.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from swarm import Node, Swarm, assert_refused, init, peerlm, succeed

from bench.hdfs_here import Hdfs, hdfs_in, lacking
from bench.same_corpus import manifests, places, text_of
from peerlm.data import making
from peerlm.data.prepared import Done, Job, Made
from peerlm.data.shards import corpus_manifest, shard_fact
from peerlm.data.sources import listed
from peerlm.data.units import Grid
from peerlm.errors import ConfigError
from peerlm.store.manifest import manifest_hash
from peerlm.types import ObjectHash

ROOT = Path(__file__).parents[2]

IS_WANTED = os.environ.get("HDFS") == "wanted"
"""By `make rig-hdfs`: then it is no excuse that there is none."""

pytestmark = [
    pytest.mark.timeout(900),  # servers in Java, which take their time on a busy machine
    pytest.mark.skipif(bool(lacking()) and not IS_WANTED, reason=lacking()),
    pytest.mark.filterwarnings(  # of S3's library, which leaves its sessions to the collector
        "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]

WHERE = "data add"
TEXT = text_of(200_000)
SMALL = Grid(500_000, 10_000)


@pytest.fixture(scope="module")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    with hdfs_in(tmp_path_factory.mktemp("hdfs"), TEXT) as here:
        yield here


def hash_of(url: str, processes: int = 0) -> ObjectHash:
    job = Job(listed(url, WHERE), grid=SMALL)
    facts, documents = {}, 0
    for part in making.shards(job, processes=processes):
        match part:
            case Made():
                facts[part.task, part.number] = shard_fact(part.data, part.tokens)
            case Done():
                documents += part.documents
    in_order = [facts[place] for place in sorted(facts)]
    manifest, _ = corpus_manifest(in_order, None, job.vocab_made, documents)
    return manifest_hash(manifest.encode())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> ObjectHash:
    file = tmp_path_factory.mktemp("here") / "one.txt"
    file.write_bytes(TEXT)
    return hash_of(str(file))


@pytest.mark.parametrize("kind", ["hdfs", "webhdfs"])
def test_the_corpus_is_that_of_a_local_file(hdfs: Hdfs, expected: ObjectHash, kind: str) -> None:
    root = f"{kind}://{hdfs.address if kind == 'hdfs' else hdfs.web}"
    for url in (f"{root}/plays/one.txt", f"{root}/plays", f"{root}/pl*/*.txt"):
        assert hash_of(url) == expected, url
    assert hash_of(f"{root}/plays", processes=2) == expected


@pytest.mark.parametrize("kind", ["hdfs", "webhdfs"])
def test_what_is_not_there(hdfs: Hdfs, kind: str) -> None:
    root = f"{kind}://{hdfs.address if kind == 'hdfs' else hdfs.web}"
    with pytest.raises(ConfigError, match="not found"):
        hash_of(f"{root}/absent")
    with pytest.raises(ConfigError, match="no files match"):
        hash_of(f"{root}/plays/*.csv")


@pytest.fixture(scope="module")
def urls(hdfs: Hdfs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the text is, and how it is read there."""
    with ExitStack() as stack:
        yield dict(places(stack, tmp_path_factory.mktemp("places"), TEXT, hdfs))


@pytest.fixture(scope="module")
def node(urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """It has weights, a checkpoint `kept` of them, and the credentials for all places."""
    swarm = Swarm(tmp_path_factory.mktemp("node"))
    founder = swarm.node()
    init(founder.folder, "--set", "model.dim=32", "--set", "model.hidden=64")
    founder.up()
    try:
        founder.wait(lambda s: s["state"] == "training" and s["swarm_tokens"], "it trains", 200.0)
        succeed("checkpoint", "make", "--name", "kept", "--state", founder.folder)
        yield founder
    finally:
        swarm.close()


def test_the_command_makes_the_same_of_a_file_of_http_of_s3_and_of_hdfs(
    urls: dict[str, str], node: Node
) -> None:
    """By either way to HDFS, by one node or as a job of all."""
    found, _ = manifests(node, urls)  # type: ignore[arg-type]
    assert len(urls) == 5
    assert len(found) == 9
    assert len(set(found.values())) == 1, found


def test_what_is_there_is_added_as_it_is_too(hdfs: Hdfs, node: Node, tmp_path: Path) -> None:
    state = ("--state", node.folder)
    url = f"hdfs://{hdfs.address}/plays"
    said = json.loads(succeed("data", "add", url, "--as", "files", "--json", *state))
    assert said["bytes"] == len(TEXT)
    succeed("data", "get", said["name"], tmp_path / "again", *state)
    assert (tmp_path / "again" / "one.txt").read_bytes() == TEXT


def test_who_may_not_read_it_is_told_what_to_set(hdfs: Hdfs, node: Node) -> None:
    """A user that this one must not speak for."""
    before = ("env", "HADOOP_PROXY_USER=somebody")
    url = f"hdfs://{hdfs.address}/plays"
    done = peerlm(
        "data", "add", url, "--here", "--name", "no", "--state", node.folder, before=before
    )
    assert_refused(done, 2, "access denied", "set HADOOP_USER_NAME, or a Kerberos ticket")


def test_without_its_library_the_command_says_what_to_type_instead(
    hdfs: Hdfs, node: Node, tmp_path: Path
) -> None:
    (tmp_path / "hdfs_native.py").write_text("raise ImportError('not here')")
    before = ("env", f"PYTHONPATH={tmp_path}:{ROOT}")
    url = f"hdfs://{hdfs.address}/plays"
    for command in (("data", "add", url, "--name", "new"), ("checkpoint", "export", "kept", url)):
        done = peerlm(*command, "--state", node.folder, before=before)
        words = ("pip install 'peerlm[hdfs]'", "webhdfs://127.0.0.1:9870/plays")
        assert_refused(done, 2, "needs a package that is missing", *words)


@pytest.mark.parametrize("kind", ["hdfs", "webhdfs"])
def test_a_checkpoint_is_written_to_it(hdfs: Hdfs, node: Node, tmp_path: Path, kind: str) -> None:
    url = f"{kind}://{hdfs.address if kind == 'hdfs' else hdfs.web}/models/{kind}"
    succeed("checkpoint", "export", "kept", url, "--state", node.folder)
    again = peerlm("checkpoint", "export", "kept", url, "--state", node.folder)
    assert_refused(again, 2, "holds a model already")
    succeed("checkpoint", "get", "kept", tmp_path, "--state", node.folder)
    for file in tmp_path.iterdir():
        assert hdfs.fs.cat_file(f"/models/{kind}/{file.name}") == file.read_bytes(), file.name


def test_a_data_node_that_is_gone(hdfs: Hdfs) -> None:
    """The last test: the node stays away."""
    hdfs.data_node.kill()
    hdfs.data_node.wait(20)
    with pytest.raises(ConfigError) as caught:
        hash_of(f"hdfs://{hdfs.address}/plays/one.txt")
    assert "cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)
