"""How well the reward model predicts real people's votes, beside the length alone and TRL's RewardTrainer, from 50
votes to all of them: `python -m benchmarks.human_votes --votes-file FILE`.

FILE has one JSON object a line: `instruction`, `input` (may be empty), `reply_1`, `reply_2`, and `votes`, of several
people, each 1, 2 or 0 for a tie. The majority is the vote that is learned and predicted; rows without one are left out.
Five folds of whole prompts: a fold is predicted by reward models that have seen votes of the four others alone. What
was read and trained is kept in `DATA/benchmarks/human_votes.db`, so that a run that was stopped goes on where it was.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from pydantic import Field

from benchmarks import peer, report
from benchmarks.pool import Cache
from benchmarks.voted_pairs import FOLDS, Votes, agreement, make_votes, read_votes
from playground.models import loading, scorer, sources
from playground.settings import Settings, SettingsError, read
from training import gate, reward, reward_head
from training.preferences import TIE, A, Pair
from training.reward_validation import Predictions, wilson

PEER = "trl-1.16"
PINS = ["trl==1.16.0", "datasets==5.2.0", *peer.pins_of("accelerate", "peft", "torch", "transformers")]
PEER_CODE = peer.ROOT / "benchmarks" / "peers" / "trl_reward.py"
SIZES = (50, 100, 200, 400)
PEER_SIZES = (100, 400)


class HumanVotesSettings(Settings):
    """Reward models from real people's votes."""

    votes_file: Path | None = None
    """Rows of real people's votes, one JSON object a line."""
    quick: bool = False
    """One draw of votes of each size; the peer on one fold and 100 votes."""
    peer_folds: int = Field(FOLDS, ge=0, le=FOLDS)
    """Folds of which TRL's RewardTrainer predicts the votes too, which takes hours on two cores; 0 leaves it out."""
    peer_epochs: int = Field(2, ge=1)
    """Epochs of the peer."""
    draws: int = Field(0, ge=0)
    """How often the votes of each size are drawn again in each fold; 0 takes 3, or 1 with --quick."""
    json_file: str = Field("", alias="json")
    """File to write the rows to."""


# -- one reward model, and what it predicts of a fold


def predict(votes: Votes, indices: Sequence[int], heldout: Sequence[Pair], settings: Settings) -> Predictions:
    """Predictions of the held-out pairs by a reward model of the votes with these indices."""
    prefs, extracted = votes.some(indices)
    with reward_head.one_thread():
        model = reward.fit_votes(extracted, prefs, settings)
    features = scorer.with_counts(votes.features, votes.prefs.replies, model.tokens)
    return Predictions.of(model.raw(features), model.log_nu, heldout)


def predict_all(
    votes: Votes, size: int, draws: int, settings: Settings, folds: Sequence[int] = range(FOLDS)
) -> list[Predictions]:
    """Predictions of the decided pairs of these folds, from `size` votes of the other folds; once for each draw of
    them. A size of 0 takes all votes of the other folds.
    """
    return [
        Predictions.join([predict(votes, *drawn_votes(votes, size, k, draw, settings.seed), settings) for k in folds])
        for draw in range(draws)
    ]


def drawn_votes(votes: Votes, size: int, k: int, draw: int, seed: int) -> tuple[list[int], list[Pair]]:
    """`size` indices of the pairs outside fold `k`, and the decided pairs inside."""
    outside, inside = votes.fold(k, seed)
    rng = random.Random(f"{seed}/{k}/{draw}")
    return rng.sample(outside, min(size, len(outside)) or len(outside)), inside


# -- the peer


def peer_job(votes: Votes, indices: Sequence[int], heldout: Sequence[Pair], settings: HumanVotesSettings) -> dict:
    """What `peers/trl_reward.py` trains on, and the replies that it scores: left and right of each held-out pair."""
    decided = [pair for i in indices if (pair := votes.prefs.pairs[i]).outcome != TIE]
    better_first = [(p.left, p.right) if p.outcome == A else (p.right, p.left) for p in decided]
    return {
        "model": sources.resolve(settings),
        "pairs": [(*votes.texts[better], votes.texts[worse][1]) for better, worse in better_first],
        "replies": [votes.texts[reply] for pair in heldout for reply in (pair.left, pair.right)],
        "epochs": settings.peer_epochs,
        "lr": 1e-4,
        "batch": 8,
        "rank": settings.ppo.lora_rank,
        "alpha": settings.ppo.lora_alpha,
        "max_tokens": settings.chat.context_tokens,
        "threads": settings.threads,
        "seed": settings.seed,
    }


def run_peer(job: dict, settings: Settings, log: Callable[[str], None]) -> dict:
    """{"scores", "seconds"} of a job, by the peer's own Python."""
    python = peer.python(settings, PEER, PINS, log)
    log(f"TRL: {len(job['pairs'])} decided votes, {job['epochs']} epochs")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job))
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
        return json.loads(peer.run([python, PEER_CODE, file], environment).splitlines()[-1])


def predict_by_peer(
    votes: Votes,
    size: int,
    folds: Sequence[int],
    settings: HumanVotesSettings,
    cache: Cache,
    log: Callable[[str], None],
) -> Predictions:
    """The peer's Predictions of these folds, from the very votes of our first draw."""
    several = []
    for k in folds:
        indices, inside = drawn_votes(votes, size, k, 0, settings.seed)
        job = peer_job(votes, indices, inside, settings)
        key = {name: value for name, value in job.items() if name != "threads"}
        cell = cache.get(lambda job=job: run_peer(job, settings, log), kind="peer", code=PEER_CODE.read_text(), **key)
        scores = torch.tensor(cell["scores"])
        outcome = torch.tensor([pair.outcome for pair in inside])
        several.append(Predictions(scores[0::2] - scores[1::2], torch.zeros(len(inside)), outcome))
    return Predictions.join(several)


# -- the table


def hits(predictions: Predictions) -> np.ndarray:
    """Of each decided pair 1 where it is predicted correctly, ½ at equal scores, else 0."""
    sign = torch.where(predictions.outcome == A, 1.0, -1.0)
    return ((predictions.margin.sign() * sign + 1) / 2).numpy()


def mean_hits(drawn: Sequence[Predictions]) -> np.ndarray:
    """Of each decided pair the share of the draws that predict it correctly."""
    return np.mean([hits(predictions) for predictions in drawn], axis=0)


def accuracy_row(what: str, correct: np.ndarray) -> dict:
    low, high = wilson(float(correct.sum()), len(correct))
    return report.row(f"{what}: accuracy [{low:.2f}, {high:.2f}]", float(correct.mean()))


def size_rows(name: str, ours: Sequence[Predictions], length: Sequence[Predictions], bar: str | None) -> list[dict]:
    """Both sides from as many votes, and the difference with its paired interval."""
    mine, plain = mean_hits(ours), mean_hits(length)
    low, high = gate.interval(mine - plain, 0.95, 0)
    return [
        accuracy_row(f"{name}, the reward model", mine),
        accuracy_row(f"{name}, the length alone", plain),
        report.row(
            f"{name}, the reward model above the length [{low:+.3f}, {high:+.3f}]",
            float((mine - plain).mean()),
            "",
            bar,
        ),
        report.row(f"{name}, the reward model: NLL", mean(p.nll() or 0.0 for p in ours), "nats"),
        report.row(f"{name}, the length alone: NLL", mean(p.nll() or 0.0 for p in length), "nats"),
    ]


def peer_rows(
    votes: Votes, size: int, settings: HumanVotesSettings, cache: Cache, log: Callable[[str], None]
) -> list[dict]:
    """Ours and the peer's from the same votes on the same folds, and the difference with its paired interval."""
    folds = range(min(settings.peer_folds, 1) if settings.quick else settings.peer_folds)
    if not folds:
        return []
    theirs = hits(predict_by_peer(votes, size, folds, settings, cache, log))
    [ours] = predict_all(votes, size, 1, settings, folds)
    low, high = gate.interval(hits(ours) - theirs, 0.95, 0)
    name = f"{size} votes, {len(folds)} of {FOLDS} folds"
    return [
        accuracy_row(f"{name}, TRL's RewardTrainer with a LoRA", theirs),
        accuracy_row(f"{name}, the reward model", hits(ours)),
        report.row(
            f"{name}, the reward model above TRL's [{low:+.3f}, {high:+.3f}]", float((hits(ours) - theirs).mean())
        ),
    ]


def run(settings: HumanVotesSettings, log: Callable[[str], None] = print) -> list[dict]:
    """The rows."""
    if settings.votes_file is None:
        raise SettingsError("--votes-file: name the file with real people's votes")
    torch.set_num_threads(settings.threads)
    pairs = read_votes(settings.votes_file)
    cache = Cache(settings, "human_votes")
    votes = make_votes(pairs, settings, cache, log)
    draws = settings.draws or (1 if settings.quick else 3)
    by_length = settings.with_values(reward={"features": "length"})
    shared, compared = agreement(pairs)
    rows = [report.row(f"one person's choice is another's, of {compared}", shared)]
    everything = min(len(votes.fold(k, settings.seed)[0]) for k in range(FOLDS))
    sizes = [size for size in SIZES if size < everything]
    accuracies = []
    for size in [*sizes, 0]:
        times = draws if size else 1
        ours, length = predict_all(votes, size, times, settings), predict_all(votes, size, times, by_length)
        name = f"{size} votes" if size else f"all votes, at least {everything}"
        rows += size_rows(name, ours, length, "≥ 0.03" if size in (0, SIZES[-1]) else "≥ -0.01")
        accuracies.append(float(mean_hits(ours).mean()))
        log(f"{name}: {accuracies[-1]:.3f}")
    if len(accuracies) > 2:
        what = f"what the votes from {sizes[-2]} on add to the accuracy: near 0 where the features are the limit"
        rows.append(report.row(what, accuracies[-1] - accuracies[-3]))
    for size in PEER_SIZES[:1] if settings.quick else PEER_SIZES:
        rows += peer_rows(votes, size, settings, cache, log)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, HumanVotesSettings, "python -m benchmarks.human_votes")
        rows = run(settings)
    except (SettingsError, peer.SideFailed, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    report.show(rows, settings.json_file)


if __name__ == "__main__":
    main()
