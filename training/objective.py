"""What a fit of the linear head minimises: the penalised negative log-likelihood of the votes, for several weightings
of them at once, and Newton's method on it.

Knows nothing about features, cross-validation or files.
"""

from collections.abc import Sequence
from copy import copy

import torch

from training import likelihood
from training.people import NOBODY, People
from training.preferences import Pair, Preferences

NEWTON_STEPS = 50
OF_A_PERSON = 1.0  # prior precision of a person's lean to the left, and of how much more readily they say tie
SMALLEST = 1e-9  # of the largest eigenvalue; a direction with less is none that the votes compare


class Objective:
    """The penalised negative log-likelihood of φ = (v, log ν, θ, people's log ν − log ν, people's leans).

    `x` (N, d): standardised features, one row a reply. v (r,) are the weights. Where each person has a taste of their
    own, v has coordinates for all tastes together, and `shared` (d, r) gives the shared one: w = shared·v. A part of
    the votes is a weighting in which the others weigh 0. B is the number of weightings, n the number of pairs, m the
    number of pointwise labels, P of people, k = r + 2 + 2P.
    """

    def __init__(self, x: torch.Tensor, prefs: Preferences, people: People = NOBODY) -> None:
        x = x.double()
        left, right, self.outcome = pair_columns(prefs.pairs)
        labelled = torch.tensor([label.reply for label in prefs.labels], dtype=torch.long)
        self.good = torch.tensor([label.good for label in prefs.labels], dtype=x.dtype)
        n = len(prefs.pairs)
        places = people.places([*prefs.pairs, *prefs.labels])  # (n + m,)
        rows = torch.cat([x[left] - x[right], x[labelled]])  # (n + m, d)
        self.tastes = Tastes(rows, places, people.own)
        rows = self.tastes.rows  # (n + m, r)
        self.r = rows.shape[1]
        of_person = torch.nn.functional.one_hot(places[:n] + 1, len(people.ids) + 1)[:, 1:].to(x.dtype)  # (n, P)
        # an edited reply was judged on no side and by nobody who might not have looked
        is_vote = torch.tensor([pair.vote is not None for pair in prefs.pairs], dtype=torch.bool)
        others = 2 + 2 * len(people.ids)
        # linear predictors of φ: δ = s_a − s_b and log ν of each pair, and s − θ of each pointwise label
        leans = of_person * is_vote[:, None]
        self.pair_design = torch.cat([rows[:n], torch.zeros(n, others - len(people.ids)), leans], 1)  # (n, k)
        self.tie_design = torch.zeros(n, others, dtype=x.dtype)  # (n, k − r)
        self.tie_design[:, 0] = 1
        self.tie_design[:, 2 : 2 + len(people.ids)] = of_person
        self.label_design = torch.cat([rows[n:], torch.zeros(len(prefs.labels), others)], 1)  # (m, k)
        self.label_design[:, self.r + 1] = -1
        self.lapse = people.lapse_of(places[:n].where(is_vote, -1))
        self.pair_weight = torch.tensor([[pair.weight for pair in prefs.pairs]], dtype=x.dtype)  # (B, n)
        self.label_weight = torch.tensor([[label.weight for label in prefs.labels]], dtype=x.dtype)  # (B, m)
        # weak priors keep ν and θ finite where there is no tie or no thumb
        self.prior_mean = torch.zeros(self.r + others, dtype=x.dtype)
        self.prior_mean[self.r] = -1
        self.precision = torch.full_like(self.prior_mean, 0.2)
        self.precision[self.r + 2 :] = OF_A_PERSON

    def weighted(self, pairs: torch.Tensor, labels: torch.Tensor) -> "Objective":
        """The same votes, each weight multiplied by these factors (B, n) and (B, m)."""
        other = copy(self)
        other.pair_weight = self.pair_weight * pairs
        other.label_weight = self.label_weight * labels
        return other

    def penalised(self, penalty: float) -> "Objective":
        """The same, with penalty/2·|v|²."""
        other = copy(self)
        other.precision = self.precision.clone()
        other.precision[: self.r] = penalty
        return other

    def value(self, phi: torch.Tensor) -> torch.Tensor:
        """(B,) at phi (B, k)."""
        pair_nll = self.pair_weight * self.pair_nll(phi)
        label_nll = self.label_weight * likelihood.pointwise_nll(phi @ self.label_design.T, self.good, 0.0)
        prior = self.precision / 2 * (phi - self.prior_mean).square()
        return prior.sum(-1) + pair_nll.sum(-1) + label_nll.sum(-1)

    def predicted(self, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """δ and log ν of each pair, (B, n) each."""
        return phi @ self.pair_design.T, phi[:, self.r :] @ self.tie_design.T

    def pair_nll(self, phi: torch.Tensor) -> torch.Tensor:
        """NLL of each pair, without its weight (B, n)."""
        delta, log_nu = self.predicted(phi)
        return likelihood.pair_nll(delta / 2, -delta / 2, self.outcome, log_nu, self.lapse)

    def _pair_derivatives(self, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        delta, log_nu = self.predicted(phi)
        return likelihood.pair_derivatives(delta / 2, -delta / 2, self.outcome, log_nu, self.lapse)

    def derivatives(self, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient (B, k), and the Cholesky root (B, k, k) of the Hessian; of the Fisher information where there
        are lapses.
        """
        slope, curvature = self._pair_derivatives(phi)
        slope = self.pair_weight[..., None] * slope  # (B, n, 2), by δ and log ν
        curvature = self.pair_weight[..., None, None] * curvature  # (B, n, 2, 2)
        p_good = torch.sigmoid(phi @ self.label_design.T)
        label_slope = self.label_weight * (p_good - self.good)  # (B, m)
        label_curvature = self.label_weight * p_good * (1 - p_good)  # (B, m)
        return self._gradient(phi, slope, label_slope), torch.linalg.cholesky(self._hessian(curvature, label_curvature))

    def _gradient(self, phi: torch.Tensor, by_pair: torch.Tensor, by_label: torch.Tensor) -> torch.Tensor:
        gradient = self.precision * (phi - self.prior_mean)
        gradient = gradient + by_pair[..., 0] @ self.pair_design + by_label @ self.label_design
        gradient[:, self.r :] += by_pair[..., 1] @ self.tie_design
        return gradient

    def _hessian(self, of_pairs: torch.Tensor, of_labels: torch.Tensor) -> torch.Tensor:
        r = self.r
        hessian = self.pair_design.T @ (of_pairs[..., 0, 0, None] * self.pair_design)
        hessian += self.label_design.T @ (of_labels[..., None] * self.label_design)
        hessian += torch.diag(self.precision)
        mixed = (self.tie_design.T * of_pairs[..., None, :, 0, 1]) @ self.pair_design  # (B, k − r, k)
        hessian[:, r:] += mixed
        hessian[:, :, r:] += mixed.mT
        hessian[:, r:, r:] += (self.tie_design.T * of_pairs[..., None, :, 1, 1]) @ self.tie_design
        return hessian

    def by_vote(self, phi: torch.Tensor) -> torch.Tensor:
        """Each vote's part of the gradient (B, k, n + m)."""
        by_pair, _ = self._pair_derivatives(phi)
        by_pair = self.pair_weight[..., None] * by_pair  # (B, n, 2)
        by_label = self.label_weight * (torch.sigmoid(phi @ self.label_design.T) - self.good)  # (B, m)
        pairs = self.pair_design * by_pair[..., 0, None]
        pairs[..., self.r :] += self.tie_design * by_pair[..., 1, None]
        return torch.cat([pairs, self.label_design * by_label[..., None]], 1).mT


class Tastes:
    """Coordinates of a shared taste and each person's deviation from it, in which the prior is the same everywhere.

    Rows i and j of the votes (n, d) have the covariance rᵢ·rⱼ·(1 − own), and rᵢ·rⱼ where one person gave both. The
    coordinates (n, r) are a root of it, so that a fit costs no more with many people than with one.
    """

    def __init__(self, votes: torch.Tensor, places: torch.Tensor, own: float) -> None:
        """`places` (n,): who gave each vote, −1 for nobody who is told apart."""
        self.own = own
        self._votes = votes
        self._places = places
        self.rows = votes
        if not own:
            return
        same = (places[:, None] == places) & (places[:, None] >= 0)
        covariance = votes @ votes.T * (1 - own + own * same)
        variances, directions = torch.linalg.eigh(covariance)
        kept = variances > SMALLEST * variances.max()
        root = variances[kept].sqrt()
        self.rows = directions[:, kept] * root
        self._back = directions[:, kept] / root  # (n, r)

    def shared(self, v: torch.Tensor) -> torch.Tensor:
        """The shared weights (d, …) of coordinates (r, …)."""
        return (1 - self.own) * (self._votes.T @ (self._back @ v)) if self.own else v

    def of_person(self, place: int, v: torch.Tensor) -> torch.Tensor:
        """The weights (d, …) of a person: the shared ones and their own deviation."""
        if not self.own:
            return v
        theirs = self._votes * (self._places == place)[:, None]
        return self.shared(v) + self.own * (theirs.T @ (self._back @ v))

    def shared_covariance(self, covariance: torch.Tensor, penalty: float) -> torch.Tensor:
        """That of the shared weights (d, d), from that of the coordinates (r, r) and the prior's precision."""
        if not self.own:
            return covariance
        shared = self.shared(torch.eye(len(covariance), dtype=covariance.dtype))  # (d, r)
        known = shared @ shared.T
        prior = (1 - self.own) * torch.eye(len(shared), dtype=covariance.dtype)
        return shared @ covariance @ shared.T + (prior - known) / penalty


def minimise(objective: Objective, start: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """φ (B, k) of least objective by Newton's method, from `start` (B, k) if given, and the Hessian's Cholesky root
    there. Without lapses the objective is convex; with them it is Fisher scoring, to a minimum nearby.
    """
    phi = objective.prior_mean.expand(len(objective.pair_weight), -1) if start is None else start
    value = objective.value(phi)
    for _ in range(NEWTON_STEPS):
        gradient, root = objective.derivatives(phi)
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


def pair_columns(pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left index, right index and outcome of each pair, each (N,) int64."""
    left = torch.tensor([pair.left for pair in pairs], dtype=torch.long)
    right = torch.tensor([pair.right for pair in pairs], dtype=torch.long)
    outcome = torch.tensor([pair.outcome for pair in pairs], dtype=torch.long)
    return left, right, outcome
