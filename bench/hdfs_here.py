"""A real HDFS, a name node and a data node on this machine, for a figure and for tests.

The servers are in an old Spark's package, which `make rig-hdfs` puts into an environment of its own. They need Java 17 and, of
Debian, libjersey1-core-java, libjersey1-server-java, libjersey1-servlet-java, libjersey1-json-java and libjsr311-api-java.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import fsspec

from bench.report import ROOT, Missed

DEBIAN = Path("/usr/share/java")
WANTED = (
    *("hadoop-annotations-*", "hadoop-auth-*", "hadoop-common-*", "hadoop-hdfs-*", "log4j-1*"),
    *("apache-log4j-extras-*", "slf4j-*", "guava-1*", "protobuf-java-*", "jetty-*", "xercesImpl-*"),
    *("javax.servlet-api-*", "htrace-core-*", "netty-*", "jackson-*-asl-*", "commons-*"),
    *("jsr305-*", "httpclient-*", "httpcore-*", "jaxb-api-*", "activation-*"),
)
JERSEY = (
    *(f"jersey1-{part}.jar" for part in ("core", "server", "servlet", "json")),
    *("jettison.jar", "jsr311-api.jar"),
)
OPENED = ("java.lang", "java.util", "java.nio", "sun.nio.ch", "java.net", "java.io")
SERVER = "org.apache.hadoop.hdfs.server"

UP_S = 240.0


@dataclass
class Hdfs:
    """Both servers."""

    address: str
    """host:port of the name node's protocol."""
    web: str
    """The same of its web interface."""
    data_node: subprocess.Popen[bytes]

    @property
    def fs(self) -> Any:
        """Through the web interface."""
        host, _, port = self.web.rpartition(":")
        return fsspec.filesystem("webhdfs", host=host, port=int(port))


def lacking() -> str:
    """What this machine has not got of it, in words; empty: it has all."""
    if _jars() is None:
        return "no HDFS: its servers are not in .venv-hdfs: make rig-hdfs"
    if not shutil.which("java"):
        return "no HDFS: it needs Java 17"
    absent = [jar for jar in JERSEY if not (DEBIAN / jar).exists()]
    if absent:
        return f"no HDFS: {DEBIAN} has no {', '.join(absent)}: libjersey1-*-java and libjsr311-api-java"
    return ""


def _jars() -> Path | None:
    return next((ROOT / ".venv-hdfs").glob("lib/python*/site-packages/pyspark/jars"), None)


@contextmanager
def hdfs_in(folder: Path, data: bytes) -> Iterator[Hdfs]:
    """Both servers, with the text as /plays/one.txt. Raises `Missed`: they are not to be had."""
    if why := lacking():
        raise Missed(why)
    address, web, *others = (f"127.0.0.1:{port}" for port in _free_ports(5))
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
    _write_settings(folder, settings)
    _format(folder)
    name_node = _run(folder, f"{SERVER}.namenode.NameNode")
    data_node = _run(folder, f"{SERVER}.datanode.DataNode")
    here = Hdfs(address, web, data_node)
    try:
        _until(
            "files can be written",
            lambda: here.fs.pipe("/plays/one.txt", data) or here.fs.ls("/plays"),
        )
        yield here
    finally:
        for process in (data_node, name_node):
            process.kill()
            process.wait(20)


def _format(folder: Path) -> None:
    """Raises `Missed`: it takes for ever."""
    work = _run(folder, f"{SERVER}.namenode.NameNode", "-format", "-nonInteractive")
    try:
        work.wait(UP_S)
    except subprocess.TimeoutExpired:
        work.kill()
        work.wait()
        raise Missed(f"HDFS: no file system was made within {UP_S:.0f} s") from None


def _free_ports(count: int) -> list[int]:
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in opened]
    for server in opened:
        server.close()
    return ports


def _write_settings(folder: Path, settings: dict[str, str]) -> None:
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


def _run(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    found = _jars()
    assert found is not None, "lacking() was asked"
    jars = [jar for jar in sorted(found.iterdir()) if any(fnmatch(jar.name, w) for w in WANTED)]
    jars += [DEBIAN / jar for jar in JERSEY]
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


def _until(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + UP_S
    reason: object = "not yet"
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except Exception as error:  # it is not up yet
            reason = error
        time.sleep(0.2)
    raise Missed(f"HDFS: {what}: not within {UP_S:.0f} s: {reason}")
