"""Messages to token ids, the same for serving and training, and token ids back to text.

What a tokenizer's chat template is like is `templates.py`'s. Knows nothing about models or rows.
"""

import json
import re
import unicodedata
from pathlib import Path

from playground.models import templates
from playground.system.messages import UserFacingError

SHIPPED = Path(__file__).parents[2] / "assets" / "prompts"


class BadMessage(UserFacingError):
    """A message cannot be sent; the text says why and what to do."""


def check(text, tokenizer, max_chars):
    """Return the message without blank lines before it and blanks after it; its first line keeps its indentation.
    BadMessage when it is empty, too long or holds characters that are no text.
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


def _encoded_control(text, tokenizer, control):
    """A control token that the text becomes though it does not hold it letter by letter: tokenizers may normalise a
    text first.
    """
    ids = set(tokenizer(text, add_special_tokens=False)["input_ids"])
    found = (ids & control.ids) - {tokenizer.unk_token_id}
    return tokenizer.convert_ids_to_tokens(min(found)) if found else None


def check_system(system_prompt: str, tokenizer, max_chars: int, budget: int) -> str:
    """Return a system prompt as `check` does; BadMessage also where the chat template refuses it or it leaves no room
    for a message.
    """
    system_prompt = check(system_prompt, tokenizer, max_chars)
    encode([{"role": "user", "content": "Hello"}], tokenizer, budget, system_prompt)
    return system_prompt


def encode(messages, tokenizer, budget, system_prompt=None):
    """Token ids of a chat that ends with the user's message, generation prompt included, at most `budget` of them.

    `messages` are {"role", "content"} dicts. The oldest turns are left out whole until the rest fits, so that the
    template is never cut; the system prompt and the last message always stay. BadMessage when those two alone are too
    long.
    """
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages = [{**m, "content": without_special_tokens(m["content"], tokenizer)} for m in messages]
    for start in (i for i, m in enumerate(messages) if m["role"] == "user"):
        try:
            ids = templates.encode(system + messages[start:], tokenizer)
        except templates.BadTemplate as error:
            raise BadMessage(
                "The model's chat template does not take this conversation: {reason}. Change the system prompt or the "
                "message.",
                reason=str(error),
            ) from None
        if len(ids) <= budget:
            return ids
    raise BadMessage(
        "The message has {n} tokens with its frame; at most {limit} fit. Please shorten it.",
        n=f"{len(ids):,}",
        limit=f"{budget:,}",
    )


def encode_those_that_fit(texts: list[str], tokenizer, budget: int) -> list[list[int]]:
    """Token ids of each first message that has room in `budget`; BadMessage where none has."""
    found, refused = [], None
    for text in texts:
        try:
            found.append(encode([{"role": "user", "content": text}], tokenizer, budget))
        except BadMessage as error:
            refused = error
    if refused and not found:
        raise refused
    return found


def encode_reply(text, tokenizer, ended=True):
    """Token ids of a reply that a person wrote, with what ends a reply in the chat template unless it is not
    `ended`.
    """
    ids = tokenizer(without_special_tokens(text, tokenizer), add_special_tokens=False)["input_ids"]
    return [*ids, *(templates.of(tokenizer).end if ended else ())]


def without_special_tokens(text, tokenizer):
    """A model can spell a control token letter by letter; encoded again it would break the template."""
    return templates.of(tokenizer).control.without(text)


def canaries():
    """The shipped plain requests, each with a plain reply: [(request, reply)]. A version that cannot take these any
    more is broken.
    """
    rows = map(json.loads, (SHIPPED / "canaries.jsonl").read_text(encoding="utf-8").splitlines())
    return [(row["request"], row["reply"]) for row in rows]


def decode(ids, tokenizer):
    """The text of token ids, without the tokens that end a reply or steer the chat."""
    form = templates.of(tokenizer)
    hidden = () if form.end_text else form.end  # not every tokenizer calls it special
    return tokenizer.decode([i for i in ids if i not in hidden], skip_special_tokens=True)


def reply_text(ids, tokenizer):
    """The text of a whole reply, up to the words that end one where the chat template ends a reply by words."""
    return before(decode(ids, tokenizer), templates.of(tokenizer).end_text, growing=False).strip()


def stops_of(tokenizer, *stops):
    """The texts where a reply ends: those given, and the one of the chat template; empty ones are left out."""
    return tuple(text for text in (*stops, templates.of(tokenizer).end_text) if text)


def before(text, stops, growing):
    """What of a text may be shown that ends where one of `stops` (a text or several) begins: all before it and, while
    it grows, not what may be its beginning."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = _before(text, stop, growing)
    return text


def _before(text, stop, growing):
    if not stop:
        return text
    shown, found, _ = text.partition(stop)
    begun = next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
    return shown if found or not growing else text[: len(text) - begun]


class Detokeniser:
    """Text of a growing reply, without ever showing half a character or decoding the whole again (the offsets of vLLM's
    detokenizer).
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.text = tokenizer, ""
        self._ids, self._prefix, self._read = [], 0, 0

    def add(self, token_id):
        """Take one token and return the text so far; an unfinished character is held back."""
        self._ids.append(token_id)
        before = decode(self._ids[self._prefix : self._read], self.tokenizer)
        after = decode(self._ids[self._prefix :], self.tokenizer)
        if len(after) > len(before) and not after.endswith("\ufffd"):
            self.text += after[len(before) :]
            self._prefix, self._read = self._read, len(self._ids)
        return self.text
