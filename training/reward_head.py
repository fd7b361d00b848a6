"""The linear head of the reward model: standardised features, the span of the votes, and the penalised fit with its
posterior. What the fit minimises is `objective.py`'s.

Knows nothing about trunks, cross-validation or files: `reward_validation.py` chooses the feature set and the penalty,
and `reward.py` does the whole fit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from playground.models import scorer
from playground.models.scorer import ExtractedFeatures, PersonalHead
from playground.settings import Settings
from training.objective import Objective, minimise, pair_columns
from training.people import NOBODY, People
from training.preferences import Preferences

CONSTANT = 1e-4  # a feature with a smaller deviation counts as constant


@dataclass(frozen=True)
class FittedHead:
    """A fitted head on d features, and how sure the votes make us of it."""

    weight: torch.Tensor  # (d,)
    log_nu: float  # Davidson's log ν
    threshold: float  # θ, of thumbs and both-bad votes
    factor: torch.Tensor  # (d, d): factor·factorᵀ is the posterior covariance of the weight
    influence: torch.Tensor  # (d, votes), how far each vote moved the weight; influence·influenceᵀ: sampling covariance
    people: list[PersonalHead]  # of each person who is told apart


def fit_head(x: torch.Tensor, prefs: Preferences, penalty: float, people: People = NOBODY) -> FittedHead:
    """Minimise the weighted NLL + penalty/2·|v|², v the shared weights and each person's deviation. x (N, d),
    standardised, one row a reply.

    The posterior is Laplace's approximation: Gaussian, with the objective's curvature at its minimum as inverse
    covariance (MacKay 1992). The influence is the infinitesimal jackknife's (Jaeckel 1972): what a bootstrap over votes
    would find, without the refits.
    """
    objective = Objective(x, prefs, people).penalised(penalty)
    phi, root = minimise(objective)
    influence = torch.cholesky_solve(objective.by_vote(phi), root)[0]
    r = objective.r
    tastes = objective.tastes
    v, moved = phi[0, :r], influence[:r]
    covariance = tastes.shared_covariance(torch.cholesky_inverse(root[0])[:r, :r], penalty)
    return FittedHead(
        weight=tastes.shared(v).float(),
        log_nu=phi[0, r].item(),
        threshold=phi[0, r + 1].item(),
        factor=torch.linalg.cholesky(covariance).float(),
        influence=tastes.shared(moved).float(),
        people=[
            PersonalHead(tastes.of_person(place, v).float(), tastes.of_person(place, moved).float())
            for place in range(len(people.ids))
        ],
    )


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


def fitted_scores(
    x: torch.Tensor, prefs: Preferences, penalty: float, people: People = NOBODY
) -> tuple[torch.Tensor, float]:
    """Raw scores (N,) of every reply under the shared head fitted on `prefs`, and log ν."""
    head = fit_head(x, prefs, penalty, people)
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
