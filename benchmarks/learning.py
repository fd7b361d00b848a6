"""Does it learn from few votes, and does it know when it has not? Simulated votes whose hidden score is known, from
vote to published policy.

Reward-model rows: medians over seeds on held-out prompts, which are never voted on. Round rows: real rounds in a worker
process, and the new policy's true win rate over the base. Replies, features and every cell are kept in
`DATA/benchmarks/learning.db`, keyed by what they were made from, the code included, so that a run that was stopped goes
on where it was; what has not been run is shown as not run.
"""

import itertools
import sys
import time
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from benchmarks import gold, last_token, plots, report, rounds
from benchmarks import pool as pools
from playground.models import loading, scorer
from playground.settings import Settings, SettingsError, read
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
)
from training import round as training_round
from training.annotators import Person
from training.preferences import Pair
from training.reward_validation import Choice, Predictions

REWARD_CODE = (scorer, reward, reward_head, reward_validation, preferences, annotators, pools)
PEER_CODE = (last_token, annotators, pools)
ROUND_CODE = (*REWARD_CODE, rounds, policy, ppo, ppo_math, rollout, gate, training_round, round_control, round_models)


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


# -- one reward model


def reward_cell(pool, settings, annotator, n, flip, seed, shuffled=False):
    """Fit on `n` votes; what the fit says of itself, and what is true on the held-out prompts."""
    score = annotators.find(annotator)
    prefs, chosen = pools.vote(pool, Person(score, flip=flip), n, seed, shuffled)
    start = time.monotonic()
    model, fit = reward.fit(prefs, pools.Known(pool, chosen), settings)
    seconds = time.monotonic() - start
    pairs = true_pairs(pool, score)
    found = Predictions.of(model.raw(scorer.with_counts(pool.features, pool.ids, model.tokens)), model.log_nu, pairs)
    length = [np.log(len(completion)) for _, completion in pool.ids]
    matched = found.where([abs(length[p.left] - length[p.right]) < reward.LENGTH_MATCHED for p in pairs])
    return {
        "accuracy": found.accuracy(),
        "nll": found.nll(),
        "matched": matched.accuracy(),
        "ece": found.calibration_error(),
        "reliability": reliability(found),
        "cv": fit.cv_accuracy,
        "cv_right": round(fit.cv_accuracy * len(prefs.pairs), 1),
        "enough": fit.enough,
        "view": fit.feature_set,
        "penalty": fit.heads[0].penalty,
        "seconds": seconds,
    }


def true_pairs(pool, score):
    """All pairs of replies to one held-out prompt as [Pair], as the score without noise decides them."""
    truth = pool.scores(score)

    def outcome(left, right):
        if truth[left] == truth[right]:
            return preferences.TIE
        return preferences.A if truth[left] > truth[right] else preferences.B

    return [Pair(a, b, outcome(a, b)) for a, b in itertools.chain.from_iterable(pool.pairs(heldout=True))]


def last_token_cell(pool, settings, annotator, n, seed):
    """The peer's accuracy on the held-out prompts, from the same votes, after each of its epochs."""
    score = annotators.find(annotator)
    prefs, _ = pools.vote(pool, Person(score), n, seed)
    start = time.monotonic()
    found = last_token.accuracies(prefs, pool.ids, true_pairs(pool, score), settings, seed)
    return {"accuracies": found, "seconds": time.monotonic() - start}


def best_of_cell(pool, candidates, settings, annotator, n, flip, seed):
    """How often the best of several replies, by the reward model from `n` votes, truly beats the base's replies to a
    held-out prompt.
    """
    score = annotators.find(annotator)
    prefs, chosen = pools.vote(pool, Person(score, flip=flip), n, seed)
    model, _ = reward.fit(prefs, pools.Known(pool, chosen), settings)
    said, truth, base = (
        model.raw(scorer.with_counts(candidates.features, candidates.ids, model.tokens)),
        candidates.scores(score),
        pool.scores(score),
    )
    groups = zip(candidates.groups(heldout=True), pool.groups(heldout=True), strict=True)
    wins = [
        np.mean([(truth[best] > base[i]) + 0.5 * (truth[best] == base[i]) for i in others])
        for best, others in ((max(group, key=said.__getitem__), others) for group, others in groups)
    ]
    return {"win_rate": float(np.mean(wins)), "interval": gate.interval(np.array(wins), 0.95, 0)}


def reliability(found, bins=10):
    """[[mean P(a), share of a, pairs]] of decided pairs, by P(a) in bins of equal width."""
    decided = found.outcome != preferences.TIE
    p, y = torch.sigmoid(found.margin[decided]).numpy(), (found.outcome[decided] == preferences.A).numpy()
    where = np.minimum((p * bins).astype(int), bins - 1)
    return [
        [float(p[where == k].mean()), float(y[where == k].mean()), int((where == k).sum())]
        for k in range(bins)
        if (where == k).any()
    ]


def refit_seconds(pool, votes):
    """Seconds to fit the head again on `votes` votes, feature set and penalty known."""
    prefs, chosen = pools.vote(pool, Person(annotators.brevity), votes, 0)
    extracted, times = scorer.ExtractedFeatures.of(pool.features[chosen], pool.parts, prefs.replies), []
    for _ in range(3):
        start = time.monotonic()
        reward.fit_model(extracted, prefs, [Choice("layers", 0.03)])
        times.append(time.monotonic() - start)
    return median(times), len(prefs.pairs)


# -- the table


class Cells:
    """The benchmark's cells, cached; `found` keeps those that were looked at, for the plots."""

    def __init__(self, settings, log):
        self.settings, self.log, self.cache, self.found = settings, log, pools.Cache(settings), []
        self.pool = pools.make_pool(settings, self.cache, 32 if settings.quick else None, log)
        self._base = self._others = None

    def reward(self, **key):
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
        if cell and {**full, **cell} not in self.found:
            self.found.append({**full, **cell})
        return cell

    def round(self, **key):
        """A round's cell, or None where it has not been run and is not to be."""
        full = {"kind": "round", "pool": len(self.pool.ids), "arm": "PPO", "flip": 0.0, **key}
        if self.settings.rounds == "none":
            return None
        if self.settings.rounds == "known":
            cell = self.cache.known(*ROUND_CODE, **full)
        else:
            cell = self.cache.get(self._run(key), *ROUND_CODE, **full)
        if cell:
            self.found.append({**full, **cell})
        return cell

    def _run(self, key):
        return lambda: rounds.round_cell(self.pool, self.base, self.settings, **{"flip": 0.0, **key}, log=self.log)

    def last_token(self, **key):
        """A cell of the peer that `last_token.py` is, or None where it has not been run and is not to be."""
        full = {"kind": "last token", "pool": len(self.pool.ids), **key}
        if self.settings.rounds != "run":
            return self.cache.known(*PEER_CODE, **full)
        return self.cache.get(lambda: last_token_cell(self.pool, self.settings, **key), *PEER_CODE, **full)

    def best_of(self, replies, **key):
        full = {"kind": "best of", "pool": len(self.pool.ids), "replies": replies, "flip": 0.0, **key}
        if self.settings.rounds != "run":
            return self.cache.known(*REWARD_CODE, **full)
        return self.cache.get(
            lambda: best_of_cell(self.pool, self._candidates(replies), self.settings, **{"flip": 0.0, **key}),
            *REWARD_CODE,
            **full,
        )

    def _candidates(self, replies):
        """Other replies of the base to the held-out prompts than the pool's."""
        if self._others is None:
            settings = self.settings.with_values(replies=replies, seed=self.settings.seed + 1)
            self._others = pools.make_pool(settings, self.cache, None, self.log, ("heldout",))
        return self._others

    @property
    def base(self):
        if self._base is None:
            trunk = loading.load_trunk(self.settings)
            self._base = rounds.Base(
                loading.base_identity(trunk, self.settings),
                loading.template_hash(loading.load_tokenizer(self.settings)),
            )
        return self._base


def reward_rows(cells, sizes, seeds):
    """Every annotator, number of votes and share of flipped votes."""
    rows, log = [], cells.log
    for flip, annotator, n in itertools.product((0.0, 0.1, 0.25), annotators.SHIPPED, sizes):
        if flip == 0.1 and n != 100:
            continue
        found = [c for seed in range(seeds) if (c := cells.reward(annotator=annotator, n=n, flip=flip, seed=seed))]
        bar = {0.0: "≥ 0.8", 0.25: "≥ 0.65"}.get(flip) if n == 100 else None
        noise = f", {flip:.0%} flipped" if flip else ""
        what = f"{annotator}, {n} votes{noise}"
        if not found:
            rows.append(report.row(f"{what}: accuracy on held-out prompts", None, "", bar))
            continue
        rows.append(report.row(f"{what}: accuracy on held-out prompts", median(c["accuracy"] for c in found), "", bar))
        rows.append(
            report.row(
                f"{what}: the same, pairs of one length",
                median(c["matched"] for c in found if c["matched"] is not None),
                "",
            )
        )
        rows.append(report.row(f"{what}: NLL", median(c["nll"] for c in found), "nats"))
        rows.append(report.row(f"{what}: calibration error", median(c["ece"] for c in found), ""))
        rows.append(report.row(f"{what}: called enough evidence", sum(c["enough"] for c in found), f"of {len(found)}"))
        log(
            f"{what}: accuracy {rows[-5]['value']:.2f}, pairs of one length {rows[-4]['value']:.2f}, enough "
            f"{rows[-1]['value']} of {len(found)}"
        )
    names, n = list(annotators.SHIPPED), max(n for n in sizes if n <= 100)
    keys = [
        {"annotator": names[seed % len(names)], "n": n, "flip": 0.0, "seed": seed, "shuffled": True}
        for seed in range(4 * seeds)
    ]
    shuffled = [c for key in keys if (c := cells.reward(**key))]
    rows.append(
        report.row(
            f"shuffled votes, {n}: accuracy on held-out prompts",
            median(c["accuracy"] for c in shuffled) if shuffled else None,
            "",
        )
    )
    rows.append(
        report.row(
            f"shuffled votes, {n}: called enough evidence",
            sum(c["enough"] for c in shuffled) if shuffled else None,
            f"of {len(shuffled)}",
        )
    )
    seconds, n = refit_seconds(cells.pool, 100 if cells.settings.quick else 1000)
    rows.append(report.row(f"refit of the head, {n} votes", seconds, "s", "≤ 2"))
    return rows


def round_rows(cells, quick):
    """Real rounds, in the order in which they say most."""
    rows, names = [], list(annotators.SHIPPED)

    def rates(what, found, bar):
        done = [c for c in found if c and c["win_rate"] is not None]
        low, high = done[0]["interval"] if len(done) == 1 else (None, None)
        interval = (
            f", one seed [{low:.2f}, {high:.2f}]"
            if len(done) == 1
            else f", median of {len(done)} seeds"
            if done
            else ""
        )
        rows.append(
            report.row(
                f"{what}: true win rate over the base{interval}",
                median(c["win_rate"] for c in done) if done else None,
                "",
                bar,
            )
        )
        rows.append(
            report.row(f"{what}: KL to the base", median(c["kl"] for c in done) if done else None, "nats a reply")
        )
        run = [c for c in found if c]
        rows.append(
            report.row(
                f"{what}: published", sum(c["state"] == "published" for c in run) if run else None, f"of {len(run)}"
            )
        )

    if quick:
        rates("brevity, 50 votes", [cells.round(annotator="brevity", n=50, seed=0)], None)
        return rows
    best = {name: [cells.best_of(8, annotator=name, n=100, seed=seed) for seed in range(3)] for name in names}
    clean = {(name, seed): cells.round(annotator=name, n=100, seed=seed) for seed in (0,) for name in names}
    shuffled = [
        cells.round(annotator=names[seed % len(names)], n=100, seed=seed, arm="shuffled votes") for seed in range(10)
    ]
    noisy = {name: [cells.round(annotator=name, n=100, flip=0.25, seed=seed) for seed in range(3)] for name in names}
    length = {
        name: cells.round(annotator=name, n=100, seed=0, arm="length-only reward") for name in ("brevity", "formality")
    }
    far = {
        name: cells.round(annotator=name, n=100, seed=0, arm="far beyond the KL target") for name in ("second_person",)
    }
    pessimistic = {name: cells.round(annotator=name, n=100, seed=0, arm="pessimistic reward (λ = 1)") for name in names}
    peer = {name: cells.last_token(annotator=name, n=100, seed=0) for name in names}
    if cells.settings.rounds == "run":
        gold.make(cells.pool, cells.cache, cells.settings, cells.log)
    golden = [cells.round(annotator=gold.NAME, n=100, seed=0, arm=arm) for arm in ("PPO", "far beyond the KL target")]
    few = {(name, n): cells.round(annotator=name, n=n, seed=0) for name in names for n in (25, 50, 200, 400)}
    clean |= {(name, seed): cells.round(annotator=name, n=100, seed=seed) for seed in (1, 2) for name in names}

    for name in names:
        rates(
            f"{name}, 100 votes", [clean[name, seed] for seed in range(3)], "≥ 0.85" if name == "brevity" else "≥ 0.65"
        )
    for name in names:
        rates(f"{name}, 100 votes, 25% flipped", noisy[name], "≥ 0.6")
    for name in names:
        done = [c["win_rate"] for c in best[name] if c]
        rows.append(
            report.row(
                f"{name}, 100 votes, best of 8 by the same reward model: true win rate",
                median(done) if done else None,
                "",
            )
        )
    for name in names:
        theirs = peer[name] and max(peer[name]["accuracies"])
        ours = peer[name] and cells.reward(annotator=name, n=100, flip=0.0, seed=0)["accuracy"]
        rows.append(
            report.row(
                f"{name}, 100 votes: accuracy of a LoRA with a last-token head, its best epoch on these very pairs",
                theirs,
                "",
            )
        )
        rows.append(
            report.row(f"{name}, 100 votes: ours above it", ours - theirs if peer[name] else None, "", "≥ 0.05")
        )
    run = [c for c in shuffled if c]
    rows.append(
        report.row(
            f"shuffled votes, 100: published, of {len(run)} rounds",
            sum(c["state"] == "published" for c in run) if run else None,
            "",
            "≤ 0",
        )
    )
    rates("shuffled votes, 100", shuffled, None)
    for what, arm in (
        ("length-only reward", length),
        ("pessimistic reward (λ = 1)", pessimistic),
        ("far beyond the KL target", far),
    ):
        for name, cell in arm.items():
            rates(f"{what}, {name}, 100 votes", [cell], None)
    for what, cell in zip(
        ("gold reward model, 100 votes", "far beyond the KL target, gold reward model, 100 votes"), golden, strict=True
    ):
        rates(what, [cell], None)
    for (name, n), cell in few.items():
        rates(f"{name}, {n} votes", [cell], None)
    for level in (0.6, 0.7):
        for name in names:
            rates_by_n = (
                {n: [few[name, n]] for n in (25, 50)}
                | {100: [clean[name, s] for s in range(3)]}
                | {n: [few[name, n]] for n in (200, 400)}
            )
            reached = [
                n
                for n, c in rates_by_n.items()
                if (w := [x["win_rate"] for x in c if x and x["win_rate"] is not None]) and median(w) >= level
            ]
            rows.append(
                report.row(
                    f"{name}: votes needed for a true win rate of {level:.0%}", min(reached, default=None), "votes"
                )
            )
    timed = [c for c in clean.values() if c and c["kl"] is not None]  # a round that ended before PPO is a short one
    rows.append(
        report.row("a round on 100 votes", median(c["minutes"] for c in timed) if timed else None, "minutes", "≤ 15")
    )
    rows.append(
        report.row("its worker's peak memory", max(c["peak_mb"] for c in timed) if timed else None, "MB", "≤ 2500")
    )
    return rows


def run(settings, log=print):
    """All cells, then the rows: (rows, cells)."""
    torch.set_num_threads(settings.threads)
    cells = Cells(settings, log)
    sizes, seeds = ((25, 50), 2) if settings.quick else ((25, 50, 100, 200, 400), 5)
    rows = reward_rows(cells, sizes, seeds) + round_rows(cells, settings.quick)
    return rows, cells.found


def main(argv=None):
    try:
        settings = read(argv, LearningSettings, "python -m benchmarks.learning")
        rows, cells = run(settings)
    except (SettingsError, loading.ModelUnavailable) as error:
        sys.exit(str(error))
    report.show(rows, settings.json_file)
    if settings.plots:
        plots.draw(cells, Path(settings.plots))


if __name__ == "__main__":
    main()
