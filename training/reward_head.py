"""The linear head of the reward model: standardised features, the span of the votes, and the penalised fit by Newton's
method with its posterior.

Knows nothing about trunks, cross-validation or files: `reward_validation.py` chooses the feature set and the penalty,
and `reward.py` does the whole fit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
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


class Objective:
    """The penalised negative log-likelihood of φ = (w, log ν, θ), for several weightings of the same votes at once.

    `x` (N, d): standardised features, one row a reply. A part of the votes is a weighting in which the others weigh 0.
    B is the number of weightings, n the number of pairs, m the number of pointwise labels.
    """

    def __init__(self, x: torch.Tensor, prefs: Preferences) -> None:
        x = x.double()
        self.d = x.shape[1]
        left, right, self.outcome = pair_columns(prefs.pairs)
        labelled = torch.tensor([label.reply for label in prefs.labels], dtype=torch.long)
        self.good = torch.tensor([label.good for label in prefs.labels], dtype=x.dtype)
        # linear predictors of φ: δ = s_a − s_b of each pair, and s − θ of each pointwise label
        self.pair_design = torch.zeros(len(prefs.pairs), self.d + 2, dtype=x.dtype)
        self.pair_design[:, : self.d] = x[left] - x[right]
        self.label_design = torch.zeros(len(prefs.labels), self.d + 2, dtype=x.dtype)
        self.label_design[:, : self.d] = x[labelled]
        self.label_design[:, self.d + 1] = -1
        self.pair_weight = torch.tensor([[pair.weight for pair in prefs.pairs]], dtype=x.dtype)  # (B, n)
        self.label_weight = torch.tensor([[label.weight for label in prefs.labels]], dtype=x.dtype)  # (B, m)
        # weak priors keep ν and θ finite where there is no tie or no thumb
        self.prior_mean = torch.zeros(self.d + 2, dtype=x.dtype)
        self.prior_mean[self.d] = -1
        self.precision = torch.full_like(self.prior_mean, 0.2)

    def weighted(self, pairs: torch.Tensor, labels: torch.Tensor) -> "Objective":
        """The same votes, each weight multiplied by these factors (B, n) and (B, m)."""
        other = copy(self)
        other.pair_weight = self.pair_weight * pairs
        other.label_weight = self.label_weight * labels
        return other

    def penalised(self, penalty: float) -> "Objective":
        """The same, with penalty/2·|w|²."""
        other = copy(self)
        other.precision = self.precision.clone()
        other.precision[: self.d] = penalty
        return other

    def value(self, phi: torch.Tensor) -> torch.Tensor:
        """(B,) at phi (B, d+2)."""
        pair_nll = self.pair_weight * self.pair_nll(phi)
        label_nll = self.label_weight * preferences.pointwise_nll(phi @ self.label_design.T, self.good, 0.0)
        prior = self.precision / 2 * (phi - self.prior_mean).square()
        return prior.sum(-1) + pair_nll.sum(-1) + label_nll.sum(-1)

    def pair_nll(self, phi: torch.Tensor) -> torch.Tensor:
        """Davidson's NLL of each pair, without its weight (B, n)."""
        delta = phi @ self.pair_design.T
        return preferences.pair_nll(delta / 2, -delta / 2, self.outcome, phi[:, self.d, None])

    def slopes(self, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted derivatives: of each pair's term by (δ, log ν) (B, n, 2), of each label's by s − θ (B, m)."""
        delta = phi @ self.pair_design.T
        slope, _ = preferences.pair_derivatives(delta / 2, -delta / 2, self.outcome, phi[:, self.d, None])
        p_good = torch.sigmoid(phi @ self.label_design.T)
        return self.pair_weight[..., None] * slope, self.label_weight * (p_good - self.good)

    def gradient(self, phi: torch.Tensor) -> torch.Tensor:
        """(B, d+2)."""
        by_pair, by_label = self.slopes(phi)
        gradient = self.precision * (phi - self.prior_mean)
        gradient = gradient + by_pair[..., 0] @ self.pair_design + by_label @ self.label_design
        gradient[:, self.d] += by_pair[..., 1].sum(-1)
        return gradient

    def hessian_root(self, phi: torch.Tensor) -> torch.Tensor:
        """The Hessian's Cholesky root (B, d+2, d+2)."""
        delta = phi @ self.pair_design.T
        _, curvature = preferences.pair_derivatives(delta / 2, -delta / 2, self.outcome, phi[:, self.d, None])
        curvature = self.pair_weight[..., None, None] * curvature  # (B, n, 2, 2)
        p_good = torch.sigmoid(phi @ self.label_design.T)
        label_curvature = self.label_weight * p_good * (1 - p_good)  # (B, m)
        hessian = self.pair_design.T @ (curvature[..., 0, 0, None] * self.pair_design)
        hessian += self.label_design.T @ (label_curvature[..., None] * self.label_design)
        hessian += torch.diag(self.precision)
        mixed = curvature[..., 0, 1] @ self.pair_design  # (B, d+2)
        hessian[:, self.d] += mixed
        hessian[:, :, self.d] += mixed
        hessian[:, self.d, self.d] += curvature[..., 1, 1].sum(-1)
        return torch.linalg.cholesky(hessian)

    def by_vote(self, phi: torch.Tensor) -> torch.Tensor:
        """Each vote's part of the gradient (B, d+2, n+m)."""
        by_pair, by_label = self.slopes(phi)
        pairs = self.pair_design * by_pair[..., 0, None]
        pairs[..., self.d] = by_pair[..., 1]
        return torch.cat([pairs, self.label_design * by_label[..., None]], 1).mT


def minimise(objective: Objective, start: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """φ (B, d+2) of least objective by Newton's method, from `start` (B, d+2) if given, and the Hessian's Cholesky root
    there. The objective is convex.
    """
    phi = objective.prior_mean.expand(len(objective.pair_weight), -1) if start is None else start
    value = objective.value(phi)
    for _ in range(NEWTON_STEPS):
        gradient = objective.gradient(phi)
        root = objective.hessian_root(phi)
        step = torch.cholesky_solve(gradient[..., None], root)[..., 0]
        growing = (gradient * step).sum(-1) >= 1e-9
        if not growing.any():
            break
        step = step * growing[:, None]
        while (worse := ((new := objective.value(phi - step)) > value) & (step.norm(dim=-1) > 1e-9)).any():
            step = torch.where(worse[:, None], step / 2, step)
        phi = phi - step
        value = new
    return phi, root


def fit_head(x: torch.Tensor, prefs: Preferences, penalty: float) -> FittedHead:
    """Minimise the weighted NLL + penalty/2·|w|². x (N, d), standardised, one row a reply.

    The posterior is Laplace's approximation: Gaussian, with the objective's curvature at its minimum as inverse
    covariance (MacKay 1992). The influence is the infinitesimal jackknife's (Jaeckel 1972): what a bootstrap over votes
    would find, without the refits.
    """
    objective = Objective(x, prefs).penalised(penalty)
    phi, root = minimise(objective)
    influence = torch.cholesky_solve(objective.by_vote(phi), root)
    d = objective.d
    return FittedHead(
        weight=phi[0, :d].float(),
        log_nu=phi[0, d].item(),
        threshold=phi[0, d + 1].item(),
        factor=torch.linalg.cholesky(torch.cholesky_inverse(root[0])[:d, :d]).float(),
        influence=influence[0, :d].float(),
    )


def pair_columns(pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left index, right index and outcome of each pair, each (N,) int64."""
    left = torch.tensor([pair.left for pair in pairs], dtype=torch.long)
    right = torch.tensor([pair.right for pair in pairs], dtype=torch.long)
    outcome = torch.tensor([pair.outcome for pair in pairs], dtype=torch.long)
    return left, right, outcome


# -- the features that the head reads


def standardised(
    extracted: ExtractedFeatures, feature_set: str, known: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x (N, d), centre (d,), scale (d,)): one feature set, standardised so that rows have about unit norm and every
    block of features has an equal share of it. Of the first `known` rows where that is given, else of all.
    """
    blocks = scorer.feature_blocks(extracted.features, extracted.parts, feature_set)
    widths = [block.shape[1] for block in blocks]
    share = torch.cat([torch.full((width,), float(width * len(blocks))) for width in widths]).sqrt()
    raw = torch.cat(blocks, -1)
    centre = raw[:known].mean(0)
    deviation = raw[:known].std(0)
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


def designs(
    extracted: ExtractedFeatures, prefs: Preferences, settings: Settings, known: int | None = None
) -> dict[str, torch.Tensor]:
    """{feature set: x (N, r)} of the feature sets to choose among, each in the span of what the votes compare, and
    `standardised` by the first `known` rows.
    """
    designs_by_set = {}
    for feature_set in scorer.feature_set_names(extracted.parts, settings.reward.features):
        x, _, _ = standardised(extracted, feature_set, known)
        designs_by_set[feature_set] = x @ span(x, prefs)
    return designs_by_set


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
