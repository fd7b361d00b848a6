"""Votes by scripted annotators, for measuring the truth that votes are only samples of.

Makes duels with the real decoder, model and store, lets an annotator with a known score vote, runs one round in a real
worker process, and measures on held-out prompts how often the new policy beats the base by that score. `python -m
training.simulate --help`.
"""

import gc
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from pydantic import Field

from playground.decoding.decoder import Sampling
from playground.models import adapters, loading, prompts
from playground.settings import Settings, SettingsError, read
from playground.store import Store
from training import annotators, reward, rollout


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


@dataclass
class Vote:
    """One voted duel: the message, its prompt ids, left and right reply as episodes and as texts, and who
    chose what.
    """

    line: str
    prompt: list
    episodes: tuple
    texts: tuple
    annotator: str
    choice: str


def record(store, settings, identity, template, policy, votes):
    """Put voted duels into the store, each a conversation of its own by a simulated person; identity and template are
    the base model's.
    """
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.reply_tokens).as_dict()
    side = {
        "policy": policy,
        "base_model": identity["model"],
        "base_hash": identity["hash"],
        "template_hash": template,
        "sampling": sampling,
        "seed": 0,
    }
    people = {
        name: store.annotator(f"simulated {name}", kind="simulated") for name in sorted({v.annotator for v in votes})
    }
    for v in votes:
        duel = store.start_duel(store.new_conversation(people[v.annotator]), v.line, v.prompt, [side] * 2)
        store.finish_duel(
            duel,
            [
                {
                    "text": t,
                    "seed": 0,
                    "token_ids": e.completion,
                    "logprobs": [],
                    "finish_reason": "end" if e.ended else "length",
                    "first_token_ms": 0,
                    "total_ms": 0,
                }
                for t, e in zip(v.texts, v.episodes, strict=True)
            ],
        )
        store.vote(duel, people[v.annotator], v.choice, store.duel(duel)["left"]["message"])


def make_duels(store, settings, trunk, tokenizer, people, log=print, skip=0):
    """Fill the store with `settings.votes` voted duels by the live version, the voters drawn from `people` {name:
    Person}; returns how many said tie.

    Each is on a shipped prompt of its own as long as there are any; `skip` is how many of them earlier duels have used.
    """
    rng, identity, live = random.Random(settings.seed), loading.base_identity(trunk, settings), store.live_policy()
    model = (
        adapters.load(live["path"], trunk, base_hash=identity["hash"], expected_sha256=live["sha256"])
        if live["version"]
        else trunk
    )
    lines = (rollout.SEED_PROMPTS / "train.txt").read_text().splitlines()
    rng.shuffle(lines)
    lines = list(itertools.islice(itertools.cycle(lines), skip, skip + settings.votes))
    encoded = [
        prompts.encode([{"role": "user", "content": line}], tokenizer, settings.context_tokens) for line in lines
    ]
    episodes = rollout.sample(
        model,
        encoded,
        rng,
        replies=2,
        max_tokens=settings.reply_tokens,
        temperature=settings.temperature,
        end_tokens=loading.end_tokens(trunk, tokenizer),
    )
    replies = [prompts.reply_text(e.completion, tokenizer) for e in episodes]
    scores = {
        name: annotators.standardised([person.score(lines[i // 2], reply) for i, reply in enumerate(replies)])
        for name, person in people.items()
    }
    votes = []
    for i, line in enumerate(lines):
        name, both = rng.choice(sorted(people)), slice(2 * i, 2 * i + 2)
        votes.append(
            Vote(line, encoded[i], episodes[both], replies[both], name, people[name].vote(*scores[name][both], rng))
        )
    record(store, settings, identity, loading.template_hash(tokenizer), live["version"], votes)
    ties = sum(v.choice == "tie" for v in votes)
    log(f"{settings.votes} duels voted on, {ties} ties")
    return ties


def held_out_replies(model, settings, tokenizer, end_tokens, name, replies=1):
    """(lines, texts): replies of a model to the first `settings.eval_prompts` held-out prompts, `replies` to each, in
    order.
    """
    lines = (rollout.SEED_PROMPTS / "heldout.txt").read_text().splitlines()[: settings.eval_prompts]
    encoded = [
        prompts.encode([{"role": "user", "content": line}], tokenizer, settings.context_tokens) for line in lines
    ]
    episodes = rollout.sample(
        model,
        encoded,
        random.Random(f"{settings.seed}/{name}"),
        replies=replies,
        max_tokens=settings.reply_tokens,
        temperature=settings.temperature,
        end_tokens=end_tokens,
    )
    return lines, [prompts.reply_text(e.completion, tokenizer) for e in episodes]


def compare(settings, trunk, tokenizer, people, policy_row):
    """The annotators' own scores of base and new policy on held-out prompts; returns the figures."""
    tuned = adapters.load(
        policy_row["path"],
        trunk,
        base_hash=loading.base_identity(trunk, settings)["hash"],
        expected_sha256=policy_row["sha256"],
    )
    end = loading.end_tokens(trunk, tokenizer)
    lines, before = held_out_replies(trunk, settings, tokenizer, end, "before")
    _, after = held_out_replies(tuned, settings, tokenizer, end, "after")
    by_person, total = {}, 0.0
    for name, person in people.items():
        old, new = (
            [person.score(line, reply) for line, reply in zip(lines, replies, strict=True)]
            for replies in (before, after)
        )
        wins = sum((a > b) + 0.5 * (a == b) for a, b in zip(new, old, strict=True))
        by_person[name] = {"win_rate": wins / len(lines), "score_before": mean(old), "score_after": mean(new)}
        total += wins / len(people)
    return {
        "win_rate": total / len(lines),
        "win_rate_ci": reward.wilson(total, len(lines)),
        "score_before": mean(p["score_before"] for p in by_person.values()),
        "score_after": mean(p["score_after"] for p in by_person.values()),
        "by_annotator": by_person,
        "samples": [
            {"prompt": p, "before": b, "after": a} for p, b, a in list(zip(lines, before, after, strict=True))[:6]
        ],
    }


def run(settings, log=print):
    """The whole simulation in a folder of its own unless `data_dir` names one; returns the figures as a dict."""
    people = annotators.people(
        settings.annotator,
        temperature=settings.vote_temperature,
        lean=settings.position_bias,
        flip=settings.flip,
        bad_below=settings.both_bad if settings.both_bad > -10 else None,
    )
    torch.set_num_threads(settings.threads)
    tokenizer, trunk = loading.load_tokenizer(settings), loading.load_trunk(settings)
    store = Store(settings.database)
    if store.last_round() or store.new_votes():
        raise SettingsError(f"--data-dir: {settings.data_dir} already holds votes; a simulation needs an empty one")
    ties = make_duels(store, settings, trunk, tokenizer, people, log)
    del trunk
    gc.collect()

    start = time.monotonic()
    environ = {**os.environ, **settings.environ()}
    subprocess.run(
        [sys.executable, "-m", "training.worker", "--once"], env=environ, cwd=Path(__file__).parent.parent, check=False
    )
    minutes, peak = (time.monotonic() - start) / 60, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024

    row = store.last_round()
    policy = store.round_policy(row["id"])
    figures = {
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
        "peak_mb": round(peak),
        "state": row["state"],
        "published": row["state"] == "published",
        "refused_because": row["reason"] and str(row["reason"]),
    }


def main(argv=None):
    try:
        settings = read(argv, SimulateSettings, "python -m training.simulate")
        if settings.data_dir == Settings.model_fields["data_dir"].default:
            with tempfile.TemporaryDirectory() as scratch:
                figures = run(settings.model_copy(update={"data_dir": Path(scratch)}))
        else:
            figures = run(settings)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    for name, value in figures.items():
        if name != "samples":
            print(f"{name:>16}  {value:.3f}" if isinstance(value, float) else f"{name:>16}  {value}")
    if settings.json_file:
        Path(settings.json_file).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
