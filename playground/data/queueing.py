"""The owner's prompts into the prompt queue, at each start: from a file or a dataset that the import can read, or from
what was imported. What a person does with them is `playground/chat/queueing.py`'s.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from playground.data import columns, files, hub
from playground.data.raw_rows import BadRow, CannotRead, Numbered, Row
from playground.data.records import Prompt
from playground.settings import Settings, SettingsError
from playground.store import QueuedPrompt, Store

log = logging.getLogger(__name__)

MOST_PROMPTS = 100_000
MOST_NAMED = 20  # bad rows that are named one by one
HISTORY_FACTOR = 16  # a whole prompt may have this many times the characters of one message
IMPORTED = "import:"  # before the name of what was imported


def check(settings: Settings) -> None:
    """SettingsError where the file of prompts cannot be used: it is told before anything is loaded."""
    prompts = settings.queue.prompts
    if not prompts or prompts.startswith(IMPORTED) or hub.is_address(prompts):
        return
    try:
        files.read(Path(prompts).expanduser())
    except CannotRead as error:
        raise SettingsError(f"--queue.prompts: {error}") from None


def fill(store: Store, settings: Settings) -> None:
    """Let the queue hold the prompts that the settings name, each once, in their order. A row that is none is named in
    the log by its number and the reason. SettingsError where the file cannot be read, or has no prompt.
    """
    source = settings.queue.prompts
    if not source:
        store.list_prompts([])
        return
    try:
        prompts = list(_prompts(store, settings))
    except (CannotRead, OSError) as error:
        raise SettingsError(f"--queue.prompts: {error}") from None
    if not prompts:
        raise SettingsError(f"--queue.prompts: there is no prompt in {source}.")
    store.list_prompts(prompts)
    log.info("the prompt queue has %d prompts, %d of them for two people", len(prompts), sum(p.twice for p in prompts))


def _prompts(store: Store, settings: Settings) -> Iterator[QueuedPrompt]:
    """The first MOST_PROMPTS of them. Those for two people are spread evenly."""
    seen: set[str] = set()
    for prompt in _records(store, settings):
        digest = prompt.content_hash()
        if digest in seen:
            continue
        if len(seen) == MOST_PROMPTS:
            log.warning("the prompts after the first %d are left out of the queue", MOST_PROMPTS)
            return
        place = len(seen)
        twice = int((place + 1) * settings.queue.overlap) > int(place * settings.queue.overlap)
        seen.add(digest)
        yield QueuedPrompt(digest, prompt.messages, twice)


def _records(store: Store, settings: Settings) -> Iterator[Prompt]:
    source = settings.queue.prompts
    if source.startswith(IMPORTED):
        rows: Numbered = enumerate(store.imported_of(source.removeprefix(IMPORTED)), 1)
    elif hub.is_address(source):
        rows = hub.find(source).rows()
    else:
        rows = files.read(Path(source).expanduser())
    bad = 0
    for number, row in rows:
        try:
            yield _record(row, settings.limits.message_chars)
        except BadRow as error:
            bad += 1
            if bad <= MOST_NAMED:
                log.warning("%s: row %d is left out of the prompt queue: %s", source, number, error)
    if bad > MOST_NAMED:
        log.warning("%s: %d rows are left out of the prompt queue", source, bad)


def _record(row: Row | BadRow, message_chars: int) -> Prompt:
    """The prompt of a row: of a pair or a demonstration the chat that was answered."""
    if isinstance(row, BadRow):
        raise row
    _, record = columns.record_of(row)
    *said, last = record.messages
    if len(last["content"]) > message_chars:
        raise BadRow(f"the message has more than {message_chars:,} characters")
    if sum(len(turn["content"]) for turn in record.messages) > HISTORY_FACTOR * message_chars:
        raise BadRow(f"the chat has more than {HISTORY_FACTOR * message_chars:,} characters")
    return Prompt([*said, {**last, "content": last["content"].strip()}])
