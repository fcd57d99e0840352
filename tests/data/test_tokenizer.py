from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from peerlm.data.tokenizer import ByteTokenizer, JsonTokenizer, load, token_dtype
from peerlm.errors import ConfigError


@pytest.fixture(scope="module")
def merges() -> bytes:
    """A small byte-level BPE, with a truncation and a padding that must not apply to a corpus."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    inner.train_from_iterator(["the thing that the other thought\n"] * 9, trainer)
    inner.enable_truncation(4)
    inner.enable_padding(length=50)
    return inner.to_str().encode()


@given(st.text("aé€😀\n\0"))
def test_bytes_lose_nothing(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_bytes_that_a_model_made_up_still_decode() -> None:
    assert ByteTokenizer().decode([72, 0xFF, 105]) == "H\ufffdi"


def test_a_lone_surrogate_from_a_terminal_does_not_stop_a_prompt() -> None:
    assert ByteTokenizer().encode("a\udcff").tolist() == [97, ord("?")]


def test_json_tokens_are_fewer_than_bytes_and_decode_to_the_text(merges: bytes) -> None:
    tokenizer = JsonTokenizer(merges)
    text = "the other thought, naïve 😀 thing\n" * 5
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert 4 < len(ids) < len(text.encode())
    assert ids.max() < tokenizer.vocab
    assert tokenizer.decode(ids) == text
    assert tokenizer.data == merges


def test_bytes_of_tokens_make_the_text(merges: bytes) -> None:
    text = "the naïve other 😀\n\ufffd<end>"
    for tokenizer in (JsonTokenizer(merges), ByteTokenizer()):
        ids = tokenizer.encode(text)
        found = [tokenizer.token_bytes(int(token)) for token in ids]
        assert b"".join(found) == text.encode()
        assert bytes([0xC3]) in found


def test_a_byte_for_what_has_no_token_is_that_byte() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "<0xC3>": 1, "\ufffd": 2}, unk_token="a"))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = JsonTokenizer(inner.to_str().encode())
    assert [tokenizer.token_bytes(n) for n in range(4)] == [b"a", b"\xc3", b"\xef\xbf\xbd", b""]


def test_a_token_keeps_the_space_that_a_first_one_loses() -> None:
    inner = Tokenizer(models.WordLevel({"▁to": 0, "▁be": 1}, unk_token="▁to"))
    inner.decoder = decoders.Metaspace()
    tokenizer = JsonTokenizer(inner.to_str().encode())
    assert tokenizer.decode([0, 1]) == "to be"
    assert [tokenizer.token_bytes(n) for n in (0, 1)] == [b" to", b" be"]


def test_json_vocabulary_covers_special_tokens(merges: bytes) -> None:
    tokenizer = JsonTokenizer(merges)
    assert tokenizer.vocab > 256
    assert tokenizer.decode([0]) == "<end>"
    assert (tokenizer.end, tokenizer.ends) == (0, frozenset({0}))


def test_any_token_that_is_known_to_end_a_text_does() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "<|im_end|>": 1, "</s>": 2}, unk_token="a"))
    tokenizer = JsonTokenizer(inner.to_str().encode())
    assert (tokenizer.end, tokenizer.ends) == (2, frozenset({1, 2}))
    assert ByteTokenizer.ends == frozenset()


def test_a_json_vocabulary_with_gaps_is_as_large_as_its_highest_id() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 70_000}, unk_token="a"))
    tokenizer = JsonTokenizer(inner.to_str().encode())
    assert tokenizer.vocab == 70_001
    assert tokenizer.encode("b").tolist() == [70_000]


@pytest.mark.parametrize("data", [b"", b"not json", b"{}", b"\xff\x00", b'{"model": 1}'])
def test_a_file_that_is_no_tokenizer(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"not a `tokenizers` JSON file") as caught:
        JsonTokenizer(data)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_tokens() -> None:
    with pytest.raises(ConfigError, match="no tokens"):
        JsonTokenizer(Tokenizer(models.BPE()).to_str().encode())


def test_a_text_that_it_has_no_tokens_for_is_one_line() -> None:
    words = Tokenizer(models.WordLevel({"thou": 0}, unk_token="[UNK]"))
    tokenizer = JsonTokenizer(words.to_str().encode())
    assert tokenizer.encode_all(["thou"])[0].tolist() == [0]
    with pytest.raises(ConfigError, match=r"no tokens .*\[UNK\].*: give it a token") as caught:
        tokenizer.encode_all(["thou", "art"])
    assert "\n" not in str(caught.value)


def test_load_by_what_a_person_names(tmp_path: Path, merges: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(merges)
    assert load("bytes").vocab == 256
    assert load(str(path)).vocab == JsonTokenizer(merges).vocab
    with pytest.raises(ConfigError, match=r"absent\.json.*No such file"):
        load(str(tmp_path / "absent.json"))


@pytest.mark.parametrize(("vocab", "size"), [(2, 2), (65_536, 2), (65_537, 4)])
def test_ids_are_as_narrow_as_the_vocabulary_allows(vocab: int, size: int) -> None:
    assert token_dtype(vocab).itemsize == size
