"""Supervised fine-tuning on a file of demonstrations, the first stage of RLHF, which can come before the first vote:
`python -m training.sft --data FILE`.

It makes a version and publishes it through the gate like a round on votes (`sft_round.py`); a running app takes it
live. What a row of the file means is `sft_data.py`'s. Exit codes: 0 the version is published, or with --dry-run there
is something to learn; 1 it is not, and why is said; 2 the command line is wrong.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean as mean

from pydantic import Field

from playground.data.raw_rows import CannotRead
from playground.models import loading, prompts
from playground.models.loading import ModelUnavailable
from playground.settings import Settings, SettingsError, read
from playground.store import Store, StoreError
from playground.system import safe_logging
from training import program, sft_data, sft_train, worker
from training.preferences import Row
from training.sft_data import CannotLearn, Reading, Split
from training.sft_round import SFTRound, Task

MOST_NAMED = 20  # bad rows that are named one by one; the others are counted by reason
SAID_EVERY = 10.0  # seconds between two lines on how far training is
SAMPLES = 3  # demonstrations that --dry-run shows
SAMPLE_CHARS = 200  # of a prompt and of a reply


class SFTCommand(Settings):
    """Fine-tunes on demonstrations of a file, and publishes the version where it passes the gate."""

    data: str
    """A file with one demonstration a row (.jsonl, .csv, .parquet, or a .json array), or a dataset of the hub:
    hf://datasets/OWNER/NAME, with @REVISION and /PATH behind it where you want those."""
    dry_run: bool = False
    """Show what would be learnt, and learn nothing."""
    epochs: int = Field(4, ge=1, le=100)
    """Most passes over the demonstrations. It ends before where the loss on held-out ones does not fall any more."""
    minutes: float = Field(60.0, gt=0, le=100_000)
    """Most minutes of training. The gate takes some more."""
    max_rows: int = Field(10_000, ge=1, le=1_000_000)
    """Most rows that are read."""


class NotPublished(Exception):
    """No version was published; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    safe_logging.configure_logging(sys.stderr, "%(asctime)s %(name)s %(message)s")
    try:
        settings = read(argv, SFTCommand, "python -m training.sft")
        safe_logging.write_as(settings.log_format)
        if settings.dry_run:
            store = Store(settings.database) if settings.database.exists() else None
            show(settings, *learn_from(settings, store))
            return 0
        store = Store(settings.database, patience=program.PATIENCE, create=False)
        settings = worker.with_overrides(store, settings)
        _, data = learn_from(settings, store)
        program.prepare(settings)
        print(fine_tune(store, settings, data))
        return 0
    except (SettingsError, CannotRead, CannotLearn, NotPublished, StoreError, ModelUnavailable) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("Stopped. Nothing was published.", file=sys.stderr)
    return 1


# -- what would be learnt


def learn_from(settings: SFTCommand, store: Store | None) -> tuple[Reading, Split]:
    """The demonstrations of the file, and what is said of its rows. What `store` recorded itself is not among them.
    CannotRead or CannotLearn where there is nothing to learn.
    """
    path = settings.data
    reasons: Counter[str] = Counter()

    def name_bad(number: int, reason: str) -> None:
        if reasons.total() < MOST_NAMED:
            print(f"{path}: row {number:,} is left out: {reason}", file=sys.stderr)
        reasons[reason] += 1

    bounded = loading.bounded(settings)
    is_ours = store.recorded_here if store else lambda record: False
    found = sft_data.read(path, loading.load_tokenizer(settings), bounded, settings.max_rows, name_bad, is_ours)
    print(
        f"{path}: {found.rows:,} rows read; demonstrations: {len(found.episodes):,}; repeated: {found.repeated:,}; "
        f"left out: {found.bad:,}; cut to the chat's {bounded.chat.reply_tokens} tokens: {found.cut:,}"
    )
    if found.bad > MOST_NAMED:
        for reason, n in reasons.most_common(10):
            print(f"  {n:,} × {reason}", file=sys.stderr)
    if found.left_over:
        print(f"{path}: the rows after the first {found.rows:,} were not read; see --max-rows", file=sys.stderr)
    return found, sft_data.split(found, bounded)


def show(settings: SFTCommand, found: Reading, data: Split) -> None:
    """Say what would be learnt, with some demonstrations."""
    tokens = sum(len(episode.completion) for episode in data.train)
    print(
        f"It would learn {len(data.train):,} demonstrations ({tokens:,} tokens of replies, "
        f"{mean(len(episode.completion) for episode in data.train):.0f} each) in at most {settings.epochs} epochs of "
        f"{sft_steps(settings, data):,} steps, and hold out {len(data.heldout):,}."
    )
    tokenizer = loading.load_tokenizer(settings)
    for episode in found.episodes[:SAMPLES]:
        prompt = " ".join(prompts.decode(episode.prompt, tokenizer).split())
        reply = " ".join(prompts.reply_text(episode.completion, tokenizer).split())
        print(f"\n  … {prompt[-SAMPLE_CHARS:]}\n  → {reply[:SAMPLE_CHARS]}")


def sft_steps(settings: Settings, data: Split) -> int:
    return sft_train.steps_per_epoch(data.train, settings)


# -- the round


def fine_tune(store: Store, settings: SFTCommand, data: Split) -> str:
    """Run a round on the demonstrations, and return what it made, in a sentence. NotPublished where that is nothing."""
    plain = Settings.like(settings, sft={"epochs": settings.epochs})
    row = take(store, plain, Path(settings.data).name)
    task = Task(data, 60 * settings.minutes, Progress())
    ended = worker.run_taken(store, plain, row, row["owner"], partial(SFTRound, task=task))
    if ended["state"] != "published":
        reason = ended["reason"] or f"round {ended['id']} is {ended['state']}"
        raise NotPublished(f"Nothing was published. {reason}")
    figures = ended["metrics"]
    before, after = figures["heldout_loss"]
    policy = store.round_policy(ended["id"])
    assert policy is not None, "a published round has a version"
    return (
        f"v{policy['version']} is published (round {ended['id']}): held-out loss {before:.3f} → {after:.3f} nats a "
        f"token, KL to the base {figures['kl']:.1f} nats a reply, "
        f"{sum(figures['phase_seconds'].values()):.0f} s."
    )


def take(store: Store, settings: Settings, file: str) -> Row:
    """The row of a new round, whose lease this process has. It waits for a fine-tuning whose process may have died;
    NotPublished where that lives.
    """
    owner = worker.own_name()
    gives_up = time.monotonic() + settings.round.lease_seconds + settings.round.poll_seconds
    while True:
        row = store.take_fine_tuning(
            owner,
            file,
            lease_seconds=settings.round.lease_seconds,
            config=settings.recorded(),
            seed=settings.seed,
        )
        if row is not None:
            return row
        if time.monotonic() > gives_up:
            raise NotPublished(
                "Another fine-tuning runs. Wait until it is over, or stop it on the page, and start again."
            )
        time.sleep(settings.round.poll_seconds)


class Progress:
    """Says how far training is, now and then."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SAID_EVERY

    def __call__(self, step: int, steps: int, loss: float) -> None:
        if time.monotonic() >= self._next:
            print(f"step {step:,} of at most {steps:,}: loss {loss:.3f} nats a token", file=sys.stderr)
            self._next = time.monotonic() + SAID_EVERY


if __name__ == "__main__":
    sys.exit(main())
