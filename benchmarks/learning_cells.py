"""The measurements that `learning.py` makes its tables from, called cells: one reward model, one round, one peer.

A cell is kept in `DATA/benchmarks/learning.db`, keyed by what it was made from, the code included, so that a run that
was stopped continues where it was.
"""

import itertools
import time
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from benchmarks import last_token, rounds
from benchmarks import pool as pools
from benchmarks.report import Log
from playground.models import loading, scorer
from playground.settings import Settings
from training import (
    annotators,
    gate,
    policy,
    ppo,
    ppo_math,
    preferences,
    reward,
    reward_head,
    reward_validation,
    rollout,
    round_control,
    round_models,
    round_start,
)
from training import round as training_round
from training.annotators import Person, Score
from training.preferences import Pair
from training.reward_validation import Choice, Predictions

REWARD_CODE = (scorer, reward, reward_head, reward_validation, preferences, annotators, pools)
PEER_CODE = (last_token, annotators, pools)
PPO_CODE = (policy, ppo, ppo_math, rollout)
ROUND_CODE = (*REWARD_CODE, *PPO_CODE, rounds, gate, training_round, round_start, round_control, round_models)

Cell = dict[str, Any]  # what was measured, by name


class LearningSettings(Settings):
    """Reward models and rounds from simulated votes."""

    quick: bool = False
    """A few prompts, seeds and votes, and one round, in minutes."""
    rounds: Literal["run", "known", "none"] = "run"
    """Rounds take minutes each: run those that are missing, show what is known and compute nothing,
    or leave them out.
    """
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON."""
    plots: str = ""
    """Folder for the plots: learning curve, calibration, over-optimisation."""
    replies: int = Field(4, ge=2)
    """Replies sampled to each prompt; any two of one prompt can be a duel."""


# -- one cell


def reward_cell(
    pool: pools.Pool,
    settings: LearningSettings,
    annotator: str,
    n: int,
    flip: float,
    seed: int,
    shuffled: bool = False,
) -> Cell:
    """Fit on `n` votes; what the fit says of itself, and what is true on the held-out prompts."""
    score = annotators.find(annotator)
    prefs, chosen = pools.vote(pool, Person(score, flip=flip), n, seed, shuffled)
    start = time.monotonic()
    model, fit = reward.fit(prefs, pools.KnownFeatures(pool, chosen), settings)
    seconds = time.monotonic() - start
    pairs = true_pairs(pool, score)
    raw = model.raw(scorer.with_counts(pool.features, pool.ids, model.tokens))
    predictions = Predictions.of(raw, model.log_nu, pairs)
    length = [np.log(len(completion)) for _, completion in pool.ids]
    is_matched = [abs(length[pair.left] - length[pair.right]) < reward.LENGTH_MATCHED for pair in pairs]
    return {
        "accuracy": predictions.accuracy(),
        "nll": predictions.nll(),
        "matched": predictions.where(is_matched).accuracy(),
        "ece": predictions.calibration_error(),
        "reliability": reliability(predictions),
        "cv": fit.cv_accuracy,
        "cv_right": round(fit.cv_accuracy * len(prefs.pairs), 1),
        "enough": fit.enough,
        "features": fit.feature_set,
        "penalty": fit.heads[0].penalty,
        "seconds": seconds,
    }


def true_pairs(pool: pools.Pool, score: Score) -> list[Pair]:
    """All pairs of replies to one held-out prompt, as the score without noise decides them."""
    truth = pool.scores(score)

    def outcome(left: int, right: int) -> int:
        if truth[left] == truth[right]:
            return preferences.TIE
        return preferences.A if truth[left] > truth[right] else preferences.B

    pairs = itertools.chain.from_iterable(pool.pairs(heldout=True))
    return [Pair(left, right, outcome(left, right)) for left, right in pairs]


def last_token_cell(pool: pools.Pool, settings: LearningSettings, annotator: str, n: int, seed: int) -> Cell:
    """The peer's accuracy on the held-out prompts, from the same votes, after each of its epochs."""
    score = annotators.find(annotator)
    prefs, _ = pools.vote(pool, Person(score), n, seed)
    start = time.monotonic()
    accuracies = last_token.accuracies(prefs, pool.ids, true_pairs(pool, score), settings, seed)
    return {"accuracies": accuracies, "seconds": time.monotonic() - start}


def best_of_cell(
    pool: pools.Pool,
    candidates: pools.Pool,
    settings: Settings,
    annotator: str,
    n: int,
    flip: float,
    seed: int,
    among: int | None = None,
) -> Cell:
    """How often the best of several replies, by the reward model from `n` votes, truly beats the base's replies to a
    held-out prompt. It is the best of the first `among` candidates, by default of all.
    """
    score = annotators.find(annotator)
    prefs, chosen = pools.vote(pool, Person(score, flip=flip), n, seed)
    model, _ = reward.fit(prefs, pools.KnownFeatures(pool, chosen), settings)
    rewards = model.raw(scorer.with_counts(candidates.features, candidates.ids, model.tokens))
    truth = candidates.scores(score)
    base = pool.scores(score)
    wins = []
    for group, others in zip(candidates.groups(heldout=True), pool.groups(heldout=True), strict=True):
        best = max(group[:among], key=rewards.__getitem__)
        wins.append(np.mean([(truth[best] > base[i]) + 0.5 * (truth[best] == base[i]) for i in others]))
    return {"win_rate": float(np.mean(wins)), "interval": gate.interval(np.array(wins), 0.95, 0)}


def reliability(predictions: Predictions, bins: int = 10) -> list[list[float]]:
    """[[mean P(a), share of a, pairs]] of decided pairs, by P(a) in bins of equal width."""
    decided = predictions.outcome != preferences.TIE
    predicted = torch.sigmoid(predictions.margin[decided]).numpy()
    observed = (predictions.outcome[decided] == preferences.A).numpy()
    bin_of = np.minimum((predicted * bins).astype(int), bins - 1)
    table = []
    for number in range(bins):
        is_in = bin_of == number
        if is_in.any():
            table.append([float(predicted[is_in].mean()), float(observed[is_in].mean()), int(is_in.sum())])
    return table


def refit_seconds(pool: pools.Pool, votes: int) -> tuple[float, int]:
    """Seconds to fit the head again on `votes` votes, feature set and penalty known; and how many pairs they are."""
    prefs, chosen = pools.vote(pool, Person(annotators.brevity), votes, 0)
    extracted = scorer.ExtractedFeatures.of(pool.features[chosen], pool.parts, prefs.replies)
    times = []
    for _ in range(3):
        start = time.monotonic()
        reward.fit_model(extracted, prefs, [Choice("layers", 0.03)])
        times.append(time.monotonic() - start)
    return median(times), len(prefs.pairs)


# -- all cells


class Cells:
    """The benchmark's cells, cached; `used` keeps those that were looked at, for the plots."""

    def __init__(self, settings: LearningSettings, log: Log) -> None:
        self.settings = settings
        self.log = log
        self.cache = pools.Cache(settings)
        self.used: list[Cell] = []
        self.pool = pools.make_pool(settings, self.cache, 32 if settings.quick else None, log)
        self._base: rounds.Base | None = None
        self._others: pools.Pool | None = None

    def reward(self, **key: Any) -> Cell | None:
        """A reward model's cell, or None where it has not been measured and is not to be."""
        full = {
            "kind": "reward model",
            "pool": len(self.pool.ids),
            "seed_of_training": self.settings.seed,
            "shuffled": False,
            **key,
        }
        if self.settings.rounds == "known":
            cell = self.cache.known(*REWARD_CODE, **full)
        else:
            cell = self.cache.get(lambda: reward_cell(self.pool, self.settings, **key), *REWARD_CODE, **full)
        if cell and {**full, **cell} not in self.used:
            self.used.append({**full, **cell})
        return cell

    def round(self, **key: Any) -> Cell | None:
        """A round's cell, or None where it has not been run and is not to be."""
        full = {"kind": "round", "pool": len(self.pool.ids), "arm": "PPO", "flip": 0.0, **key}
        if self.settings.rounds == "none":
            return None
        if self.settings.rounds == "known":
            cell = self.cache.known(*ROUND_CODE, **full)
        else:
            cell = self.cache.get(lambda: self._run(key), *ROUND_CODE, **full)
        if cell:
            self.used.append({**full, **cell})
        return cell

    def _run(self, key: dict[str, Any]) -> Cell:
        return rounds.round_cell(self.pool, self.base, self.settings, **{"flip": 0.0, **key}, log=self.log)

    def last_token(self, **key: Any) -> Cell | None:
        """A cell of the peer that `last_token.py` is, or None where it has not been run and is not to be."""
        full = {"kind": "last token", "pool": len(self.pool.ids), **key}
        if self.settings.rounds != "run":
            return self.cache.known(*PEER_CODE, **full)
        return self.cache.get(lambda: last_token_cell(self.pool, self.settings, **key), *PEER_CODE, **full)

    def best_of(self, replies: int, **key: Any) -> Cell | None:
        """A cell of the best of `replies` replies, or None where it has not been measured and is not to be."""
        full = {"kind": "best of", "pool": len(self.pool.ids), "replies": replies, "flip": 0.0, **key}
        if self.settings.rounds != "run":
            return self.cache.known(*REWARD_CODE, **full)
        return self.cache.get(
            lambda: best_of_cell(self.pool, self._candidates(replies), self.settings, **{"flip": 0.0, **key}),
            *REWARD_CODE,
            **full,
        )

    def _candidates(self, replies: int) -> pools.Pool:
        """Other replies of the base to the held-out prompts than the pool's."""
        if self._others is None:
            settings = self.settings.with_values(replies=replies, seed=self.settings.seed + 1)
            self._others = pools.make_pool(settings, self.cache, None, self.log, ("heldout",))
        return self._others

    @property
    def base(self) -> rounds.Base:
        if self._base is None:
            trunk = loading.load_trunk(self.settings)
            self._base = rounds.Base(
                loading.base_identity(trunk, self.settings),
                loading.template_hash(loading.load_tokenizer(self.settings)),
            )
        return self._base
