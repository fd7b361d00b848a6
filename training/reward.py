"""Preferences to a reward model: a penalised linear head on a quantised trunk's features, and, as a setting, an fp32
LoRA below it.

Which view of the features the head reads, and how strongly its weights are penalised, cross-validation decides in every
round. Owns the fit and what may be said of it; how a reply is scored is `playground/models/scorer.py`'s. Knows nothing
about policies or PPO.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest

from playground.models import adapters, scorer
from playground.system.messages import Message
from training import preferences

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # ridge on the weights of unit-norm features
FOLDS = 10  # each predicted from the nine others: of a hundred votes, mostly ties, every decided one counts
NEWTON_STEPS = 50
CONSTANT = 1e-4  # deviation below which a feature is one
LENGTH_MATCHED = 0.1  # largest difference of log lengths of a pair that counts as of one length


@dataclass
class Report:
    """What a fit is worth. Cross-validated figures are over all votes, held-out ones over the split; intervals are
    Wilson's.
    """

    pairs: int
    view: str
    penalty: float
    cv_accuracy: float
    cv_interval: tuple
    cv_nll: float
    cv_calibration_error: float | None
    cv_reliability: list  # (predicted, observed, votes) of each bin
    cv_length_matched: float | None  # accuracy on pairs of replies of one length
    cv_length_matched_pairs: int
    heldout_pairs: int
    heldout_accuracy: float | None
    heldout_interval: tuple | None
    heldout_nll: float | None
    enough: bool
    reason: Message | None
    lora_epochs: int = 0


# -- the head


class Fit(NamedTuple):
    """A fitted head: weight (d,), Davidson's log ν, the threshold θ of thumbs; factor (d, d), factor·factorᵀ being w's
    posterior covariance; and influence (d, votes), how far each vote moved w, influence·influenceᵀ being its sampling
    covariance.
    """

    weight: torch.Tensor
    log_nu: float
    threshold: float
    factor: torch.Tensor
    influence: torch.Tensor


def fit_head(x, prefs, penalty, start=None):
    """Minimise weighted NLL + penalty/2·|w|² by Newton's method, from another Fit if given; the objective is convex. x
    (N, d) standardised -> Fit.

    The posterior is Laplace's approximation: Gaussian, with the objective's curvature at its minimum as inverse
    covariance (MacKay 1992). The influence is the infinitesimal jackknife's (Jaeckel 1972): what a bootstrap over votes
    would find, without the refits.
    """
    x, d = x.double(), x.shape[1]
    a, b, outcome, pair_weight = columns(prefs.pairs, torch.long, torch.long, torch.long, x.dtype)
    i, good, point_weight = columns(prefs.points, torch.long, x.dtype, x.dtype)
    # linear predictors of φ = (w, log ν, θ): δ of each pair and s − θ of each point
    pair_design, point_design = (
        torch.zeros(len(prefs.pairs), d + 2, dtype=x.dtype),
        torch.zeros(len(prefs.points), d + 2, dtype=x.dtype),
    )
    pair_design[:, :d] = x[a] - x[b]
    point_design[:, :d], point_design[:, d + 1] = x[i], -1
    # weak priors keep ν and θ finite where no tie or no thumb speaks of them
    prior_mean, precision = torch.zeros(d + 2, dtype=x.dtype), torch.full((d + 2,), float(penalty), dtype=x.dtype)
    prior_mean[d], precision[d:] = -1, 0.2

    def objective(phi):
        delta = pair_design @ phi
        loss = (precision / 2 * (phi - prior_mean).square()).sum()
        loss += (pair_weight * preferences.pair_nll(delta / 2, -delta / 2, outcome, phi[d])).sum()
        return loss + (point_weight * preferences.point_nll(point_design @ phi, good, 0.0)).sum()

    def derivatives(phi):
        """Gradient (d+2,), the Hessian's Cholesky root, and each vote's part of the gradient (d+2, votes)."""
        delta = pair_design @ phi
        slope, curvature = preferences.pair_derivatives(delta / 2, -delta / 2, outcome, phi[d])  # by (δ, log ν)
        slope, curvature = pair_weight[:, None] * slope, pair_weight[:, None, None] * curvature
        good_p = torch.sigmoid(point_design @ phi)
        by_pair = pair_design * slope[:, 0, None]
        by_pair[:, d] = slope[:, 1]
        by_vote = torch.cat([by_pair, point_design * (point_weight * (good_p - good))[:, None]])
        hessian = torch.diag(precision) + point_design.T @ (
            point_design * (point_weight * good_p * (1 - good_p))[:, None]
        )
        hessian += pair_design.T @ (pair_design * curvature[:, 0, 0, None])
        mixed = pair_design.T @ curvature[:, 0, 1]
        hessian[d] += mixed
        hessian[:, d] += mixed
        hessian[d, d] += curvature[:, 1, 1].sum()
        return precision * (phi - prior_mean) + by_vote.sum(0), torch.linalg.cholesky(hessian), by_vote.T

    phi = prior_mean if start is None else torch.tensor([*start.weight, start.log_nu, start.threshold], dtype=x.dtype)
    value = objective(phi)
    for _ in range(NEWTON_STEPS):
        gradient, root, by_vote = derivatives(phi)
        step = torch.cholesky_solve(gradient[:, None], root)[:, 0]
        if gradient @ step < 1e-9:
            break
        while (new := objective(phi - step)) > value and step.norm() > 1e-9:
            step = step / 2
        phi, value = phi - step, new
    factor = torch.linalg.cholesky(torch.cholesky_inverse(root)[:d, :d])
    influence = torch.cholesky_solve(by_vote, root)[:d]
    return Fit(phi[:d].float(), phi[d].item(), phi[d + 1].item(), factor.float(), influence.float())


def columns(rows, *dtypes):
    """The first columns of pairs or points as tensors (N,) of these types."""
    return [torch.tensor([row[i] for row in rows], dtype=dtype) for i, dtype in enumerate(dtypes)]


def standardised(reading, view):
    """(x (N, d), centre (d,), scale (d,)): one view of a Reading, with rows of about unit norm in which every block has
    an equal share.
    """
    blocks = scorer.view(reading.features, reading.parts, view)
    share = torch.cat([torch.full((block.shape[1],), float(block.shape[1] * len(blocks))) for block in blocks]).sqrt()
    raw = torch.cat(blocks, -1)
    centre, deviation = raw.mean(0), raw.std(0)
    if view in scorer.ON_ONE_SCALE:
        common = [
            part.square().mean().sqrt().expand_as(part)
            for part in deviation.split([block.shape[1] for block in blocks])
        ]
        deviation = torch.where(deviation > CONSTANT, torch.cat(common), deviation)
    # what does not vary among these replies says nothing here, and must say nothing of others: infinitely wide, it is
    # always 0
    scale = torch.where(deviation > CONSTANT, deviation, torch.inf) * share
    return (raw - centre) / scale, centre, scale


def span(x, prefs):
    """Orthonormal basis (d, r) of what the votes compare, r at most their number. Every ridge-penalised fit lies in it,
    so a fit on x @ basis gives the same scores, and costs less where votes are few."""
    a, b, i = *columns(prefs.pairs, torch.long, torch.long), *columns(prefs.points, torch.long)
    return torch.linalg.svd(torch.cat([x[a] - x[b], x[i]]), full_matrices=False).Vh.T


def designs(reading, prefs, settings):
    """{view: x (N, r)} of the views to choose among, each in the span of what the votes compare."""
    x = {view: standardised(reading, view)[0] for view in scorer.views(reading.parts, settings.reward_view)}
    return {view: rows @ span(rows, prefs) for view, rows in x.items()}


def fit_model(reading, prefs, view, penalty, pessimism=0.0):
    """A RewardModel with the head that all of `prefs` give on one view of a Reading of their replies; not yet
    standardised.
    """
    x, centre, scale = standardised(reading, view)
    basis = span(x, prefs)
    head = fit_head(x @ basis, prefs, penalty)
    return scorer.RewardModel(
        view,
        reading.parts,
        reading.tokens,
        centre,
        scale,
        basis @ head.weight,
        basis,
        head.factor,
        head.influence,
        penalty,
        head.log_nu,
        head.threshold,
        pessimism,
    )


# -- what may be said of it


class Predictions(NamedTuple):
    """Scores' say on n pairs that they were not fitted on: score differences a − b, the fit's log ν, and the outcomes,
    each (n,).
    """

    delta: torch.Tensor
    log_nu: torch.Tensor
    outcome: torch.Tensor

    @classmethod
    def of(cls, scores, log_nu, pairs):
        """From raw scores (N,) of all replies."""
        a, b, outcome = columns(pairs, *[torch.long] * 3)
        return cls(scores[a] - scores[b], torch.full((len(pairs),), float(log_nu)), outcome)

    @classmethod
    def join(cls, several):
        return cls(*(torch.cat(column) for column in zip(*several, strict=True)))

    def where(self, keep):
        return Predictions(*(column[keep] for column in self))

    def right(self):
        """(right, decided), as `preferences.accuracy` counts them."""
        return preferences.accuracy(self.delta.numpy(), np.zeros(len(self.delta)), self.outcome.numpy())

    def accuracy(self):
        right, decided = self.right()
        return right / decided if decided else None

    def nll(self):
        """Mean Davidson NLL in nats a pair; None of no pair."""
        if not len(self.delta):
            return None
        return preferences.pair_nll(self.delta / 2, -self.delta / 2, self.outcome, self.log_nu).mean().item()

    def reliability(self, bins=10):
        """[(mean P(a | no tie), share that chose a, votes)] over decided pairs, in at most `bins` bins of
        equal count.
        """
        decided = self.outcome != preferences.TIE
        p, order = torch.sigmoid(self.delta[decided]).numpy(), torch.argsort(self.delta[decided]).numpy()
        y = (self.outcome[decided] == preferences.A).numpy()
        return [
            (float(p[part].mean()), float(y[part].mean()), len(part))
            for part in np.array_split(order, bins)
            if len(part)
        ]

    def calibration_error(self, bins=10):
        """Expected calibration error (Naeini et al. 2015) over these bins; None where no pair is decided."""
        found = self.reliability(bins)
        return sum(n * abs(p - y) for p, y, n in found) / sum(n for *_, n in found) if found else None


def split(prefs, seed):
    """[(training part, indices of the pairs to predict)], folds of whole units; those on which nothing can be fitted or
    predicted are left out.
    """
    fold = preferences.folds([p[4] for p in prefs.pairs], FOLDS, seed)
    parts = [
        (prefs.part(lambda unit, k=k: fold.get(unit) != k), [i for i, p in enumerate(prefs.pairs) if fold[p[4]] == k])
        for k in range(FOLDS)
    ]
    return [(train, at) for train, at in parts if train.pairs and at]


def cross_validate(prefs, seed, scores_from):
    """Out-of-fold Predictions of the pairs, and their indices. `scores_from(part)` gives (scores (N,), log ν)."""
    several, places = [Predictions(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long))], []
    for train, at in split(prefs, seed):
        several.append(Predictions.of(*scores_from(train), [prefs.pairs[i] for i in at]))
        places += at
    return Predictions.join(several), places


def fitted_scores(x, prefs, penalty):
    """Raw scores (N,) of every reply under a head fitted on `prefs`, and log ν."""
    head = fit_head(x, prefs, penalty)
    return x @ head.weight, head.log_nu


def choose(x_by_view, prefs, seed):
    """(view, penalty) of least cross-validated NLL; the first and strongest where no fold can be held out. x_by_view as
    `designs` gives it.
    """
    nll = {(view, penalty): 0.0 for view in x_by_view for penalty in PENALTIES}
    for view, x in x_by_view.items():
        for train, at in split(prefs, seed):
            head = None
            for penalty in PENALTIES:  # each fit starts where the stronger penalty's ended
                head = fit_head(x, train, penalty, head)
                nll[view, penalty] += (
                    len(at) * Predictions.of(x @ head.weight, head.log_nu, [prefs.pairs[i] for i in at]).nll()
                )
    return min(nll, key=nll.get)


@contextmanager
def one_thread():
    """Torch on one thread: a fit is thousands of small solves, for which a second thread does little, and much harm
    beside a chat.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def wilson(right, n, confidence=0.95):
    """Wilson's interval of a proportion (Wilson 1927); (0, 1) without data."""
    if n == 0:
        return (0.0, 1.0)
    interval = binomtest(int(round(right)), n).proportion_ci(confidence, method="wilson")
    return (float(interval.low), float(interval.high))


def evidence(right, decided, confidence):
    """(enough, reason): whether the accuracy's interval clears chance; else a sentence with about how many more votes
    it would take.
    """
    if decided == 0:
        return False, Message(
            "Not enough evidence yet: no vote says which reply is better. Vote A or B on more replies."
        )
    if not confidence:
        return True, None
    accuracy, (low, high) = right / decided, wilson(right, decided, confidence)
    if low > 0.5:
        return True, None
    needed = next(
        (n for n in range(decided + 1, 20 * decided + 200) if wilson(accuracy * n, n, confidence)[0] > 0.5), None
    )
    figures: dict[str, str | int] = {
        "votes": int(decided),
        "accuracy": f"{accuracy:.2f}",
        "low": f"{low:.2f}",
        "high": f"{high:.2f}",
    }
    if needed:
        return False, Message(
            "Not enough evidence yet: {votes} votes for A or B, cross-validated accuracy {accuracy} [{low}, {high}]; "
            "about {more} more at this agreement rate.",
            **figures,
            more=int(needed - decided),
        )
    return False, Message(
        "Not enough evidence yet: {votes} votes for A or B, cross-validated accuracy {accuracy} [{low}, {high}]; the "
        "votes do not agree with each other so far.",
        **figures,
    )


# -- the whole fit


def fit(prefs, trunk, settings, on_batch=lambda done, total: None):
    """Fit the reward model; returns (RewardModel, Report).

    View and penalty are chosen by cross-validated NLL. The reported figures choose again without the votes that they
    are measured on, so that what the choice overfits does not count as learning. The model returned is fitted on all
    votes, so that none is wasted.
    """
    reading = scorer.Reading.of(trunk.features(prefs.replies, on_batch), trunk.parts, prefs.replies)
    x = designs(reading, prefs, settings)

    def chosen_scores(part):
        view, penalty = choose(x, part, settings.seed)
        return fitted_scores(x[view], part, penalty)

    with one_thread():
        cv, places = cross_validate(prefs, settings.seed, chosen_scores)
        held = Predictions.of(*chosen_scores(prefs.train()), prefs.held().pairs)
        view, penalty = choose(x, prefs, settings.seed)
    length = np.log([max(len(completion), 1) for _, completion in prefs.replies])
    matched = cv.where([abs(length[prefs.pairs[i][0]] - length[prefs.pairs[i][1]]) < LENGTH_MATCHED for i in places])

    epochs = 0
    if settings.reward_lora_rank:
        start = fit_model(reading, prefs.train(), view, penalty)
        epochs, lora, held = fit_lora(start, prefs, trunk, settings, held)
        if epochs:
            reading = reading._replace(features=start.features(trunk, prefs.replies))
    model = fit_model(reading, prefs, view, penalty, settings.reward_pessimism)
    if epochs:
        model.lora = lora

    right, decided = cv.right()
    enough, reason = evidence(right, decided, settings.evidence_confidence)
    report = Report(
        pairs=len(prefs.pairs),
        view=view,
        penalty=penalty,
        cv_accuracy=right / max(decided, 1),
        cv_interval=wilson(right, decided),
        cv_nll=cv.nll(),
        cv_calibration_error=cv.calibration_error(),
        cv_reliability=cv.reliability(),
        cv_length_matched=matched.accuracy(),
        cv_length_matched_pairs=matched.right()[1],
        heldout_pairs=len(held.outcome),
        heldout_accuracy=held.accuracy(),
        heldout_interval=wilson(*held.right()) if held.right()[1] else None,
        heldout_nll=held.nll(),
        enough=enough,
        reason=reason,
        lora_epochs=epochs,
    )
    return model, report


def fit_lora(model, prefs, trunk, settings, held):
    """Train an fp32 LoRA below the head's features on the training units, keeping the epoch with the best held-out NLL.

    `held` are the frozen features' Predictions of the held-out pairs, to be beaten. Returns (epochs kept, LoRA tensors,
    Predictions); 0 epochs means that the frozen features were better, and the LoRA is left at zero.
    """
    pairs = prefs.train().pairs
    parameters = trunk.attach_lora(settings.reward_lora_rank)
    weight = model.weight.clone().requires_grad_(True)
    log_nu = torch.tensor(model.log_nu)
    optimizer = torch.optim.AdamW(
        [{"params": list(parameters.values()), "lr": 1e-4}, {"params": [weight], "lr": 1e-3}], eps=1e-5
    )

    def kept():
        return {k: v.detach().clone() for k, v in parameters.items()}

    best = (0, kept(), held)
    order = torch.Generator().manual_seed(settings.seed)
    for epoch in range(settings.reward_lora_epochs):
        for rows in torch.randperm(len(pairs), generator=order).split(max(1, settings.reward_batch // 2)):
            chosen = [pairs[i] for i in rows]
            replies = [prefs.replies[p[side]] for p in chosen for side in (0, 1)]
            scores = (
                model.design(scorer.with_counts(trunk.batch_features(replies).cpu(), replies, model.tokens)) @ weight
            )
            outcome, case_weight = torch.tensor([p[2] for p in chosen]), torch.tensor([p[3] for p in chosen])
            loss = (case_weight * preferences.pair_nll(scores[0::2], scores[1::2], outcome, log_nu)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
        scores = model.design(model.features(trunk, prefs.replies)) @ weight.detach()
        found = Predictions.of(scores, model.log_nu, prefs.held().pairs)
        if found.nll() is not None and found.nll() < best[2].nll():
            best = (epoch + 1, kept(), found)
    adapters.copy_strictly(best[1], parameters)
    return best
