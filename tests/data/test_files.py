"""Files as they are: their paths below a URL, their chunks, and the name that a URL suggests."""

from __future__ import annotations

from pathlib import Path

import pytest

from peerlm.data import sources
from peerlm.data.files import about, chunks, name_of, placed
from peerlm.errors import ConfigError
from peerlm.store.manifest import CHUNK_BYTES

WHERE = "peerlm data add"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    for name, text in (("a.txt", "a"), ("sub/b.txt", "b"), ("sub/c.md", ""), (".hidden", "h")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def paths(url: object) -> list[str]:
    return [path for path, _ in placed(sources.listed(str(url), WHERE, with_empty=True))]


def test_paths_are_those_below_the_url(folder: Path) -> None:
    assert paths(folder) == ["a.txt", "sub/b.txt", "sub/c.md"]
    assert paths(f"{folder}/") == ["a.txt", "sub/b.txt", "sub/c.md"]
    assert paths(folder / "a.txt") == ["a.txt"]
    assert paths(folder / "**" / "*.txt") == ["a.txt", "sub/b.txt"]
    assert paths(folder / "sub" / "*") == ["b.txt", "c.md"]


def test_a_name_that_cannot_be_one_is_named(folder: Path) -> None:
    (folder / "line\nbreak").write_text("x")
    with pytest.raises(ConfigError, match=r"'.*line\\nbreak' cannot be kept under its name"):
        paths(folder)


def test_chunks_are_of_one_size_but_the_last(tmp_path: Path) -> None:
    data = bytes(range(256)) * ((2 * CHUNK_BYTES + 512) // 256)
    (tmp_path / "big").write_bytes(data)
    source = sources.listed(str(tmp_path / "big"), WHERE)
    fs, _ = sources.file_system(source.url)
    made = list(chunks(fs, source.files[0], WHERE))
    assert [len(chunk) for chunk in made] == [CHUNK_BYTES, CHUNK_BYTES, 512]
    assert b"".join(made) == data


def test_empty_files_alone_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ConfigError, match="there is nothing in it"):
        sources.listed(str(tmp_path), WHERE, with_empty=True)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/My Plays/", "my-plays"),
        ("texts/**/*.txt", "texts"),
        ("https://example.org/a/book.txt.gz?token=secret", "book"),
        ("/srv/v1.2", "v1.2"),
        ("gs://bucket", "bucket"),
        ("zip://*.csv::/srv/tables.zip", "tables"),
        ("..", ""),
        ("*.txt", ""),
        (".txt", "txt"),
    ],
)
def test_a_url_suggests_a_name(url: str, name: str) -> None:
    assert name_of(url) == name


def test_secrets_of_a_url_are_not_told() -> None:
    assert about("https://me:word@example.org/book?token=x") == "https://example.org/book"
    assert about("zip://a.csv::s3://key:secret@bucket/t.zip") == "zip://a.csv::s3://bucket/t.zip"
    assert about("texts/what?.txt") == "texts/what?.txt"
