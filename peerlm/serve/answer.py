"""What a client is told, in OpenAI's shapes: whole answers, streams of events, models, errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from peerlm.serve.request import Asked, Refused
from peerlm.serve.session import Pick, Piece

DONE = b"data: [DONE]\n\n"

Spell = Callable[[int], bytes]
"""The UTF-8 of one token."""


@dataclass(frozen=True, slots=True)
class Head:
    """What every part of one answer repeats. `created`: Unix time in whole seconds."""

    id: str
    created: int
    asked: Asked
    fingerprint: str

    def with_(self, choices: list[dict[str, Any]], *, is_chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.asked.is_chat:
            kind = "chat.completion.chunk" if is_chunk else "chat.completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.asked.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


@dataclass(slots=True)
class Choice:
    """One text of an answer, gathered from its pieces."""

    text: list[str] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        self.text.append(piece.text)
        self.picks += piece.picks
        self.finish = piece.finish


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def whole(
    head: Head, choices: Sequence[Choice], used: dict[str, int], spell: Spell
) -> dict[str, Any]:
    parts = []
    for index, choice in enumerate(choices):
        text, told = "".join(choice.text), _logprobs(head.asked, choice.picks, spell)
        part: dict[str, Any] = {"index": index}
        if head.asked.is_chat:
            part["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            part["text"] = text
        parts.append(part | {"logprobs": told, "finish_reason": choice.finish})
    return head.with_(parts, is_chunk=False) | {"usage": used}


def opening(head: Head, index: int) -> dict[str, Any]:
    """The first chunk of a chat's text: who speaks."""
    delta = {"role": "assistant", "content": "", "refusal": None}
    part = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    return head.with_([part], is_chunk=True)


def chunk(head: Head, index: int, piece: Piece, spell: Spell) -> dict[str, Any]:
    part: dict[str, Any] = {"index": index}
    if head.asked.is_chat:
        part["delta"] = {"content": piece.text} if piece.text else {}
    else:
        part["text"] = piece.text
    told = _logprobs(head.asked, piece.picks, spell)
    return head.with_([part | {"logprobs": told, "finish_reason": piece.finish}], is_chunk=True)


def last(head: Head, used: dict[str, int]) -> dict[str, Any]:
    """The chunk that `stream_options.include_usage` asks for."""
    return head.with_([], is_chunk=True) | {"usage": used}


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def error(refused: Refused) -> dict[str, Any]:
    return {
        "error": {
            "message": refused.message,
            "type": refused.kind,
            "param": refused.param,
            "code": refused.code,
        }
    }


def _logprobs(asked: Asked, picks: Sequence[Pick], spell: Spell) -> dict[str, Any] | None:
    if asked.sampling.logprobs is None or not picks:
        return None
    if not asked.is_chat:
        return {
            "tokens": [_named(spell(p.token)) for p in picks],
            "token_logprobs": [p.logprob for p in picks],
            "top_logprobs": [
                # Of two tokens of one name the likelier stays: it comes first in `top`.
                {_named(spell(token)): value for token, value in reversed(p.top)}
                for p in picks
            ],
            "text_offset": [p.at for p in picks],
        }

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        data = spell(token)
        return {"token": _named(data), "logprob": logprob, "bytes": list(data)}

    return {
        "content": [
            entry(p.token, p.logprob) | {"top_logprobs": [entry(t, v) for t, v in p.top]}
            for p in picks
        ],
        "refusal": None,
    }


def _named(data: bytes) -> str:
    """A token's text; of one that is no text, its bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + data.decode(errors="backslashreplace")
