"""The step of a round by hand, the retreat to the base, and when nothing is left to learn."""

import pytest

from playground.models.trial import Tally
from training import ratchet
from training.ratchet import EndedTrial

KEPT = EndedTrial("kept", Tally(9, 1))
UNDECIDED = EndedTrial("undecided", Tally(13, 12))  # as good as the one before it
LIKED = EndedTrial("undecided", Tally(15, 10))  # better with a probability of .84
DISLIKED = EndedTrial("undecided", Tally(11, 14))  # .28
ROLLED_BACK = EndedTrial("rolled_back", Tally(0, 5))


@pytest.mark.parametrize(
    ("trials", "step"),
    [
        ([], 8),
        ([KEPT], 10),
        ([LIKED], 10),
        ([UNDECIDED], 8),
        ([DISLIKED], 5.6),
        ([ROLLED_BACK], 4),
        ([KEPT, ROLLED_BACK], 5),
        ([ROLLED_BACK, KEPT], 5),
        ([EndedTrial("kept", Tally(0, 0))], 8),  # without a vote
    ],
)
def test_ended_trials_make_the_step_longer_or_shorter(trials, step):
    assert ratchet.step(8, trials, accuracy=0.9) == pytest.approx(step)


def test_the_step_has_bounds_and_comes_back_from_them_at_once():
    assert ratchet.step(8, [KEPT] * 50, 1.0) == 32
    assert ratchet.step(8, [ROLLED_BACK] * 50, 1.0) == 2
    assert ratchet.step(8, [KEPT] * 50 + [ROLLED_BACK], 1.0) == 16
    assert ratchet.step(8, [ROLLED_BACK] * 50 + [KEPT], 1.0) == 2.5


@pytest.mark.parametrize(
    ("accuracy", "step"), [(1.0, 8), (0.75, 8), (0.625, 4), (0.6, 3.2), (0.5, 2), (0.3, 2), (0.56, 2)]
)
def test_votes_that_agree_less_with_each_other_make_a_shorter_step(accuracy, step):
    assert ratchet.step(8, [], accuracy) == pytest.approx(step)


@pytest.mark.parametrize(
    ("wins", "losses", "retreats"), [(0, 0, False), (0, 1, False), (0, 2, True), (10, 12, False), (10, 15, True)]
)
def test_a_round_retreats_where_people_prefer_the_base(wins, losses, retreats):
    """Two losses and no win leave a probability of 1/8 that people prefer the version."""
    assert ratchet.retreats(Tally(wins, losses, ties=3)) == retreats


def test_nothing_is_left_where_people_call_the_replies_equal():
    reason = ratchet.nothing_left(hits=3, forecasts=4, ties=16, votes=20)
    assert "16 of 20 on the current version's replies are ties" in str(reason)
    assert ratchet.nothing_left(hits=3, forecasts=4, ties=12, votes=20) is None  # .6, and may well be less


def test_nothing_is_left_where_choices_cannot_be_forecast():
    reason = ratchet.nothing_left(hits=50, forecasts=100, ties=10, votes=110)
    assert "50 of 100 on the current version's replies could be forecast" in str(reason)
    assert ratchet.nothing_left(hits=65, forecasts=100, ties=10, votes=110) is None
    assert ratchet.nothing_left(hits=100, forecasts=100, ties=10, votes=110) is None


def test_a_few_votes_do_not_say_that_nothing_is_left():
    assert ratchet.nothing_left(hits=0, forecasts=11, ties=0, votes=11) is None
    assert ratchet.nothing_left(hits=0, forecasts=0, ties=11, votes=11) is None
    assert ratchet.nothing_left(hits=0, forecasts=12, ties=0, votes=12)
    assert ratchet.nothing_left(hits=0, forecasts=0, ties=12, votes=12)
    assert ratchet.nothing_left(hits=6, forecasts=12, ties=0, votes=12) is None  # chance, but may be .75
    assert ratchet.nothing_left(hits=0, forecasts=0, ties=0, votes=0) is None


def test_the_lower_bound_of_a_proportion_is_the_exact_binomial_one():
    """All of 12: the p with p^12 = .1 (Clopper and Pearson 1934)."""
    assert ratchet._least(12, 12) == pytest.approx(0.1 ** (1 / 12))
    assert ratchet._least(0, 12) == 0
