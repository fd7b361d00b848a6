"""Does it learn, and does it know when it has not? Reward models from simulated votes whose hidden score is known.

Replies, features and every cell of the table are kept in `DATA/benchmarks/learning.db`, keyed by what they were made from, the code included,
so that a run that was stopped goes on where it was. Median over seeds; held-out prompts are never voted on.
"""

import hashlib
import inspect
import itertools
import json
import random
import sys
import time
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import sqlite_utils
import torch
from pydantic import Field

from benchmarks import report
from playground import models, prompts
from playground.settings import Settings, SettingsError, read
from training import annotators, preferences, reward, rollout
from training.annotators import Person

LENGTH_MATCHED = 0.1  # largest difference of log lengths of a pair that counts as of one length


class LearningSettings(Settings):
    """Reward models from simulated votes."""

    quick: bool = False
    """A few prompts and seeds, in minutes."""
    json_file: str = Field("", alias="json")
    """File for the rows, as JSON."""
    replies: int = Field(4, ge=2)
    """Replies sampled to each prompt; any two of one prompt can be a duel."""


@dataclass
class Pool:
    """Replies of the base to the shipped prompts, with their features."""

    prompts: list  # of each reply, its prompt's text
    texts: list
    ids: list  # [(prompt ids, completion ids)]
    heldout: list  # of each reply, whether its prompt is held out
    features: torch.Tensor  # (N, D)
    parts: list

    def pairs(self, heldout):
        """All index pairs of replies to one prompt, prompt by prompt."""
        wanted = (i for i in range(len(self.ids)) if self.heldout[i] == heldout)
        return [list(itertools.combinations(group, 2)) for _, group in itertools.groupby(wanted, key=lambda i: self.prompts[i])]


class Known:
    """Stands for the trunk: features looked up instead of computed."""

    def __init__(self, pool, chosen):
        self.parts, self._rows = pool.parts, pool.features[chosen]

    def features(self, _replies, _on_batch=None):
        return self._rows


class Cache:
    """Results by what they were made from."""

    def __init__(self, settings):
        folder = settings.data_dir / "benchmarks"
        folder.mkdir(parents=True, exist_ok=True)
        self.table = sqlite_utils.Database(folder / "learning.db")["result"]

    def get(self, make, *code, **key):
        """`make()`, or what it returned before for the same key and the same source of the modules `code`."""
        sources = [hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in code]
        digest = hashlib.sha256(json.dumps([key, sources], sort_keys=True).encode()).hexdigest()
        if self.table.exists() and (found := next(self.table.rows_where("id = ?", [digest]), None)):
            return json.loads(found["value"])
        value = make()
        self.table.insert({"id": digest, "key": json.dumps(key, sort_keys=True), "value": json.dumps(value)}, pk="id", replace=True)
        return value


def make_pool(settings, cache, prompts_each, log=print):
    """Sample and read the pool, or find it in the cache; `prompts_each` limits each part's prompts."""
    tokenizer = models.load_tokenizer(settings)
    key = {"model": models.resolve(settings).rsplit("/", 1)[-1], "temperature": settings.temperature, "tokens": settings.reply_tokens, "seed": settings.seed,
           "replies": settings.replies}
    lines, ids, held = [], [], []
    trunk = None
    for part in ("train", "heldout"):
        texts = (rollout.SEED_PROMPTS / f"{part}.txt").read_text().splitlines()[:prompts_each]
        for start in range(0, len(texts), 8):
            chunk = texts[start:start + 8]
            encoded = [prompts.encode([{"role": "user", "content": line}], tokenizer, settings.context_tokens) for line in chunk]

            def sample(encoded=encoded, chunk=chunk):
                nonlocal trunk
                trunk = trunk or models.load_trunk(settings)
                episodes = rollout.sample(trunk, encoded, rollout.generator(settings.seed, *chunk), replies=settings.replies,
                                          max_tokens=settings.reply_tokens, temperature=settings.temperature, end_tokens=models.end_tokens(trunk, tokenizer))
                log(f"{part}: replies to {start + len(chunk)} of {len(texts)} prompts")
                return [e.completion for e in episodes]

            completions = cache.get(sample, kind="replies", prompts=chunk, **key)
            for i, completion in enumerate(completions):
                lines.append(chunk[i // settings.replies])
                ids.append((encoded[i // settings.replies], completion))
                held.append(part == "heldout")
    del trunk
    features, feature_trunk = [], None
    for start in range(0, len(ids), 64):
        def compute(start=start):
            nonlocal feature_trunk
            feature_trunk = feature_trunk or reward.FeatureTrunk(settings)
            log(f"features of {start} to {min(start + 64, len(ids))} of {len(ids)} replies")
            return [feature_trunk.parts, feature_trunk.features(ids[start:start + 64]).tolist()]
        parts, rows = cache.get(compute, kind="features", ids=ids[start:start + 64], quantisation=settings.reward_quantisation,
                                depths=[settings.reward_layer, *reward.DEPTHS], **key)
        features += rows
    texts = [prompts.decode(completion, tokenizer).strip() for _, completion in ids]
    return Pool(lines, texts, ids, held, torch.tensor(features), parts)


# -- one cell

def vote(pool, person, n, seed, shuffled=False):
    """`n` votes on duels of different prompts, as far as there are prompts: (Preferences, indices of its replies in the pool)."""
    rng = random.Random(f"{seed}/{n}")
    groups = [rng.sample(group, len(group)) for group in pool.pairs(heldout=False)]
    rng.shuffle(groups)
    duels = [pair for layer in itertools.zip_longest(*groups) for pair in layer if pair][:n]
    duels = [pair if rng.random() < 0.5 else pair[::-1] for pair in duels]
    scores = annotators.standardised([person.score(p, t) for p, t in zip(pool.prompts, pool.texts, strict=True)])
    choices = [person.vote(scores[a], scores[b], rng) for a, b in duels]
    if shuffled:
        rng.shuffle(choices)
    chosen = sorted({i for pair in duels for i in pair})
    at = {i: k for k, i in enumerate(chosen)}
    outcome = {"a": preferences.A, "tie": preferences.TIE, "b": preferences.B}
    prefs = preferences.Preferences(
        replies=[pool.ids[i] for i in chosen],
        pairs=[(at[a], at[b], outcome[c], 1.0, f"conversation {pool.prompts[a]}", k) for k, ((a, b), c) in enumerate(zip(duels, choices, strict=True))])
    return replace(prefs, heldout=preferences.held_out([p[4] for p in prefs.pairs], 0.2, seed)), chosen


def reward_cell(pool, settings, annotator, n, flip, seed, shuffled=False):
    """Fit on `n` votes; what the fit says of itself, and what is true on the held-out prompts."""
    score = annotators.find(annotator)
    prefs, chosen = vote(pool, Person(score, flip=flip), n, seed, shuffled)
    start = time.monotonic()
    head, fit = reward.fit(prefs, Known(pool, chosen), settings)
    seconds = time.monotonic() - start
    pairs = list(itertools.chain.from_iterable(pool.pairs(heldout=True)))
    truth = [score(p, t) for p, t in zip(pool.prompts, pool.texts, strict=True)]
    outcome = [preferences.TIE if truth[a] == truth[b] else preferences.A if truth[a] > truth[b] else preferences.B for a, b in pairs]
    raw = head.raw(pool.features)
    length = [len(completion) for _, completion in pool.ids]
    matched = [abs(np.log(length[a] / length[b])) < LENGTH_MATCHED for a, b in pairs]

    def accuracy(keep):
        right, decided, nll, count = reward.evaluate(raw, head.log_nu, [(a, b, o) for (a, b), o, k in zip(pairs, outcome, keep, strict=True) if k])
        return right / decided if decided else None, nll / count if count else None

    overall, nll = accuracy([True] * len(pairs))
    return {"accuracy": overall, "nll": nll, "matched": accuracy(matched)[0], "ece": calibration_error(raw, pairs, outcome), "cv": fit.cv_accuracy,
            "enough": fit.enough, "penalty": fit.penalty, "seconds": seconds}


def calibration_error(raw, pairs, outcome, bins=10):
    """Expected calibration error (Naeini et al. 2015) of P(a | not a tie) over decided pairs, in `bins` bins of equal count."""
    decided = [k for k, o in enumerate(outcome) if o != preferences.TIE]
    p = np.array([torch.sigmoid(raw[pairs[k][0]] - raw[pairs[k][1]]).item() for k in decided])
    y = np.array([outcome[k] == preferences.A for k in decided], float)
    order = np.argsort(p)
    return float(sum(len(part) * abs(p[part].mean() - y[part].mean()) for part in np.array_split(order, bins) if len(part)) / len(p))


def refit_seconds(pool, settings, votes):
    """Seconds to fit the head on `votes` votes at a known penalty."""
    prefs, chosen = vote(pool, Person(annotators.brevity), votes, 0)
    centre, scale = reward.standardiser(pool.features[chosen], pool.parts)
    x, times = (pool.features[chosen] - centre) / scale, []
    for _ in range(3):
        start = time.monotonic()
        reward.fit_head(x @ reward.span(x, prefs), prefs, 0.03)
        times.append(time.monotonic() - start)
    return median(times), len(prefs.pairs)


# -- the table

def run(settings, log=print):
    """All cells, then the rows."""
    torch.set_num_threads(settings.threads)
    cache = Cache(settings)
    pool = make_pool(settings, cache, 32 if settings.quick else None, log)
    sizes, seeds = ((25, 50), 2) if settings.quick else ((25, 50, 100, 200, 400), 5)
    bar_size = max(n for n in sizes if n <= 100)

    def cell(**key):
        return cache.get(lambda: reward_cell(pool, settings, **key), reward, preferences, annotators, sys.modules[__name__], kind="reward model",
                         pool=len(pool.ids), seed_of_training=settings.seed, **key)

    rows = []
    for flip, annotator, n in itertools.product((0.0, 0.1, 0.25), annotators.SHIPPED, sizes):
        if flip == 0.1 and n != bar_size:
            continue
        cells = [cell(annotator=annotator, n=n, flip=flip, seed=seed) for seed in range(seeds)]
        bar = {0.0: "≥ 0.8", 0.25: "≥ 0.65"}.get(flip) if n == 100 else None
        noise = f", {flip:.0%} flipped" if flip else ""
        what = f"{annotator}, {n} votes{noise}"
        rows.append(report.row(f"{what}: accuracy on held-out prompts", median(c["accuracy"] for c in cells), "", bar))
        rows.append(report.row(f"{what}: the same, pairs of one length", median(c["matched"] for c in cells if c["matched"] is not None), ""))
        rows.append(report.row(f"{what}: NLL", median(c["nll"] for c in cells), "nats"))
        rows.append(report.row(f"{what}: calibration error", median(c["ece"] for c in cells), ""))
        rows.append(report.row(f"{what}: called enough evidence", sum(c["enough"] for c in cells), f"of {seeds}"))
        log(f"{what}: accuracy {rows[-5]['value']:.2f}, pairs of one length {rows[-4]['value']:.2f}, enough {rows[-1]['value']} of {seeds}")
    names = list(annotators.SHIPPED)
    shuffled = [cell(annotator=names[seed % len(names)], n=bar_size, flip=0.0, seed=seed, shuffled=True) for seed in range(2 * seeds)]
    rows.append(report.row(f"shuffled votes, {bar_size}: accuracy on held-out prompts", median(c["accuracy"] for c in shuffled), ""))
    rows.append(report.row(f"shuffled votes, {bar_size}: called enough evidence", sum(c["enough"] for c in shuffled), f"of {2 * seeds}"))
    seconds, n = refit_seconds(pool, settings, 100 if settings.quick else 1000)
    rows.append(report.row(f"refit of the head, {n} votes", seconds, "s", "≤ 2"))
    return rows


def main(argv=None):
    try:
        settings = read(argv, LearningSettings, "python -m benchmarks.learning")
        report.show(run(settings), settings.json_file)
    except (SettingsError, models.ModelUnavailable) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
