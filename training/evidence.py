"""Do the votes agree with each other, or could they be coin flips? A test by betting on forecasts, which may be looked
at after every vote.

Each vote is forecast by a head that was fitted on the votes before it alone. Somebody who starts with one coin and bets
on each forecast cannot expect to win where votes are coin flips: that the fortune ever reaches 1/α has a probability of
at most α, however often one looks (Ville 1939; e-processes, Ramdas et al. 2023).

Fits heads by `reward_head.py`. Knows nothing about trunks or files.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from playground.settings import Settings
from playground.system.messages import Message
from training import preferences
from training.objective import pair_columns
from training.preferences import Pair, Preferences
from training.reward_head import fit_head
from training.reward_validation import Choice, choose

FIRST = 4  # votes before the first forecast
GROWTH = 1.2  # the head is fitted again when there are this many times more votes
CHOOSE_UP_TO = 200  # votes; above, feature set and penalty stay what they were
# (preferences of n replies, which rows of all replies these are, the first how many of them are known) ->
# {feature set: x (n, r)}, see `reward_head.designs`
DesignsOf = Callable[[Preferences, list[int], int], dict[str, torch.Tensor]]
STAKES = (0.25, 0.5, 1.0)  # share of what a forecast would bet; a third of the coin goes into each


@dataclass(frozen=True)
class Evidence:
    """What forecasts of votes for A or B say."""

    forecasts: int
    hits: float  # forecasts that were right; one without an opinion counts half
    e_value: float  # the largest fortune so far
    enough: bool
    reason: Message | None  # why it is not enough


def assess(designs_of: DesignsOf, prefs: Preferences, settings: Settings) -> Evidence:
    """What the votes are worth. It ends at the first vote at which the evidence is enough."""
    confidence = settings.reward.evidence_confidence
    decided = preferences.count_decided(prefs.judged)
    if decided == 0:
        no_vote = Message("Not enough evidence yet: no vote says which reply is better. Vote A or B on more replies.")
        return Evidence(0, 0, 1, False, no_vote)
    needed = 1 / (1 - confidence)
    made: list[float] = []
    fortunes = np.ones(1)
    choices: list[Choice] = []
    votes = sorted((pair for pair in prefs.pairs if pair.vote is not None), key=lambda pair: pair.vote or 0)
    for start, end in blocks(len(votes)):
        if fortunes.max() >= needed:
            break
        probabilities, choices = forecast(designs_of, prefs, votes[:start], votes[start:end], choices, settings.seed)
        made += probabilities
        fortunes = fortune(made)
    hits = float(np.sum(np.sign(np.array(made) - 0.5) / 2 + 0.5))
    best = float(fortunes.max())
    if best >= needed or not confidence:
        return Evidence(len(made), hits, best, True, None)
    return Evidence(len(made), hits, best, False, _reason(decided, hits, fortunes, needed))


def blocks(votes: int) -> list[tuple[int, int]]:
    """[(start, end)]: votes start … end − 1 are forecast from the first `start`. The same for any later number."""
    ranges = []
    start = FIRST
    while start < votes:
        end = max(start + 1, math.floor(start * GROWTH))
        ranges.append((start, min(end, votes)))
        start = end
    return ranges


def forecast(
    designs_of: DesignsOf,
    prefs: Preferences,
    known: Sequence[Pair],
    new: Sequence[Pair],
    choices: list[Choice],
    seed: int,
) -> tuple[list[float], list[Choice]]:
    """The probability, among A and B, of each decided vote of `new`, by heads fitted on `known`, on edited replies and
    on imported pairs; and the choices of these heads. Nothing of later votes is used, not even how their replies look.
    """
    known_before = [pair for pair in prefs.pairs if pair.vote is None]
    fitted = [*known_before, *known]
    decided = [pair for pair in new if pair.outcome != preferences.TIE]
    if preferences.count_decided(fitted) < FIRST or not decided:
        return [0.5] * len(decided), choices
    learnt, rows, place = of_pairs(prefs, fitted, decided)
    known_rows = len({index for pair in fitted for index in (pair.left, pair.right)})
    x_by_feature_set = designs_of(learnt, rows, known_rows)
    if not choices or len(fitted) <= CHOOSE_UP_TO:
        choices = choose(x_by_feature_set, learnt, seed)
    left, right, outcome = pair_columns(decided)
    left, right = (torch.tensor([place[row] for row in column.tolist()]) for column in (left, right))
    probability = torch.zeros(len(decided))
    for choice in choices:
        x = x_by_feature_set[choice.feature_set]
        head = fit_head(x, learnt, choice.penalty, choice.people)
        difference = x[left] - x[right]  # (k, r)
        margin = difference @ head.weight * (1 - outcome)  # of the reply that was chosen over the other one
        variance = (difference @ head.factor).square().sum(-1)
        # the mean of a logistic function over a Gaussian margin (MacKay 1992)
        probability += choice.share * torch.sigmoid(margin / (1 + torch.pi / 8 * variance).sqrt())
    return probability.tolist(), choices


def of_pairs(
    prefs: Preferences, fitted: Sequence[Pair], decided: Sequence[Pair]
) -> tuple[Preferences, list[int], dict[int, int]]:
    """Preferences that hold the pairs of `fitted` alone, over the replies of these pairs and then those that only
    `decided` has; which rows of all replies these are; and the place of each. A thumb on a reply of the latter would
    tell how its pair was decided, so only those on the former are taken.
    """
    known = sorted({index for pair in fitted for index in (pair.left, pair.right)})
    new = sorted({index for pair in decided for index in (pair.left, pair.right)} - set(known))
    rows = [*known, *new]
    place = {row: i for i, row in enumerate(rows)}
    learnt = Preferences(
        replies=[prefs.replies[row] for row in rows],
        pairs=[replace(pair, left=place[pair.left], right=place[pair.right]) for pair in fitted],
        labels=[
            replace(label, reply=place[label.reply])
            for label in prefs.labels
            if place.get(label.reply, len(known)) < len(known)
        ],
    )
    return learnt, rows, place


def fortune(probabilities: Sequence[float]) -> np.ndarray:
    """What one coin has become after each forecast (n + 1,): a forecast of probability p multiplies what is at stake
    by 2p.
    """
    edge = 2 * np.array(probabilities) - 1  # (n,)
    growth = [np.concatenate([[1], np.cumprod(1 + stake * edge)]) for stake in STAKES]
    return np.mean(growth, 0)


def _reason(decided: int, hits: float, fortunes: np.ndarray, needed: float) -> Message:
    forecasts = len(fortunes) - 1
    figures: dict[str, str | int] = {"votes": decided, "hits": f"{hits:g}", "n": forecasts}
    if not forecasts:
        return Message(
            "Not enough evidence yet: {votes} {votes:vote|votes} for A or B, too few to forecast one from others.",
            votes=decided,
        )
    rate = math.log(fortunes[-1]) / forecasts if fortunes[-1] > 1 else 0.0
    if rate <= 0:
        return Message(
            "Not enough evidence yet: {votes} {votes:vote|votes} for A or B, of which {hits} of {n} could be forecast "
            "from those before them; the votes do not agree with each other so far.",
            **figures,
        )
    more = math.ceil((math.log(needed) - math.log(fortunes[-1])) / rate)
    return Message(
        "Not enough evidence yet: {votes} {votes:vote|votes} for A or B, of which {hits} of {n} could be forecast from "
        "those before them; about {more} more at this rate.",
        **figures,
        more=max(1, more),
    )
