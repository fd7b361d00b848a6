"""How often people prefer each version to the base and to the version before it, by their votes on blind pairs.

The model is Bradley–Terry with ties (Davidson 1970): versions i and j have strengths p_i and p_j, and their pair ends

    i wins : j wins : tie  =  p_i : p_j : ν·sqrt(p_i·p_j)

The win rate of i over j is p_i / (p_i + p_j), the share of the pairs that are no tie. It also follows where the two
were never compared themselves, from pairs with a third version.

Each version and the one before it begin with one win, one loss and one tie, a uniform prior over the three outcomes. So
the strengths are finite after a first win, and the interval of two versions that were compared with each other alone is
the posterior of a share under a uniform prior, as in `trial.Tally.better`.

The library evalica fits the same model (`newman`), and a test compares the two. The app does without it: its import
takes 50 MB and a second, and 400 fits of twelve versions in a chain 1.3 s of Python beside the decoder, here a tenth.

What is kept of the votes grows with the pairs of versions that were compared, not with the square of the versions.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

SAMPLES = 400  # of the bootstrap, as long as all strengths of them are at most `MOST_STRENGTHS`
MOST_STRENGTHS = 40_000
FEWEST_SAMPLES = 80  # however many versions there are
CONFIDENCE = 0.95  # two-sided, of the intervals
MOST_STEPS = 100  # of Newton's method, which needs about ten
LARGEST_STEP = 1.0  # of one log-strength, so that it does not leave the region where the quadratic is near
TOLERANCE = 1e-6  # of the log-strengths of the votes as they are
SAMPLE_TOLERANCE = 1e-2  # of the last step of a resample's, whose error is then about a tenth of it
MOST_PRODUCTS = 100  # of the method of conjugate gradients in one step of Newton's; it needs about ten
RESIDUAL = 0.1  # of the right side, at which it ends
ENTRIES = 1 << 18  # of one array: this limits how many resamples are fitted at once
MOST_VERSIONS = 500  # the newest ones are rated

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Duels:
    """One person's votes on pairs of two versions, from the side of `version`."""

    version: int
    against: int
    annotator: int
    wins: int
    losses: int
    ties: int

    @property
    def total(self) -> int:
        return self.wins + self.losses + self.ties


@dataclass(frozen=True)
class WinRate:
    """A share from 0 to 1 with its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Rating:
    """What the votes say of a version. `duels`: how many votes there are on pairs of it and another version."""

    over_base: WinRate
    over_before: WinRate
    duels: int


@dataclass(frozen=True)
class Pairs:
    """The pairs of versions that were compared, by their places: that of `left[k]` and `right[k]` is pair k. Place 0 is
    the base's.
    """

    versions: int
    left: npt.NDArray[np.int64]  # (pairs,)
    right: npt.NDArray[np.int64]

    def differences(self) -> sparse.csr_array:
        """The matrix (pairs, versions - 1) that makes differences left - right of the others' log-strengths: that of
        the base is 0.
        """
        pairs = np.arange(len(self.left))
        rows = np.concatenate([pairs, pairs])
        columns = np.concatenate([self.left, self.right])
        signs = np.concatenate([np.ones(len(pairs)), -np.ones(len(pairs))])
        shape = (len(pairs), self.versions)
        return sparse.csr_array((signs, (rows, columns)), shape=shape)[:, 1:]


def rate(
    duels: Sequence[Duels], before: Mapping[int, int], most_weight: float, samples: int | None = None, seed: int = 0
) -> dict[int, Rating]:
    """The Rating of each version but the base that has duels, of the newest `MOST_VERSIONS`.

    `before`: the version before each, which leads to the base, 0. One person's duels weigh at most `most_weight`
    together. The intervals are by the Bayesian bootstrap over duels (Rubin 1981): each duel, and each of the prior's,
    gets a weight from an exponential distribution of mean 1. Of `samples` there are fewer by themselves where there are
    more than a hundred versions.
    """
    totals: Counter[int] = Counter()
    for row in duels:
        totals.update({row.version: row.total, row.against: row.total})
    known = sorted(_with_ancestors({version for version, n in totals.items() if n}, before) - {0})
    versions = [0, *known[-MOST_VERSIONS:]]
    if len(versions) < 2:
        return {}
    places = {version: place for place, version in enumerate(versions)}
    votes = _Votes.of(duels, before, places, most_weight)
    if samples is None:
        samples = min(SAMPLES, max(FEWEST_SAMPLES, MOST_STRENGTHS // len(versions)))
    strengths = _bootstrap(votes, samples, seed)  # (versions, 1 + samples)
    ratings = {}
    for version in versions:
        if version and totals[version] and before[version] in places:
            own = strengths[places[version]]
            over_base = _win_rate(own - strengths[0])
            over_before = _win_rate(own - strengths[places[before[version]]])
            ratings[version] = Rating(over_base, over_before, totals[version])
    return ratings


def _with_ancestors(versions: set[int], before: Mapping[int, int]) -> set[int]:
    """The versions and all that they lead to."""
    reached: set[int] = set()
    for version in versions:
        while version not in reached:
            reached.add(version)
            version = before.get(version, 0)
    return reached


def _win_rate(differences: Array) -> WinRate:
    """The win rate from differences of log-strengths (1 + samples,): of the votes as they are, then of the samples."""
    shares = 1 / (1 + np.exp(-differences))
    low, high = np.quantile(shares[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return WinRate(float(shares[0]), float(low), float(high))


@dataclass(frozen=True)
class _Votes:
    """Outcomes of pairs in groups of one weight: `duels[g]` of them (groups,), which `weights` (3 * pairs, groups) sums
    to wins of the left version of each pair, then wins of the right one, then ties.
    """

    pairs: Pairs
    duels: Array
    weights: sparse.csr_array

    @classmethod
    def of(
        cls, duels: Sequence[Duels], before: Mapping[int, int], places: Mapping[int, int], most_weight: float
    ) -> "_Votes":
        """The duels of the versions that have places, and the prior's."""
        per_person: Counter[int] = Counter()
        for row in duels:
            per_person[row.annotator] += row.total
        groups: Counter[tuple[int, int, int, float]] = Counter()  # by left and right place, outcome and weight
        for version in places:
            if version:
                _add(groups, places[version], places.get(before.get(version, 0), 0), (1, 1, 1), 1.0)
        for row in duels:
            if row.version in places and row.against in places:
                weight = min(1.0, most_weight / max(per_person[row.annotator], 1))
                _add(groups, places[row.version], places[row.against], (row.wins, row.losses, row.ties), weight)
        compared = sorted({group[:2] for group in groups})
        numbers = {pair: k for k, pair in enumerate(compared)}
        left, right = np.array(compared).T
        rows = [outcome * len(compared) + numbers[i, j] for i, j, outcome, _ in groups]
        weights = [weight for _, _, _, weight in groups]
        shape = (3 * len(compared), len(groups))
        matrix = sparse.csr_array((weights, (rows, np.arange(len(groups)))), shape=shape)
        return cls(Pairs(len(places), left, right), np.array(list(groups.values()), float)[:, None], matrix)

    def outcomes(self, duels: Array) -> Array:
        """(3, pairs, samples) from the weights of each group's duels together (groups, samples)."""
        return (self.weights @ duels).reshape(3, len(self.pairs.left), duels.shape[1])


def _add(
    groups: Counter[tuple[int, int, int, float]], i: int, j: int, numbers: tuple[int, int, int], weight: float
) -> None:
    """Add wins, losses and ties of the version at place i against that at j."""
    won, lost, tied = numbers
    if i < j:
        i, j, won, lost = j, i, lost, won
    for outcome, n in enumerate((won, lost, tied)):
        if n:
            groups[i, j, outcome, weight] += n


def _bootstrap(votes: _Votes, samples: int, seed: int) -> Array:
    """Log-strengths (versions, 1 + samples): of the votes as they are, then of each resample."""
    rng = np.random.default_rng(seed)
    differences = votes.pairs.differences()
    start = np.zeros((votes.pairs.versions, 1))  # the log-strengths without the base's, then log ν
    start[-1] = -1.0
    of_all_votes, inverse = _fit(differences, votes.outcomes(votes.duels), start)
    parts = [of_all_votes]
    at_once = max(1, ENTRIES // max(votes.weights.shape))
    for first in range(0, samples, at_once):
        n = min(at_once, samples - first)
        # the sum of k exponential weights is drawn at once
        outcomes = votes.outcomes(rng.gamma(votes.duels, size=(len(votes.duels), n)))
        parts.append(_refit(differences, outcomes, of_all_votes, inverse))
    return np.concatenate([np.zeros((1, 1 + samples)), np.concatenate(parts, axis=1)[:-1]])


def fit(pairs: Pairs, outcomes: Array) -> Array:
    """Log-strengths (versions,) of the greatest likelihood, that of the base 0.

    `outcomes` (3, pairs): wins of the left version, wins of the right one, ties. Every version must have wins and
    losses on a path to every other one, and some pair a tie.
    """
    start = np.zeros((pairs.versions, 1))
    start[-1] = -1.0
    parameters, _ = _fit(pairs.differences(), outcomes[:, :, None], start)
    return np.concatenate([[0.0], parameters[:-1, 0]])


def _fit(differences: sparse.csr_array, outcomes: Array, start: Array) -> tuple[Array, Array]:
    """The parameters (versions, 1) by Newton's method with dense matrices, and the inverse of the negative Hessian."""
    parameters = start.copy()
    for _ in range(MOST_STEPS):
        slope = _Slope.at(differences, outcomes, parameters)
        hessian = slope.dense()
        step = np.linalg.solve(hessian, slope.gradient)
        parameters += np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        if np.abs(step).max() < TOLERANCE:
            break
    return parameters, np.asarray(np.linalg.inv(hessian), np.float64)


def _refit(differences: sparse.csr_array, outcomes: Array, of_all_votes: Array, inverse: Array) -> Array:
    """The parameters (versions, samples) of resamples, from those of all votes and the inverse of their negative
    Hessian, which is near that of each resample: by Newton's method with conjugate gradients.
    """
    parameters = np.repeat(of_all_votes, outcomes.shape[2], axis=1)
    going_on = np.arange(outcomes.shape[2])
    for _ in range(MOST_STEPS):
        slope = _Slope.at(differences, outcomes[:, :, going_on], parameters[:, going_on])
        step = _solve(slope.product, lambda residual: inverse @ residual, slope.gradient)
        parameters[:, going_on] += np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        going_on = going_on[np.abs(step).max(0) > SAMPLE_TOLERANCE]
        if not len(going_on):
            break
    return parameters


@dataclass(frozen=True)
class _Slope:
    """The gradient of the log-likelihood in the parameters (versions, samples), which are the log-strengths θ without
    the base's, then η = log ν; and what its negative Hessian is made of. The log-likelihood is concave in them.

    With d = θ_i − θ_j the three outcomes of a pair have the log-odds d/2, −d/2 and η.
    """

    differences: sparse.csr_array
    gradient: Array
    by_d_d: Array  # (pairs, samples)
    by_theta_eta: Array  # (versions - 1, samples)
    by_eta_eta: Array  # (samples,)

    @classmethod
    def at(cls, differences: sparse.csr_array, outcomes: Array, parameters: Array) -> "_Slope":
        won, lost, tied = outcomes
        n = won + lost + tied
        ratio = np.exp(differences @ parameters[:-1] / 2)
        tie_odds = np.exp(parameters[-1])
        total = ratio + 1 / ratio + tie_odds
        win, loss, tie = ratio / total, 1 / (ratio * total), tie_odds / total
        by_theta = differences.T @ ((won - lost - n * (win - loss)) / 2)
        by_eta = (tied - n * tie).sum(0)
        return cls(
            differences,
            np.concatenate([by_theta, by_eta[None]]),
            n * (win + loss - (win - loss) ** 2) / 4,
            -(differences.T @ (n * (win - loss) * tie / 2)),
            (n * tie * (1 - tie)).sum(0),
        )

    def product(self, x: Array) -> Array:
        """The negative Hessian of each sample times its column of x (versions, samples)."""
        by_theta = self.differences.T @ (self.by_d_d * (self.differences @ x[:-1])) + self.by_theta_eta * x[-1]
        by_eta = (self.by_theta_eta * x[:-1]).sum(0) + self.by_eta_eta * x[-1]
        return np.concatenate([by_theta, by_eta[None]])

    def dense(self) -> Array:
        """The negative Hessian (versions, versions) of the first sample."""
        by_theta = (self.differences.T @ (self.differences * self.by_d_d[:, :1])).toarray()
        border = self.by_theta_eta[:, :1]
        return np.block([[by_theta, border], [border.T, self.by_eta_eta[:1, None]]])


def _solve(product: Callable[[Array], Array], precondition: Callable[[Array], Array], right: Array) -> Array:
    """x with product(x) = right, column by column, by preconditioned conjugate gradients (Hestenes and Stiefel
    1952).
    """
    x = np.zeros_like(right)
    residual = right.copy()
    direction = preconditioned = precondition(residual)
    size = (residual * preconditioned).sum(0)
    goal = RESIDUAL**2 * size
    for _ in range(MOST_PRODUCTS):
        image = product(direction)
        step = size / np.maximum((direction * image).sum(0), np.finfo(float).tiny)
        x += step * direction
        residual -= step * image
        preconditioned = precondition(residual)
        size, before = (residual * preconditioned).sum(0), size
        if (size <= goal).all():
            break
        direction = preconditioned + size / np.maximum(before, np.finfo(float).tiny) * direction
    return x
