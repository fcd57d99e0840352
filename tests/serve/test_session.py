"""Text out of ids, piece by piece, and its end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlm.data.tokenizer import ByteTokenizer
from peerlm.serve.session import Pick, Piece, Writing


def pieces(data: bytes, tokens_max: int = 1000, stops: tuple[str, ...] = ()) -> list[Piece]:
    writing = Writing(ByteTokenizer(), tokens_max, stops)
    found = []
    for byte in data:
        found.append(writing.add(Pick(byte)))
        if found[-1].finish:
            break
    return found


def text_of(found: list[Piece]) -> str:
    return "".join(piece.text for piece in found)


@given(st.binary(min_size=1, max_size=60))
def test_pieces_make_the_text_that_all_ids_make(data: bytes) -> None:
    found = pieces(data, tokens_max=len(data))
    assert text_of(found) == data.decode(errors="replace")
    assert found[-1].finish == "length"
    assert [p.token for piece in found for p in piece.picks] == list(data)


def test_a_character_is_given_out_whole() -> None:
    assert [piece.text for piece in pieces("aä中".encode())] == ["a", "", "ä", "", "", "中"]


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (("END",), "one two "),
        (("two", "END"), "one "),
        (("o", "one"), ""),
        (("nothing",), "one two END three"),
    ],
)
def test_stop_strings_are_never_given_out(stops: tuple[str, ...], text: str) -> None:
    data = b"one two END three"
    found = pieces(data, tokens_max=len(data), stops=stops)
    assert text_of(found) == text
    assert found[-1].finish == ("length" if "nothing" in stops else "stop")


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    found = pieces(b"abcabx", stops=("abcd",))
    assert [piece.text for piece in found] == ["", "", "", "abc", "", "abx"]


@given(
    st.text("ab", min_size=1, max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stops_end_at_the_first_place_where_one_is_whole(text: str, stops: list[str]) -> None:
    found = text_of(pieces(text.encode(), tokens_max=len(text), stops=tuple(stops)))
    whole = min((at + len(s) for s in stops if (at := text.find(s)) >= 0), default=None)
    if whole is None:
        assert found == text
    else:
        ended = text[:whole]
        assert found == ended[: min(ended.find(s) for s in stops if s in ended)]


@given(
    st.text("abé", min_size=1, max_size=20),
    st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
)
def test_tokens_are_told_with_the_text_that_they_begin_in(text: str, stops: list[str]) -> None:
    data = text.encode()
    told, given = b"", ""
    for piece in pieces(data, tokens_max=len(data), stops=tuple(stops)):
        assert all(len(given) <= pick.at < len(given + piece.text) for pick in piece.picks)
        told, given = told + bytes(pick.token for pick in piece.picks), given + piece.text
        assert told == given.encode()


class Marked(ByteTokenizer):
    """Bytes, of which one ends a text."""

    ends = frozenset({0})


@pytest.mark.parametrize(
    ("data", "stops", "text", "finish"),
    [
        (b"one\0two", (), "one", "stop"),
        (b"\0", (), "", "stop"),
        (b"one\xc3\0", (), "one\ufffd", "stop"),
        (b"one EN\0", ("END",), "one EN", "stop"),
        (b"onetwo", (), "onetwo", "length"),
    ],
)
def test_a_token_that_ends_a_text_ends_it_and_is_not_shown(
    data: bytes, stops: tuple[str, ...], text: str, finish: str
) -> None:
    writing = Writing(Marked(), len(data), stops)
    found: list[Piece] = []
    for byte in data:
        found.append(writing.add(Pick(byte)))
        if found[-1].finish:
            break
    assert (text_of(found), found[-1].finish) == (text, finish)
    assert all(pick.token for piece in found for pick in piece.picks)


def test_who_wants_to_goes_on_past_the_end() -> None:
    writing = Writing(Marked(), 3, past_end=True)
    assert text_of([writing.add(Pick(byte)) for byte in b"a\0b"]) == "a\0b"
