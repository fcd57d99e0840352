"""Which encoding a file is in: told from its bytes, the same every time, and refused where it does not show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerlm.data import encodings, jobs, making, prepared
from peerlm.data.encodings import AUTO, look, verdict
from peerlm.data.prepared import Job, Recipe
from peerlm.data.sources import listed
from peerlm.errors import ChunkCorrupt, ConfigError
from peerlm.store.manifest import CHUNK_BYTES

WHERE = "URL"

SAYINGS = {
    "cp1252": "Für die Größe der Bäume gibt es kein Maß – sagte der König „Müller“.\nÀ côté de l'église.\n",
    "cp1250": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.\n",
    "cp1251": "Все люди рождаются свободными и равными в своём достоинстве и правах.\n",
    "koi8-r": "Все люди рождаются свободными и равными в своём достоинстве и правах.\n",
    "cp1255": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.\n",
    "gb18030": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。\n",
    "big5": "人人生而自由,在尊嚴和權利上一律平等。他們賦有理性和良心。\n",
    "cp932": "すべての人間は、生まれながらにして自由であり、かつ平等である。\n",
    "euc_jp": "すべての人間は、生まれながらにして自由であり、かつ平等である。\n",
    "cp949": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.\n",
    "utf-16": "Menschen sind frei und gleich an Würde.\n",
    "utf-16-le": "Menschen sind frei und gleich an Würde.\n" * 9,
    "utf-8": "Für die Größe 人人生而自由 Привет\n",
}


def told(data: bytes, size: int = 7) -> str:
    return verdict(look(data[at : at + size] for at in range(0, len(data), size)), "f", WHERE)


@pytest.mark.parametrize("encoding", SAYINGS)
def test_what_a_language_is_written_in_is_told(encoding: str) -> None:
    text = "ASCII comes first.\n" + SAYINGS[encoding]
    taken = told(text.encode(encoding))
    assert text.encode(encoding).decode(taken) == text


@given(st.text(max_size=60), st.integers(1, 9))
@settings(max_examples=50)
def test_utf_8_is_never_taken_for_anything_else(text: str, size: int) -> None:
    data = text.replace("\0", "").encode(errors="ignore")
    assert told(data, size) in ("utf-8", "utf-16", "utf-32")
    if not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        assert told(data, size) == "utf-8"


def test_a_line_longer_than_any_is_utf_8_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "LINE_BYTES_MAX", 100)
    for pad in range(4):
        assert told(b"x" * pad + "é€😀".encode() * 200, 64) == "utf-8"


GERMAN = SAYINGS["cp1252"]


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (
            (GERMAN.encode(), GERMAN.encode("cp1252")),
            f"UTF-8 up to byte {len(GERMAN.encode()) + 1} and not there",
        ),
        (
            (GERMAN.encode("cp1252"), GERMAN.encode()),
            f"not UTF-8 at byte 1, and UTF-8 from byte {len(GERMAN.encode('cp1252'))} on",
        ),
        ((b"plain\n", GERMAN.encode() * 50, b"\xfc\n"), r"UTF-8 up to byte \d+ and not there"),
    ],
)
def test_a_file_of_two_encodings_is_refused_where_the_second_begins(
    parts: tuple[bytes, ...], line: str
) -> None:
    with pytest.raises(ConfigError, match=rf"URL: f has two encodings: it is {line}"):
        told(b"".join(parts))


def test_what_is_no_text_is_not_taken_for_it() -> None:
    with pytest.raises(ConfigError, match=r"f is no text \(a zero at byte 0\)"):
        told(bytes(range(256)) * 10)
    with pytest.raises(ConfigError, match=r"f is no text \(a zero at byte 6\)"):
        told(b"plain \0 text\n" * 50)


def write(folder: Path, **files: bytes) -> str:
    for name, data in files.items():
        (folder / f"{name}.txt").write_bytes(data)
    return str(folder)


def test_a_file_of_few_signs_is_as_the_others_are(tmp_path: Path) -> None:
    url = write(tmp_path, a=GERMAN.encode("cp1252"), b="café\n".encode("cp1252"), c=b"plain\n")
    done: list[int] = []
    taken = encodings.found(listed(url, WHERE), progress=done.append)
    assert {Path(path).name: encoding for path, encoding in taken.items()} == {
        "a.txt": "cp1252",
        "b.txt": "cp1252",
        "c.txt": "utf-8",
    }
    assert encodings.counted(taken) == {"cp1252": 2, "utf-8": 1}
    assert done[-1] == listed(url, WHERE).size_bytes
    (tmp_path / "d.txt").write_bytes(SAYINGS["cp1251"].encode("cp1251"))
    with pytest.raises(ConfigError, match=r"b\.txt is not UTF-8 and does not show .* --encoding"):
        encodings.found(listed(url, WHERE))


def auto(url: str) -> Job:
    job = Job(listed(url, WHERE), Recipe(AUTO))
    taken = encodings.others_than_utf_8(encodings.found(job.source))
    return Job(job.source, job.recipe, encodings=taken)


def made(job: Job) -> list[bytes]:
    return [part.data for part in making.shards(job) if isinstance(part, prepared.Made)]


def test_the_shards_are_those_of_the_same_text_in_utf_8_whoever_makes_them(tmp_path: Path) -> None:
    kinds = ("cp1252", "cp1251", "gb18030", "utf-16", "utf-8")
    mixed, plain = tmp_path / "mixed", tmp_path / "plain"
    mixed.mkdir()
    plain.mkdir()
    job = auto(write(mixed, **{f"f{kind}": SAYINGS[kind].encode(kind) for kind in kinds}))
    assert len(job.encodings) == 4
    utf_8 = Job(listed(write(plain, **{f"f{k}": SAYINGS[k].encode() for k in kinds}), WHERE))
    again = jobs.read(jobs.encode(job), WHERE)
    assert again.encodings == job.encodings
    shards = [b"".join(made(each)) for each in (job, again, utf_8)]
    assert shards[0] == shards[1] == shards[2]
    assert 0 < len(shards[0]) < CHUNK_BYTES


def test_a_job_from_a_peer_names_encodings_that_there_are(tmp_path: Path) -> None:
    job = auto(write(tmp_path, a=GERMAN.encode("cp1252"), b=b"plain\n"))
    files = jobs.encode(job)
    assert files[jobs.ENCODINGS_FILE] == b'{"cp1252":[0]}'
    for wrong in (
        b'{"cp1252":[2]}',
        b'{"cp1252":0}',
        b'{"no-such":[0]}',
        b"[]",
        b'{"cp1252":["0"]}',
    ):
        with pytest.raises(ChunkCorrupt, match="not a job"):
            jobs.read({**files, jobs.ENCODINGS_FILE: wrong}, WHERE)


@pytest.mark.slow
def test_what_is_told_does_not_depend_on_the_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from peerlm.data.encodings import look, verdict\n"
        "for p in sorted(Path(sys.argv[1]).iterdir()): print(verdict(look([p.read_bytes()]), p.name, ''))"
    )
    write(tmp_path, **{kind: text.encode(kind) for kind, text in SAYINGS.items()})
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(said) == 1
