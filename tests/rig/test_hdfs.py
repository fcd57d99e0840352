"""A real HDFS, a name node and a data node on this machine: the shards of a corpus are those of a local file, and a
checkpoint is written to it.

`make rig-hdfs` gets the servers, which are in an old Spark's package. They need Java 17 and, of Debian,
libjersey1-core-java, libjersey1-server-java, libjersey1-servlet-java, libjersey1-json-java and libjsr311-api-java.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import fsspec
import pytest
from swarm import Node, Swarm, assert_refused, init, peerlm, succeed

from peerlm.data import making
from peerlm.data.prepared import Done, Job, Made
from peerlm.data.shards import corpus_manifest, shard_fact
from peerlm.data.sources import listed
from peerlm.data.units import Grid
from peerlm.errors import ConfigError
from peerlm.store.manifest import manifest_hash
from peerlm.types import ObjectHash

ROOT = Path(__file__).parents[2]
JARS = next((ROOT / ".venv-hdfs").glob("lib/python*/site-packages/pyspark/jars"), None)
DEBIAN = Path("/usr/share/java")
WANTED = (
    *("hadoop-annotations-*", "hadoop-auth-*", "hadoop-common-*", "hadoop-hdfs-*", "log4j-1*"),
    *("apache-log4j-extras-*", "slf4j-*", "guava-1*", "protobuf-java-*", "jetty-*", "xercesImpl-*"),
    *(
        "javax.servlet-api-*",
        "htrace-core-*",
        "netty-*",
        "jackson-*-asl-*",
        "commons-*",
        "jsr305-*",
    ),
    *("httpclient-*", "httpcore-*", "jaxb-api-*", "activation-*"),
)
JERSEY = tuple(f"jersey1-{part}.jar" for part in ("core", "server", "servlet", "json"))
OPENED = ("java.lang", "java.util", "java.nio", "sun.nio.ch", "java.net", "java.io")

pytestmark = pytest.mark.skipif(
    JARS is None or not shutil.which("java") or not (DEBIAN / JERSEY[0]).exists(),
    reason="no HDFS: make rig-hdfs, which needs Java and libjersey1-*-java",
)

WHERE = "data add"
TEXT = "".join(f"line {number} é€😀 of some length\n" for number in range(200_000)).encode()
SMALL = Grid(500_000, 10_000)


@dataclass
class Hdfs:
    """Both servers."""

    address: str
    """host:port of the name node's protocol."""
    web: str
    """The same of its web interface."""
    data_node: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    folder = tmp_path_factory.mktemp("hdfs")
    address, web, *others = (f"127.0.0.1:{port}" for port in free_ports(5))
    settings = {
        "fs.defaultFS": f"hdfs://{address}",
        "hadoop.tmp.dir": str(folder / "state"),
        "dfs.replication": "1",
        "dfs.blocksize": str(1 << 20),
        "dfs.webhdfs.enabled": "true",
        "dfs.permissions": "false",
        "dfs.namenode.http-address": web,
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.datanode.hostname": "127.0.0.1",
        **{
            f"dfs.datanode.{name}address": at
            for name, at in zip(("", "http.", "ipc."), others, strict=True)
        },
    }
    write_settings(folder, settings)
    server = "org.apache.hadoop.hdfs.server"
    run(folder, f"{server}.namenode.NameNode", "-format", "-nonInteractive").wait(60)
    name_node = run(folder, f"{server}.namenode.NameNode")
    data_node = run(folder, f"{server}.datanode.DataNode")
    try:
        fs = fsspec.filesystem("webhdfs", host="127.0.0.1", port=int(web.rpartition(":")[2]))
        until("files can be written", lambda: fs.pipe("/plays/one.txt", TEXT) or fs.ls("/plays"))
        yield Hdfs(address, web, data_node)
    finally:
        for process in (data_node, name_node):
            process.kill()
            process.wait(20)


def free_ports(count: int) -> list[int]:
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in opened]
    for server in opened:
        server.close()
    return ports


def write_settings(folder: Path, settings: dict[str, str]) -> None:
    for name in ("hdfs", "datanode"):
        (folder / "webapps" / name / "WEB-INF").mkdir(parents=True)
        (folder / "webapps" / name / "WEB-INF" / "web.xml").write_text("<web-app/>")
    properties = "".join(
        f"<property><name>{name}</name><value>{value}</value></property>"
        for name, value in settings.items()
    )
    for name in ("core-site.xml", "hdfs-site.xml"):
        (folder / name).write_text(f"<configuration>{properties}</configuration>")
    (folder / "log4j.properties").write_text(
        "log4j.rootLogger=WARN,c\nlog4j.appender.c=org.apache.log4j.ConsoleAppender\n"
        "log4j.appender.c.layout=org.apache.log4j.SimpleLayout\n"
    )


def run(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    assert JARS is not None
    jars = [jar for jar in sorted(JARS.iterdir()) if any(fnmatch(jar.name, w) for w in WANTED)]
    jars += [DEBIAN / jar for jar in (*JERSEY, "jettison.jar", "jsr311-api.jar")]
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [
                *("java", "-Xmx256m", *opened, "-Djava.net.preferIPv4Stack=true"),
                *("-cp", ":".join(map(str, [folder, *jars])), name, *arguments),
            ],
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HADOOP_USER_NAME": "root"},
        )


def until(what: str, holds: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    reason: object = "not yet"
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except Exception as error:  # it is not up yet
            reason = error
        time.sleep(0.2)
    raise AssertionError(f"{what}: {reason}")


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
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """It has weights, and a checkpoint `kept` of them."""
    swarm = Swarm(tmp_path_factory.mktemp("node"))
    founder = swarm.node()
    init(founder.folder, "--set", "model.dim=32", "--set", "model.hidden=64")
    founder.up()
    try:
        founder.wait(lambda s: s["state"] == "training" and s["swarm_tokens"], "it trains")
        succeed("checkpoint", "make", "--name", "kept", "--state", founder.folder)
        yield founder
    finally:
        swarm.close()


def test_the_command_adds_what_is_there_to_the_store(
    hdfs: Hdfs, node: Node, tmp_path: Path
) -> None:
    """By either way, by all nodes or by one, and with the manifest of a local file."""
    state = ("--json", "--state", node.folder)
    here = tmp_path / "one.txt"
    here.write_bytes(TEXT)
    added = {
        name: json.loads(succeed("data", "add", url, "--name", name, *more, *state))
        for name, url, *more in (
            ("by-file", here),
            ("by-hdfs", f"hdfs://{hdfs.address}/plays"),
            ("by-hdfs-here", f"hdfs://{hdfs.address}/plays/*.txt", "--here"),
            ("by-web", f"webhdfs://{hdfs.web}/plays"),
        )
    }
    assert {said["kind"] for said in added.values()} == {"corpus"}
    assert added["by-file"]["tokens"] == len(TEXT)
    assert len({said["manifest"] for said in added.values()}) == 1, added
    files = succeed("data", "add", f"hdfs://{hdfs.address}/plays", "--as", "files", *state)
    assert json.loads(files)["bytes"] == len(TEXT)
    succeed("data", "get", json.loads(files)["name"], tmp_path / "again", "--state", node.folder)
    assert (tmp_path / "again" / "one.txt").read_bytes() == TEXT


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
    fs = fsspec.filesystem("webhdfs", host="127.0.0.1", port=int(hdfs.web.rpartition(":")[2]))
    for file in tmp_path.iterdir():
        assert fs.cat_file(f"/models/{kind}/{file.name}") == file.read_bytes(), file.name


def test_a_data_node_that_is_gone(hdfs: Hdfs) -> None:
    """The last test: the node stays away."""
    hdfs.data_node.kill()
    hdfs.data_node.wait(20)
    with pytest.raises(ConfigError) as caught:
        hash_of(f"hdfs://{hdfs.address}/plays/one.txt")
    assert "cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)
