"""What the gate lets through, and the sentences with which it refuses."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import bootstrap

from playground.settings import Settings
from training import gate, repetition
from training.preferences import TIE, A, B, Pair, Preferences
from training.rollout import Episode

SETTINGS = Settings(
    gate={
        "kl_budget": 10,
        "length_factor": 4,
        "length_drift": 2,
        "empty_replies": 0.1,
        "confidence": 0.95,
        "better": 0.75,
        "not_worse": 0.9,
        "canary_fall": 0.5,
        "repetition_rise": 0.15,
        "distinct_share": 0.7,
        "ended_fall": 0.25,
    }
)
N = 32
END = -1  # a token id that no reply holds


def replies(tokens=20, ended=True, same=None):
    """Of distinct tokens, or of one."""
    return [
        Episode([1, 2], [same] * tokens if same else list(range(1000 * k, 1000 * k + tokens)), ended) for k in range(N)
    ]


def refusals(report):
    """The gate's refusals in English."""
    return [str(refusal) for refusal in report.refused_because]


def decide(
    gain=1.0,
    spread=0.5,
    kl=5.0,
    tokens=20,
    empty=0,
    doubt=0.0,
    new=None,
    live=None,
    base=None,
    canary_new=-1.1,
    length_votes=(-0.1, 0.1),
):
    """The gate's report on a new version whose rewards lie `gain` above the live one's, give or take, and as much as
    the votes leave open. One reply to each prompt.
    """
    rewards = np.linspace(-1, 1, N)
    gains = gain + spread * np.where(np.arange(N) % 2, 1, -1)
    draws = gains + doubt * np.random.default_rng(1).normal(size=(gate.DRAWS, 1))
    compared = gate.GateFigures(
        prompts=N,
        new=new or replies(tokens),
        live=live or replies(),
        base=base or replies(),
        reward_new=rewards + gains,
        reward_live=rewards,
        gains=draws,
        kl=[kl] * N,
        texts=[""] * empty + ["A reply."] * (N - empty),
        canary_new=canary_new,
        canary_base=-1.0,
        length_votes=length_votes,
    )
    return gate.decide(compared, SETTINGS)


def test_a_better_version_passes():
    report = decide()
    assert report.passed and report.refused_because == []
    assert (report.prompts, report.gain, report.kl, report.length_new, report.empty, report.ended_new) == (
        N,
        pytest.approx(1),
        5,
        20,
        0,
        1,
    )
    assert report.gain_interval[0] < 1 < report.gain_interval[1]
    assert (report.replies, report.better, report.not_worse) == (1, 1, 1)


def test_a_report_survives_json():
    assert json.loads(json.dumps(decide().as_dict()))["gain"] == pytest.approx(1)


@pytest.mark.parametrize("gain", [0.0, -0.5, 0.1])
def test_a_gain_that_may_be_chance_is_refused(gain):
    """The standard error is 1/√32 = .18, so a gain of .1 is one with a probability of .71."""
    report = decide(gain=gain, spread=1.0)
    [reason] = refusals(report)
    assert (
        reason.startswith(f"its replies are probably not better: the reward changes by {gain:+.2f} deviations [")
        and f"32 held-out prompts, a gain with probability {report.better:.2f}, and 0.75 is needed" in reason
    )


def test_a_probable_gain_passes_though_its_interval_holds_zero():
    report = decide(gain=0.2, spread=1.0)
    assert report.passed and report.gain_interval[0] < 0 < report.gain_interval[1]
    # Φ(.2 / .177) = .87, Φ(.3 / .177) = .955
    assert (report.better, report.not_worse) == (pytest.approx(0.87, abs=0.02), pytest.approx(0.955, abs=0.02))


def test_a_probable_gain_that_may_also_be_a_clear_loss_is_refused():
    """Where the votes leave much open, three chances in four of a gain come with one in five of a loss."""
    report = decide(gain=0.6, spread=0.0, doubt=0.7)
    assert report.better > 0.75 and report.not_worse < 0.9 and not report.passed
    assert decide(gain=0.6, spread=0.0, doubt=0.5).passed  # Φ(.7 / .5) = .92


def test_replies_to_one_prompt_are_not_as_good_as_replies_to_many():
    """Heads judge resampled prompts, each with all its replies: sixteen copies of a reply say what one says."""
    gains = np.random.default_rng(0).normal(0.3, 1, (1, 24)).repeat(gate.DRAWS, 0)
    one = gate.mean_gains(gains, 24, 0)
    copies = gate.mean_gains(gains.repeat(16, 1), 24, 0)  # those to one prompt in a row
    assert copies == pytest.approx(one)
    as_if_many = gate.mean_gains(gains.repeat(16, 1), 24 * 16, 0)
    assert as_if_many.std() < 0.5 * copies.std()


def test_replies_are_grouped_by_their_prompt():
    """Two prompts, three replies each, in a row: a mean over resampled prompts is the first's, the second's or
    between.
    """
    means = gate.mean_gains(np.array([[0.0, 1.0, 2.0, 9.0, 10.0, 11.0]] * 64), 2, 0)
    assert set(means.round(6)) == {1.0, 5.5, 10.0}


def test_a_policy_far_from_the_base_is_refused():
    assert refusals(decide(kl=10.1)) == ["it moved too far from the base: 10.1 nats a reply, and the budget is 10"]
    assert decide(kl=10.0).passed


@pytest.mark.parametrize(("tokens", "passes"), [(9, False), (10, True), (40, True), (41, False)])
def test_a_change_of_length_beyond_the_factor_is_refused(tokens, passes):
    report = decide(tokens=tokens)
    assert report.passed == passes
    assert passes or refusals(report) == [
        f"its replies changed length too much: {tokens} tokens against the base's 20, and a factor of 2 is the limit, "
        "since the votes do not favour that"
    ]


@pytest.mark.parametrize(
    ("votes", "tokens", "passes"),
    [
        ((-0.5, -0.1), 5, True),
        ((-0.5, -0.1), 4, False),
        ((-0.5, -0.1), 41, False),
        ((0.1, 0.5), 80, True),
        ((0.1, 0.5), 81, False),
        ((0.1, 0.5), 9, False),
    ],
)
def test_a_length_that_the_votes_favour_may_change_further(votes, tokens, passes):
    report = decide(tokens=tokens, length_votes=votes)
    assert report.passed == passes
    assert passes or ("do not favour" in refusals(report)[0]) == (tokens not in (4, 81))


def test_what_the_votes_leave_open_is_part_of_the_interval():
    assert decide(gain=1.0, doubt=0.2).passed
    [reason] = refusals(decide(gain=1.0, doubt=1.6))
    assert "probably not better: the reward changes by +1.00" in reason


def test_limits_are_the_bases_and_not_the_live_versions():
    """Against the live version each round could add as much again as the limit lets through."""
    looping = [Episode([1, 2], [k, k + 1] * 10, False) for k in range(0, 4 * N, 4)]
    report = decide(live=looping)  # far worse in all that has a limit, and no help
    assert report.passed and report.repetition_base == 0 and report.ended_base == 1 and report.distinct_base == 1
    worse = refusals(decide(tokens=50, live=replies(50)))
    assert len(worse) == 1 and "50 tokens against the base's 20" in worse[0]
    assert len(refusals(decide(new=looping, live=looping))) == 3  # repeats, is alike, does not end


def test_replies_that_repeat_themselves_are_refused():
    looping = [
        Episode([1, 2], [k, k + 1, k + 2, k + 3] * 5 + [END], True) for k in range(0, 4 * N, 4)
    ]  # 17 four-grams, 4 of them distinct
    report = decide(new=looping)
    assert report.repetition_new == pytest.approx(13 / 17)
    assert refusals(report)[0] == (
        "it repeats itself: 76% of its four-token runs are repeats, 0% of the base's, and 15% more is the limit"
    )


def test_replies_that_are_all_alike_are_refused():
    alike = [Episode([1, 2], list(range(20)), True)] * N
    [reason] = refusals(decide(new=alike))
    assert (
        reason
        == "its replies became alike: 3% of their word pairs are distinct, 100% of the base's, and 70% of that must "
        "be left"
    )


def test_shorter_replies_are_not_more_distinct_for_being_short():
    """Distinct-n falls with the amount of text, so that a version that only got shorter would look more varied."""
    some = [Episode([1], [1, 2, 3, 4, k, k + 1000, 1, 2, 3, 4], True) for k in range(10, 10 + N)]
    half = [Episode([1], e.completion[:5], True) for e in some]
    report = decide(new=half, base=some)
    assert report.distinct_new == report.distinct_base


def test_replies_that_end_are_not_less_distinct_for_ending():
    """All end with the same token, so that a version that learned to end its replies would look less varied."""
    cut_off = [Episode([1], [k, 5, 1000 + k], False) for k in range(10, 10 + N)]
    complete = [Episode([1], [k, 5, END], True) for k in range(10, 10 + N)]
    report = decide(new=complete, base=cut_off)
    assert report.distinct_new == report.distinct_base == 1


def test_replies_that_no_longer_end_are_refused():
    [reason] = refusals(decide(new=replies(ended=False)))
    assert reason == "fewer of its replies come to an end: 0% against the base's 100%, and 25% fewer is the limit"


def test_replies_may_end_less_often_where_the_votes_favour_longer_ones():
    """The longest replies are those that the token limit cuts."""
    assert decide(new=replies(tokens=30, ended=False), length_votes=(0.1, 0.4)).passed
    assert not decide(new=replies(tokens=30, ended=False), length_votes=(-0.1, 0.4)).passed


def test_only_a_better_version_that_breaks_a_limit_went_too_far():
    for figures, expected in (({}, False), ({"kl": 11}, True), ({"gain": -1}, False), ({"kl": 11, "gain": -1}, False)):
        assert gate.went_too_far(decide(**figures), SETTINGS) is expected


def test_plain_replies_that_became_unlikely_are_refused():
    assert decide(canary_new=-1.5).passed and decide(canary_new=-0.8).passed
    assert (decide().canary_new, decide().canary_base) == (-1.1, -1.0)
    assert refusals(decide(canary_new=-1.51)) == [
        "plain replies became unlikely: by 0.51 nats a token, and 0.5 is the limit"
    ]


def test_empty_replies_are_refused():
    assert decide(empty=3).passed
    assert refusals(decide(empty=4)) == ["12% of its replies are empty, and 10% is the limit"]


def test_every_reason_is_given():
    new = [Episode([1, 2], [5] * 100, False)] * N
    assert len(decide(gain=-1, kl=99, new=new, empty=N, canary_new=-9).refused_because) == 8


def test_a_figure_that_is_not_a_number_never_passes():
    assert not decide(kl=float("nan")).passed
    assert not decide(gain=float("nan")).passed
    assert not decide(canary_new=float("nan")).passed


def test_the_interval_is_that_of_the_mean():
    gains = np.random.default_rng(0).normal(0.5, 1, 400)  # standard error 0.05
    low, high = gate.interval(gains, 0.95, 0)
    assert (low, high) == pytest.approx((gains.mean() - 0.098, gains.mean() + 0.098), abs=0.015)
    assert gate.interval(gains, 0.95, 0) == (low, high)


def test_the_interval_is_scipys():
    gains = np.random.default_rng(3).normal(0.3, 1, 37)
    result = bootstrap(
        (gains,), np.mean, confidence_level=0.9, n_resamples=5000, method="percentile", rng=np.random.default_rng(5)
    )
    assert gate.interval(gains, 0.9, 5) == pytest.approx(tuple(result.confidence_interval), abs=1e-12)


def test_the_interval_of_many_values_takes_little_memory():
    """All resamples were in memory at once: the lengths of 10,000 demonstrations took 800 MB beside the chat."""
    lengths = np.random.default_rng(0).normal(size=4000)
    tracemalloc.start()
    low, high = gate.interval(lengths, 0.95, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert (high - low) / 2 == pytest.approx(1.96 * lengths.std() / np.sqrt(4000), rel=0.05)


def test_the_posterior_interval_adds_both_doubts():
    gains = np.random.default_rng(0).normal(0.5, 1, 400) + np.random.default_rng(1).normal(
        0, 0.1, (4000, 1)
    )  # deviations 0.05 and 0.1
    low, high = gate.central(gate.mean_gains(gains, 400, 0), 0.95)
    assert high - low == pytest.approx(2 * 1.96 * (0.05**2 + 0.1**2) ** 0.5, rel=0.07)


def test_the_length_that_votes_favour_by_hand():
    prefs = Preferences(
        replies=[([1], [1] * 10), ([1], [1] * 20), ([1], [1] * 40)],
        pairs=[Pair(0, 1, B), Pair(2, 1, A), Pair(0, 2, TIE)] * 3,
    )
    assert gate.favoured_length(prefs, 0.95, 0) == pytest.approx((np.log(2), np.log(2)))
    turned = replace(prefs, pairs=[replace(pair, outcome=A + B - pair.outcome) for pair in prefs.pairs])
    assert gate.favoured_length(turned, 0.95, 0) == pytest.approx((-np.log(2), -np.log(2)))


@pytest.mark.parametrize(("n", "favours"), [(0, False), (2, False), (5, False), (6, True)])
def test_a_handful_of_votes_does_not_favour_a_length(n, favours):
    """Five votes all point one way by chance once in 16 times, six once in 32."""
    prefs = Preferences(replies=[([1], [1] * 10), ([1], [1] * 20)], pairs=[Pair(0, 1, B)] * n)
    assert (gate.favoured_length(prefs, 0.95, 0)[0] > 0) == favours


def test_one_eager_annotator_does_not_decide_what_length_is_favoured():
    longer, shorter = [Pair(0, 1, B, 0.01)] * 100, [Pair(0, 1, A)] * 10
    prefs = Preferences(replies=[([1], [1] * 10), ([1], [1] * 20)], pairs=longer + shorter)
    assert gate.favoured_length(prefs, 0.95, 0)[1] < 0


@pytest.mark.parametrize(("ids", "share"), [([1, 2, 3, 4, 5], 0), ([1, 1, 1, 1, 1, 1], 2 / 3), ([1, 2, 3], 0), ([], 0)])
def test_repetition_by_hand(ids, share):
    assert repetition.repeated(ids) == pytest.approx(share)


def test_distinct_by_hand():
    assert repetition.distinct([[1, 2, 3], [1, 2, 4]]) == 3 / 4 and repetition.distinct([[1], []]) == 1


def test_the_middle_of_a_sample_by_hand():
    assert gate.central(np.arange(101.0), 0.9) == pytest.approx((5, 95))


def test_equal_gains_are_an_interval_of_one_point():
    assert gate.interval(np.full(8, 0.25), 0.95, 0) == (0.25, 0.25)
