"""Messages to token ids, the same for serving and training, and token ids back to text.

What a tokenizer's chat template is like is `templates.py`'s, text of a growing reply is `detokeniser.py`'s. Knows
nothing about models or rows.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from playground.models import templates
from playground.models.templates import ControlTokens, Message
from playground.system.messages import UserFacingError

SHIPPED = Path(__file__).parents[2] / "assets" / "prompts"
CHARACTERS_PER_TOKEN = 4  # about: it says where `encode` begins to search, not what it finds


class BadMessage(UserFacingError):
    """A message cannot be sent; the text says why and what to do."""


def check(text: str | None, tokenizer: PreTrainedTokenizerBase, max_chars: int) -> str:
    """Return the message without blank lines before it and without whitespace after it; its first line keeps its
    indentation. BadMessage when it is empty, too long, or holds control characters or control tokens.
    """
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", (text or "").rstrip())
    if not text:
        raise BadMessage("The message is empty. Write something first.")
    if len(text) > max_chars:
        raise BadMessage(
            "The message has {n} characters; at most {limit} fit. Please shorten it.",
            n=f"{len(text):,}",
            limit=f"{max_chars:,}",
        )
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t\r":
            raise BadMessage(
                "The message holds a control character (U+{name}). Remove it and send again.", name=f"{ord(char):04X}"
            )
    control = templates.of(tokenizer).control
    token = control.first(text) or _encoded_control(text, tokenizer, control)
    if token:
        raise BadMessage(
            "The message holds {name}, which steers the model's chat format. Remove it and send again.", name=token
        )
    return text


def _encoded_control(text: str, tokenizer: PreTrainedTokenizerBase, control: ControlTokens) -> str | None:
    """A control token that the text is encoded to although its letters are not in the text: tokenizers may normalise a
    text first.
    """
    ids = set(templates.token_ids(text, tokenizer))
    steering = (ids & control.ids) - {tokenizer.unk_token_id}
    if not steering:
        return None
    return cast("str", tokenizer.convert_ids_to_tokens(min(steering)))  # a list only for several ids


def check_system(system_prompt: str | None, tokenizer: PreTrainedTokenizerBase, max_chars: int, budget: int) -> str:
    """Return a system prompt as `check` does. BadMessage also where the chat template refuses it, or where it leaves
    no room for a message in `budget` tokens.
    """
    system_prompt = check(system_prompt, tokenizer, max_chars)
    encode([{"role": "user", "content": "Hello"}], tokenizer, budget, system_prompt)
    return system_prompt


def encode(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, budget: int, system_prompt: str | None = None
) -> list[int]:
    """Token ids of a chat that ends with the user's message, generation prompt included, at most `budget` of them.

    The oldest turns are left out whole until the rest fits, so that the template is never cut. The system prompt and
    the last message always stay. BadMessage when those two alone are too long.

    Templates are programs, so a conversation has to be encoded to know its length. How many turns fit is searched from
    a guess by characters, since more turns never have fewer tokens: the time grows with the text, not with text times
    turns.
    """
    suffixes = _Suffixes(messages, tokenizer, system_prompt)
    fits: list[int] | None = None
    most = 0  # turns that are known to fit
    too_many = suffixes.turns + 1  # turns that are known not to fit, or not to be there
    turns = suffixes.turns_within(budget * CHARACTERS_PER_TOKEN)
    step = 1
    while most + 1 < too_many:
        ids = suffixes.encode(turns)
        if len(ids) <= budget:
            fits, most = ids, turns
            turns += step
            step *= 2
        else:
            too_many = turns
        if turns >= too_many:
            turns = (most + too_many) // 2
    if fits is not None:
        return fits
    raise BadMessage(
        "The message has {n} tokens with its frame; at most {limit} fit. Please shorten it.",
        n=f"{len(ids):,}",
        limit=f"{budget:,}",
    )


class _Suffixes:
    """The last turns of a chat as token ids. A turn is a message of the user and what follows it."""

    def __init__(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, system_prompt: str | None
    ) -> None:
        self._messages = messages
        self._tokenizer = tokenizer
        self._system: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self._starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
        self._cleaned: dict[int, Message] = {}  # by place: messages without control tokens
        self.turns = len(self._starts)

    def turns_within(self, characters: int) -> int:
        """How many of the last turns have at most `characters` characters together; at least 1."""
        turns = 1
        for count, start in enumerate(reversed(self._starts), 1):
            characters -= sum(len(message["content"]) for message in self._messages[start : self._end_of(count)])
            if characters < 0:
                break
            turns = count
        return turns

    def _end_of(self, count: int) -> int:
        """Where the turn ends that is `count` turns from the end."""
        return len(self._messages) if count == 1 else self._starts[1 - count]

    def encode(self, turns: int) -> list[int]:
        """Token ids of the last `turns` turns; BadMessage where the template refuses them."""
        start = self._starts[-turns]
        messages = [self._clean(place) for place in range(start, len(self._messages))]
        try:
            return templates.encode(self._system + messages, self._tokenizer)
        except templates.BadTemplate as error:
            raise BadMessage(
                "The model's chat template does not take this conversation: {reason}. Change the system prompt or the "
                "message.",
                reason=str(error),
            ) from None

    def _clean(self, place: int) -> Message:
        if place not in self._cleaned:
            message = self._messages[place]
            content = without_special_tokens(message["content"], self._tokenizer)
            self._cleaned[place] = {**message, "content": content}
        return self._cleaned[place]


def encode_those_that_fit(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, budget: int) -> list[list[int]]:
    """Token ids of each first message that fits into `budget`; BadMessage where none does."""
    encoded = []
    refusal = None
    for text in texts:
        try:
            encoded.append(encode([{"role": "user", "content": text}], tokenizer, budget))
        except BadMessage as error:
            refusal = error
    if refusal and not encoded:
        raise refusal
    return encoded


def encode_reply(text: str, tokenizer: PreTrainedTokenizerBase, ended: bool = True) -> list[int]:
    """Token ids of a reply that a person wrote; if it has `ended`, with the tokens that end a reply in the chat
    template.
    """
    ids = templates.token_ids(without_special_tokens(text, tokenizer), tokenizer)
    return [*ids, *templates.of(tokenizer).end] if ended else ids


def without_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text without control tokens. A model can spell one letter by letter; encoded again it would break the
    template.
    """
    return templates.of(tokenizer).control.without(text)


class Canary(NamedTuple):
    """A plain request with a plain reply to it, which must stay likely; a version that cannot take it is broken."""

    request: str
    reply: str


def canaries() -> list[Canary]:
    """The shipped canaries."""
    rows = map(json.loads, (SHIPPED / "canaries.jsonl").read_text(encoding="utf-8").splitlines())
    return [Canary(row["request"], row["reply"]) for row in rows]


# -- back to text


def decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of token ids, without the tokens that end a reply or steer the chat."""
    hidden = templates.of(tokenizer).hidden
    shown = [token_id for token_id in ids if token_id not in hidden]
    return cast("str", tokenizer.decode(shown, skip_special_tokens=True))  # a list only for several sequences


def reply_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a whole reply, up to the words that end one where the chat template ends a reply by words."""
    return before(decode(ids, tokenizer), templates.of(tokenizer).end_text, growing=False).strip()


def stops_of(tokenizer: PreTrainedTokenizerBase, *stops: str) -> tuple[str, ...]:
    """The texts where a reply ends: those given, and the one of the chat template; empty ones are left out."""
    return tuple(text for text in (*stops, templates.of(tokenizer).end_text) if text)


def before(text: str, stops: str | Sequence[str], growing: bool) -> str:
    """The part of a reply's text that is shown: all before the first of `stops` (a text or several). While the reply is
    `growing`, an end that may be the beginning of a stop is held back too.
    """
    for stop in [stops] if isinstance(stops, str) else stops:
        text = _before(text, stop, growing)
    return text


def _before(text: str, stop: str, growing: bool) -> str:
    if not stop:
        return text
    shown, found, _ = text.partition(stop)
    if found or not growing:
        return shown
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[-length:]):
            return text[:-length]
    return text
