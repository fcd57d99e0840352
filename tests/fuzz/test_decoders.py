"""Every decoder, some damaged inputs: it returns, or raises what it documents, soon and in little memory.

`python -m bench.fuzz --inputs 1000000` does the same at length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from hashlib import pbkdf2_hmac

import pytest
from effort import EFFORT

from bench.fuzz import Tally, feed, input_of
from bench.fuzz_decoders import Decoder, all_decoders

INPUTS = 250
DECODERS = {decoder.name: decoder for decoder in all_decoders()}


@pytest.mark.parametrize("name", DECODERS)
def test_damage_is_taken_or_refused_as_documented(name: str) -> None:
    tally = Tally(DECODERS[name], seed=EFFORT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of numbers that overflow
        for number in range(INPUTS * EFFORT):
            feed(tally, number)
    assert not tally.failures, "\n".join(tally.shown)


@pytest.mark.parametrize("name", DECODERS)
def test_true_samples_are_taken(name: str) -> None:
    decoder = DECODERS[name]
    taken = sum(is_taken(decoder, sample) for sample in decoder.samples)
    assert taken > 0, "a decoder whose every sample is refused tests nothing"


def is_taken(decoder: Decoder, sample: bytes) -> bool:
    try:
        decoder.read(sample)
    except decoder.refuses:
        return False
    return True


def test_an_input_is_its_seed_name_and_number() -> None:
    for decoder in DECODERS.values():
        for number in (0, 7):
            assert input_of(decoder, 1, number) == input_of(decoder, 1, number)
    ping = DECODERS["wire.Ping"]
    assert len({input_of(ping, seed, n) for seed in (1, 2) for n in range(50)}) > 80


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda data: {}["x"], "KeyError at test_decoders.py"),
        (lambda data: [0] * 20_000_000, "large: more than 64 MiB"),
        (lambda data: pbkdf2_hmac("sha256", b"", b"", 600_000), "slow: more than 0.1 s"),
        (lambda data: _refuse("two\nlines"), "a message that is long or of several lines"),
    ],
    ids=["another error", "memory", "time", "message"],
)
def test_a_broken_promise_is_seen(read: Callable[[bytes], object], said: str) -> None:
    whole = DECODERS["wire.Ping"]
    broken = Decoder("broken", whole.form, whole.samples, read, (ValueError,))  # type: ignore[arg-type]
    tally = Tally(broken, seed=3)
    feed(tally, 0)
    assert [what for what in tally.failures if what.startswith(said)]
    assert "python -m bench.fuzz --seed 3 --only broken --replay 0" in tally.shown[0]


def _refuse(line: str) -> None:
    raise ValueError(line)
