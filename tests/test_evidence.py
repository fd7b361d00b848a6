"""Evidence by betting on forecasts: coin flips are not taken for agreement however often one looks, agreement is seen
early, and a forecast knows nothing of what came after it.
"""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from playground.models.scorer import ExtractedFeatures
from playground.settings import Settings
from training import evidence, reward_head
from training.preferences import TIE, A, B, Pair, PointwiseLabel, Preferences


def settings(confidence=0.95):
    return Settings(reward={"evidence_confidence": confidence}, _env_file=None)


def random_votes(n, seed=0, d=8, decide=None):
    """Features (2n, d) and n votes between neighbouring rows; `decide(gap along a direction)` gives the outcome, by
    default a coin does.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 * n, d, generator=generator)
    direction = torch.randn(d, generator=generator)
    gaps = ((features[0::2] - features[1::2]) @ direction).tolist()
    coins = torch.rand(n, generator=generator).tolist()
    outcomes = [decide(gap) for gap in gaps] if decide else [A if coin < 0.5 else B for coin in coins]
    prefs = Preferences(
        replies=[([1, 2], [3 + row % 7]) for row in range(2 * n)],
        pairs=[Pair(2 * i, 2 * i + 1, outcome, 1.0, f"chat {i}", i + 1) for i, outcome in enumerate(outcomes)],
    )
    return features, prefs


def agreeing(n, seed=0, d=8):
    return random_votes(n, seed, d, decide=lambda gap: A if gap > 0 else B)


def designs_of(features):
    """Features of one layer that are standardised and reduced as a round does it."""

    def of(part, rows, known):
        layer = torch.cat([features[rows], torch.zeros(len(rows), 1)], -1)
        extracted = ExtractedFeatures(layer, [features.shape[1], 1, 0], [])
        x, _, _ = reward_head.standardised(extracted, "layers", known)
        return {"layers": x @ reward_head.span(x, part)}

    return of


def assess(features, prefs, confidence=0.95):
    return evidence.assess(designs_of(features), prefs, settings(confidence))


# -- coin flips


@pytest.mark.parametrize(
    "forecaster",
    [
        lambda earlier: 0.9,
        lambda earlier: (sum(earlier) + 1) / (len(earlier) + 2),  # Laplace's rule of succession
        lambda earlier: 0.95 if sum(earlier) * 2 >= len(earlier) else 0.2,  # bets more after a loss
    ],
)
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_of_all_sequences_of_coin_flips_no_larger_share_than_alpha_ever_reaches_one_over_alpha(forecaster, alpha):
    """Counted over all 2^12 sequences, with a look after every flip."""
    reached = []
    at_the_end = []
    for flips in itertools.product((0, 1), repeat=12):
        said = [forecaster(flips[:i]) for i in range(12)]
        fortunes = evidence.fortune([p if flip else 1 - p for p, flip in zip(said, flips, strict=True)])
        reached.append(fortunes.max() >= 1 / alpha)
        at_the_end.append(fortunes[-1])
    assert np.mean(at_the_end) == pytest.approx(1)  # a fair game
    assert 0 < np.mean(reached) <= alpha


def test_a_fortune_by_hand():
    """Stakes of a quarter, a half and all of it on two forecasts of 3/4: 1.125², 1.25², 1.5²."""
    assert evidence.fortune([0.75, 0.75]) == pytest.approx([1, 1.875 / 1.5 + 0.125 / 3, (1.265625 + 1.5625 + 2.25) / 3])
    assert evidence.fortune([0.0]) == pytest.approx([1, (0.75 + 0.5) / 3])
    assert evidence.fortune([]).tolist() == [1]


def test_heads_on_random_features_rarely_take_coin_flips_for_agreement(monkeypatch):
    """With α = .2 fewer than 1 in 30 of such tests would see more than ten of 30. The penalty is chosen once in each,
    which is what takes long.
    """
    monkeypatch.setattr(evidence, "CHOOSE_UP_TO", 0)
    enough = [assess(*random_votes(20, seed), confidence=0.8).enough for seed in range(30)]
    assert sum(enough) <= 10


# -- agreement


def test_clear_agreement_is_enough_within_25_votes():
    for seed in range(3):
        found = assess(*agreeing(25, seed))
        assert found.enough and found.reason is None and found.e_value >= 20
        assert found.hits > 0.7 * found.forecasts and 0 < found.forecasts <= 21


def test_it_ends_at_the_first_vote_at_which_the_evidence_is_enough():
    """To the end of the block that one head forecast: no vote after it is read."""
    features, prefs = agreeing(30, d=2)
    found = assess(features, prefs)
    read = found.forecasts + evidence.FIRST
    assert found.enough and read < 30 and read in [end for _, end in evidence.blocks(30)]
    features[2 * read :] = torch.nan
    assert assess(features, prefs) == found


def test_ties_are_no_forecasts():
    """Of 20 votes every second one is a tie: those between are forecast, and ties are learned from."""
    features, prefs = random_votes(20, decide=lambda gap: TIE if abs(gap) < 1.5 else A if gap > 0 else B)
    decided = sum(pair.outcome != TIE for pair in prefs.pairs[evidence.FIRST :])
    assert 0 < decided < 16
    assert assess(features, prefs, confidence=0.999999).forecasts == decided


# -- what a forecast knows


def forecasts(features, prefs):
    """The probability of each decided vote, in blocks as `assess` makes them."""
    made, choice = [], None
    votes = prefs.pairs
    for start, end in evidence.blocks(len(votes)):
        part, choice = evidence.forecast(designs_of(features), prefs, votes[:start], votes[start:end], choice, 0)
        made += part
    return made


def test_no_forecast_changes_when_later_votes_are_added():
    """Also not where the later votes are in the block that is forecast by one head: neither their outcome nor how their
    replies look.
    """
    features, prefs = agreeing(24)
    features[40:] *= 50  # the last two votes' replies look like no other
    whole = forecasts(features, prefs)
    assert (19, 22) in evidence.blocks(24)
    for n in (20, 21):
        earlier = replace(prefs, replies=prefs.replies[: 2 * n], pairs=prefs.pairs[:n])
        assert forecasts(features[: 2 * n], earlier) == pytest.approx(whole[: n - evidence.FIRST], abs=1e-4)
    assert max(abs(p - 0.5) for p in whole) > 0.1, "there are forecasts that say something"


def test_no_forecast_knows_a_thumb_on_the_replies_that_it_compares():
    """Who votes by a coin and gives the winner a thumb would look like somebody with a taste."""
    features, prefs = random_votes(24)
    thumbs = [
        PointwiseLabel(pair.left if (pair.outcome == A) == good else pair.right, good, 1.0, pair.group)
        for pair in prefs.pairs
        for good in (True, False)
    ]
    learnt, rows, place = evidence.of_pairs(replace(prefs, labels=thumbs), prefs.pairs[:10], prefs.pairs[10:12])
    assert rows == list(range(24)) and place[23] == 23
    assert {label.reply for label in learnt.labels} == set(range(20)) and len(learnt.pairs) == 10


def test_edited_replies_are_learned_from_and_not_forecast():
    features, prefs = agreeing(12)
    edits = [replace(pair, vote=None) for pair in prefs.pairs[:6]]
    assert assess(features, replace(prefs, pairs=edits), confidence=0.999999).forecasts == 0
    both = replace(prefs, pairs=[*edits, *prefs.pairs[6:]])
    assert assess(features, both, confidence=0.999999).forecasts == 6 - evidence.FIRST


@pytest.mark.parametrize("n", [0, 4, 5, 6, 25, 100])
def test_blocks_cover_every_vote_after_the_first_once_and_begin_where_those_of_more_votes_do(n):
    found = evidence.blocks(n)
    assert [vote for start, end in found for vote in range(start, end)] == list(range(evidence.FIRST, n))
    longer = evidence.blocks(n + 50)
    assert [start for start, _ in found] == [start for start, _ in longer][: len(found)]


# -- what is said where it is not enough


def test_too_few_votes_say_so_with_numbers():
    features, prefs = agreeing(9, d=1)
    found = assess(features, prefs, confidence=0.999)
    assert not found.enough and found.hits == 5
    words = str(found.reason)
    assert words.startswith(
        "Not enough evidence yet: 9 votes for A or B, of which 5 of 5 could be forecast from those before them; about "
    )
    assert int(re.search(r"about (\d+) more at this rate", words)[1]) > 1


def test_the_votes_asked_for_are_those_that_are_needed_at_this_rate():
    """Fortune 4 after 8 forecasts grows by ln 4 / 8 a vote; to 20 it lacks ln 5, which is 9.3 votes."""
    fortunes = 4 ** (np.arange(9) / 8)
    assert "7 of 8" in str(evidence._reason(12, 7.0, fortunes, 20.0))
    assert "about 10 more" in str(evidence._reason(12, 7.0, fortunes, 20.0))


def test_votes_of_which_none_could_be_forecast_are_not_counted_against_each_other():
    """It said "0 of 0 could be forecast"."""
    words = str(evidence._reason(1, 0.0, evidence.fortune([]), 20.0))
    assert words == "Not enough evidence yet: 1 vote for A or B, too few to forecast one from others."


def test_votes_that_disagree_with_each_other_are_not_asked_for_more():
    found = evidence._reason(12, 3.5, evidence.fortune([0.4] * 8), 20.0)
    assert str(found).endswith(
        "3.5 of 8 could be forecast from those before them; the votes do not agree with each other so far."
    )


@pytest.mark.parametrize("confidence", [0.0, 0.95])
def test_no_decided_vote_is_not_enough_even_with_the_check_off(confidence):
    features, prefs = random_votes(8, decide=lambda gap: TIE)
    found = assess(features, prefs, confidence)
    assert not found.enough and "Vote A or B" in str(found.reason) and found.forecasts == 0


def test_confidence_zero_turns_the_check_off():
    features, prefs = random_votes(6)
    assert not assess(features, prefs, 0.95).enough
    assert assess(features, prefs, 0.0).enough and assess(features, prefs, 0.0).reason is None


def test_forecasts_without_an_opinion_count_half():
    prefs = replace(agreeing(8)[1])
    found = assess(torch.zeros(16, 8), prefs)
    assert (found.forecasts, found.hits, found.e_value, found.enough) == (4, 2, 1, False)
