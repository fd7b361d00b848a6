"""Win rates of versions by votes on blind pairs: known strengths, intervals, ties, one person's weight."""

import random
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from playground.models import ratings
from playground.models.ratings import Duels, Pairs, rate

BEFORE = {1: 0, 2: 1, 3: 2}


def simulated(strengths, pairs, seed, ties=0.3):
    """Duels of the given pairs of versions, {(version, against): number}, under Davidson's model."""
    rng = random.Random(seed)
    rows = []
    for (i, j), n in pairs.items():
        odds = [strengths[i], strengths[j], ties * (strengths[i] * strengths[j]) ** 0.5]
        drawn = rng.choices(("wins", "losses", "ties"), odds, k=n)
        rows.append(Duels(i, j, 1, *(drawn.count(outcome) for outcome in ("wins", "losses", "ties"))))
    return rows


def test_many_duels_give_the_win_rates_that_made_them():
    strengths = {0: 1.0, 1: 1.5, 2: 3.0, 3: 2.0}
    duels = simulated(strengths, {(1, 0): 6000, (2, 1): 6000, (3, 2): 6000, (3, 0): 2000}, seed=1)
    found = rate(duels, BEFORE, most_weight=1e9)
    for version, over_base, over_before in ((1, 1.5 / 2.5, 1.5 / 2.5), (2, 3 / 4, 3 / 4.5), (3, 2 / 3, 2 / 5)):
        rating = found[version]
        assert rating.over_base.mean == pytest.approx(over_base, abs=0.02)
        assert rating.over_before.mean == pytest.approx(over_before, abs=0.02)
        assert rating.over_base.low < over_base < rating.over_base.high
    assert found[2].duels == 12_000 and 0 not in found


def test_the_win_rate_over_the_base_follows_without_a_pair_with_the_base():
    duels = [Duels(1, 0, 1, 40, 20, 5), Duels(2, 1, 1, 40, 20, 5)]
    found = rate(duels, BEFORE, most_weight=1e9)
    odds = (41 / 21) ** 2  # with the prior's win and loss
    assert found[2].over_base.mean == pytest.approx(odds / (1 + odds), abs=1e-4)
    width = {version: found[version].over_base.high - found[version].over_base.low for version in (1, 2)}
    assert found[2].over_before.high - found[2].over_before.low > width[1] * 0.9
    assert found[2].over_base.low < found[2].over_base.mean < found[2].over_base.high


@pytest.mark.parametrize("wins, losses, ties", [(3, 0, 0), (7, 2, 40), (0, 1, 0), (12, 13, 4)])
def test_the_interval_of_two_versions_is_the_posterior_of_a_share(wins, losses, ties):
    """Also after three wins in three pairs, where resampling the duels alone would give an interval of no width."""
    found = rate([Duels(1, 0, 1, wins, losses, ties)], BEFORE, most_weight=1e9, samples=20_000)[1].over_base
    exact = stats.beta(wins + 1, losses + 1)
    assert found.mean == pytest.approx(exact.mean(), abs=1e-6)
    assert (found.low, found.high) == pytest.approx(exact.ppf([0.025, 0.975]), abs=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say():
    strengths = {0: 1.0, 1: 1.6, 2: 2.2}
    truth = {1: 1.6 / 2.6, 2: 2.2 / 3.2}
    held = 0
    runs = 150
    for seed in range(runs):
        duels = simulated(strengths, {(1, 0): 30, (2, 1): 25, (2, 0): 12}, seed)
        found = rate(duels, BEFORE, most_weight=1e9, samples=300)
        held += sum(
            found[version].over_base.low <= truth[version] <= found[version].over_base.high for version in truth
        )
    assert 0.91 <= held / (2 * runs) <= 0.99


def test_one_persons_duels_have_a_bounded_weight():
    crowd = [Duels(1, 0, person, 1, 4, 0) for person in range(2, 12)]
    fan = Duels(1, 0, 1, 1000, 0, 0)
    assert rate([fan, *crowd], BEFORE, most_weight=1e9)[1].over_base.mean > 0.9
    capped = rate([fan, *crowd], BEFORE, most_weight=10)[1].over_base.mean
    assert capped == pytest.approx((10 + 10 + 1) / (10 + 50 + 2), abs=1e-4)


def test_without_duels_nothing_is_said():
    assert rate([], BEFORE, 64) == {}
    assert rate([Duels(1, 0, 1, 0, 0, 0)], BEFORE, 64) == {}
    found = rate([Duels(3, 2, 1, 5, 1, 0)], BEFORE, 64)
    assert set(found) == {2, 3}, "version 1 has no duels"
    assert found[3].over_base.high - found[3].over_base.low > 0.8, "nothing leads from version 2 to the base"


def test_the_same_votes_give_the_same_figures_and_the_side_does_not_matter():
    duels = [Duels(2, 1, 1, 5, 3, 1), Duels(1, 0, 2, 4, 4, 0)]
    turned = [Duels(1, 2, 1, 3, 5, 1), duels[1]]
    assert rate(duels, BEFORE, 64) == rate(duels, BEFORE, 64)
    for version, rating in rate(turned, BEFORE, 64).items():
        assert rating.over_base.mean == pytest.approx(rate(duels, BEFORE, 64)[version].over_base.mean)


def test_a_long_chain_of_versions_is_fitted():
    before = {version: version - 1 for version in range(1, 41)}
    duels = [Duels(version, version - 1, 1, 6, 3, 1) for version in before]
    found = rate(duels, before, most_weight=1e9, samples=50)
    assert all(rating.over_before.mean == pytest.approx(7 / 11, abs=1e-5) for rating in found.values())
    assert 0.999 < found[40].over_base.mean <= 1


def test_the_fit_is_that_of_evalica():
    """evalica's `newman` fits Davidson's model with ν = 2v (Newman 2023, section 5)."""
    evalica = pytest.importorskip("evalica")
    rng = np.random.default_rng(3)
    left, right = np.tril_indices(6, -1)
    outcomes = np.stack([rng.integers(1, 9, 15), rng.integers(1, 9, 15), rng.integers(0, 4, 15)]).astype(float)
    xs, ys, winners, weights = [], [], [], []
    for i, j, numbers in zip(left, right, outcomes.T, strict=True):
        for n, winner in zip(numbers, (evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw), strict=True):
            xs.append(i), ys.append(j), winners.append(winner), weights.append(n)
    peer = evalica.newman(xs, ys, winners, weights=weights, tolerance=1e-10, limit=100_000)
    theirs = np.log(peer.scores.sort_index().to_numpy())
    assert ratings.fit(Pairs(6, left, right), outcomes) == pytest.approx(theirs - theirs[0], abs=1e-5)


def test_a_resample_is_fitted_as_the_votes_are():
    """By conjugate gradients from the fit of all votes; here each resample is fitted by itself, with dense matrices."""
    duels = simulated({0: 1.0, 1: 1.5, 2: 3.0, 3: 2.0}, {(1, 0): 9, (2, 1): 5, (3, 2): 2, (3, 0): 1}, seed=4)
    places = {version: version for version in range(4)}
    votes = ratings._Votes.of(duels, BEFORE, places, 64)
    together = ratings._bootstrap(votes, 30, seed=5)
    drawn = np.random.default_rng(5).gamma(votes.duels, size=(len(votes.duels), 30))
    alone = [ratings.fit(votes.pairs, votes.outcomes(drawn)[:, :, sample]) for sample in range(30)]
    assert together[:, 1:] == pytest.approx(np.array(alone).T, abs=0.01)
    assert together[:, 0] == pytest.approx(ratings.fit(votes.pairs, votes.outcomes(votes.duels)[:, :, 0]))


@pytest.mark.parametrize("in_a_chain", [True, False])
def test_many_versions_take_little_memory_and_only_the_newest_are_rated(in_a_chain, monkeypatch):
    """All resamples of all pairs of versions were held at once: 0.8 GB for 500 versions."""
    monkeypatch.setattr(ratings, "MOST_VERSIONS", 300)
    rng = random.Random(1)
    duels = []
    for _ in range(3000):
        version = rng.randint(1, 330)
        against = version - 1 if in_a_chain else rng.choice([n for n in range(331) if n != version])
        won = rng.random() < 0.6
        duels.append(Duels(version, against, rng.randint(1, 200), int(won), int(not won), 0))
    tracemalloc.start()
    found = rate(duels, {version: version - 1 for version in range(1, 331)}, most_weight=64, samples=40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20
    assert max(found) == 330 and min(found) >= 31 and len(found) > 290
