"""Messages to token ids, the same for serving and training, and token ids back to text.

The only module that touches the chat template. Knows nothing about models or rows.
"""

import json
import re
import unicodedata
from pathlib import Path

SHIPPED = Path(__file__).parent.parent / "assets" / "prompts"


class BadMessage(Exception):
    """A message cannot be sent; the text says why and what to do."""


def check(text, tokenizer, max_chars):
    """Return the message without blank lines before it and blanks after it; its first line keeps its indentation. BadMessage when it is empty, too long or holds characters that are no text."""
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", (text or "").rstrip())
    if not text:
        raise BadMessage("The message is empty. Write something first.")
    if len(text) > max_chars:
        raise BadMessage(f"The message has {len(text):,} characters; at most {max_chars:,} fit. Please shorten it.")
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t\r":
            raise BadMessage(f"The message holds a control character (U+{ord(char):04X}). Remove it and send again.")
    for token in tokenizer.all_special_tokens:
        if token in text:
            raise BadMessage(f"The message holds {token}, which steers the model's chat format. Remove it and send again.")
    return text


def encode(messages, tokenizer, budget, system_prompt=None):
    """Token ids of a chat that ends with the user's message, generation prompt included, at most `budget` of them.

    `messages` are {"role", "content"} dicts. The oldest turns are left out whole until the rest fits, so that the template is never cut;
    the system prompt and the last message always stay. BadMessage when those two alone are too long.
    """
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages = [{**m, "content": without_special_tokens(m["content"], tokenizer)} for m in messages]
    for start in (i for i, m in enumerate(messages) if m["role"] == "user"):
        ids = tokenizer.apply_chat_template(system + messages[start:], add_generation_prompt=True, return_dict=False)
        if len(ids) <= budget:
            return ids
    raise BadMessage(f"The message has {len(ids):,} tokens with its frame; at most {budget:,} fit. Please shorten it.")


def encode_reply(text, tokenizer):
    """Token ids of a reply that a person wrote, with the end-of-reply token."""
    return [*tokenizer(without_special_tokens(text, tokenizer), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def without_special_tokens(text, tokenizer):
    """A model can spell a special token letter by letter; encoded again it would break the template.
    Repeated, since leaving one out may join another."""
    before = None
    while text != before:
        before = text
        for token in tokenizer.all_special_tokens:
            text = text.replace(token, "")
    return text


def canaries():
    """The shipped plain requests, each with a plain reply: [(request, reply)]. A version that cannot take these any more is broken."""
    rows = map(json.loads, (SHIPPED / "canaries.jsonl").read_text(encoding="utf-8").splitlines())
    return [(row["request"], row["reply"]) for row in rows]


def decode(ids, tokenizer):
    return tokenizer.decode(ids, skip_special_tokens=True)


def before(text, stop, growing):
    """What of a text may be shown that ends where `stop` begins: all before it and, while it grows, not what may be its beginning."""
    if not stop:
        return text
    shown, found, _ = text.partition(stop)
    begun = next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
    return shown if found or not growing else text[:len(text) - begun]


class Detokeniser:
    """Text of a growing reply, without ever showing half a character or decoding the whole again (the offsets of vLLM's detokenizer)."""

    def __init__(self, tokenizer):
        self.tokenizer, self.text = tokenizer, ""
        self._ids, self._prefix, self._read = [], 0, 0

    def add(self, token_id):
        """Take one token and return the text so far; an unfinished character is held back."""
        self._ids.append(token_id)
        before = decode(self._ids[self._prefix:self._read], self.tokenizer)
        after = decode(self._ids[self._prefix:], self.tokenizer)
        if len(after) > len(before) and not after.endswith("\ufffd"):
            self.text += after[len(before):]
            self._prefix, self._read = self._read, len(self._ids)
        return self.text
