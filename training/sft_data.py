"""A file of demonstrations as episodes of the model of now: read and checked row by row, encoded, and split in two.

Rows are read as `python -m playground.data import` reads them, but nothing is put into the database. Of a judged pair
the picked reply is a demonstration.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from playground.data import columns, files
from playground.data.files import BadRow, Row
from playground.data.records import Demonstration, JudgedPair
from playground.models import prompts
from playground.settings import Settings
from training import imported
from training.rollout import Episode, generator

FEWEST = 10  # different prompts
MOST_HELDOUT = 200  # prompts


class CannotLearn(Exception):
    """Nothing can be learnt from the file; the message says why."""


@dataclass
class Reading:
    """What was found in a file."""

    episodes: list[Episode]
    rows: int = 0
    bad: int = 0
    repeated: int = 0  # rows that say what an earlier one said
    cut: int = 0  # replies that are longer than one in the chat
    left_over: bool = False  # whether the file has more rows than were read


@dataclass(frozen=True)
class Split:
    """Demonstrations to train on, and one to each prompt of the held-out part. No prompt is in both."""

    train: Sequence[Episode]
    heldout: Sequence[Episode]

    @property
    def prompts(self) -> int:
        return len({tuple(episode.prompt) for episode in [*self.train, *self.heldout]})


def read(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    most_rows: int,
    on_bad: Callable[[int, str], None] = lambda number, reason: None,
    is_ours: Callable[[dict[str, Any]], bool] = lambda record: False,
) -> Reading:
    """The demonstrations of a file. `on_bad(number, reason)` is told of each row that is left out; those for which
    `is_ours(record)` are, too. CannotRead where the file as a whole cannot be read.
    """
    found = Reading([])
    seen: set[bytes] = set()
    for number, row in files.read(path):
        if found.rows == most_rows:
            found.left_over = True
            break
        found.rows += 1
        try:
            episode = encode(demonstration(row, is_ours), tokenizer, settings)
        except (BadRow, prompts.BadMessage) as error:
            found.bad += 1
            on_bad(number, str(error))
            continue
        content = hashlib.sha256(repr((episode.prompt, episode.completion)).encode()).digest()
        if content in seen:
            found.repeated += 1
            continue
        seen.add(content)
        found.cut += not episode.ended
        found.episodes.append(episode)
    return found


def demonstration(row: Row | BadRow, is_ours: Callable[[dict[str, Any]], bool]) -> Demonstration:
    """What a row demonstrates; BadRow where it holds no such thing, or comes from the database that would learn it:
    rounds learn what that holds, and what was deleted from it does not come back by a file.
    """
    if isinstance(row, BadRow):
        raise row
    _, record = columns.record_of(row)
    if is_ours(record.as_dict()):
        raise BadRow("this database recorded it, and rounds learn from it there")
    if isinstance(record, Demonstration):
        return record
    if isinstance(record, JudgedPair):
        if not record.decided:
            raise BadRow("neither reply of the pair is better")
        return Demonstration(record.messages, record.chosen)
    raise BadRow("there is no reply to learn")


def encode(record: Demonstration, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> Episode:
    """A demonstration as token ids: the oldest turns of a long chat are left out, and a reply is cut to the tokens that
    one in the chat may have. BadMessage where the model cannot take its prompt, BadRow where nothing is left of the
    reply.
    """
    system, messages = imported.split(list(record.messages))
    budget = min(settings.ppo.rollout_context, settings.chat.context_tokens)
    prompt = prompts.encode(messages, tokenizer, budget, system)
    if not prompts.without_special_tokens(record.reply, tokenizer).strip():
        raise BadRow("a reply is empty without its control tokens")
    completion = prompts.encode_reply(record.reply, tokenizer)
    limit = settings.chat.reply_tokens
    return Episode(prompt, completion[:limit], ended=len(completion) <= limit)


def split(episodes: Sequence[Episode], settings: Settings) -> Split:
    """`preferences.heldout_fraction` of the prompts, chosen at random, are held out. CannotLearn where there are too
    few prompts.
    """
    by_prompt: dict[tuple[int, ...], list[Episode]] = {}
    for episode in episodes:
        by_prompt.setdefault(tuple(episode.prompt), []).append(episode)
    if len(by_prompt) < FEWEST:
        raise CannotLearn(
            f"There are demonstrations to {len(by_prompt)} different prompts; at least {FEWEST} are needed, since some "
            "are held out to see what was learnt."
        )
    share = settings.preferences.heldout_fraction
    n = min(max(2, round(share * len(by_prompt))), MOST_HELDOUT, len(by_prompt) - 1)
    heldout = set(generator(settings.seed, "sft split").sample(list(by_prompt), n))
    return Split(
        train=[episode for prompt, group in by_prompt.items() if prompt not in heldout for episode in group],
        heldout=[group[0] for prompt, group in by_prompt.items() if prompt in heldout],
    )
