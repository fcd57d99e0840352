import os
from pathlib import Path

import blake3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.data import shards
from peerlm.data.shards import Corpus, ShardInfo, prepare, require_one_batch
from peerlm.data.tokenizer import ByteTokenizer, TokenIds
from peerlm.errors import ChunkCorrupt, ConfigError
from peerlm.store import disk

TEXT = "".join(f"line {i} of the text\n" for i in range(50))


class WideTokenizer:
    """Code points: a vocabulary that needs four bytes."""

    vocab = 0x110000

    def encode(self, text: str) -> TokenIds:
        return np.array([ord(c) for c in text], dtype=np.uint32)

    def decode(self, ids: object) -> str:
        return "".join(chr(i) for i in np.asarray(ids))


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


@pytest.fixture
def made(source: str, tmp_path: Path) -> list[ShardInfo]:
    return prepare(source, ByteTokenizer(), tmp_path / "out", shard_tokens=300)


def paths(made: list[ShardInfo]) -> list[Path]:
    return [shard.path for shard in made]


def test_shards_hold_the_text_in_order(made: list[ShardInfo]) -> None:
    corpus = Corpus.open(paths(made), 256)
    assert corpus.tokens == len(TEXT) == sum(shard.tokens for shard in made)
    assert [shard.tokens for shard in made[:-1]] == [300] * (len(TEXT) // 300)
    assert ByteTokenizer().decode(corpus.window(0, corpus.tokens)) == TEXT


def test_a_shard_is_named_by_the_hash_of_its_bytes(made: list[ShardInfo]) -> None:
    for shard in made:
        assert shard.path.name == shard.hash == blake3.blake3(shard.path.read_bytes()).hexdigest()


def test_the_file_is_a_header_and_little_endian_ids(made: list[ShardInfo]) -> None:
    raw = made[0].path.read_bytes()
    assert raw[:16] == b"plmtoken" + bytes([1, 2, 0, 0]) + (300).to_bytes(4, "little")
    assert raw[16:20] == bytes([ord("l"), 0, ord("i"), 0])


def test_making_them_again_changes_nothing(source: str, made: list[ShardInfo]) -> None:
    times = [shard.path.stat().st_mtime_ns for shard in made]
    assert prepare(source, ByteTokenizer(), made[0].path.parent, shard_tokens=300) == made
    assert [shard.path.stat().st_mtime_ns for shard in made] == times


def test_a_kill_between_write_and_rename_leaves_nothing_that_counts(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "rename", killed)
        patch.setattr(disk.AtomicFile, "abort", lambda file: os.close(file._fd))
        with pytest.raises(KeyboardInterrupt):
            prepare(source, ByteTokenizer(), out)
    assert [p.name[0] for p in out.iterdir()] == ["."]

    (shard,) = prepare(source, ByteTokenizer(), out)
    disk.sweep(out)
    assert list(out.iterdir()) == [shard.path]


def test_a_shard_cut_short_by_a_disk_is_made_again(source: str, made: list[ShardInfo]) -> None:
    whole = made[1].path.read_bytes()
    made[1].path.write_bytes(whole[:-1])
    prepare(source, ByteTokenizer(), made[0].path.parent, shard_tokens=300)
    assert made[1].path.read_bytes() == whole


def test_progress_counts_tokens(source: str, tmp_path: Path) -> None:
    told: list[int] = []
    prepare(source, ByteTokenizer(), tmp_path / "out", shard_tokens=400, progress=told.append)
    assert told == [400, 800, len(TEXT)]


def test_a_large_vocabulary_takes_four_bytes(source: str, tmp_path: Path) -> None:
    (shard,) = prepare(source, WideTokenizer(), tmp_path / "out")
    assert shard.path.stat().st_size == 16 + 4 * len(TEXT)
    corpus = Corpus.open([shard.path], WideTokenizer.vocab)
    assert WideTokenizer().decode(corpus.window(5, 40)) == TEXT[5:45]


@settings(max_examples=50)
@given(
    start=st.integers(0, len(TEXT) - 1), length=st.integers(1, len(TEXT)), size=st.integers(1, 400)
)
def test_a_window_reads_across_shards(start: int, length: int, size: int) -> None:
    length = min(length, len(TEXT) - start)
    ids = ByteTokenizer().encode(TEXT)
    corpus = Corpus(list(shards._regrouped([ids], size)), 256, 0.0)
    window = corpus.window(start, length)
    assert window.dtype == np.int64
    assert ByteTokenizer().decode(window) == TEXT[start : start + length]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 7))
def test_regrouping_keeps_every_id_and_fills_every_group(sizes: list[int], size: int) -> None:
    ids = np.arange(sum(sizes), dtype=np.uint16)
    pieces = np.split(ids, np.cumsum(sizes)[:-1]) if sizes else []
    groups = list(shards._regrouped(pieces, size))
    assert [i for group in groups for i in group] == ids.tolist()
    assert all(len(group) == size for group in groups[:-1])
    assert all(0 < len(group) <= size for group in groups)


def test_the_end_is_held_out(made: list[ShardInfo]) -> None:
    corpus = Corpus.open(paths(made), 256, val_fraction=0.1)
    assert corpus.val_tokens == len(TEXT) // 10
    assert corpus.train_tokens + corpus.val_tokens == corpus.tokens


def test_no_shards() -> None:
    with pytest.raises(ConfigError, match="no shards"):
        Corpus.open([], 256)


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: cannot be read: No such file"):
        Corpus.open([tmp_path / "absent"], 256)


def test_a_file_that_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("To be, or not to be, that is the question")
    with pytest.raises(ConfigError, match="not a token shard"):
        Corpus.open([tmp_path / "x"], 256)


@pytest.mark.parametrize("keep", [0, 10, 16, 17, 615])
def test_a_shard_cut_short_is_to_be_fetched_again(made: list[ShardInfo], keep: int) -> None:
    made[0].path.write_bytes(made[0].path.read_bytes()[:keep])
    with pytest.raises(ChunkCorrupt, match=f"{keep} bytes"):
        Corpus.open(paths(made), 256)


def test_a_shard_of_another_width(made: list[ShardInfo]) -> None:
    with pytest.raises(ConfigError, match=r"2 bytes per token, but data\.vocab = 70000 needs 4"):
        Corpus.open(paths(made), 70_000)


def test_an_id_beyond_the_vocabulary_is_caught_when_read(made: list[ShardInfo]) -> None:
    corpus = Corpus.open(paths(made), 100)
    with pytest.raises(ConfigError, match=r"token id 1\d\d near token 0, but data\.vocab = 100"):
        corpus.window(0, 50)


def test_a_corpus_shorter_than_one_batch_says_what_is_there_and_what_is_needed() -> None:
    with pytest.raises(
        ConfigError, match="shorter than one batch: 95 tokens to train on, 153 needed"
    ):
        require_one_batch(100, 0.05, batch=8, context=16)
    require_one_batch(153, 0.0, batch=8, context=16)
    with pytest.raises(ConfigError, match="152 tokens"):
        require_one_batch(152, 0.0, batch=8, context=16)


def test_a_held_out_part_shorter_than_a_window() -> None:
    with pytest.raises(ConfigError, match="validation: 15 tokens held out, 17 needed"):
        require_one_batch(300, 0.05, batch=8, context=16)
