"""What may be said of a reward model: predictions on votes that it was not fitted on, and the choice of its heads by
cross-validation. Whether the votes are evidence enough is `evidence.py`'s.

Fits heads by `reward_head.py`. Knows nothing about trunks or files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from playground.models.intervals import wilson
from training import likelihood, preferences
from training.objective import Objective, minimise, pair_columns
from training.people import NOBODY, People
from training.preferences import Pair, Preferences

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # ridge on the weights of unit-norm features
SHARPNESS = 1.0  # of the heads' shares; 0 would give all feature sets the same
LEAST_SHARE = 0.01  # of the score that a head must have
OWN = (0.0, 0.2, 0.4, 0.6)  # of `People.own`
CLEAR = 3.0  # nats by which the likelihood of held-out votes must rise for people to be told apart
LOOKS = 2  # at people's lapses, the second with those of the first
MOST_NUMBERS = 1 << 24  # in each of the largest tensors of a fit: 128 MB
FOLDS = 10  # each is predicted from the nine others; of a hundred votes, mostly ties, every decided one counts


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram over decided pairs."""

    predicted: float  # mean P(a | no tie)
    observed: float  # share of the votes that chose a
    votes: int


@dataclass(frozen=True)
class Predictions:
    """What scores predict of n pairs that they were not fitted on."""

    margin: torch.Tensor  # (n,), score of a − score of b
    log_nu: torch.Tensor  # (n,), of the fit that made the prediction
    outcome: torch.Tensor  # (n,), the vote: A, TIE or B

    @classmethod
    def of(cls, scores: torch.Tensor, log_nu: float, pairs: Sequence[Pair]) -> "Predictions":
        """From raw scores (N,) of all replies."""
        left, right, outcome = pair_columns(pairs)
        return cls(scores[left] - scores[right], torch.full((len(pairs),), float(log_nu)), outcome)

    @classmethod
    def join(cls, several: Sequence["Predictions"]) -> "Predictions":
        if not several:
            return cls(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long))
        return cls(
            torch.cat([predictions.margin for predictions in several]),
            torch.cat([predictions.log_nu for predictions in several]),
            torch.cat([predictions.outcome for predictions in several]),
        )

    def where(self, keep: Sequence[bool]) -> "Predictions":
        """Those of the pairs where `keep` is true."""
        mask = torch.tensor(keep, dtype=torch.bool)
        return Predictions(self.margin[mask], self.log_nu[mask], self.outcome[mask])

    def count_correct(self) -> tuple[float, int]:
        """(correct, decided), as `preferences.count_correct` counts them."""
        return preferences.count_correct(self.margin.numpy(), np.zeros(len(self.margin)), self.outcome.numpy())

    def accuracy(self) -> float | None:
        """Share of the decided pairs that are predicted correctly; None where no pair is decided."""
        correct, decided = self.count_correct()
        return correct / decided if decided else None

    def interval(self) -> tuple[float, float] | None:
        """Wilson's interval of the accuracy; None where no pair is decided."""
        correct, decided = self.count_correct()
        return wilson(correct, decided) if decided else None

    def pair_nll(self) -> torch.Tensor:
        """Davidson's NLL of each vote (n,)."""
        return likelihood.pair_nll(self.margin / 2, -self.margin / 2, self.outcome, self.log_nu)

    def nll(self) -> float | None:
        """Mean Davidson NLL in nats a pair; None where there is no pair."""
        if not len(self.margin):
            return None
        return self.pair_nll().mean().item()

    def reliability(self, bins: int = 10) -> list[ReliabilityBin]:
        """Reliability of the decided pairs, in at most `bins` bins of equal count."""
        decided = self.outcome != preferences.TIE
        p = torch.sigmoid(self.margin[decided]).numpy()
        chose_a = (self.outcome[decided] == preferences.A).numpy()
        order = torch.argsort(self.margin[decided]).numpy()
        return [
            ReliabilityBin(float(p[part].mean()), float(chose_a[part].mean()), len(part))
            for part in np.array_split(order, bins)
            if len(part)
        ]

    def calibration_error(self, bins: int = 10) -> float | None:
        """Expected calibration error (Naeini et al. 2015) over these bins; None where no pair is decided."""
        filled = self.reliability(bins)
        if not filled:
            return None
        return sum(x.votes * abs(x.predicted - x.observed) for x in filled) / sum(x.votes for x in filled)


# -- cross-validation


@dataclass(frozen=True)
class Fold:
    """One step of a cross-validation: fit on `training`, predict the pairs with these indices."""

    training: Preferences
    heldout: list[int]


def split(prefs: Preferences, seed: int) -> list[Fold]:
    """Folds of whole groups. Folds on which nothing can be fitted or predicted are left out."""
    fold_of = preferences.folds([pair.group for pair in prefs.pairs], FOLDS, seed)

    def fold(k: int) -> Fold:
        return Fold(
            training=prefs.subset(lambda group: fold_of.get(group) != k),
            heldout=[i for i, pair in enumerate(prefs.pairs) if fold_of[pair.group] == k],
        )

    folds = [fold(k) for k in range(FOLDS)]
    return [fold for fold in folds if fold.training.pairs and fold.heldout]


def cross_validate(
    prefs: Preferences, seed: int, scores_from: Callable[[Preferences], tuple[torch.Tensor, float]]
) -> tuple[Predictions, list[int]]:
    """Out-of-fold Predictions of the pairs that people judged here, and these pairs' indices. `scores_from(training
    part)` returns (scores (N,) of all replies, log ν).
    """
    several = []
    indices = []
    for fold in split(prefs, seed):
        judged = [i for i in fold.heldout if not prefs.pairs[i].imported]
        if not judged:
            continue
        scores, log_nu = scores_from(fold.training)
        several.append(Predictions.of(scores, log_nu, [prefs.pairs[i] for i in judged]))
        indices += judged
    return Predictions.join(several), indices


@dataclass(frozen=True)
class Choice:
    """One head of a reward model: what it reads, how strongly its weights are penalised, its share of the score, and
    what it assumes of people.
    """

    feature_set: str
    penalty: float
    share: float = 1.0
    people: People = NOBODY


@dataclass(frozen=True)
class Best:
    """The penalty of least cross-validated NLL, and that NLL."""

    penalty: float
    nll: float


def choose(designs: Mapping[str, torch.Tensor], prefs: Preferences, seed: int) -> list[Choice]:
    """The heads of a reward model of these votes, the largest share first; shares sum to 1. `designs` as
    `reward_head.designs` returns them.

    Each feature set has the penalty of least cross-validated NLL, the strongest one where no fold can be held out. Its
    share is in proportion to the likelihood of the held-out votes to the power of SHARPNESS (pseudo-Bayesian model
    averaging, Geisser and Eddy 1979): sets that predict alike share the score, and one that predicts clearly worse than
    the length alone has next to none of it. Shares below LEAST_SHARE are left out.
    """
    folds = split(prefs, seed)
    best = {name: best_penalty(x, prefs, folds, NOBODY) for name, x in designs.items()}
    first = min(best, key=lambda name: best[name].nll)
    people = people_of(designs[first], prefs, folds, best[first])
    if people.ids:
        best = {name: best_penalty(x, prefs, folds, people) for name, x in designs.items()}
    log_likelihood = -torch.tensor([best[name].nll for name in designs])
    shares = torch.softmax(SHARPNESS * log_likelihood, 0)
    shares = torch.where(shares < LEAST_SHARE, 0, shares)
    shares /= shares.sum()
    choices = [
        Choice(feature_set, best[feature_set].penalty, share, people)
        for feature_set, share in zip(designs, shares.tolist(), strict=True)
        if share
    ]
    return sorted(choices, key=lambda choice: -choice.share)


def best_penalty(x: torch.Tensor, prefs: Preferences, folds: Sequence[Fold], people: People) -> Best:
    """Of one feature set, x (N, r)."""
    nll = torch.zeros(len(PENALTIES))
    for at_once in parts(x, prefs, folds, people):
        nll += torch.tensor(heldout_nll(x, prefs, at_once, people))
    return Best(PENALTIES[int(nll.argmin())], nll.min().item())


def people_of(x: torch.Tensor, prefs: Preferences, folds: Sequence[Fold], alike: Best) -> People:
    """What the votes say of people: how often each votes without looking, and how much of a taste of their own they
    have. `alike` is the fit that tells nobody apart; it is left only where it predicts held-out votes clearly worse.
    """
    people = People.of(prefs)
    if len(people.ids) < 2 or not folds:
        return NOBODY
    for _ in range(LOOKS):
        people = replace(people, lapses=lapses_of(x, prefs, folds, alike.penalty, people))
    tried = [replace(people, own=own) for own in OWN]
    # a taste of one's own must pay for itself, as telling people apart must
    costs = [0.0] + [CLEAR] * (len(OWN) - 1)
    nll = [
        cost + sum(heldout_nll(x, prefs, at_once, one, [alike.penalty])[0] for at_once in parts(x, prefs, folds, one))
        for cost, one in zip(costs, tried, strict=True)
    ]
    found = int(np.argmin(nll))
    return tried[found] if nll[found] + CLEAR < alike.nll else NOBODY


def lapses_of(
    x: torch.Tensor, prefs: Preferences, folds: Sequence[Fold], penalty: float, people: People
) -> tuple[float, ...]:
    """Each person's lapse rate, by what other votes predict of theirs: a fit follows the votes that it has seen."""
    margin, log_nu = heldout_predictions(x, prefs, folds, penalty, people)
    places = people.places(prefs.pairs)
    outcome = torch.tensor([pair.outcome for pair in prefs.pairs], dtype=torch.long)
    weight = torch.tensor([pair.weight for pair in prefs.pairs], dtype=torch.double)
    lapses = []
    for place in range(len(people.ids)):
        theirs = (places == place) & ~margin.isnan()
        lapses.append(likelihood.probable_lapse(margin[theirs], outcome[theirs], log_nu[theirs], weight[theirs]))
    return tuple(lapses)


def parts(x: torch.Tensor, prefs: Preferences, folds: Sequence[Fold], people: People) -> list[Sequence[Fold]]:
    """The folds, as many at once as fit into memory."""
    rows = len(prefs.pairs) + len(prefs.labels)
    width = max(x.shape[1], rows if people.own else 0, 1)
    at_once = max(1, MOST_NUMBERS // (width * max(width, rows)))
    return [folds[i : i + at_once] for i in range(0, len(folds), at_once)]


def heldout_nll(
    x: torch.Tensor,
    prefs: Preferences,
    folds: Sequence[Fold],
    people: People = NOBODY,
    penalties: Sequence[float] = PENALTIES,
) -> list[float]:
    """For each penalty, the summed NLL of these folds' held-out pairs. The folds are fitted together, as weightings of
    the same votes. x (N, r), one row a reply.
    """
    objective, heldout = without_folds(x, prefs, folds, people)
    phi = None
    sums = []
    for penalty in penalties:
        phi, _ = minimise(objective.penalised(penalty), start=phi)  # from where the stronger penalty's fit ended
        sums.append((heldout * objective.pair_nll(phi)).sum().item())
    return sums


def heldout_predictions(
    x: torch.Tensor, prefs: Preferences, folds: Sequence[Fold], penalty: float, people: People
) -> tuple[torch.Tensor, torch.Tensor]:
    """Margin and log ν (n,) of each pair as its person would have them, by the fit of the fold that holds it out; NaN
    where none does.
    """
    margin = torch.full((len(prefs.pairs),), torch.nan, dtype=torch.double)
    log_nu = margin.clone()
    for at_once in parts(x, prefs, folds, people):
        objective, heldout = without_folds(x, prefs, at_once, people)
        phi, _ = minimise(objective.penalised(penalty))
        margins, log_nus = objective.predicted(phi)
        row, pair = torch.where(heldout > 0)
        margin[pair] = margins[row, pair]
        log_nu[pair] = log_nus[row, pair]
    return margin, log_nu


def without_folds(
    x: torch.Tensor, prefs: Preferences, folds: Sequence[Fold], people: People
) -> tuple[Objective, torch.Tensor]:
    """The objective of the votes without each fold's, and which pairs each holds out, as 1 and 0 (B, n)."""
    pairs_kept = torch.ones(len(folds), len(prefs.pairs), dtype=torch.double)  # (B, n), 0 for the held-out ones
    labels_kept = torch.ones(len(folds), len(prefs.labels), dtype=torch.double)
    for row, fold in enumerate(folds):
        groups = {prefs.pairs[i].group for i in fold.heldout}
        pairs_kept[row, fold.heldout] = 0
        labels_kept[row, [i for i, label in enumerate(prefs.labels) if label.group in groups]] = 0
    return Objective(x, prefs, people).weighted(pairs_kept, labels_kept), 1 - pairs_kept
