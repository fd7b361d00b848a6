"""Votes by scripted annotators, for measuring the truth that votes are only samples of.

Makes duels with the real decoder, model and store, lets an annotator with a known score vote, runs one round in a real worker process, and
measures on held-out prompts how often the new policy beats the base by that score. `python -m training.simulate --help`.
"""

import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from pydantic import Field

from playground import adapters, models, prompts
from playground.decoder import Sampling
from playground.settings import Settings, SettingsError, read
from playground.store import Store
from training import annotators, reward, rollout


class SimulateSettings(Settings):
    """Simulated votes, one training round on them, and what it changed."""

    votes: int = Field(32, ge=2)
    """Votes to draw; each is on a conversation of its own."""
    annotator: str = "brevity"
    """Who votes: brevity, lists, second_person, question, formality, or module:function, a callable (prompt, reply) -> score."""
    flip: float = Field(0.0, ge=0, le=0.5)
    """Share of votes that are flipped at random."""
    vote_temperature: float = Field(0.0, ge=0, le=10)
    """Temperature of the votes, in deviations of the annotator's score: 0 always picks the better reply, 1 often the worse one."""
    position_bias: float = Field(0.0, ge=-5, le=5)
    """Log-odds in favour of the reply on the left; only votes with a temperature feel it."""
    both_bad: float = Field(-10.0, ge=-10, le=0)
    """Two replies whose scores both lie this many deviations from the mean are voted both bad."""
    eval_prompts: int = Field(96, ge=4)
    """Held-out prompts for the comparison with the base."""
    json_file: str = Field("", alias="json")
    """File for the figures, as JSON."""


def make_duels(store, settings, trunk, tokenizer, annotator, log=print):
    """Fill the store with `settings.votes` voted duels, each a conversation of its own, by the base; returns how many votes said tie."""
    identity, end_tokens = models.base_identity(trunk, settings), models.end_tokens(trunk, tokenizer)
    rng, person = random.Random(settings.seed), store.annotator("simulated", kind="simulated")
    lines = (rollout.SEED_PROMPTS / "train.txt").read_text().splitlines()
    rng.shuffle(lines)
    lines = (lines * (settings.votes // len(lines) + 1))[: settings.votes]
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.reply_tokens)
    side = {"policy": 0, "base_model": identity["model"], "base_hash": identity["hash"], "template_hash": models.template_hash(tokenizer),
            "sampling": sampling.as_dict()}
    encoded = [prompts.encode([{"role": "user", "content": line}], tokenizer, settings.context_tokens) for line in lines]
    episodes = rollout.sample(trunk, encoded, rng, replies=2, max_tokens=settings.reply_tokens, temperature=settings.temperature, end_tokens=end_tokens)
    replies = [prompts.decode(e.completion, tokenizer).strip() for e in episodes]
    scores = annotators.standardised([annotator(lines[i // 2], reply) for i, reply in enumerate(replies)])
    voter = annotators.Person(annotator, settings.vote_temperature, lean=settings.position_bias, flip=settings.flip, bad_below=settings.both_bad)
    ties = 0
    for i, line in enumerate(lines):
        pair, texts = episodes[2 * i: 2 * i + 2], replies[2 * i: 2 * i + 2]
        duel = store.start_duel(store.new_conversation(person), line, encoded[i], [{**side, "seed": 0}] * 2)
        store.finish_duel(duel, [{"text": t, "token_ids": e.completion, "logprobs": [], "finish_reason": "end" if e.ended else "length",
                                  "first_token_ms": 0, "total_ms": 0} for t, e in zip(texts, pair, strict=True)])
        choice = voter.vote(scores[2 * i], scores[2 * i + 1], rng)
        ties += choice == "tie"
        store.vote(duel, person, choice, store.duel(duel)["left"]["message"])
    log(f"{settings.votes} duels voted on, {ties} ties")
    return ties


def compare(store, settings, trunk, tokenizer, annotator, policy_row):
    """The annotator's own score of base and new policy on held-out prompts; returns the figures."""
    lines = (rollout.SEED_PROMPTS / "heldout.txt").read_text().splitlines()[: settings.eval_prompts]
    encoded = [prompts.encode([{"role": "user", "content": line}], tokenizer, settings.context_tokens) for line in lines]
    tuned = adapters.load(policy_row["path"], trunk, base_hash=models.base_identity(trunk, settings)["hash"], expected_sha256=policy_row["sha256"])
    scores, replies = {}, {}
    for name, model in (("before", trunk), ("after", tuned)):
        episodes = rollout.sample(model, encoded, random.Random(f"{settings.seed}/{name}"), replies=1, max_tokens=settings.reply_tokens,
                                  temperature=settings.temperature, end_tokens=models.end_tokens(trunk, tokenizer))
        replies[name] = [prompts.decode(e.completion, tokenizer).strip() for e in episodes]
        scores[name] = [annotator(line, reply) for line, reply in zip(lines, replies[name], strict=True)]
    wins = sum((a > b) + 0.5 * (a == b) for a, b in zip(scores["after"], scores["before"], strict=True))
    return {"win_rate": wins / len(lines), "win_rate_ci": reward.wilson(wins, len(lines)),
            "score_before": sum(scores["before"]) / len(lines), "score_after": sum(scores["after"]) / len(lines),
            "samples": [{"prompt": p, "before": b, "after": a} for p, b, a in list(zip(lines, replies["before"], replies["after"], strict=True))[:6]]}


def run(settings, log=print):
    """The whole simulation in a folder of its own unless `data_dir` names one; returns the figures as a dict."""
    annotator = annotators.find(settings.annotator)
    torch.set_num_threads(settings.threads)
    tokenizer, trunk = models.load_tokenizer(settings), models.load_trunk(settings)
    store = Store(settings.database)
    if store.last_round() or store.new_votes():
        raise SettingsError(f"--data-dir: {settings.data_dir} already holds votes; a simulation needs an empty one")
    ties = make_duels(store, settings, trunk, tokenizer, annotator, log)
    del trunk
    gc.collect()

    start = time.monotonic()
    environ = {**os.environ, **settings.environ()}
    subprocess.run([sys.executable, "-m", "training.worker", "--once"], env=environ, cwd=Path(__file__).parent.parent, check=False)
    minutes, peak = (time.monotonic() - start) / 60, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024

    row = store.last_round()
    policy = store.row("select * from policy where round = ?", row["id"])
    figures = {"annotator": settings.annotator, "votes": settings.votes, "flip": settings.flip, "seed": settings.seed, "ties": ties,
               "win_rate": None, "win_rate_ci": None, "score_before": None, "score_after": None}
    if policy:
        figures |= compare(store, settings, models.load_trunk(settings), tokenizer, annotator, policy)
    metrics = row["metrics"]
    return figures | {
        "rm_accuracy": metrics.get("heldout_accuracy"), "rm_cv_accuracy": metrics.get("cv_accuracy"), "rm_nll": metrics.get("heldout_nll"),
        "kl": metrics.get("kl"), "minutes": round(minutes, 2), "peak_mb": round(peak), "state": row["state"],
        "published": row["state"] == "published", "refused_because": row["reason"]}


def main(argv=None):
    try:
        settings = read(argv, SimulateSettings, "python -m training.simulate")
        if settings.data_dir == Settings.model_fields["data_dir"].default:
            with tempfile.TemporaryDirectory() as scratch:
                figures = run(settings.model_copy(update={"data_dir": Path(scratch)}))
        else:
            figures = run(settings)
    except (SettingsError, models.ModelUnavailable) as error:
        sys.exit(str(error))
    for name, value in figures.items():
        if name != "samples":
            print(f"{name:>16}  {value:.3f}" if isinstance(value, float) else f"{name:>16}  {value}")
    if settings.json_file:
        Path(settings.json_file).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
