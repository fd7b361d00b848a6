"""A file of demonstrations as episodes of the model of now: read and checked row by row, encoded, and split in two.

Rows are read as `python -m playground.data import` reads them, but nothing is put into the database. Of a judged pair
the picked reply is a demonstration.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from playground.data import columns, files, hub
from playground.data.raw_rows import BadRow, Row
from playground.data.records import Demonstration, JudgedPair, Turn
from playground.models import prompts
from playground.settings import Settings
from training import imported
from training.rollout import Episode, generator

FEWEST = 10  # different dialogues
MOST_HELDOUT = 200  # dialogues

Place = tuple[bytes, ...]  # of a demonstration in its dialogue: a hash of the chat up to each message of the user


HASH_BYTES = 16


class CannotLearn(Exception):
    """Nothing can be learnt from the file; the message says why."""


@dataclass
class Reading:
    """What was found in a file. `places` has of each episode where it stands in its dialogue, as `place_of`."""

    episodes: list[Episode] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    rows: int = 0
    bad: int = 0
    repeated: int = 0  # rows that say what an earlier one said
    cut: int = 0  # replies that are longer than one in the chat
    left_over: bool = False  # whether the file has more rows than were read


@dataclass(frozen=True)
class Split:
    """Demonstrations to train on, and one of each dialogue that is held out. No dialogue and no prompt is in both."""

    train: Sequence[Episode]
    heldout: Sequence[Episode]

    @property
    def prompts(self) -> int:
        return len({tuple(episode.prompt) for episode in [*self.train, *self.heldout]})


def read(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    most_rows: int,
    on_bad: Callable[[int, str], None] = lambda number, reason: None,
    is_ours: Callable[[dict[str, Any]], bool] = lambda record: False,
) -> Reading:
    """The demonstrations of a file, or of a dataset of the hub by its address. `on_bad(number, reason)` is told of each
    row that is left out; those for which `is_ours(record)` are, too. CannotRead where the whole of it cannot be read.
    """
    found = Reading()
    seen: set[bytes] = set()
    rows = hub.find(path).rows() if hub.is_address(path) else files.read(Path(path))
    for number, row in rows:
        if found.rows == most_rows:
            found.left_over = True
            break
        found.rows += 1
        try:
            record = demonstration(row, is_ours)
            episode = encode(record, tokenizer, settings)
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
        found.places.append(place_of(record.messages))
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


def place_of(messages: Sequence[Turn]) -> Place:
    """Where a demonstration stands in its dialogue; the last hash is that of its whole prompt."""
    so_far = hashlib.sha256()
    hashes = []
    for turn in messages:
        so_far.update(repr((turn["role"], turn["content"])).encode(errors="replace"))
        if turn["role"] == "user":
            hashes.append(so_far.digest()[:HASH_BYTES])
    return tuple(hashes)


def dialogues(places: Sequence[Place]) -> list[bytes]:
    """Of each demonstration the hash of its dialogue's first prompt in the file: rows whose chats go on from another
    row's are of one dialogue. Two that only go on from a chat that has no row are told apart.
    """
    prompts_there = {place[-1] for place in places}
    return [next(prompt for prompt in place if prompt in prompts_there) for place in places]


def split(found: Reading, settings: Settings) -> Split:
    """`preferences.heldout_fraction` of the dialogues, chosen at random, are held out. CannotLearn where there are too
    few.
    """
    by_dialogue: dict[bytes, list[Episode]] = {}
    for episode, dialogue in zip(found.episodes, dialogues(found.places), strict=True):
        by_dialogue.setdefault(dialogue, []).append(episode)
    if len(by_dialogue) < FEWEST:
        raise CannotLearn(
            f"There are demonstrations of {len(by_dialogue)} different dialogues; at least {FEWEST} are needed, since "
            "some are held out to see what was learnt."
        )
    share = settings.preferences.heldout_fraction
    n = min(max(2, round(share * len(by_dialogue))), MOST_HELDOUT, len(by_dialogue) - 1)
    rng = generator(settings.seed, "sft split")
    chosen = set(rng.sample(list(by_dialogue), n))
    heldout = [rng.choice(group) for dialogue, group in by_dialogue.items() if dialogue in chosen]
    known = {tuple(episode.prompt) for episode in heldout}  # two long chats can be cut to the same prompt
    train = [
        episode
        for dialogue, group in by_dialogue.items()
        if dialogue not in chosen
        for episode in group
        if tuple(episode.prompt) not in known
    ]
    if not train:
        raise CannotLearn(
            "Nothing is left to train on: cut to the context, all prompts are like those that are held out. Raise "
            "ppo.rollout_context."
        )
    return Split(train=train, heldout=heldout)
