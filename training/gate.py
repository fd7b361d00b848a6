"""Is the new policy better, and still itself? A strict look on held-out prompts; what it refuses it refuses in
sentences.

Knows replies, rewards, votes and likelihoods; nothing about how the policy was trained.
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import bootstrap

from playground.system.messages import Message
from training import preferences

DRAWS = 2000  # heads from the reward model's posterior, each on its own resample of the prompts


@dataclass
class GateReport:
    """What was measured: rewards are the reward model's, standardised; KL is to the base in nats a reply; lengths in
    tokens.
    """

    prompts: int
    reward_new: float
    reward_live: float
    gain: float
    gain_interval: tuple
    kl: float
    length_new: float
    length_live: float
    length_votes: tuple  # interval of the mean log(length of the winner / of the loser) in the votes; (0, 0) of too few
    empty: float
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
    def passed(self):
        return not self.refused_because

    def as_dict(self):
        return asdict(self)


def decide(new, live, reward_new, reward_live, gains, *, kl, texts, canary_new, canary_base, length_votes, settings):
    """Compare paired episodes of the new and the live policy on the same prompts; returns a GateReport.

    new, live: lists of N Episodes; reward_new, reward_live: (N,); gains: (S, N), reward differences under S heads of
    the posterior; kl: nats a reply of the new policy's episodes; texts: its replies; canary_new, canary_base:
    log-likelihood of plain replies under it and under the base, nats a token; length_votes: (low, high) of
    `favoured_length`.
    """
    s = settings
    low, high = posterior_interval(np.asarray(gains), s.gate_confidence, s.seed)
    gain = float(np.mean(np.asarray(reward_new) - np.asarray(reward_live)))
    sides = {"new": new, "live": live}
    length = {name: float(np.mean([len(e.completion) for e in side])) for name, side in sides.items()}
    ended = {name: float(np.mean([e.ended for e in side])) for name, side in sides.items()}
    repeated = {name: float(np.mean([repetition(words(e)) for e in side])) for name, side in sides.items()}
    new_cut, live_cut = zip(*(equally_long(words(a), words(b)) for a, b in zip(new, live, strict=True)), strict=True)
    varied = {"new": distinct(new_cut), "live": distinct(live_cut)}
    drift = length["new"] / length["live"]
    shortest = 1 / (s.length_factor if length_votes[1] < 0 else s.length_drift)
    longest = s.length_factor if length_votes[0] > 0 else s.length_drift
    empty = float(np.mean([not t.strip() for t in texts]))
    mean_kl = float(np.mean(kl))

    # `not a <= b`: a figure that is no number never passes
    refusals = []
    if not low > 0:
        refusals.append(
            Message(
                "its replies are not clearly better: the reward rises by {gain} deviations [{low}, {high}] on {n} "
                "held-out prompts, and the interval must lie above 0",
                gain=f"{gain:+.2f}",
                low=f"{low:+.2f}",
                high=f"{high:+.2f}",
                n=len(new),
            )
        )
    if not mean_kl <= s.kl_budget:
        refusals.append(
            Message(
                "it moved too far from the base: {kl} nats a reply, and the budget is {limit}",
                kl=f"{mean_kl:.1f}",
                limit=f"{s.kl_budget:g}",
            )
        )
    if not shortest <= drift <= longest:
        limit = longest if drift > 1 else 1 / shortest
        figures = {"new": f"{length['new']:.0f}", "live": f"{length['live']:.0f}", "limit": f"{limit:g}"}
        refusals.append(
            Message(
                "its replies changed length too much: {new} tokens against {live}, and a factor of {limit} is the "
                "limit",
                **figures,
            )
            if limit == s.length_factor
            else Message(
                "its replies changed length too much: {new} tokens against {live}, and a factor of {limit} is the "
                "limit, since the votes do not favour that",
                **figures,
            )
        )
    if not empty <= s.empty_replies:
        refusals.append(
            Message(
                "{empty} of its replies are empty, and {limit} is the limit",
                empty=f"{empty:.0%}",
                limit=f"{s.empty_replies:.0%}",
            )
        )
    if not repeated["new"] <= repeated["live"] + s.repetition_rise:
        refusals.append(
            Message(
                "it repeats itself: {new} of its four-token runs are repeats, {live} of the live version's, and "
                "{limit} more is the limit",
                new=f"{repeated['new']:.0%}",
                live=f"{repeated['live']:.0%}",
                limit=f"{s.repetition_rise:.0%}",
            )
        )
    if not varied["new"] >= s.distinct_share * varied["live"]:
        refusals.append(
            Message(
                "its replies became alike: {new} of their word pairs are distinct, {live} of the live version's, and "
                "{limit} of that must be left",
                new=f"{varied['new']:.0%}",
                live=f"{varied['live']:.0%}",
                limit=f"{s.distinct_share:.0%}",
            )
        )
    if not ended["new"] >= ended["live"] - s.ended_fall:
        refusals.append(
            Message(
                "fewer of its replies come to an end: {new} against {live}, and {limit} fewer is the limit",
                new=f"{ended['new']:.0%}",
                live=f"{ended['live']:.0%}",
                limit=f"{s.ended_fall:.0%}",
            )
        )
    if not canary_base - canary_new <= s.canary_fall:
        refusals.append(
            Message(
                "plain replies became unlikely: by {fall} nats a token, and {limit} is the limit",
                fall=f"{canary_base - canary_new:.2f}",
                limit=f"{s.canary_fall:g}",
            )
        )
    return GateReport(
        prompts=len(new),
        reward_new=float(np.mean(reward_new)),
        reward_live=float(np.mean(reward_live)),
        gain=gain,
        gain_interval=(low, high),
        kl=mean_kl,
        length_new=length["new"],
        length_live=length["live"],
        length_votes=tuple(length_votes),
        empty=empty,
        ended_new=ended["new"],
        ended_live=ended["live"],
        repetition_new=repeated["new"],
        repetition_live=repeated["live"],
        distinct_new=varied["new"],
        distinct_live=varied["live"],
        canary_new=float(canary_new),
        canary_base=float(canary_base),
        refused_because=refusals,
    )


# -- intervals


def posterior_interval(gains, confidence, seed):
    """Interval of the mean gain over prompts and over what the votes leave open: each of the S heads (S, N) judges a
    resample of the N prompts.
    """
    s, n = gains.shape
    at = np.random.default_rng(seed).integers(0, n, (s, n))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.take_along_axis(gains, at, 1).mean(1), [tail, 1 - tail])
    return float(low), float(high)


def interval(values, confidence, seed):
    """Bootstrap interval of a mean (percentile, 5,000 resamples)."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def favoured_length(prefs, confidence, seed):
    """Bootstrap interval of the mean log(length of the winner / of the loser) over decided pairs, each by its weight:
    above 0 the votes favour longer replies, below 0 shorter ones. (0, 0) of so few that they could all point one way by
    chance, which a bootstrap cannot see.
    """
    decided = [p for p in prefs.pairs if p[2] != preferences.TIE]
    logs = [np.log(max(len(completion), 1)) for _, completion in prefs.replies]
    ratios = np.array([(logs[a] - logs[b]) * (1 if outcome == preferences.A else -1) for a, b, outcome, *_ in decided])
    if 2 * 0.5 ** np.count_nonzero(ratios) > 1 - confidence:  # both sides of the sign test
        return 0.0, 0.0
    weight = np.array([p[3] for p in decided])
    return interval(ratios * weight / weight.mean(), confidence, seed)


# -- what repetition looks like, in token ids


def words(episode):
    """A reply's tokens without the one that ends it, which is the same in every reply that ends."""
    return episode.completion[:-1] if episode.ended else episode.completion


def ngrams(ids, n):
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def repetition(ids, n=4):
    """Share of a reply's n-grams that it has had before (seq-rep-n, Welleck et al. 2020); 0 where there is none."""
    grams = ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(replies, n=2):
    """Distinct n-grams of all replies together, as a share of all (Li et al. 2016). It falls with the amount of text:
    compare equal amounts.
    """
    grams = [gram for ids in replies for gram in ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def equally_long(a, b):
    """Both replies cut to the shorter one's length."""
    return a[: len(b)], b[: len(a)]
