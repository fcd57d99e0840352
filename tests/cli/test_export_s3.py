"""`peerlm checkpoint export s3://…`, to the S3 that sources are read from in tests."""

from __future__ import annotations

import random
from pathlib import Path

import fsspec
import pytest
from cli_scene import Cli, assert_one_line
from desk_scene import FakeDesk, chunk_of, desk
from test_sources import LEFT_OPEN, bucket, s3

from peerlm.store.manifest import CHUNK_BYTES, FILE, Kind, manifest_hash, of_files

__all__ = ["bucket", "desk", "s3"]

pytestmark = [pytest.mark.net, LEFT_OPEN]

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def model(desk: FakeDesk) -> dict[str, bytes]:
    """The files of the checkpoint `kept`; the weights are of several chunks."""
    files = {"model.safetensors": random.Random(1).randbytes(2 * CHUNK_BYTES + 99), "plan.toml": b"p" * 9}  # fmt: skip
    listed = []
    for path, data in files.items():
        parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        for part in parts:
            desk.put(part)
        listed.append((path, [chunk_of(part) for part in parts]))
    desk.publish("kept", of_files(Kind.CHECKPOINT, listed, {"tokens": 7}), replaces=False)
    return files


def test_what_is_written_reads_back_equal(
    peerlm: Cli, desk: FakeDesk, model: dict[str, bytes], bucket: str, tmp_path: Path
) -> None:
    url = "s3://library/models/kept"
    done = peerlm("checkpoint", "export", "kept", url)
    assert (done.code, f"model.safetensors in {url}" in done.out) == (0, True), done
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    found = {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.find("library/models/kept")}
    assert manifest_hash(found.pop(FILE)).hex() == desk.records["kept"]["manifest"]
    assert found == model
    assert_one_line(peerlm("checkpoint", "export", "kept", url), 2, "holds a model already")
    assert peerlm("checkpoint", "export", "kept", url, "--force").code == 0
    assert peerlm("checkpoint", "export", "kept", tmp_path / "here").code == 0
    for name, data in model.items():
        assert (tmp_path / "here" / name).read_bytes() == data


@pytest.mark.parametrize("missing", [CREDENTIALS, CREDENTIALS[1:]])
def test_without_credentials_it_says_which_variable(
    peerlm: Cli,
    desk: FakeDesk,
    model: dict[str, bytes],
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    missing: tuple[str, ...],
) -> None:
    import s3fs

    for name in missing:
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    done = peerlm("checkpoint", "export", "kept", "s3://library/models/none")
    assert_one_line(done, 2, "access denied", *CREDENTIALS)


def test_with_bad_credentials_too(
    peerlm: Cli, desk: FakeDesk, model: dict[str, bytes], bucket: str, s3: str
) -> None:
    import requests

    requests.post(f"{s3}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()
    try:
        done = peerlm("checkpoint", "export", "kept", "s3://library/models/none")
    finally:
        requests.post(f"{s3}/moto-api/reset-auth", data=b"1000000", timeout=10)
    assert_one_line(done, 2, "access denied", "set AWS_ACCESS_KEY_ID")
