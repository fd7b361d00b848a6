"""What the gate lets through, and the sentences with which it refuses."""

import json

import numpy as np
import pytest

from playground.settings import Settings
from training import gate
from training.rollout import Episode

SETTINGS = Settings(kl_budget=10, length_factor=2, empty_replies=0.1, gate_confidence=0.95)
N = 32


def replies(tokens=20, ended=True):
    return [Episode([1, 2], [5] * tokens, ended) for _ in range(N)]


def decide(gain=1.0, spread=0.5, kl=5.0, tokens=20, empty=0):
    """The gate's report on a new version whose rewards lie `gain` above the live one's, give or take."""
    live = np.linspace(-1, 1, N)
    noise = spread * np.where(np.arange(N) % 2, 1, -1)
    return gate.decide(replies(tokens), replies(), live + gain + noise, live, [kl] * N, [""] * empty + ["A reply."] * (N - empty), SETTINGS)


def test_a_better_version_passes():
    report = decide()
    assert report.passed and report.refused_because == []
    assert (report.prompts, report.gain, report.kl, report.length_new, report.empty, report.ended_new) == (N, pytest.approx(1), 5, 20, 0, 1)
    assert report.gain_interval[0] < 1 < report.gain_interval[1]


def test_a_report_survives_json():
    assert json.loads(json.dumps(decide().as_dict()))["gain"] == pytest.approx(1)


@pytest.mark.parametrize("gain", [0.0, -0.5, 0.1])
def test_a_gain_that_may_be_chance_is_refused(gain):
    [reason] = decide(gain=gain, spread=1.0).refused_because
    assert reason.startswith(f"its replies are not clearly better: the reward rises by {gain:+.2f} deviations [") and "32 held-out prompts" in reason


def test_a_policy_far_from_the_base_is_refused():
    assert decide(kl=10.1).refused_because == ["it moved too far from the base: 10.1 nats a reply, and the budget is 10"]
    assert decide(kl=10.0).passed


@pytest.mark.parametrize(("tokens", "passes"), [(9, False), (10, True), (40, True), (41, False)])
def test_a_change_of_length_beyond_the_factor_is_refused(tokens, passes):
    report = decide(tokens=tokens)
    assert report.passed == passes
    assert passes or report.refused_because == [
        f"its replies changed length too much: {tokens} tokens against 20, and a factor of 2 is the limit"]


def test_empty_replies_are_refused():
    assert decide(empty=3).passed
    assert decide(empty=4).refused_because == ["12% of its replies are empty, and 10% is the limit"]


def test_every_reason_is_given():
    assert len(decide(gain=-1, kl=99, tokens=1, empty=N).refused_because) == 4


def test_a_figure_that_is_not_a_number_never_passes():
    assert not decide(kl=float("nan")).passed
    assert not decide(gain=float("nan")).passed


def test_the_interval_is_that_of_the_mean():
    gains = np.random.default_rng(0).normal(0.5, 1, 400)  # standard error 0.05
    low, high = gate.interval(gains, 0.95, 0)
    assert (low, high) == pytest.approx((gains.mean() - 0.098, gains.mean() + 0.098), abs=0.015)
    assert gate.interval(gains, 0.95, 0) == (low, high)


def test_equal_gains_are_an_interval_of_one_point():
    assert gate.interval(np.full(8, 0.25), 0.95, 0) == (0.25, 0.25)
