"""Data from elsewhere as a round reads it: the texts that `python -m playground.data import` kept, as token ids of the
current model. What cannot be encoded, since a prompt is too long or the chat template refuses it, is left out.

A sample of at most `preferences.imported` rows of each kind is read, the same one in each round, since to read the
features of a pair takes a good part of a second. Rows may be long, so each function calls `obey` before each row: it
may wait or raise, as `RoundControl.obey` does.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from playground.models import prompts as encoding
from playground.settings import Settings
from playground.store import Store
from playground.system.safe_logging import Loggable

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
Obey = Callable[[], None]


def go_on() -> None:
    """Nobody says that the reading is to wait or to end."""


def pairs(store: Store, tokenizer: PreTrainedTokenizerBase, settings: Settings, obey: Obey = go_on) -> list[Row]:
    """Imported pairs. Keys: source, weight, choice; prompt, left_ids, right_ids: token ids.

    A reply is cut to the tokens that one in the chat may have: the reward model scores no longer ones.
    """
    rows: list[Row] = []
    for row, prompt in _encoded(store, "pair", tokenizer, settings, settings.chat.context_tokens, obey):
        record = row["record"]
        left, right = (_reply(record[side], tokenizer, settings.chat.reply_tokens) for side in ("left", "right"))
        replies = {"prompt": prompt, "left_ids": left, "right_ids": right}
        rows.append({"source": row["source"], "weight": row["weight"], "choice": record["choice"], **replies})
    return rows


def demonstrations(
    store: Store, tokenizer: PreTrainedTokenizerBase, settings: Settings, obey: Obey = go_on
) -> list[Row]:
    """Imported demonstrations, as `Store.demonstrations` returns edited replies. Keys: created, after (the text),
    prompt (token ids).
    """
    return [
        {"created": row["created"], "after": row["record"]["reply"], "prompt": prompt}
        for row, prompt in _encoded(store, "demonstration", tokenizer, settings, settings.ppo.rollout_context, obey)
    ]


def prompts(
    store: Store, tokenizer: PreTrainedTokenizerBase, settings: Settings, obey: Obey = go_on
) -> list[list[int]]:
    """Imported prompts that fit into a rollout, as token ids."""
    encoded = _encoded(store, "prompt", tokenizer, settings, settings.ppo.rollout_context, obey)
    return [prompt for _, prompt in encoded]


def _encoded(
    store: Store, kind: str, tokenizer: PreTrainedTokenizerBase, settings: Settings, budget: int, obey: Obey
) -> Iterator[tuple[Row, list[int]]]:
    """Rows of a kind, each with its messages as prompt ids of at most `budget` tokens."""
    left_out = 0
    for row in store.imported_sample(kind, settings.preferences.imported):
        obey()
        system, messages = split(row["record"]["messages"])
        try:
            prompt = encoding.encode(messages, tokenizer, budget, system)
        except encoding.BadMessage:
            left_out += 1
            continue
        yield row, prompt
    if left_out:
        log.info("imported %ss that do not fit this model and were left out: %d", Loggable(kind), left_out)


def split(messages: list[Any]) -> tuple[str | None, list[Any]]:
    """The system prompt of a chat, None where it has none, and its other messages."""
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def _reply(text: str, tokenizer: PreTrainedTokenizerBase, most: int) -> list[int]:
    return encoding.encode_reply(text, tokenizer)[:most]
