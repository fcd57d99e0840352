"""What a client may ask, checked to the last field: an OpenAI body in, `Asked` or one clear error out.

A field that would change the text and is not honoured is refused, not passed over: whoever misspells
`temperature`, or needs tools, should learn it here. Fields that only describe the request are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from peerlm.serve.session import Sampling

CHOICES_MAX = 16
"""Texts of one request: prompts × `n`."""
STOPS_MAX = 4
STOP_CHARS_MAX = 256
MESSAGES_MAX = 1024
COMPLETION_TOKENS = 16
"""`max_tokens` of a completion that names none, as OpenAI's."""
COMPLETION_LOGPROBS_MAX = 5
CHAT_LOGPROBS_MAX = 20
ROLES = ("system", "developer", "user", "assistant")

PASSED_OVER = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("parallel_tool_calls", "prompt_cache_retention"),
    }
)
"""Fields that change no text."""

ONLY_AS_IF_ABSENT: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of OpenAI's that are not honoured, with the values that ask for nothing."""


class Refused(Exception):
    """What a client is told. `status` is HTTP's; `kind`, `param` and `code` are OpenAI's."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code
        self.status, self.kind, self.retry_after_s = status, kind, retry_after_s


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. A prompt is a text, or token ids. `tokens_max` None: as many as there is room for."""

    is_chat: bool
    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    n: int
    tokens_max: int | None
    sampling: Sampling
    rng_seed: int | None
    stops: tuple[str, ...]
    past_end: bool
    is_stream: bool
    with_usage: bool


def parse_json(body: bytes) -> dict[str, Any]:
    """Raises `Refused`."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # of UTF-8 too
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(f"the body is not JSON: {why[:200]}") from None
    if not isinstance(found, dict):
        raise Refused("the body must be a JSON object")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def completion(body: Mapping[str, Any]) -> Asked:
    """Of /v1/completions. Raises `Refused`."""
    fields = _Fields(body)
    logprobs = fields.integer("logprobs", 0, COMPLETION_LOGPROBS_MAX)
    asked = _asked(
        fields, _prompts(fields), logprobs, fields.integer("max_tokens", 1) or COMPLETION_TOKENS
    )
    fields.refuse_the_rest()
    return asked


def chat(body: Mapping[str, Any]) -> Asked:
    """Of /v1/chat/completions. Raises `Refused`."""
    fields = _Fields(body)
    top = fields.integer("top_logprobs", 0, CHAT_LOGPROBS_MAX)
    with_logprobs = fields.boolean("logprobs")
    if top is not None and not with_logprobs:
        raise Refused("'top_logprobs' needs 'logprobs': true", "top_logprobs")
    newer, older = fields.integer("max_completion_tokens", 1), fields.integer("max_tokens", 1)
    if newer is not None and older is not None and newer != older:
        raise Refused("give 'max_completion_tokens' or 'max_tokens', not both", "max_tokens")
    asked = _asked(
        fields, (_rendered(fields),), (top or 0) if with_logprobs else None, newer or older, True
    )
    fields.refuse_the_rest()
    return asked


def _asked(
    fields: _Fields,
    prompts: tuple[str | tuple[int, ...], ...],
    logprobs: int | None,
    tokens_max: int | None,
    is_chat: bool = False,
) -> Asked:
    model = fields.text("model")
    if not model:
        raise Refused("you must name a 'model'; GET /v1/models lists what there is", "model")
    n = fields.integer("n", 1) or 1
    if n * len(prompts) > CHOICES_MAX:
        raise Refused(f"at most {CHOICES_MAX} texts a request, this one asks for more", "n")
    temperature = fields.number("temperature", 0.0, 2.0)
    top_p = fields.number("top_p", 0.0, 1.0)
    sampling = Sampling(
        temperature=1.0 if temperature is None else temperature,
        top_k=max(fields.integer("top_k", -1) or 0, 0),
        top_p=1.0 if top_p is None else top_p,
        logprobs=logprobs,
    )
    is_stream = fields.boolean("stream")
    options = fields.take("stream_options", dict, "an object")
    if options is not None and not is_stream:
        raise Refused("'stream_options' needs 'stream': true", "stream_options")
    options = _Fields(options or {}, "stream_options.")
    with_usage = options.boolean("include_usage")
    options.boolean("include_obfuscation")
    options.refuse_the_rest()
    return Asked(
        is_chat=is_chat,
        model=model,
        prompts=prompts,
        n=n,
        tokens_max=tokens_max,
        sampling=sampling,
        rng_seed=fields.integer("seed", -(1 << 63), (1 << 63) - 1),
        stops=_stops(fields),
        past_end=fields.boolean("ignore_eos"),
        is_stream=is_stream,
        with_usage=with_usage,
    )


def _prompts(fields: _Fields) -> tuple[str | tuple[int, ...], ...]:
    """A text, a list of texts, token ids, or a list of lists of them."""
    found = fields.take("prompt", (str, list), "a text or a list")
    if found is None:
        raise Refused("you must give a 'prompt'", "prompt")
    many = found if isinstance(found, list) and not _are_ids(found) else [found]
    if not 1 <= len(many) <= CHOICES_MAX:
        raise Refused(f"'prompt' must hold 1 to {CHOICES_MAX} prompts", "prompt")
    prompts: list[str | tuple[int, ...]] = []
    for one in many:
        if isinstance(one, str):
            prompts.append(_encodable(one, "prompt"))
        elif isinstance(one, list) and _are_ids(one):
            prompts.append(tuple(one))
        else:
            raise Refused("'prompt' must be texts or lists of token ids", "prompt")
        if not one:
            raise Refused("the prompt is empty: give at least one token to start from", "prompt")
    return tuple(prompts)


def _are_ids(found: list[Any]) -> bool:
    return bool(found) and all(type(one) is int for one in found)


def _rendered(fields: _Fields) -> str:
    """Messages as text: a line `role: content` each, and the beginning of the answer's."""
    messages = fields.take("messages", list, "a list")
    if messages is None or not 1 <= len(messages) <= MESSAGES_MAX:
        raise Refused(f"'messages' must hold 1 to {MESSAGES_MAX} messages", "messages")
    lines = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise Refused(f"'{where}' must be an object", where)
        role = message.get("role")
        if role not in ROLES:
            raise Refused(f"'{where}.role' must be one of: {', '.join(ROLES)}", f"{where}.role")
        lines.append(f"{role}: {_content(message.get('content'), f'{where}.content')}\n")
    return "".join(lines) + "assistant:"


def _content(content: Any, where: str) -> str:
    """A text, or a list of parts that are texts."""
    if isinstance(content, list):
        texts = [part["text"] for part in content if _is_text(part)]
        if len(texts) != len(content):
            raise Refused(f"'{where}' may have parts of type 'text' only", where)
        content = "".join(texts)
    if not isinstance(content, str):
        raise Refused(f"'{where}' must be a text", where)
    return _encodable(content, where)


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _stops(fields: _Fields) -> tuple[str, ...]:
    found = fields.take("stop", (str, list), "a text or a list of texts")
    stops = [] if found is None else [found] if isinstance(found, str) else found
    if len(stops) > STOPS_MAX:
        raise Refused(f"'stop' may hold at most {STOPS_MAX} texts, this has {len(stops)}", "stop")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= STOP_CHARS_MAX:
            raise Refused(f"each of 'stop' must be a text of 1 to {STOP_CHARS_MAX}", "stop")
        _encodable(stop, "stop")
    return tuple(stops)


def _encodable(text: str, where: str) -> str:
    """JSON can write half a character, which no tokenizer knows."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(f"'{where}' has half a surrogate pair in it", where) from None
    return text


class _Fields:
    """Fields of an object, taken one by one: what nobody took is refused at the end. null is as if absent."""

    def __init__(self, body: Mapping[str, Any], prefix: str = "") -> None:
        self._left = {name: value for name, value in body.items() if value is not None}
        self._prefix = prefix

    def take(self, name: str, kind: type | tuple[type, ...], called: str) -> Any:
        value = self._left.pop(name, None)
        if value is None:
            return None
        is_misplaced_bool = isinstance(value, bool) and kind is not bool
        if is_misplaced_bool or not isinstance(value, kind):
            raise Refused(f"'{self._prefix}{name}' must be {called}", self._prefix + name)
        return value

    def text(self, name: str) -> str | None:
        found: str | None = self.take(name, str, "a text")
        return found

    def boolean(self, name: str) -> bool:
        return bool(self.take(name, bool, "true or false"))

    def integer(self, name: str, low: int, high: int | None = None) -> int | None:
        found: int | None = self.take(name, int, "an integer")
        if found is not None and (found < low or (high is not None and found > high)):
            within = f"{low} or more" if high is None else f"between {low} and {high}"
            raise Refused(f"'{name}' must be {within}", name)
        return found

    def number(self, name: str, low: float, high: float) -> float | None:
        found: float | None = self.take(name, (int, float), "a number")
        if found is not None and not low <= found <= high:
            raise Refused(f"'{name}' must be between {low:g} and {high:g}", name)
        return None if found is None else float(found)

    def refuse_the_rest(self) -> None:
        for name, value in self._left.items():
            if name in PASSED_OVER or value in ONLY_AS_IF_ABSENT.get(name, ()):
                continue
            shown = self._prefix + name[:80].encode("ascii", "replace").decode()
            known = name in ONLY_AS_IF_ABSENT and not self._prefix
            why = "is not supported here" if known else "is not known here"
            raise Refused(f"'{shown}' {why}", shown, code=None if known else "unknown_parameter")
