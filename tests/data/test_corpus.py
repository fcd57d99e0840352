import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.data import corpus
from peerlm.data.corpus import documents
from peerlm.errors import ConfigError

WHERE = "plan.toml: data.source"


def text_of(source: str) -> str:
    return "".join(documents(source, WHERE))


def complaint(source: str) -> str:
    with pytest.raises(ConfigError) as caught:
        text_of(source)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(WHERE)
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "c.txt").write_text("third\n")
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "b" / "inner.md").write_text("second\n")
    (tmp_path / "b" / "none.txt").write_text("")
    (tmp_path / ".git" / "index").write_bytes(b"\xff")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    return tmp_path


@pytest.fixture
def web() -> Iterator[Callable[[Path], str]]:
    """Serves a folder on loopback and tells its address."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    def serve(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_file(folder: Path) -> None:
    assert text_of(str(folder / "a.txt")) == "first\n"
    assert text_of(f"file://{folder}/a.txt") == "first\n"


def test_a_directory_is_read_recursively_in_the_order_of_names_without_hidden_files(
    folder: Path,
) -> None:
    assert text_of(str(folder)) == "first\nsecond\nthird\n"
    assert text_of(f"{folder}/") == "first\nsecond\nthird\n"


def test_a_hidden_parent_hides_nothing(folder: Path) -> None:
    (folder / ".git" / "index").write_text("seen\n")
    assert text_of(str(folder / ".git")) == "seen\n"


def test_a_glob(folder: Path) -> None:
    assert text_of(f"{folder}/*.txt") == "first\nthird\n"
    assert text_of(f"{folder}/**/*.md") == "second\n"


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "act [1].txt").write_text("scene")
    assert text_of(str(tmp_path / "act [1].txt")) == "scene"


def test_another_file_system() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/plays/one.txt", "één\n".encode())
    fs.pipe("/plays/two.txt", b"two\n")
    assert text_of("memory://plays") == "één\ntwo\n"


def test_the_shipped_text() -> None:
    assert text_of("shipped").startswith("THE PROLOGUE")


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in complaint(str(tmp_path / "absent.txt"))


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert "no text" in complaint(str(tmp_path / "empty.txt"))


@pytest.mark.parametrize("pattern", ["*.csv", "sub"])
def test_nothing_that_matches(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "sub").mkdir()
    assert "no files match" in complaint(str(tmp_path / pattern))


def test_a_directory_in_place_of_a_glob_match_is_left_out(folder: Path) -> None:
    assert text_of(f"{folder}/[abc]*") == "first\nthird\n"


def test_not_utf_8_names_the_file_and_the_byte(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("fine")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    message = complaint(str(tmp_path))
    assert "latin.txt is not UTF-8 at byte 3 (0xe9)" in message


def test_not_utf_8_far_into_a_file_counts_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PIECE_BYTES", 16)
    (tmp_path / "long.txt").write_bytes(b"0123456789\n" * 10 + b"ab\xffcd" + b"x" * 40)
    assert "at byte 112 (0xff)" in complaint(str(tmp_path / "long.txt"))


def test_a_character_cut_off_by_the_end_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "cut.txt").write_bytes("naïve é".encode()[:-1])
    assert "at byte 7 (0xc3)" in complaint(str(tmp_path / "cut.txt"))


def test_an_unknown_kind_of_url() -> None:
    assert "gopher" in complaint("gopher://example.org/text")


def test_a_web_server(folder: Path, web: Callable[[Path], str]) -> None:
    url = web(folder)
    assert text_of(f"{url}/b/inner.md") == "second\n"
    assert "not found" in complaint(f"{url}/absent.txt")


def test_nobody_listens(unused_tcp_port: int) -> None:
    message = complaint(f"http://127.0.0.1:{unused_tcp_port}/plays.txt")
    assert "Cannot connect to host 127.0.0.1" in message


def test_http_without_its_package_says_which_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(url: str, **_: object) -> None:
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    assert 'missing: HTTPFileSystem requires "requests"' in complaint(
        "http://example.org/plays.txt"
    )


@pytest.mark.parametrize(
    ("error", "is_there", "words"),
    [
        (ImportError("Unable to load filesystem"), True, "pip install 'peerlm[hdfs]'"),
        (OSError("Unable to load libjvm"), False, "missing: Unable to load libjvm; pip install"),
        (OSError("Connection refused (os error 111)"), True, "cannot be read: Connection refused"),
    ],
)
def test_what_hdfs_does_not_give_its_web_interface_may(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_there: bool, words: str
) -> None:
    def fails(url: str, **_: object) -> None:
        raise error

    monkeypatch.setattr("fsspec.core.url_to_fs", fails)
    monkeypatch.setattr("peerlm.data.sources.find_spec", lambda name: is_there)
    for at, host in (("ada:9000", "ada"), ("me@ada", "ada"), ("", "HOST")):
        message = complaint(f"hdfs://{at}/plays/*.txt")
        assert words in message
        assert f"webhdfs://{host}:9870/plays/*.txt" in message


@given(
    text=st.text(st.sampled_from("ab é€😀\n"), max_size=200).filter(bool),
    piece=st.integers(5, 40),
    seed=st.integers(0, 99),
)
def test_pieces_join_to_the_text_and_end_at_lines_however_a_network_cuts_it(
    text: str, piece: int, seed: int
) -> None:
    chance = random.Random(seed)
    raw = text.encode()

    class Dribble:
        def __init__(self) -> None:
            self.at = 0

        def __enter__(self) -> "Dribble":
            return self

        def __exit__(self, *_: object) -> None: ...

        def open(self, path: str, mode: str) -> "Dribble":
            return self

        def read(self, size: int) -> bytes:
            block = raw[self.at : self.at + chance.randint(1, size)]
            self.at += len(block)
            return block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_BYTES", piece)
        pieces = list(corpus._pieces(Dribble(), "dribble", WHERE))

    assert "".join(pieces) == text
    assert all(0 < len(p.encode()) <= piece for p in pieces)
    assert all(p.endswith("\n") or "\n" not in p for p in pieces[:-1])
