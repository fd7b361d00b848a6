"""Votes to preference examples, their split, and the likelihood of a vote given scores.

Pairs follow Davidson (1970): P(a) = e^sa / Z, P(b) = e^sb / Z, P(tie) = ν·e^((sa+sb)/2) / Z, with ν learned, so that a
tie is information. Thumbs and both-bad are pointwise: P(good) = σ(s − θ) against a learned threshold θ. What a score is
made of is `reward.py`'s.
"""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import torch

A, TIE, B = 0, 1, 2  # outcome of a pair


@dataclass
class Preferences:
    """Training examples over a list of distinct replies; indices point into `replies`.

    replies   [(prompt ids, completion ids)]
    pairs     [(index a, index b, outcome, weight, unit, vote id or None)]
    points    [(index, 1 good or 0 bad, weight, unit)]
    votes     [(vote id, unit)] of every vote among them, both-bad included: as many as everybody else who counts votes
    tells
    `unit` is what the split keeps whole: the conversation, or, with too few conversations, the context that was replied
    to.
    """

    replies: list = field(default_factory=list)
    pairs: list = field(default_factory=list)
    points: list = field(default_factory=list)
    votes: list = field(default_factory=list)
    heldout: frozenset = frozenset()  # units kept out of the fit whose accuracy is reported, and out of the rollouts
    split_by: str = "conversation"

    def part(self, units_in):
        """The same with only the pairs and points whose unit satisfies `units_in`."""
        return replace(
            self, pairs=[p for p in self.pairs if units_in(p[4])], points=[p for p in self.points if units_in(p[3])]
        )

    def train(self):
        return self.part(lambda unit: unit not in self.heldout)

    def held(self):
        return self.part(lambda unit: unit in self.heldout)


MIN_CONVERSATIONS = 4


def collect(votes, ratings, demonstrations, encode_reply, *, heldout_fraction, annotator_weight, seed):
    """Build Preferences from the store's rows (see `Store.votes_for_training` and its neighbours).

    An edited reply is a pair that its author decided: after over before. With fewer than four conversations the split
    is by context (what was replied to), since no part of one conversation could be held out otherwise; `split_by` says
    so.
    """
    few = len({row["conversation"] for row in [*votes, *ratings, *demonstrations]}) < MIN_CONVERSATIONS
    prefs, index = Preferences(split_by="context" if few else "conversation"), {}

    def unit(row):
        return f"context {_digest(row['prompt'])}" if few else f"conversation {row['conversation']}"

    def reply(prompt, completion):
        key = (tuple(prompt), tuple(completion))
        if key not in index:
            index[key] = len(prefs.replies)
            prefs.replies.append((list(prompt), list(completion)))
        return index[key]

    totals = {}
    for row in [*votes, *ratings, *demonstrations]:
        totals[row["annotator"]] = totals.get(row["annotator"], 0) + 1
    weight = {who: min(1.0, annotator_weight / n) for who, n in totals.items()}
    for v in votes:
        prefs.votes.append((v["vote"], unit(v)))
        a, b, w = reply(v["prompt"], v["left_ids"]), reply(v["prompt"], v["right_ids"]), weight[v["annotator"]]
        if v["choice"] == "both_bad":
            prefs.points += [(a, 0, w, unit(v)), (b, 0, w, unit(v))]
        elif a != b:
            prefs.pairs.append((a, b, {"a": A, "tie": TIE, "b": B}[v["choice"]], w, unit(v), v["vote"]))
    for t in ratings:
        prefs.points.append((reply(t["prompt"], t["completion"]), int(t["thumb"] > 0), weight[t["annotator"]], unit(t)))
    for d in demonstrations:
        after, before = reply(d["prompt"], encode_reply(d["after"])), reply(d["prompt"], d["completion"])
        if after != before:
            prefs.pairs.append((after, before, A, weight[d["annotator"]], unit(d), None))
    prefs.heldout = held_out([p[4] for p in prefs.pairs], heldout_fraction, seed)
    return prefs


def from_store(store, base_hash, encode_reply, settings):
    """Preferences of all that people said about replies of this base model."""
    return collect(
        store.votes_for_training(base_hash),
        store.ratings_for_training(base_hash),
        store.demonstrations(base_hash),
        encode_reply,
        heldout_fraction=settings.heldout_fraction,
        annotator_weight=settings.annotator_weight,
        seed=settings.seed,
    )


def held_out(units, fraction, seed):
    """Whole units that hold about `fraction` of the entries of `units`; which ones depends on their names and the seed
    alone.
    """
    distinct = sorted(set(units), key=lambda unit: _digest(seed, unit))
    chosen, size = set(), 0
    for unit in distinct[:-1]:
        n = units.count(unit)
        if size + n <= fraction * len(units) or (not chosen and n <= len(units) / 2):
            chosen.add(unit)
            size += n
        if size >= fraction * len(units):
            break
    return frozenset(chosen)


def folds(units, k, seed):
    """Split units into at most `k` folds, whole: {unit: fold}."""
    distinct = sorted(set(units), key=lambda unit: _digest(seed, "fold", unit))
    return {unit: i % k for i, unit in enumerate(distinct)}


def _digest(*key):
    return hashlib.sha256("/".join(map(str, key)).encode()).hexdigest()


def pair_nll(score_a, score_b, outcome, log_nu):
    """Davidson's negative log-likelihood of each pair. score_a, score_b (N,), outcome (N,) in {A, TIE, B}, log_nu
    scalar -> (N,).
    """
    return torch.nn.functional.cross_entropy(_pair_logits(score_a, score_b, log_nu), outcome, reduction="none")


def _pair_logits(score_a, score_b, log_nu):
    return torch.stack([score_a, log_nu + (score_a + score_b) / 2, score_b], -1)  # (N, 3)


def pair_derivatives(score_a, score_b, outcome, log_nu):
    """Gradient (N, 2) and Hessian (N, 2, 2) of `pair_nll` by (score_a − score_b, log ν).

    Davidson's model is an exponential family in these two, so the Hessian is the covariance of its statistics, (½, 0),
    (0, 1), (−½, 0) for a, tie, b.
    """
    statistics = torch.tensor([[0.5, 0.0], [0.0, 1.0], [-0.5, 0.0]], dtype=score_a.dtype)
    p = _pair_logits(score_a, score_b, log_nu).softmax(-1)
    mean = p @ statistics
    hessian = torch.einsum("nk,ki,kj->nij", p, statistics, statistics) - mean[:, :, None] * mean[:, None, :]
    return mean - statistics[outcome], hessian


def point_nll(score, good, threshold):
    """Negative log-likelihood of thumbs and both-bad: P(good) = σ(s − θ). score (N,), good (N,) in {0, 1} -> (N,)."""
    return torch.nn.functional.binary_cross_entropy_with_logits(score - threshold, good.to(score), reduction="none")


def accuracy(score_a, score_b, outcome):
    """(right, decided): how many pairs that were not ties the scores put in the right order; equal scores count half.
    Arrays (N,).
    """
    decided = outcome != TIE
    sign = np.where(outcome == A, 1, -1)[decided] * np.sign(score_a - score_b)[decided]
    return float((sign > 0).sum() + 0.5 * (sign == 0).sum()), int(decided.sum())
