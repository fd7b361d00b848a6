"""Do actively chosen pairs teach more than random ones? The reward model's accuracy from as many votes, on held-out
prompts.

Both sides vote on the same prompts in the same order. Random: any two of a prompt's replies. Active: the two that
double Thompson sampling (`playground/models/active.py`) picks, by a head refitted every ten votes on those before.
"""

import itertools
import random
import sys
from collections.abc import Sequence
from statistics import mean

import numpy as np
import torch
from pydantic import Field

from benchmarks import learning_cells, report
from benchmarks import pool as pools
from benchmarks.report import Log, Row
from playground.models import active, loading, scorer
from playground.models.scorer import RewardModel
from playground.settings import SettingsError, read
from training import annotators, gate, preferences, reward, reward_head, reward_validation
from training.preferences import OUTCOMES, Pair

STEP = 10  # votes between refits

Voted = tuple[int, int, str]  # the indices of two replies in the pool, and the choice


class PairsSettings(learning_cells.LearningSettings):
    """Active against random pairs."""

    votes: int = Field(100, ge=2 * STEP)
    """Votes of each reward model."""


def preferences_of(pool: pools.Pool, voted: Sequence[Voted], seed: int) -> tuple[preferences.Preferences, list[int]]:
    """(Preferences, indices of its replies in the pool) of [(index, index, choice)]."""
    chosen = sorted({i for *pair, _ in voted for i in pair})
    at = {i: k for k, i in enumerate(chosen)}
    pairs = [
        Pair(at[left], at[right], OUTCOMES[choice], group=pool.prompts[left], vote=k)
        for k, (left, right, choice) in enumerate(voted)
    ]
    return preferences.Preferences(
        [pool.ids[i] for i in chosen], pairs, heldout=preferences.held_out([pair.group for pair in pairs], 0.2, seed)
    ), chosen


def fitted(pool: pools.Pool, voted: Sequence[Voted], settings: PairsSettings, seed: int) -> RewardModel:
    """The reward model of these votes, its feature set and penalty chosen by cross-validation."""
    prefs, chosen = preferences_of(pool, voted, seed)
    extracted = scorer.ExtractedFeatures.of(pool.features[chosen], pool.parts, prefs.replies)
    with reward_head.one_thread():
        return reward.fit_votes(extracted, prefs, settings)


def cell(pool: pools.Pool, settings: PairsSettings, annotator: str, votes: int, seed: int, actively: bool) -> float:
    """Accuracy on the held-out prompts after `votes` votes."""
    rng, source, score = (
        random.Random(f"{seed}/{votes}"),
        torch.Generator().manual_seed(seed),
        annotators.find(annotator),
    )
    scores, person = annotators.standardised(pool.scores(score)), annotators.Person(score)
    groups = pool.groups(heldout=False)
    groups = list(itertools.islice(itertools.cycle(rng.sample(groups, len(groups))), votes))
    voted, model = [], None
    for k, group in enumerate(groups):
        if actively and k >= 2 * STEP and k % STEP == 0:
            model = fitted(pool, voted, settings, seed)
        a, b = rng.sample(group, 2)
        if model:
            x = scorer.with_counts(pool.features[group], [pool.ids[i] for i in group], model.tokens)
            a, b = (group[i] for i in active.pair(active.favourites(model, x, source), source)[:2])
        voted.append((a, b, person.vote(scores[a], scores[b], rng)))
    model = fitted(pool, voted, settings, seed)
    raw = model.raw(scorer.with_counts(pool.features, pool.ids, model.tokens))
    return reward_validation.Predictions.of(raw, model.log_nu, learning_cells.true_pairs(pool, score)).accuracy()


def run(settings: PairsSettings, log: Log = print) -> list[Row]:
    """The rows."""
    torch.set_num_threads(settings.threads)
    cache, seeds = pools.Cache(settings), 1 if settings.quick else 5
    pool, rows, gains = pools.make_pool(settings, cache, 32 if settings.quick else None, log), [], []
    for annotator in annotators.SHIPPED:
        by_choice = {}
        for actively in (False, True):
            keys = [
                {"annotator": annotator, "votes": settings.votes, "seed": seed, "actively": actively}
                for seed in range(seeds)
            ]
            by_choice[actively] = [
                cache.get(
                    lambda key=key: cell(pool, settings, **key),
                    *learning_cells.REWARD_CODE,
                    active,
                    sys.modules[__name__],
                    kind="pairs",
                    pool=len(pool.ids),
                    **key,
                )
                for key in keys
            ]
        own = [a - r for r, a in zip(by_choice[False], by_choice[True], strict=True)]
        gains += own
        for actively, name in ((False, "random"), (True, "active")):
            rows.append(
                report.row(
                    f"{annotator}, {settings.votes} votes, {name} pairs: accuracy on held-out prompts, mean of {seeds}",
                    mean(by_choice[actively]),
                )
            )
        log(f"{annotator}: random {mean(by_choice[False]):.3f}, active {mean(by_choice[True]):.3f}")
    low, high = gate.interval(np.array(gains), 0.95, 0)
    rows.append(report.row(f"active above random, mean [{low:+.3f}, {high:+.3f}]", mean(gains), "", "≥ 0.01"))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    try:
        settings = read(argv, PairsSettings, "python -m benchmarks.pairs")
        report.show(run(settings), settings.json_file)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
