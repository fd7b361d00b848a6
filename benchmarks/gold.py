"""A gold reward model as annotator (Gao et al. 2022): a frozen scorer, fitted once on many votes by a hidden rule, is
the truth from then on.

Unlike a scripted score it is smooth and never written down; a policy can please it in ways that nobody thought of. It
reads the reply alone, without the prompt. `--annotator benchmarks.gold:score`, once `make` has written it to the file
that NUDGE_GOLD names.
"""

import functools
import os
from pathlib import Path

import torch

from playground.models import feature_trunk, loading, prompts, scorer
from playground.settings import read
from training import preferences, reward
from training.annotators import lists, second_person, standardised
from training.reward_validation import Choice

VOTES = 1000
NAME = "benchmarks.gold:score"


def hidden_rule(pool):
    """What the gold model's votes go by, of every reply: words to the reader count, and lists half as much."""
    return [
        a + 0.5 * b for a, b in zip(*(standardised(pool.scores(rule)) for rule in (second_person, lists)), strict=True)
    ]


def make(pool, cache, settings, log=print):
    """Fit the gold model on the pool's replies, unless its file is there, and let `score` use it."""
    file = (settings.data_dir / "benchmarks" / "gold.safetensors").absolute()
    os.environ["NUDGE_GOLD"] = str(file)
    if file.exists():
        return
    trunk, alone, rows = feature_trunk.FeatureTrunk(settings), [([], completion) for _, completion in pool.ids], []
    for start in range(0, len(alone), 64):
        some = alone[start : start + 64]
        log(f"gold model: features of {start} to {start + len(some)} of {len(alone)} replies")
        rows += cache.get(
            lambda some=some: trunk.features(some).tolist(),
            kind="gold",
            replies=some,
            layers=trunk.layers,
            quantisation=settings.reward.quantisation,
        )
    truth = hidden_rule(pool)
    pairs = [
        preferences.Pair(a, b, preferences.A if truth[a] > truth[b] else preferences.B)
        for group in pool.pairs(heldout=False)
        for a, b in group
        if truth[a] != truth[b]
    ][:VOTES]
    extracted = scorer.ExtractedFeatures.of(torch.tensor(rows), trunk.parts, alone)
    prefs = preferences.Preferences(replies=alone, pairs=pairs)
    reward.fit_model(extracted, prefs, [Choice("layers", 0.1)]).save(file)


@functools.cache
def _model():
    settings, file = read([]), Path(os.environ["NUDGE_GOLD"])
    return scorer.RewardModel.load(file), feature_trunk.FeatureTrunk(settings), loading.load_tokenizer(settings)


@functools.cache
def _score(reply):
    model, trunk, tokenizer = _model()
    return model.raw(model.features(trunk, [([], prompts.encode_reply(reply, tokenizer))])).item()


def score(_prompt, reply):
    """The gold model's score of a reply."""
    return _score(reply)
