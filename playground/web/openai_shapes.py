"""The shapes of OpenAI's chat API, as far as Nudge speaks it: what a request may have, and what answers look like.

Nothing is done here. What a value means is `completions.py`'s.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from playground.chat.completing import MOST_MESSAGES, Completed, CompletionRequest, Reply
from playground.models import templates

RETRY_AFTER = "5"  # seconds; the header for a program whose request was one too many
FINISH = {"end": "stop", "stopped": "stop", "length": "length"}  # OpenAI's reasons by the store's
# options of OpenAI's that change nothing of the replies: they are ignored
IGNORED = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# its options that would change them, with the values that ask for nothing; null and what is empty, 0 or false never do
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "logit_bias": (),
    "logprobs": (),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "presence_penalty": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "stop": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "top_logprobs": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
NAME_CHARS = 60  # of an unknown option, as it is told
COMPLETION_ID = re.compile(r"chatcmpl-([0-9]{1,18})(?:-([01]))?", re.ASCII)


class Problem(Exception):
    """A request that is refused, as OpenAI's clients read it."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        retry = {"retry-after": RETRY_AFTER} if self.status == 429 else {}
        return JSONResponse(self.body, self.status, {"cache-control": "no-store", **retry})


def invalid(message: str, param: str | None = None) -> Problem:
    """What cannot be used of a request."""
    return Problem(400, message, "invalid_request_error", None, param)


# -- requests


class Part(BaseModel):
    """A part of a message; only texts are taken."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of the history."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] = Field(max_length=1 << 20)

    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of `/v1/chat/completions`. Of the other fields, `check_supported` lets IGNORED ones pass."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    model: str = Field(max_length=100)
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES + 1)
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    n: int | None = Field(None, ge=1, le=2)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def check_supported(self) -> None:
        """Problem where the request asks for something that would be left out in silence, or that OpenAI's API does
        not have: a misspelt option, say.
        """
        for name, value in (self.model_extra or {}).items():
            if name in IGNORED:
                continue
            if name not in UNSUPPORTED:
                message = f"Unknown parameter: '{name[:NAME_CHARS]}'."
                raise Problem(400, message, "invalid_request_error", "unknown_parameter", name[:NAME_CHARS])
            if value and value not in UNSUPPORTED[name]:
                raise Problem(400, f"{name} is not supported.", "invalid_request_error", "unsupported_parameter", name)

    def for_chat(self, version: int | None) -> CompletionRequest:
        """What it asks the chat for; `version` is the model's."""
        first, *others = self.messages
        system = first.text() if first.role in ("system", "developer") else None
        spoken = others if system is not None else self.messages
        messages: list[templates.Message] = []
        for message in spoken:
            if message.role not in ("user", "assistant"):
                raise invalid("A system message is the first one, and there is at most one.", "messages")
            messages.append({"role": message.role, "content": message.text()})
        tokens = self.max_completion_tokens or self.max_tokens
        given = {"temperature": self.temperature, "top_p": self.top_p, "reply_tokens": tokens}
        sampling = {name: value for name, value in given.items() if value is not None}
        return CompletionRequest(tuple(messages), system, sampling, version, self.seed)


class FeedbackRequest(BaseModel):
    """The body of `/v1/feedback`: a choice between two completions of one request, or a thumb on one."""

    model_config = ConfigDict(strict=True, extra="forbid")

    completion_ids: list[str] | None = Field(None, min_length=2, max_length=2)
    choice: Literal["a", "b", "tie", "both_bad", "skip"] | None = None  # a is the first of the two
    completion_id: str | None = None
    thumb: Literal[1, -1] | None = None  # None takes it back


Body = TypeVar("Body", bound=BaseModel)


def read(kind: type[Body], body: bytes) -> Body:
    """The body of a request; Problem names the first field that does not fit, without what it holds."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise invalid(message, str(first["loc"][0]) if first["loc"] else None) from None


def duel_and_side(completion_id: str) -> tuple[int, int]:
    """The pair and the side (0 is left) that the id of a completion names; Problem where it is none."""
    match = COMPLETION_ID.fullmatch(completion_id)
    if not match:
        raise invalid("This is not the id of a completion.", "completion_id")
    return int(match[1]), int(match[2] or 0)


# -- answers


def gone() -> Problem:
    """What a request gets whose replies were erased meanwhile."""
    return Problem(503, "The replies are no longer there. Send the request again.", "server_error")


def finish(reply: Reply) -> str:
    """OpenAI's reason why a reply ended; Problem where the reply is not recorded, or not any more."""
    reason = FINISH.get(reply.finish_reason or "")
    if reason is None:
        raise gone()
    return reason


def completion(completed: Completed, model: str, n: int, created: int, fingerprint: str) -> dict[str, Any]:
    """A whole answer, with the first `n` replies."""
    replies = completed.replies[:n]
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": reply.text},
            "logprobs": None,
            "finish_reason": finish(reply),
            "completion_id": id_of(completed.duel, i),
        }
        for i, reply in enumerate(replies)
    ]
    head = head_of("chat.completion", completed.duel, model, created, fingerprint)
    return {**head, "choices": choices, "usage": usage(completed, n)}


def head_of(kind: str, duel: int, model: str, created: int, fingerprint: str) -> dict[str, Any]:
    """What an answer and each chunk of a stream begin with."""
    return {
        "id": f"chatcmpl-{duel}",
        "object": kind,
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
    }


def chunk_choice(duel: int, index: int, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    """One choice of a chunk of a stream."""
    return {
        "index": index,
        "delta": delta,
        "logprobs": None,
        "finish_reason": finish_reason,
        "completion_id": id_of(duel, index),
    }


def id_of(duel: int, index: int) -> str:
    """The id of one completion."""
    return f"chatcmpl-{duel}-{index}"


def usage(completed: Completed, n: int) -> dict[str, int]:
    """Tokens of the prompt and of the first `n` replies."""
    tokens = sum(reply.tokens for reply in completed.replies[:n])
    return {
        "prompt_tokens": completed.prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": completed.prompt_tokens + tokens,
    }


def event(data: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


class Deltas:
    """What each view adds to the texts of `n` choices that were sent before.

    The right reply is held back as long as it says the same as the left one: where both end the same, another right one
    is written, and what was sent cannot be taken back.
    """

    def __init__(self, n: int) -> None:
        self._sent = [""] * n

    def added(self, texts: Sequence[str], complete: bool = False) -> list[tuple[int, str]]:
        """(index, what is new) of each choice that has grown, from the texts of both sides; ValueError where a text
        that is complete is not the one that was sent.
        """
        shown = [text.strip() for text in texts]
        grown = []
        for i, sent in enumerate(self._sent):
            text = shown[i]
            if i and not complete and (shown[0].startswith(text) or text.startswith(shown[0])):
                continue
            if not text.startswith(sent):
                if complete:
                    raise ValueError("a reply is not the one that was sent")
                continue
            if text != sent:
                grown.append((i, text[len(sent) :]))
                self._sent[i] = text
        return grown
