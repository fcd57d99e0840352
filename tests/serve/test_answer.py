"""What clients are told of the tokens of a text."""

from __future__ import annotations

from typing import Any

import pytest

from peerlm.data.tokenizer import ByteTokenizer
from peerlm.serve import answer
from peerlm.serve.answer import Choice, Head
from peerlm.serve.request import Asked, chat, completion
from peerlm.serve.session import Pick, Piece, Writing

CODEC = ByteTokenizer()
CHAT = chat(
    {
        "model": "plays",
        "messages": [{"role": "user", "content": "hi"}],
        "logprobs": True,
        "top_logprobs": 2,
    }
)
COMPLETION = completion({"model": "plays", "prompt": "x", "logprobs": 2})


def pieces(text: str, stops: tuple[str, ...] = ()) -> list[Piece]:
    """Each byte is a token; the byte above it was the next likeliest."""
    data = text.encode()
    writing, found = Writing(CODEC, len(data), stops), list[Piece]()
    while not (found and found[-1].finish):
        token = data[writing.tokens]
        found.append(writing.add(Pick(token, -0.5, ((token, -0.5), (token + 1, -1.5)))))
    return found


def told(asked: Asked, found: list[Piece]) -> dict[str, Any]:
    """The choice that a client gets."""
    choice = Choice()
    for piece in found:
        choice.add(piece)
    head = Head("id", 0, asked, "v1")
    made: dict[str, Any] = answer.whole(head, [choice], {}, CODEC.token_bytes)["choices"][0]
    return made


def test_a_token_that_is_part_of_a_character_is_told_by_its_byte() -> None:
    entries = told(CHAT, pieces("né!"))["logprobs"]["content"]
    assert [entry["bytes"] for entry in entries] == [[0x6E], [0xC3], [0xA9], [0x21]]
    assert [entry["token"] for entry in entries] == ["n", r"bytes:\xc3", r"bytes:\xa9", "!"]
    assert [top["bytes"] for top in entries[1]["top_logprobs"]] == [[0xC3], [0xC4]]
    found = told(COMPLETION, pieces("né!"))["logprobs"]
    assert found["tokens"] == ["n", r"bytes:\xc3", r"bytes:\xa9", "!"]
    assert found["top_logprobs"][1] == {r"bytes:\xc3": -0.5, r"bytes:\xc4": -1.5}
    assert found["text_offset"] == [0, 1, 1, 2]


@pytest.mark.parametrize("stop", ["END", "two", "o", " E"])
def test_tokens_of_a_stop_string_are_not_told(stop: str) -> None:
    found = pieces("one two END three", (stop,))
    said = told(COMPLETION, found)
    assert said["text"] == "one two END three".split(stop)[0]
    assert "".join(said["logprobs"]["tokens"] if said["text"] else []) == said["text"]
    streamed = [p for piece in found for p in piece.picks]
    assert bytes(pick.token for pick in streamed).decode() == said["text"]
    assert [pick.at for pick in streamed] == list(range(len(said["text"])))


def test_of_two_tokens_of_one_name_the_likelier_counts() -> None:
    choice = Choice(["a"], [Pick(0, -0.5, ((0, -0.5), (1, -1.5)))], "length")
    (made,) = answer.whole(Head("id", 0, COMPLETION, "v1"), [choice], {}, lambda _: b"a")["choices"]
    assert made["logprobs"]["top_logprobs"] == [{"a": -0.5}]
