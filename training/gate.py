"""May the new policy be shown to people? It must probably be better than the live one, and its replies must still be
sound beside the base's. A comparison on held-out prompts; refusals are sentences that people read. Whether the version
stays is then up to people's choices (`playground/models/trial.py`).

Knows replies, rewards, votes and likelihoods; nothing about how the policy was trained.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from playground.settings import Settings
from playground.system.messages import Message
from training import preferences, repetition
from training.preferences import Preferences
from training.rollout import Episode

RESAMPLES = 5000  # of a bootstrap interval
RESAMPLED = 1 << 20  # values that are resampled at once, which bounds the memory
DRAWS = 2000  # heads from the reward model's posterior, each judges its own resample of the prompts
CLEARLY = 0.9  # probability from which on it is said that a person loses
SLIGHTLY_WORSE = 0.1  # deviations of the reward, or nats a token of demonstrations


@dataclass(frozen=True)
class GateReport:
    """What was measured, and the reasons for a refusal. Rewards are the reward model's, standardised; KL is in nats a
    reply; lengths are in tokens. `_new`, `_live` and `_base` are means over a version's replies.
    """

    prompts: int
    replies: int  # to each prompt
    reward_new: float
    reward_live: float
    gain: float
    gain_interval: tuple[float, float]
    better: float  # probability of a gain, by the reward model
    not_worse: float  # probability that the gain is not below −SLIGHTLY_WORSE
    kl: float  # to the base
    length_new: float
    length_live: float
    length_base: float
    # interval of the mean log(length of the winner / of the loser) in the votes; (0, 0) where there are too few
    length_votes: tuple[float, float]
    empty: float  # share of the new version's replies
    ended_new: float
    ended_base: float
    repetition_new: float
    repetition_base: float
    distinct_new: float
    distinct_base: float
    canary_new: float  # log-likelihood of plain replies at the policy's temperature, nats a token
    canary_base: float
    refused_because: list[Message]
    share: float = 1.0  # of the way that training went, where the policy was taken back
    # Where there is no reward model: on how many held-out demonstrations it was judged. The reward is then their
    # log-likelihood in nats a token, and the lengths that count are theirs, not those of the votes.
    demonstrations: int = 0
    people: int = 0  # who have enough votes to be told apart
    people_who_lose: int = 0  # of these, by their own taste, clearly

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
        token_ids = [repetition.without_end(episode) for episode in episodes]
        return cls(
            length=float(np.mean([len(episode.completion) for episode in episodes])),
            ended=float(np.mean([episode.ended for episode in episodes])),
            repetition=float(np.mean([repetition.repeated(ids) for ids in token_ids])),
            token_ids=token_ids,
        )


@dataclass(frozen=True)
class GateFigures:
    """What was measured on the gate's prompts. N = prompts × replies, those to one prompt in a row, and everywhere in
    the same order.
    """

    prompts: int
    new: Sequence[Episode]  # (N,)
    live: Sequence[Episode]
    base: Sequence[Episode]
    texts: Sequence[str]  # of the new policy's replies
    reward_new: np.ndarray  # (N,), or of each demonstration
    reward_live: np.ndarray
    gains: np.ndarray  # (S, N), reward differences under S heads of the posterior
    kl: Sequence[float]  # of the new policy's first reply to each prompt, to the base
    canary_new: float  # log-likelihood of plain replies under the new policy, nats a token
    canary_base: float
    length_votes: tuple[float, float]  # (low, high) of `favoured_length`
    demonstrations: int = 0  # as in `GateReport`


def decide(figures: GateFigures, settings: Settings) -> GateReport:
    """Judge a new policy by its replies, and those of the live version and of the base, to the same prompts."""
    new = Side.of(figures.new)
    live = Side.of(figures.live)
    base = Side.of(figures.base)
    distinct_new, distinct_base = repetition.distinct_at_equal_length(new.token_ids, base.token_ids)
    means = mean_gains(figures.gains, figures.demonstrations or figures.prompts, settings.seed)
    report = GateReport(
        prompts=figures.prompts,
        replies=len(figures.new) // figures.prompts,
        reward_new=float(np.mean(figures.reward_new)),
        reward_live=float(np.mean(figures.reward_live)),
        gain=float(np.mean(np.asarray(figures.reward_new) - np.asarray(figures.reward_live))),
        gain_interval=central(means, settings.gate.confidence),
        better=float(np.mean(means > 0)),
        not_worse=float(np.mean(means > -SLIGHTLY_WORSE)),
        kl=float(np.mean(figures.kl)),
        length_new=new.length,
        length_live=live.length,
        length_base=base.length,
        length_votes=figures.length_votes,
        empty=float(np.mean([not text.strip() for text in figures.texts])),
        ended_new=new.ended,
        ended_base=base.ended,
        repetition_new=new.repetition,
        repetition_base=base.repetition,
        distinct_new=distinct_new,
        distinct_base=distinct_base,
        canary_new=float(figures.canary_new),
        canary_base=float(figures.canary_base),
        refused_because=[],
        demonstrations=figures.demonstrations,
    )
    return replace(report, refused_because=refusals(report, settings))


def refusals(report: GateReport, settings: Settings) -> list[Message]:
    """Why the figures of a report do not pass: one sentence for each check that fails."""
    not_better = refused_gain(report, settings)
    return ([not_better] if not_better else []) + broken_limits(report, settings)


def went_too_far(report: GateReport, settings: Settings) -> bool:
    """Whether the new version is better, but breaks a limit."""
    return bool(broken_limits(report, settings)) and not refused_gain(report, settings)


def refused_gain(report: GateReport, settings: Settings) -> Message | None:
    """Why the new version is probably not better than the live one, or None."""
    # written `not a >= b`, so that NaN never passes; likewise below
    if not (report.better >= settings.gate.better and report.not_worse >= settings.gate.not_worse):
        low, high = report.gain_interval
        figures = {
            "gain": f"{report.gain:+.2f}",
            "low": f"{low:+.2f}",
            "high": f"{high:+.2f}",
            "better": f"{report.better:.2f}",
            "limit": f"{settings.gate.better:g}",
        }
        if report.demonstrations:
            return Message(
                "held-out demonstrations probably did not become likelier: by {gain} nats a token [{low}, {high}] on "
                "{n} of them, a gain with probability {better}, and {limit} is needed",
                n=report.demonstrations,
                **figures,
            )
        return Message(
            "its replies are probably not better: the reward changes by {gain} deviations [{low}, {high}] on {n} "
            "held-out prompts, a gain with probability {better}, and {limit} is needed",
            n=report.prompts,
            **figures,
        )
    return None


def broken_limits(report: GateReport, settings: Settings) -> list[Message]:
    """In what the new version has gone too far from the base: one sentence for each limit."""
    length_ratio = report.length_new / report.length_base
    shorter_favoured = report.length_votes[1] < 0
    longer_favoured = report.length_votes[0] > 0
    shortest = 1 / (settings.gate.length_factor if shorter_favoured else settings.gate.length_drift)
    longest = settings.gate.length_factor if longer_favoured else settings.gate.length_drift
    canary_fall = report.canary_base - report.canary_new

    reasons = []
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
        figures = {"new": f"{report.length_new:.0f}", "base": f"{report.length_base:.0f}", "limit": f"{limit:g}"}
        if limit == settings.gate.length_factor:
            reason = Message(
                "its replies changed length too much: {new} tokens against the base's {base}, and a factor of {limit} "
                "is the limit",
                **figures,
            )
        elif report.demonstrations:
            reason = Message(
                "its replies changed length too much: {new} tokens against the base's {base}, and a factor of {limit} "
                "is the limit, since the demonstrations are not like that",
                **figures,
            )
        else:
            reason = Message(
                "its replies changed length too much: {new} tokens against the base's {base}, and a factor of {limit} "
                "is the limit, since the votes do not favour that",
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
    if not report.repetition_new <= report.repetition_base + settings.gate.repetition_rise:
        reasons.append(
            Message(
                "it repeats itself: {new} of its four-token runs are repeats, {base} of the base's, and "
                "{limit} more is the limit",
                new=f"{report.repetition_new:.0%}",
                base=f"{report.repetition_base:.0%}",
                limit=f"{settings.gate.repetition_rise:.0%}",
            )
        )
    if not report.distinct_new >= settings.gate.distinct_share * report.distinct_base:
        reasons.append(
            Message(
                "its replies became alike: {new} of their word pairs are distinct, {base} of the base's, and "
                "{limit} of that must be left",
                new=f"{report.distinct_new:.0%}",
                base=f"{report.distinct_base:.0%}",
                limit=f"{settings.gate.distinct_share:.0%}",
            )
        )
    # the longest replies are those that reach the token limit, so votes for longer ones are votes for these
    if not (longer_favoured or report.ended_new >= report.ended_base - settings.gate.ended_fall):
        reasons.append(
            Message(
                "fewer of its replies come to an end: {new} against the base's {base}, and {limit} fewer is the limit",
                new=f"{report.ended_new:.0%}",
                base=f"{report.ended_base:.0%}",
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


def mean_gains(gains: np.ndarray, prompts: int, seed: int) -> np.ndarray:
    """Mean gains (S,), spread over prompts and over what the votes leave open. gains (S, N), the replies to each of the
    prompts in a row: each of S heads judges its own resample of the prompts, since replies to one prompt are alike.
    """
    by_prompt = gains.reshape(len(gains), prompts, -1).mean(-1)  # (S, prompts)
    resampled = np.random.default_rng(seed).integers(0, prompts, by_prompt.shape)
    return np.take_along_axis(by_prompt, resampled, 1).mean(1)


def clearly_loses(gains: np.ndarray, prompts: int, seed: int) -> bool:
    """Whether a person gets worse replies, by heads of that person's own taste: gains (S, N), as `mean_gains` has
    them.
    """
    return bool(np.mean(mean_gains(gains, prompts, seed) < 0) >= CLEARLY)


def central(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The interval in the middle of a sample that holds this share of it."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def interval(values: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Bootstrap interval of a mean (percentile; Efron 1979). values (N,)."""
    rng = np.random.default_rng(seed)
    n = len(values)
    at_once = max(1, RESAMPLED // n)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, at_once):
        part = means[start : start + at_once]
        part[:] = values[rng.integers(0, n, (len(part), n))].mean(1)
    return central(means, confidence)


def favoured_length(prefs: Preferences, confidence: float, seed: int) -> tuple[float, float]:
    """Bootstrap interval of the mean log(length of the winner / of the loser) over decided pairs, each by its weight:
    above 0 the votes favour longer replies, below 0 shorter ones.

    (0, 0) where there are so few pairs that they could all point one way by chance, which a bootstrap cannot see.
    """
    log_length = [np.log(max(len(completion), 1)) for _, completion in prefs.replies]
    decided = [pair for pair in prefs.judged if pair.outcome != preferences.TIE]
    left_over_right = [log_length[pair.left] - log_length[pair.right] for pair in decided]
    sign = [1 if pair.outcome == preferences.A else -1 for pair in decided]
    ratios = np.array(left_over_right) * np.array(sign)
    if 2 * 0.5 ** np.count_nonzero(ratios) > 1 - confidence:  # both sides of the sign test
        return 0.0, 0.0
    weight = np.array([pair.weight for pair in decided])
    return interval(ratios * weight / weight.mean(), confidence, seed)
