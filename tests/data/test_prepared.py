import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
from blake3 import blake3
from tokenizers import Tokenizer, models, pre_tokenizers

from peerlm.data import findings, prepared
from peerlm.data.clean import Clean
from peerlm.data.prepared import Done, Job, Made, Recipe
from peerlm.data.shards import HEADER, corpus_manifest, shard_bytes, shard_fact
from peerlm.data.sources import Source, SourceFile, listed
from peerlm.data.units import GRID, Grid, Task
from peerlm.errors import ConfigError
from peerlm.store.manifest import Manifest, manifest_hash, read_manifest
from peerlm.types import ObjectHash

WHERE = "data add"
SMALL = Grid(1000, 100, 5000)


def job_of(
    url: str | Path, tokenizer: bytes | None = None, grid: Grid = SMALL, **recipe: object
) -> Job:
    return Job(listed(str(url), WHERE), Recipe(**recipe), tokenizer, grid=grid)  # type: ignore[arg-type]


def made_of(job: Job) -> list[Made]:
    return [
        part
        for number in range(len(job.tasks))
        for part in prepared.shards(job, number)
        if isinstance(part, Made)
    ]


def documents_of(job: Job) -> int:
    return sum(
        part.documents
        for number in range(len(job.tasks))
        for part in prepared.shards(job, number)
        if isinstance(part, Done)
    )


def manifest_of(job: Job) -> Manifest:
    facts = [shard_fact(made.data, made.tokens) for made in made_of(job)]
    manifest, _ = corpus_manifest(facts, job.tokenizer, job.vocab_made, documents_of(job))
    return manifest


def hash_of(job: Job) -> ObjectHash:
    encoded = manifest_of(job).encode()
    assert read_manifest(encoded).encode() == encoded
    return manifest_hash(encoded)


def text_of(job: Job) -> str:
    """Of byte tokens."""
    parts = [np.frombuffer(made.data, "<u2", offset=HEADER.size) for made in made_of(job)]
    return np.concatenate(parts).astype(np.uint8).tobytes().decode() if parts else ""


def complaint(url: str | Path, **recipe: object) -> str:
    with pytest.raises(ConfigError) as caught:
        made_of(job_of(url, **recipe))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def letters() -> bytes:
    """A tokenizer with a token for the end of a document."""
    vocab = {chr(number): number for number in range(32, 127)} | {"\n": 1, "\u010a": 2}
    inner = Tokenizer(models.WordLevel({**vocab, "<unk>": 0}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.add_special_tokens(["</s>"])
    return bytes(inner.to_str().encode())


LINES = "".join(f"line {number} é€😀 of some length\n" for number in range(200))


# ------------------------------------------------------------------------------------ any source


def test_wherever_the_same_file_is_the_corpus_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "plays").mkdir()
    file = tmp_path / "plays" / "one.txt"
    file.write_text(LINES)
    fsspec.filesystem("memory").pipe("/here/one.txt", LINES.encode())
    hashes = {
        hash_of(job_of(url))
        for url in (
            file,
            f"file://{file}",
            tmp_path,
            f"{tmp_path}/*/o*.txt",
            "memory://here/one.txt",
        )
    }
    assert len(hashes) == 1


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def web() -> Iterator[Callable[[Path], str]]:
    """Serves a folder on loopback, whole files only, and tells its address."""
    servers = []

    def serve(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        servers.append(server)
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_without_ranges(tmp_path: Path, web: Callable[[Path], str]) -> None:
    (tmp_path / "one.txt").write_text(LINES)
    job = job_of(f"{web(tmp_path)}/one.txt")
    assert job.tasks == (Task(0),)
    assert hash_of(job) == hash_of(job_of(tmp_path))


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", None)],
)
@pytest.mark.parametrize("name", ["one.txt", "one.jsonl"])
def test_compression_changes_nothing(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes] | None, name: str
) -> None:
    if compress is None:
        zstd = pytest.importorskip("backports.zstd")
        compress = zstd.compress
    text = LINES
    if name.endswith("jsonl"):
        text = "".join(json.dumps({"text": line}) + "\n" for line in LINES.splitlines())
    for folder in ("plain", "packed"):
        (tmp_path / folder).mkdir()
    (tmp_path / "plain" / name).write_text(text)
    raw = text.encode()
    packed = compress(raw[:3000]) + compress(
        raw[3000:]
    )  # of two members, as pigz and cat make them
    (tmp_path / "packed" / f"{name}.{suffix}").write_bytes(packed)
    job = job_of(tmp_path / "packed")
    assert len(job.tasks) == 1
    assert len(job_of(tmp_path / "plain").tasks) > 5
    assert hash_of(job) == hash_of(job_of(tmp_path / "plain"))


def test_text_comes_out_as_it_was_and_files_follow_each_other_without_anything_between(
    tmp_path: Path,
) -> None:
    parts = {"a.txt": "no end", "b/long.md": LINES, "b/z.rst": "x\n", "c.txt": "", "d": "last"}
    for name, text in parts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    job = job_of(tmp_path)
    assert text_of(job) == "".join(parts[name] for name in sorted(parts))
    assert documents_of(job) == 4


def test_a_folder_of_small_files_has_few_shards(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number:02}.txt").write_text(f"note {number}\n" * 10)
    job = job_of(tmp_path)
    assert len(made_of(job)) == len(job.tasks) == 5
    assert documents_of(job) == 50


def test_a_line_without_end(tmp_path: Path) -> None:
    text = "é€😀a" * 2000
    (tmp_path / "long.txt").write_text(text)
    job = job_of(tmp_path)
    assert text_of(job) == text
    assert max(made.tokens for made in made_of(job)) <= 1103


def test_the_manifest_says_what_is_in_it(tmp_path: Path, letters: bytes) -> None:
    (tmp_path / "a.txt").write_text("abc")
    job = job_of(tmp_path, letters)
    manifest = manifest_of(job)
    assert [file.path for file in manifest.files] == ["shard-00000.tokens", "tokenizer.json"]
    assert manifest.meta == {
        "tokens": 3,
        "documents": 1,
        "vocab": job.vocab_made,
        "tokenizer": blake3(letters).hexdigest(),
        "shard_tokens": [3],
    }
    assert manifest_of(job_of(tmp_path)).meta["tokenizer"] == "bytes"


def test_the_shipped_text_is_a_corpus_whose_hash_is_known() -> None:
    assert hash_of(job_of("shipped", grid=GRID)).hex()[:16] == "9e8bfcf3ca729b92"


def test_without_text_there_is_no_corpus() -> None:
    with pytest.raises(ConfigError, match="no text"):
        corpus_manifest([], None, 256, 0)


# --------------------------------------------------------------------------------------- records


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_records_end_and_texts_do_not(tmp_path: Path, letters: bytes) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": "ab"}, {"text": None}, {"text": "c", "more": 1})
    (tmp_path / "b.txt").write_text("d")
    job = job_of(tmp_path, letters)
    end = prepared.tokenizer_of(letters).end
    assert end is not None
    (made,) = made_of(job)
    a, b, c, d = (ord(letter) for letter in "abcd")
    assert made.data == shard_bytes(np.array([a, b, end, c, end, d]), job.vocab_made)
    assert documents_of(job) == 3
    assert text_of(job_of(tmp_path)) == "ab\n\nc\n\nd"


def test_another_field_and_another_suffix(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.json.lines", {"body": "one", "text": 1}, {"body": "two"})
    assert text_of(job_of(tmp_path, text_field="body")) == "one\n\ntwo\n\n"


def test_records_of_any_length_are_kept_whole(tmp_path: Path) -> None:
    texts = ["x" * length for length in (10, 3000, 20, 990, 1500, 5)]
    jsonl(tmp_path / "a.ndjson", *({"text": text} for text in texts))
    assert text_of(job_of(tmp_path)) == "".join(text + "\n\n" for text in texts)


def test_what_json_can_say_and_utf_8_cannot(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "\\ud83d\\ude00 \\ud83d"}\r\n\r\n{"text": "\\u2028\xe2\x80\xa8"}'
    )
    assert text_of(job_of(tmp_path)) == "😀 \ufffd\n\n\u2028\u2028\n\n"


def test_a_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    jsonl(tmp_path / "b.jsonl", {"text": "three"})
    job = job_of(tmp_path)
    assert text_of(job) == "one\n\ntwo\n\nthree\n\n"
    assert documents_of(job) == 3
    assert "no column 'body'; there are: text, n" in complaint(
        tmp_path / "a.parquet", text_field="body"
    )
    assert "field 'n' holds int, not text" in complaint(tmp_path / "a.parquet", text_field="n")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"body": "x", "n": 1}', "at byte 15: no field 'text'; there are: body, n"),
        ("{}", "at byte 15: no field 'text'"),
        ('{"text": 3}', "at byte 15: field 'text' holds int, not text"),
        ("[1]", "at byte 15: not a JSON object"),
        ('{"text": "x"', "at byte 15: not a line of JSON: Expecting"),
        ("[" * 4000, "at byte 15: not a line of JSON"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 25 (0xff)"),
    ],
)
def test_a_line_that_is_no_record(tmp_path: Path, line: str | bytes, says: str) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n' + raw + b"\n")
    assert says in complaint(tmp_path)


def test_a_record_that_does_not_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 9000)
    assert "a record of more than" in complaint(tmp_path)


# ------------------------------------------------------------------------------------ encodings


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-be", "cp1252"])
def test_another_encoding(tmp_path: Path, encoding: str) -> None:
    text = LINES.replace("€😀", "ü")
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert text_of(job_of(tmp_path, encoding=encoding)) == text


def test_text_in_another_encoding_than_it_was_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    assert "a.txt is not UTF-8 at byte 3 (0xe9); name its encoding" in complaint(tmp_path)
    assert "a.txt is not ascii near byte 3" in complaint(tmp_path, encoding="ascii")
    assert "encoding = 'klingon'" in complaint(tmp_path, encoding="klingon")
    assert "encoding = 'base64'" in complaint(tmp_path, encoding="base64")


def test_not_utf_8_far_into_a_file_counts_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"0123456789\n" * 300 + b"\xff\n")
    assert "at byte 3300 (0xff)" in complaint(tmp_path)


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"MZ\x90\0", "a zero at byte 3"),
        ("a.txt", b"%PDF-1.7\n", "a.txt is a PDF"),
        ("a.txt", gzip.compress(b"text", mtime=0), "its name must end in .gz"),
        ("a.txt", "text".encode("utf-16"), "perhaps UTF-16"),
        ("a.gz", b"text", "a.gz is damaged, or no .gz file"),
        ("a.gz", gzip.compress(b"text" * 999, mtime=0)[:-9], "a.gz is cut off"),
        ("a.bz2", bz2.compress(b"text" * 999)[:-9], "a.bz2 is cut off"),
        ("a.xz", lzma.compress(b"text" * 999)[:-9], "a.xz is cut off"),
        ("a.xz", lzma.compress(b"text" * 999)[:40] + b"xxxxxxxx" * 20, "a.xz is damaged"),
        ("a.parquet", b"text", "a.parquet is damaged, or no parquet file"),
        ("a.parquet.gz", gzip.compress(b"text", mtime=0), "is compressed as a whole"),
    ],
)
def test_what_is_no_text(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = complaint(tmp_path)
    assert message.startswith(WHERE)
    assert says in message


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in ("pyarrow", "compression", "backports"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, extra in (("a.parquet", "parquet"), ("b.txt.zst", "zstd")):
        (tmp_path / name).write_text("x")
        assert f"pip install 'peerlm[{extra}]'" in complaint(tmp_path / name)


# ------------------------------------------------------------------------------------ duplicates


def without_duplicates(job: Job) -> Job:
    job = findings.begun(job)
    found = {
        number: [part.data for part in findings.findings(job, number) if isinstance(part, Made)]
        for number in reversed(range(job.count))
    }
    return findings.concluded(job, [found[number] for number in range(job.count)])


def test_records_that_have_come_before_are_left_out_whatever_task_they_are_in(
    tmp_path: Path,
) -> None:
    texts = [f"text {number % 60} " * 5 for number in range(100)]
    jsonl(tmp_path / "a.jsonl", *({"text": text} for text in texts))
    job = without_duplicates(job_of(tmp_path, clean=Clean(exact=True)))
    assert len(job.tasks) > 3
    assert text_of(job) == "".join(text + "\n\n" for text in texts[:60])
    assert documents_of(job) == 60


def test_paragraphs_that_have_come_before_are_left_out_but_for_short_ones(tmp_path: Path) -> None:
    long = "so much has been said of this that it need not be said again, and yet it is, " * 2
    (tmp_path / "a.txt").write_text(f"ROMEO.\n\n{long}\n\nROMEO.\n\n{long}\n \n\nend")
    (tmp_path / "b.txt").write_text(f"{long}\n")
    job = without_duplicates(job_of(tmp_path, clean=Clean(exact=True)))
    assert text_of(job) == f"ROMEO.\n\n{long}\n\nROMEO.\n\nend"
    assert documents_of(job) == 1


def test_where_nothing_is_left_out_looking_for_it_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LINES)
    job = without_duplicates(job_of(tmp_path, clean=Clean(exact=True)))
    assert text_of(job) == LINES


# --------------------------------------------------------------------------------- shards' limits


class Chatty:
    """Three tokens for every character."""

    vocab = 1 << 20
    end = None

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        return [np.repeat(np.arange(len(text), dtype=np.uint32), 3) for text in texts]


def test_more_tokens_than_a_chunk_holds_become_several_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peerlm.store.manifest import CHUNK_BYTES

    (tmp_path / "a.txt").write_text("x" * 1_000_000)
    monkeypatch.setattr(prepared, "tokenizer_of", lambda data: Chatty())
    made = made_of(job_of(tmp_path, grid=GRID))
    assert [len(shard.data) for shard in made[:-1]] == [CHUNK_BYTES] * 2
    assert sum(shard.tokens for shard in made) == 3_000_000
    assert [shard.number for shard in made] == [0, 1, 2]


def test_a_listing_may_come_from_elsewhere(tmp_path: Path) -> None:
    """A file that has become longer gives what it gave; one that has become shorter is an error."""
    file = tmp_path / "a.txt"
    file.write_text("one two")
    source = Source(str(file), WHERE, (SourceFile(str(file), 7),))
    before = hash_of(Job(source))
    file.write_text("one two three")
    assert hash_of(Job(source)) == before
    file.write_text("one")
    with pytest.raises(ConfigError, match="had 7 bytes and now ends after 3"):
        made_of(Job(source))
