import random

import pytest

from peerlm.data.clean import Clean, Fingerprint, cleaned, duplicates, fingerprint
from peerlm.errors import ConfigError

WORDS = [f"word{number}" for number in range(400)]


def essay(seed: int, length: int = 200) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(length))


def with_changes(text: str, share: float) -> str:
    chance = random.Random(9)
    words = text.split()
    return " ".join("other" if chance.random() < share else word for word in words)


@pytest.mark.parametrize(
    ("text", "clean", "after"),
    [
        ("one\r\ntwo\rthree\n", Clean(), "one\ntwo\nthree\n"),
        ("\ufeffa\0b\x1b[1mc\x7f\td\x85", Clean(), "ab[1mc\td"),
        ("\ufeffa\r\n\0", Clean(control=False), "\ufeffa\r\n\0"),
        ("e\u0301 \ufb01", Clean(), "e\u0301 \ufb01"),
        ("e\u0301 \ufb01", Clean(unicode="NFC"), "é \ufb01"),
        ("e\u0301 \ufb01", Clean(unicode="NFKC"), "é fi"),
    ],
)
def test_what_is_taken_out(text: str, clean: Clean, after: str) -> None:
    assert cleaned(text, clean) == after


def test_the_shipped_text_stays_as_it_is() -> None:
    from peerlm.data.corpus import documents

    text = "".join(documents("shipped", "test"))
    assert cleaned(text, Clean(unicode="NFC")) == text


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"unicode": "nfc"}, "clean.unicode = 'nfc'"), ({"near": 0.2}, "clean.near = 0.2")],
)
def test_options_that_there_are_not(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Clean(**wrong)  # type: ignore[arg-type]


def test_of_exact_duplicates_the_first_one_stays_in_the_order_of_tasks() -> None:
    clean = Clean(exact=True)
    a, b, c = (fingerprint(text, clean) for text in ("a", "b", "c"))
    same = fingerprint(" a\n", clean)
    none = Fingerprint()
    found = [(0, [a, b, none]), (1, [none, same, c]), (2, [b]), (3, [])]
    assert duplicates(found, clean) == {1: {1}, 2: {0}}


def test_near_duplicates_and_only_these() -> None:
    clean = Clean(near=0.7)
    text = essay(1)
    alike = with_changes(text, 0.02)  # five runs go with each word
    unlike = with_changes(text, 0.2)
    found = [fingerprint(t, clean) for t in (text, essay(2), alike, unlike, text.upper())]
    assert duplicates([(0, found)], clean) == {0: {2, 4}}


def test_near_duplicates_in_a_script_without_spaces() -> None:
    clean = Clean(near=0.7)
    chance = random.Random(3)
    text = "".join(chr(0x4E00 + chance.randrange(3000)) for _ in range(300))
    other = "".join(chr(0x4E00 + chance.randrange(3000)) for _ in range(300))
    found = [fingerprint(t, clean) for t in (text, text[:295] + "新しい", other)]
    assert duplicates([(0, found)], clean) == {0: {1}}


def test_what_has_no_words_is_like_nothing_but_itself() -> None:
    clean = Clean(near=0.7)
    found = [fingerprint(t, clean) for t in ("----", "====", "----")]
    assert duplicates([(0, found)], clean) == {0: {2}}


def test_fingerprints_are_the_same_on_every_machine() -> None:
    from blake3 import blake3

    print_ = fingerprint("the quick brown fox jumps over the lazy dog", Clean(near=0.8))
    assert print_.exact.hex() == "54eb9a529fa1343a5b1e16eaade0c274"
    assert blake3(print_.near).hexdigest()[:16] == "f48d55e2ff60b06b"


def test_near_duplicates_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ConfigError, match=r"pip install 'peerlm\[dedup\]'"):
        fingerprint("some words", Clean(near=0.8))
