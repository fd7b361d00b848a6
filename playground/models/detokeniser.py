"""The text of a reply while it grows, token by token.

Decoding the whole reply after each token would cost the square of its length, and a token may hold a part of a
character. So only the last few tokens are decoded again, and text is given out once it ends with a whole character.
"""

from collections.abc import Callable

from tokenizers.decoders import ByteLevel, DecodeStream
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from playground.models import prompts, templates


class Detokeniser:
    """Text of a growing reply; an unfinished character is held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.text = ""
        self._new_text = _stream(tokenizer) or _TailDecoder(tokenizer).add

    def add(self, token_id: int) -> str:
        """Take one token and return the text so far."""
        new = self._new_text(token_id)
        if new:
            self.text += new
        return self.text


def _stream(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str | None] | None:
    """The tokenizers library's own stream, as a function from a token to new text; None where it might not give the
    text of `prompts.decode`.

    It does for byte-level tokenizers (GPT-2's kind), whose text is the bytes of all tokens in a row: a token never
    changes the text before it. With other decoders it can. Where a tokenizer falls back to bytes (Llama 2's kind), a
    wrong byte also changes the byte before it; the stream then raises an error at this and each later token.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.clean_up_tokenization_spaces:
        return None
    kind = type(tokenizer)
    decodes_as_usual = kind.decode is PreTrainedTokenizerFast.decode and kind._decode is PreTrainedTokenizerFast._decode
    backend = tokenizer.backend_tokenizer
    if not decodes_as_usual or not isinstance(backend.decoder, ByteLevel):
        return None
    stream = DecodeStream(skip_special_tokens=True)
    hidden = templates.of(tokenizer).hidden

    def new_text(token_id: int) -> str | None:
        return None if token_id in hidden else stream.step(backend, token_id)

    return new_text


class _TailDecoder:
    """New text of each token for any tokenizer, by decoding the last tokens with and without it (as vLLM's
    detokenizer).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # of the tokens that are decoded: those of the last text given out
        self._given_out = 0  # tokens whose text has been given out

    def add(self, token_id: int) -> str | None:
        self._ids.append(token_id)
        before = prompts.decode(self._ids[self._start : self._given_out], self._tokenizer)
        after = prompts.decode(self._ids[self._start :], self._tokenizer)
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return None
        self._start, self._given_out = self._given_out, len(self._ids)
        return after[len(before) :]
