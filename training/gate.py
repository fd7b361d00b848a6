"""Is the new policy better than the live one, and are its replies still sound? A comparison on held-out prompts.
Refusals are sentences that people read.

Knows replies, rewards, votes and likelihoods; nothing about how the policy was trained.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from playground.settings import Settings
from playground.system.messages import Message
from training import preferences
from training.preferences import Preferences
from training.rollout import Episode

DRAWS = 2000  # heads from the reward model's posterior, each judges its own resample of the prompts


@dataclass(frozen=True)
class GateReport:
    """What was measured, and the reasons for a refusal. Rewards are the reward model's, standardised; KL is to the base
    in nats a reply; lengths are in tokens. `_new` and `_live` are the two versions' means over the prompts.
    """

    prompts: int
    reward_new: float
    reward_live: float
    gain: float
    gain_interval: tuple[float, float]
    kl: float
    length_new: float
    length_live: float
    # interval of the mean log(length of the winner / of the loser) in the votes; (0, 0) where there are too few
    length_votes: tuple[float, float]
    empty: float  # share of the new version's replies
    ended_new: float
    ended_live: float
    repetition_new: float
    repetition_live: float
    distinct_new: float
    distinct_live: float
    canary_new: float  # log-likelihood of plain replies at the policy's temperature, nats a token
    canary_base: float
    refused_because: list[Message]

    @property
    def passed(self) -> bool:
        return not self.refused_because

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Side:
    """One version's replies to the gate's prompts, and their mean figures."""

    length: float  # tokens
    ended: float  # share
    repetition: float
    token_ids: list[list[int]]  # of each reply, without the token that ends it

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> "Side":
        token_ids = [without_end(episode) for episode in episodes]
        return cls(
            length=float(np.mean([len(episode.completion) for episode in episodes])),
            ended=float(np.mean([episode.ended for episode in episodes])),
            repetition=float(np.mean([repetition(ids) for ids in token_ids])),
            token_ids=token_ids,
        )


def decide(
    new: Sequence[Episode],
    live: Sequence[Episode],
    *,
    reward_new: np.ndarray,
    reward_live: np.ndarray,
    gains: np.ndarray,
    kl: Sequence[float],
    texts: Sequence[str],
    canary_new: float,
    canary_base: float,
    length_votes: tuple[float, float],
    settings: Settings,
) -> GateReport:
    """Compare N episodes of the new policy with N of the live one, on the same prompts in the same order.

    reward_new, reward_live: (N,); gains: (S, N), reward differences under S heads of the posterior; kl: nats of each of
    the new policy's replies; texts: these replies; canary_new, canary_base: log-likelihood of plain replies under the
    new policy and under the base, nats a token; length_votes: (low, high) of `favoured_length`.
    """
    new_side = Side.of(new)
    live_side = Side.of(live)
    distinct_new, distinct_live = distinct_at_equal_length(new_side.token_ids, live_side.token_ids)
    report = GateReport(
        prompts=len(new),
        reward_new=float(np.mean(reward_new)),
        reward_live=float(np.mean(reward_live)),
        gain=float(np.mean(np.asarray(reward_new) - np.asarray(reward_live))),
        gain_interval=posterior_interval(np.asarray(gains), settings.gate.confidence, settings.seed),
        kl=float(np.mean(kl)),
        length_new=new_side.length,
        length_live=live_side.length,
        length_votes=length_votes,
        empty=float(np.mean([not text.strip() for text in texts])),
        ended_new=new_side.ended,
        ended_live=live_side.ended,
        repetition_new=new_side.repetition,
        repetition_live=live_side.repetition,
        distinct_new=distinct_new,
        distinct_live=distinct_live,
        canary_new=float(canary_new),
        canary_base=float(canary_base),
        refused_because=[],
    )
    return replace(report, refused_because=refusals(report, settings))


def refusals(report: GateReport, settings: Settings) -> list[Message]:
    """Why the figures of a report do not pass: one sentence for each check that fails."""
    low, high = report.gain_interval
    length_ratio = report.length_new / report.length_live
    shorter_favoured = report.length_votes[1] < 0
    longer_favoured = report.length_votes[0] > 0
    shortest = 1 / (settings.gate.length_factor if shorter_favoured else settings.gate.length_drift)
    longest = settings.gate.length_factor if longer_favoured else settings.gate.length_drift
    canary_fall = report.canary_base - report.canary_new

    # each check is written `not a <= b`, so that NaN never passes
    reasons = []
    if not low > 0:
        reasons.append(
            Message(
                "its replies are not clearly better: the reward rises by {gain} deviations [{low}, {high}] on {n} "
                "held-out prompts, and the interval must lie above 0",
                gain=f"{report.gain:+.2f}",
                low=f"{low:+.2f}",
                high=f"{high:+.2f}",
                n=report.prompts,
            )
        )
    if not report.kl <= settings.gate.kl_budget:
        reasons.append(
            Message(
                "it moved too far from the base: {kl} nats a reply, and the budget is {limit}",
                kl=f"{report.kl:.1f}",
                limit=f"{settings.gate.kl_budget:g}",
            )
        )
    if not shortest <= length_ratio <= longest:
        limit = longest if length_ratio > 1 else 1 / shortest
        figures = {"new": f"{report.length_new:.0f}", "live": f"{report.length_live:.0f}", "limit": f"{limit:g}"}
        if limit == settings.gate.length_factor:
            reason = Message(
                "its replies changed length too much: {new} tokens against {live}, and a factor of {limit} is the "
                "limit",
                **figures,
            )
        else:
            reason = Message(
                "its replies changed length too much: {new} tokens against {live}, and a factor of {limit} is the "
                "limit, since the votes do not favour that",
                **figures,
            )
        reasons.append(reason)
    if not report.empty <= settings.gate.empty_replies:
        reasons.append(
            Message(
                "{empty} of its replies are empty, and {limit} is the limit",
                empty=f"{report.empty:.0%}",
                limit=f"{settings.gate.empty_replies:.0%}",
            )
        )
    if not report.repetition_new <= report.repetition_live + settings.gate.repetition_rise:
        reasons.append(
            Message(
                "it repeats itself: {new} of its four-token runs are repeats, {live} of the live version's, and "
                "{limit} more is the limit",
                new=f"{report.repetition_new:.0%}",
                live=f"{report.repetition_live:.0%}",
                limit=f"{settings.gate.repetition_rise:.0%}",
            )
        )
    if not report.distinct_new >= settings.gate.distinct_share * report.distinct_live:
        reasons.append(
            Message(
                "its replies became alike: {new} of their word pairs are distinct, {live} of the live version's, and "
                "{limit} of that must be left",
                new=f"{report.distinct_new:.0%}",
                live=f"{report.distinct_live:.0%}",
                limit=f"{settings.gate.distinct_share:.0%}",
            )
        )
    if not report.ended_new >= report.ended_live - settings.gate.ended_fall:
        reasons.append(
            Message(
                "fewer of its replies come to an end: {new} against {live}, and {limit} fewer is the limit",
                new=f"{report.ended_new:.0%}",
                live=f"{report.ended_live:.0%}",
                limit=f"{settings.gate.ended_fall:.0%}",
            )
        )
    if not canary_fall <= settings.gate.canary_fall:
        reasons.append(
            Message(
                "plain replies became unlikely: by {fall} nats a token, and {limit} is the limit",
                fall=f"{canary_fall:.2f}",
                limit=f"{settings.gate.canary_fall:g}",
            )
        )
    return reasons


# -- intervals


def posterior_interval(gains: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Interval of the mean gain, over prompts and over what the votes leave open. gains (S, N): each of S heads judges
    its own resample of the N prompts.
    """
    draws, prompts = gains.shape
    resampled = np.random.default_rng(seed).integers(0, prompts, (draws, prompts))
    return _middle(np.take_along_axis(gains, resampled, 1).mean(1), confidence)


def interval(values: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Bootstrap interval of a mean (percentile, 5,000 resamples; Efron 1979). values (N,)."""
    resampled = np.random.default_rng(seed).integers(0, len(values), (5000, len(values)))
    return _middle(values[resampled].mean(1), confidence)


def _middle(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """The quantiles between which the middle `confidence` of the means lies. means (resamples,)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def favoured_length(prefs: Preferences, confidence: float, seed: int) -> tuple[float, float]:
    """Bootstrap interval of the mean log(length of the winner / of the loser) over decided pairs, each by its weight:
    above 0 the votes favour longer replies, below 0 shorter ones.

    (0, 0) where there are so few pairs that they could all point one way by chance, which a bootstrap cannot see.
    """
    log_length = [np.log(max(len(completion), 1)) for _, completion in prefs.replies]
    decided = [pair for pair in prefs.pairs if pair.outcome != preferences.TIE]
    left_over_right = [log_length[pair.left] - log_length[pair.right] for pair in decided]
    sign = [1 if pair.outcome == preferences.A else -1 for pair in decided]
    ratios = np.array(left_over_right) * np.array(sign)
    if 2 * 0.5 ** np.count_nonzero(ratios) > 1 - confidence:  # both sides of the sign test
        return 0.0, 0.0
    weight = np.array([pair.weight for pair in decided])
    return interval(ratios * weight / weight.mean(), confidence, seed)


# -- repetition, in token ids


def without_end(episode: Episode) -> list[int]:
    """A reply's tokens without the one that ends it, which is the same in every reply that ends."""
    return episode.completion[:-1] if episode.ended else episode.completion


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Share of a reply's n-grams that occurred earlier in it (seq-rep-n, Welleck et al. 2020); 0 without n-grams."""
    grams = ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(replies: Sequence[Sequence[int]], n: int = 2) -> float:
    """Distinct n-grams of all replies together, as a share of all (Li et al. 2016). It falls with the amount of text,
    so compare equal amounts.
    """
    grams = [gram for ids in replies for gram in ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def distinct_at_equal_length(new: Sequence[list[int]], live: Sequence[list[int]]) -> tuple[float, float]:
    """`distinct` of two versions' replies; the two replies to each prompt are cut to the shorter one's length first."""
    lengths = [min(len(a), len(b)) for a, b in zip(new, live, strict=True)]
    new_cut = [ids[:length] for ids, length in zip(new, lengths, strict=True)]
    live_cut = [ids[:length] for ids, length in zip(live, lengths, strict=True)]
    return distinct(new_cut), distinct(live_cut)
