"""How often people prefer each version to the base and to the version before it, by their votes on blind pairs.

The model is Bradley–Terry with ties (Davidson 1970): versions i and j have strengths p_i and p_j, and their pair ends

    i wins : j wins : tie  =  p_i : p_j : ν·sqrt(p_i·p_j)

The win rate of i over j is p_i / (p_i + p_j), the share of the pairs that are no tie. It also follows where the two
were never compared themselves, from pairs with a third version.

Each version and the one before it begin with one win, one loss and one tie, a uniform prior over the three outcomes. So
the strengths are finite after a first win, and the interval of two versions that were compared with each other alone is
the posterior of a share under a uniform prior, as in `trial.Tally.better`.

The library evalica fits the same model (`newman`), and a test compares the two. The app does without it: its import
takes 50 MB and a second, and 400 fits of twelve versions in a chain 1.3 s of Python beside the decoder, here 0.08 s.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SAMPLES = 400  # of the bootstrap
CONFIDENCE = 0.95  # two-sided, of the intervals
MOST_STEPS = 100  # of Newton's method, which needs about ten
LARGEST_STEP = 1.0  # of one log-strength, so that it does not leave the region where the quadratic is near
TOLERANCE = 1e-6  # of the log-strengths
CELLS = 1 << 20  # entries of the matrices that are solved at once

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


def rate(
    duels: Sequence[Duels], before: Mapping[int, int], most_weight: float, samples: int = SAMPLES, seed: int = 0
) -> dict[int, Rating]:
    """The Rating of each version but the base that has duels.

    `before`: the version before each, which leads to the base, 0. One person's duels weigh at most `most_weight`
    together. The intervals are by the Bayesian bootstrap over duels (Rubin 1981): each duel, and each of the prior's,
    gets a weight from an exponential distribution of mean 1.
    """
    totals: Counter[int] = Counter()
    for row in duels:
        totals.update({row.version: row.total, row.against: row.total})
    versions = sorted(_with_ancestors({version for version, n in totals.items() if n}, before))
    if len(versions) < 2:
        return {}
    places = {version: place for place, version in enumerate(versions)}
    wins, ties = _outcomes(duels, before, places, most_weight, samples, seed)
    strengths = fit(wins, ties)  # (1 + samples, versions)
    ratings = {}
    for version in versions:
        if version and totals[version]:
            own = strengths[:, places[version]]
            over_base = _win_rate(own - strengths[:, places[0]])
            over_before = _win_rate(own - strengths[:, places[before[version]]])
            ratings[version] = Rating(over_base, over_before, totals[version])
    return ratings


def _with_ancestors(versions: set[int], before: Mapping[int, int]) -> set[int]:
    """The versions and all that they lead to."""
    found: set[int] = set()
    for version in versions:
        while version not in found:
            found.add(version)
            version = before.get(version, 0)
    return found


def _win_rate(differences: Array) -> WinRate:
    """The win rate from differences of log-strengths (1 + samples,): of the votes as they are, then of the samples."""
    shares = 1 / (1 + np.exp(-differences))
    low, high = np.quantile(shares[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return WinRate(float(shares[0]), float(low), float(high))


def _outcomes(
    duels: Sequence[Duels],
    before: Mapping[int, int],
    places: Mapping[int, int],
    most_weight: float,
    samples: int,
    seed: int,
) -> tuple[Array, Array]:
    """Weighted numbers of wins of row over column, and of ties (a symmetric matrix), (1 + samples, versions, versions):
    of the votes as they are, then of each sample of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    shape = (1 + samples, len(places), len(places))
    wins, ties = np.zeros(shape), np.zeros(shape)

    for version in places:
        if version:
            _add(wins, ties, places[version], places[before.get(version, 0)], (1, 1, 1), 1.0, rng)
    per_person: defaultdict[int, int] = defaultdict(int)
    for row in duels:
        per_person[row.annotator] += row.total
    for row in duels:
        weight = min(1.0, most_weight / max(per_person[row.annotator], 1))
        numbers = (row.wins, row.losses, row.ties)
        _add(wins, ties, places[row.version], places[row.against], numbers, weight, rng)
    return wins, ties


def _add(
    wins: Array, ties: Array, i: int, j: int, numbers: tuple[int, int, int], weight: float, rng: np.random.Generator
) -> None:
    """Add wins, losses and ties of version i against j. The sum of n exponential weights is drawn at once."""
    won, lost, tied = (
        weight * np.concatenate([[n], rng.gamma(n, size=len(wins) - 1) if n else np.zeros(len(wins) - 1)])
        for n in numbers
    )
    wins[:, i, j] += won
    wins[:, j, i] += lost
    ties[:, i, j] += tied
    ties[:, j, i] += tied


def fit(wins: Array, ties: Array) -> Array:
    """Log-strengths (samples, versions) of the greatest likelihood, that of the first version 0.

    `wins` (samples, versions, versions) has the wins of row over column, `ties` the ties, which are symmetric. Every
    version must have wins and losses on a path to every other one, and some pair a tie. Samples are resamples of the
    first one: each begins where that one ends.
    """
    samples, versions, _ = wins.shape
    start = np.zeros((1, versions + 1))
    start[:, -1] = -1.0
    found = _fit(wins[:1], ties[:1], start)
    parts = [found]
    at_once = max(1, CELLS // versions**2)
    for i in range(1, samples, at_once):
        some = slice(i, min(i + at_once, samples))
        parts.append(_fit(wins[some], ties[some], np.repeat(found, some.stop - i, axis=0)))
    return np.concatenate(parts)[:, :-1]


def _fit(wins: Array, ties: Array, parameters: Array) -> Array:
    """The log-strengths θ of each version, then η = log ν, (samples, versions + 1), by Newton's method from
    `parameters`: the log-likelihood is concave in them.

    With d = θ_i − θ_j the three outcomes of a pair have the log-odds d/2, −d/2 and η.
    """
    samples, versions, _ = wins.shape
    pairs = wins + wins.transpose(0, 2, 1) + ties  # of row and column, from both sides
    diagonal = np.arange(versions)
    for _ in range(MOST_STEPS):
        theta, eta = parameters[:, :-1], parameters[:, -1, None, None]
        half = (theta[:, :, None] - theta[:, None, :]) / 2
        ratio = np.exp(half)
        total = ratio + 1 / ratio + np.exp(eta)
        win, loss, tie = ratio / total, 1 / (ratio * total), np.exp(eta) / total
        # the gradient and the Hessian of the log-likelihood; each pair is in the matrices twice, once from each side
        by_d = (wins - wins.transpose(0, 2, 1)) / 2 - pairs * (win - loss) / 2
        by_eta = (ties - pairs * tie).sum((1, 2)) / 2
        by_d_d = -pairs * (win + loss - (win - loss) ** 2) / 4
        by_d_eta = pairs * (win - loss) * tie / 2
        gradient = np.concatenate([by_d.sum(2), by_eta[:, None]], axis=1)
        hessian = np.zeros((samples, versions + 1, versions + 1))
        hessian[:, :-1, :-1] = -by_d_d
        hessian[:, diagonal, diagonal] = by_d_d.sum(2) - by_d_d[:, diagonal, diagonal]
        hessian[:, :-1, -1] = hessian[:, -1, :-1] = by_d_eta.sum(2)
        hessian[:, -1, -1] = -(pairs * tie * (1 - tie)).sum((1, 2)) / 2
        # the first version stays at 0
        step = -np.linalg.solve(hessian[:, 1:, 1:], gradient[:, 1:, None])[:, :, 0]
        parameters[:, 1:] += np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        if np.abs(step).max() < TOLERANCE:
            break
    return parameters
