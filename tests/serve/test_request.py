"""What a client may ask: each wrong field has one clear error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from peerlm.serve import request
from peerlm.serve.request import Refused

PLAIN = {"model": "m", "prompt": "p"}
TALK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_defaults_are_openais() -> None:
    asked = request.completion(PLAIN)
    assert (asked.tokens_max, asked.n, asked.sampling.temperature) == (16, 1, 1.0)
    assert (asked.sampling.top_p, asked.rng_seed, asked.stops) == (1.0, None, ())
    assert request.chat(TALK).tokens_max is None


def test_every_field_that_is_honoured() -> None:
    asked = request.completion(
        PLAIN
        | {"prompt": ["a", [1, 2]], "n": 2, "max_tokens": 5, "temperature": 0, "top_k": 7}
        | {"top_p": 0.5, "seed": -3, "stop": "x", "logprobs": 2, "stream": True}
        | {"stream_options": {"include_usage": True}, "user": "u", "echo": False, "suffix": None}
        | {"ignore_eos": True}
    )
    assert asked.past_end
    assert not request.completion(PLAIN).past_end
    assert asked.prompts == ("a", (1, 2))
    assert (asked.n, asked.tokens_max, asked.rng_seed, asked.stops) == (2, 5, -3, ("x",))
    assert asked.sampling == request.Sampling(0.0, 7, 0.5, 2)
    assert (asked.is_stream, asked.with_usage) == (True, True)


def test_a_conversation_is_written_out_in_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": parts}]
    asked = request.chat(TALK | {"messages": messages, "max_completion_tokens": 3})
    assert asked.prompts == ("system: Be.\nuser: ab\nassistant:",)
    assert asked.tokens_max == 3


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a"] * 99}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 10**30}, "n"),
        ({"n": 0}, "n"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 1 << 80}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x" * 1000]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"logprobs": 6}, "logprobs"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"temp": 0}, "temp"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_field_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        request.completion(PLAIN | change)
    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": {}, "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"prompt": "p"}, "prompt"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_field_of_a_chat_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        request.chat(TALK | change)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 9999 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refused, match="body"):
        request.parse_json(body)
    json.dumps("the next one is read")
