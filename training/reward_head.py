"""The linear head of the reward model: standardised features, the span of the votes, and the penalised fit by Newton's
method with its posterior.

Knows nothing about trunks, cross-validation or files: `reward_validation.py` chooses the feature set and the penalty,
and `reward.py` does the whole fit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from playground.models import scorer
from playground.models.scorer import ExtractedFeatures
from playground.settings import Settings
from training import preferences
from training.preferences import Pair, Preferences

NEWTON_STEPS = 50
CONSTANT = 1e-4  # a feature with a smaller deviation counts as constant


@dataclass(frozen=True)
class FittedHead:
    """A fitted head on d features, and how sure the votes make us of it."""

    weight: torch.Tensor  # (d,)
    log_nu: float  # Davidson's log ν
    threshold: float  # θ, of thumbs and both-bad votes
    factor: torch.Tensor  # (d, d): factor·factorᵀ is the posterior covariance of the weight
    influence: torch.Tensor  # (d, votes), how far each vote moved the weight; influence·influenceᵀ: sampling covariance


def fit_head(x: torch.Tensor, prefs: Preferences, penalty: float, start: FittedHead | None = None) -> FittedHead:
    """Minimise the weighted NLL + penalty/2·|w|² by Newton's method, from `start` if given. The objective is convex. x
    (N, d), standardised, one row a reply.

    The posterior is Laplace's approximation: Gaussian, with the objective's curvature at its minimum as inverse
    covariance (MacKay 1992). The influence is the infinitesimal jackknife's (Jaeckel 1972): what a bootstrap over votes
    would find, without the refits.
    """
    x = x.double()
    d = x.shape[1]
    left, right, outcome = pair_columns(prefs.pairs)
    pair_weight = torch.tensor([pair.weight for pair in prefs.pairs], dtype=x.dtype)
    labelled = torch.tensor([label.reply for label in prefs.labels], dtype=torch.long)
    good = torch.tensor([label.good for label in prefs.labels], dtype=x.dtype)
    label_weight = torch.tensor([label.weight for label in prefs.labels], dtype=x.dtype)

    # linear predictors of φ = (w, log ν, θ): δ = s_a − s_b of each pair, and s − θ of each pointwise label
    pair_design = torch.zeros(len(prefs.pairs), d + 2, dtype=x.dtype)
    pair_design[:, :d] = x[left] - x[right]
    label_design = torch.zeros(len(prefs.labels), d + 2, dtype=x.dtype)
    label_design[:, :d] = x[labelled]
    label_design[:, d + 1] = -1
    # weak priors keep ν and θ finite where there is no tie or no thumb
    prior_mean = torch.zeros(d + 2, dtype=x.dtype)
    prior_mean[d] = -1
    precision = torch.full((d + 2,), float(penalty), dtype=x.dtype)
    precision[d:] = 0.2

    def objective(phi: torch.Tensor) -> torch.Tensor:
        delta = pair_design @ phi
        loss = (precision / 2 * (phi - prior_mean).square()).sum()
        loss += (pair_weight * preferences.pair_nll(delta / 2, -delta / 2, outcome, phi[d])).sum()
        return loss + (label_weight * preferences.pointwise_nll(label_design @ phi, good, 0.0)).sum()

    def derivatives(phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradient (d+2,), the Hessian's Cholesky root (d+2, d+2), each vote's part of the gradient (d+2, votes)."""
        delta = pair_design @ phi
        slope, curvature = preferences.pair_derivatives(delta / 2, -delta / 2, outcome, phi[d])  # by (δ, log ν)
        slope = pair_weight[:, None] * slope
        curvature = pair_weight[:, None, None] * curvature
        by_pair = pair_design * slope[:, 0, None]
        by_pair[:, d] = slope[:, 1]
        p_good = torch.sigmoid(label_design @ phi)
        by_label = label_design * (label_weight * (p_good - good))[:, None]
        by_vote = torch.cat([by_pair, by_label])  # (votes, d+2)

        label_curvature = label_weight * p_good * (1 - p_good)
        hessian = torch.diag(precision) + label_design.T @ (label_design * label_curvature[:, None])
        hessian += pair_design.T @ (pair_design * curvature[:, 0, 0, None])
        mixed = pair_design.T @ curvature[:, 0, 1]
        hessian[d] += mixed
        hessian[:, d] += mixed
        hessian[d, d] += curvature[:, 1, 1].sum()
        return precision * (phi - prior_mean) + by_vote.sum(0), torch.linalg.cholesky(hessian), by_vote.T

    phi = prior_mean
    if start is not None:
        phi = torch.tensor([*start.weight, start.log_nu, start.threshold], dtype=x.dtype)
    value = objective(phi)
    for _ in range(NEWTON_STEPS):
        gradient, root, by_vote = derivatives(phi)
        step = torch.cholesky_solve(gradient[:, None], root)[:, 0]
        if gradient @ step < 1e-9:
            break
        while (new_value := objective(phi - step)) > value and step.norm() > 1e-9:
            step = step / 2
        phi = phi - step
        value = new_value
    factor = torch.linalg.cholesky(torch.cholesky_inverse(root)[:d, :d])
    influence = torch.cholesky_solve(by_vote, root)[:d]
    return FittedHead(
        weight=phi[:d].float(),
        log_nu=phi[d].item(),
        threshold=phi[d + 1].item(),
        factor=factor.float(),
        influence=influence.float(),
    )


def pair_columns(pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left index, right index and outcome of each pair, each (N,) int64."""
    left = torch.tensor([pair.left for pair in pairs], dtype=torch.long)
    right = torch.tensor([pair.right for pair in pairs], dtype=torch.long)
    outcome = torch.tensor([pair.outcome for pair in pairs], dtype=torch.long)
    return left, right, outcome


# -- the features that the head reads


def standardised(extracted: ExtractedFeatures, feature_set: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x (N, d), centre (d,), scale (d,)): one feature set, standardised so that rows have about unit norm and every
    block of features has an equal share of it.
    """
    blocks = scorer.feature_blocks(extracted.features, extracted.parts, feature_set)
    widths = [block.shape[1] for block in blocks]
    share = torch.cat([torch.full((width,), float(width * len(blocks))) for width in widths]).sqrt()
    raw = torch.cat(blocks, -1)
    centre = raw.mean(0)
    deviation = raw.std(0)
    if feature_set in scorer.ON_ONE_SCALE:
        common = [part.square().mean().sqrt().expand_as(part) for part in deviation.split(widths)]
        deviation = torch.where(deviation > CONSTANT, torch.cat(common), deviation)
    # A feature that is constant among these replies must have no effect on others either: with an infinite scale it is
    # always 0.
    scale = torch.where(deviation > CONSTANT, deviation, torch.inf) * share
    return (raw - centre) / scale, centre, scale


def span(x: torch.Tensor, prefs: Preferences) -> torch.Tensor:
    """Orthonormal basis (d, r) of what the votes compare; r is at most their number. x (N, d).

    Every ridge-penalised fit lies in this span, so a fit on x @ basis gives the same scores, and costs less where votes
    are few.
    """
    left, right, _ = pair_columns(prefs.pairs)
    labelled = torch.tensor([label.reply for label in prefs.labels], dtype=torch.long)
    return torch.linalg.svd(torch.cat([x[left] - x[right], x[labelled]]), full_matrices=False).Vh.T


def designs(extracted: ExtractedFeatures, prefs: Preferences, settings: Settings) -> dict[str, torch.Tensor]:
    """{feature set: x (N, r)} of the feature sets to choose among, each in the span of what the votes compare."""
    found = {}
    for feature_set in scorer.feature_set_names(extracted.parts, settings.reward_view):
        x, _, _ = standardised(extracted, feature_set)
        found[feature_set] = x @ span(x, prefs)
    return found


def fitted_scores(x: torch.Tensor, prefs: Preferences, penalty: float) -> tuple[torch.Tensor, float]:
    """Raw scores (N,) of every reply under a head fitted on `prefs`, and log ν."""
    head = fit_head(x, prefs, penalty)
    return x @ head.weight, head.log_nu


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: a fit is thousands of small solves, which a second thread hardly speeds up, while it
    slows down a chat beside it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
