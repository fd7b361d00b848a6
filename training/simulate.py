"""Votes by scripted annotators, for measuring a round against the truth that votes are only noisy samples of.

Makes duels with the real decoder, model and store, lets an annotator with a known score vote, runs one round in a real
worker process, and measures on held-out prompts how often the new policy beats the base by that score. `python -m
training.simulate --help`.
"""

import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from playground.decoding.sampling import Sampling
from playground.models import adapters, loading, prompts
from playground.models.intervals import wilson
from playground.models.loading import BaseIdentity, EndTokens
from playground.settings import Settings, SettingsError, read
from playground.store import Store
from playground.system import memory
from training import annotators, rollout
from training.annotators import Person
from training.rollout import Episode


class SimulateSettings(Settings):
    """Simulated votes, one training round on them, and what it changed."""

    votes: int = Field(32, ge=2)
    """Votes to draw; each is on a conversation of its own."""
    annotator: str = "brevity"
    """Who votes: brevity, lists, second_person, question, formality, or module:function, a callable (prompt, reply) ->
    score. Several, with commas between, vote in turn at random; `lists@0.5` votes at a temperature of its own."""
    flip: float = Field(0.0, ge=0, le=0.5)
    """Share of votes that are flipped at random."""
    vote_temperature: float = Field(0.0, ge=0, le=10)
    """Temperature of the votes, in deviations of the annotator's score: 0 always picks the better reply, 1 often the
    worse one.
    """
    position_bias: float = Field(0.0, ge=-5, le=5)
    """Log-odds in favour of the reply on the left; only votes with a temperature feel it."""
    both_bad: float = Field(-10.0, ge=-10, le=0)
    """Two replies whose scores both lie this many deviations from the mean are voted both bad."""
    eval_prompts: int = Field(96, ge=4)
    """Held-out prompts for the comparison with the base."""
    json_file: str = Field("", alias="json")
    """File for the figures, as JSON."""


@dataclass(frozen=True)
class Vote:
    """One voted duel."""

    line: str  # the message
    prompt: list[int]  # its prompt ids
    episodes: Sequence[Episode]  # left and right reply
    texts: Sequence[str]  # of the two replies
    annotator: str
    choice: str


def record(
    store: Store, settings: Settings, identity: BaseIdentity, template: str, policy: int, votes: Sequence[Vote]
) -> None:
    """Put voted duels into the store, each in a conversation of its own by a simulated person. `identity` and
    `template` (hash) are the base model's, `policy` is the version that wrote the replies.
    """
    sampling = Sampling(settings.chat.temperature, settings.chat.top_p, settings.chat.top_k, settings.chat.reply_tokens)
    side = {
        "policy": policy,
        "base_model": identity["model"],
        "base_hash": identity["hash"],
        "template_hash": template,
        "sampling": sampling.as_dict(),
        "seed": 0,
    }
    names = sorted({vote.annotator for vote in votes})
    people = {name: store.annotator(f"simulated {name}", kind="simulated") for name in names}
    for vote in votes:
        person = people[vote.annotator]
        duel = store.start_duel(store.new_conversation(person), vote.line, vote.prompt, [side] * 2)
        replies = [
            {
                "text": text,
                "seed": 0,
                "token_ids": episode.completion,
                "logprobs": [],
                "finish_reason": "end" if episode.ended else "length",
                "first_token_ms": 0,
                "total_ms": 0,
            }
            for text, episode in zip(vote.texts, vote.episodes, strict=True)
        ]
        store.finish_duel(duel, replies)
        recorded = store.duel(duel)
        assert recorded is not None  # it was recorded a moment ago
        store.vote(duel, person, vote.choice, recorded["left"]["message"])


def make_duels(
    store: Store,
    settings: SimulateSettings,
    trunk: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    people: Mapping[str, Person],
    log: Callable[[str], None] = print,
    skip: int = 0,
) -> int:
    """Fill the store with `settings.votes` voted duels by the live version. The voters are drawn from `people` {name:
    Person}. Returns how many votes are ties.

    Each duel is on a shipped prompt of its own as long as there are any; `skip` is how many prompts earlier duels have
    used.
    """
    rng = random.Random(settings.seed)
    identity = loading.base_identity(trunk, settings)
    live = store.live_policy()
    model = trunk
    if live["version"]:
        model = adapters.load(live["path"], trunk, base_hash=identity["hash"], expected_sha256=live["sha256"])
    lines = (rollout.SEED_PROMPTS / "train.txt").read_text().splitlines()
    rng.shuffle(lines)
    lines = list(itertools.islice(itertools.cycle(lines), skip, skip + settings.votes))
    encoded = encode_lines(lines, tokenizer, settings)
    episodes = rollout.Rollouts(model).sample(
        encoded,
        rng,
        replies=2,
        max_tokens=settings.chat.reply_tokens,
        temperature=settings.chat.temperature,
        end_tokens=loading.end_tokens(trunk, tokenizer),
    )
    texts = [prompts.reply_text(episode.completion, tokenizer) for episode in episodes]
    scores = {}
    for name, person in people.items():
        raw = [person.score(lines[i // 2], text) for i, text in enumerate(texts)]
        scores[name] = annotators.standardised(raw)
    votes = []
    for i, line in enumerate(lines):
        name = rng.choice(sorted(people))
        duel = slice(2 * i, 2 * i + 2)
        left_score, right_score = scores[name][duel]
        choice = people[name].vote(left_score, right_score, rng)
        votes.append(
            Vote(
                line=line,
                prompt=encoded[i],
                episodes=episodes[duel],
                texts=texts[duel],
                annotator=name,
                choice=choice,
            )
        )
    record(store, settings, identity, loading.template_hash(tokenizer), live["version"], votes)
    ties = sum(vote.choice == "tie" for vote in votes)
    log(f"{settings.votes} duels voted on, {ties} ties")
    return ties


def encode_lines(lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, settings: Settings) -> list[list[int]]:
    """Prompt ids of each line as the first message of a chat."""
    return [
        prompts.encode([{"role": "user", "content": line}], tokenizer, settings.chat.context_tokens) for line in lines
    ]


def held_out_replies(
    model: PreTrainedModel,
    settings: SimulateSettings,
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: EndTokens,
    name: str,
    replies: int = 1,
) -> tuple[list[str], list[str]]:
    """(lines, texts): a model's replies to the first `settings.eval_prompts` held-out prompts, `replies` to each, in
    order. `name` is a part of the seed.
    """
    lines = (rollout.SEED_PROMPTS / "heldout.txt").read_text().splitlines()[: settings.eval_prompts]
    episodes = rollout.Rollouts(model).sample(
        encode_lines(lines, tokenizer, settings),
        random.Random(f"{settings.seed}/{name}"),
        replies=replies,
        max_tokens=settings.chat.reply_tokens,
        temperature=settings.chat.temperature,
        end_tokens=end_tokens,
    )
    return lines, [prompts.reply_text(episode.completion, tokenizer) for episode in episodes]


def compare(
    settings: SimulateSettings,
    trunk: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    people: Mapping[str, Person],
    policy_row: Mapping[str, Any],
) -> dict[str, Any]:
    """The annotators' own scores of base and new policy on held-out prompts; returns the figures."""
    tuned = adapters.load(
        policy_row["path"],
        trunk,
        base_hash=loading.base_identity(trunk, settings)["hash"],
        expected_sha256=policy_row["sha256"],
    )
    end_tokens = loading.end_tokens(trunk, tokenizer)
    lines, before = held_out_replies(trunk, settings, tokenizer, end_tokens, "before")
    _, after = held_out_replies(tuned, settings, tokenizer, end_tokens, "after")
    by_person = {}
    total_wins = 0.0
    for name, person in people.items():
        old = [person.score(line, reply) for line, reply in zip(lines, before, strict=True)]
        new = [person.score(line, reply) for line, reply in zip(lines, after, strict=True)]
        wins = sum((a > b) + 0.5 * (a == b) for a, b in zip(new, old, strict=True))
        by_person[name] = {"win_rate": wins / len(lines), "score_before": mean(old), "score_after": mean(new)}
        total_wins += wins / len(people)
    samples = list(zip(lines, before, after, strict=True))[:6]
    return {
        "win_rate": total_wins / len(lines),
        "win_rate_ci": wilson(total_wins, len(lines)),
        "score_before": mean(figures["score_before"] for figures in by_person.values()),
        "score_after": mean(figures["score_after"] for figures in by_person.values()),
        "by_annotator": by_person,
        "samples": [{"prompt": line, "before": old, "after": new} for line, old, new in samples],
    }


def run(settings: SimulateSettings, log: Callable[[str], None] = print) -> dict[str, Any]:
    """The whole simulation in `settings.data_dir`, which must hold no votes yet; returns the figures."""
    people = annotators.people(
        settings.annotator,
        temperature=settings.vote_temperature,
        lean=settings.position_bias,
        flip=settings.flip,
        bad_below=settings.both_bad if settings.both_bad > -10 else None,
    )
    torch.set_num_threads(settings.threads)
    tokenizer = loading.load_tokenizer(settings)
    trunk = loading.load_trunk(settings)
    store = Store(settings.database)
    if store.last_round() or store.new_votes():
        raise SettingsError(f"--data-dir: {settings.data_dir} already holds votes; a simulation needs an empty one")
    ties = make_duels(store, settings, trunk, tokenizer, people, log)
    del trunk
    memory.release()

    start = time.monotonic()
    environ = {**os.environ, **settings.environ()}
    subprocess.run(
        [sys.executable, "-m", "training.worker", "--once"], env=environ, cwd=Path(__file__).parent.parent, check=False
    )
    minutes = (time.monotonic() - start) / 60
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024

    row = store.last_round()
    assert row is not None  # the worker ran one
    policy = store.round_policy(row["id"])
    figures: dict[str, Any] = {
        "annotator": settings.annotator,
        "votes": settings.votes,
        "flip": settings.flip,
        "seed": settings.seed,
        "ties": ties,
        "win_rate": None,
        "win_rate_ci": None,
        "score_before": None,
        "score_after": None,
        "by_annotator": None,
    }
    if policy:
        figures |= compare(settings, loading.load_trunk(settings), tokenizer, people, policy)
    metrics = row["metrics"]
    return figures | {
        "rm_accuracy": metrics.get("heldout_accuracy"),
        "rm_cv_accuracy": metrics.get("cv_accuracy"),
        "rm_nll": metrics.get("heldout_nll"),
        "kl": metrics.get("kl"),
        "minutes": round(minutes, 2),
        "peak_mb": round(peak_mb),
        "state": row["state"],
        "published": row["state"] == "published",
        "refused_because": row["reason"] and str(row["reason"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, SimulateSettings, "python -m training.simulate")
        if settings.data_dir == Settings.model_fields["data_dir"].default:
            with tempfile.TemporaryDirectory() as scratch:
                figures = run(settings.with_values(data_dir=Path(scratch)))
        else:
            figures = run(settings)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    for name, value in figures.items():
        if name != "samples":
            shown = f"{value:.3f}" if isinstance(value, float) else value
            print(f"{name:>16}  {shown}")
    if settings.json_file:
        Path(settings.json_file).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
