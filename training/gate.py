"""Is the new policy better? A first, strict look on held-out prompts; what it refuses it refuses in sentences.

Knows replies, rewards and KL; nothing about how the policy was trained.
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import bootstrap


@dataclass
class GateReport:
    """What was measured: rewards are the reward model's, standardised; KL is to the base in nats a reply; lengths in tokens."""

    prompts: int
    reward_new: float
    reward_live: float
    gain: float
    gain_interval: tuple
    kl: float
    length_new: float
    length_live: float
    empty: float
    ended_new: float
    ended_live: float
    refused_because: list

    @property
    def passed(self):
        return not self.refused_because

    def as_dict(self):
        return asdict(self)


def decide(new, live, reward_new, reward_live, kl, texts, settings):
    """Compare paired episodes of the new and the live policy on the same prompts; returns a GateReport.

    new, live: lists of Episode; reward_new, reward_live: (N,) arrays; kl: nats a reply of the new policy's episodes; texts: its replies.
    """
    gains = np.asarray(reward_new) - np.asarray(reward_live)
    low, high = interval(gains, settings.gate_confidence, settings.seed)
    length = {name: float(np.mean([len(e.completion) for e in side])) for name, side in (("new", new), ("live", live))}
    drift = length["new"] / length["live"]
    empty = float(np.mean([not t.strip() for t in texts]))
    mean_kl = float(np.mean(kl))
    refusals = []
    if not low > 0:
        refusals.append(f"its replies are not clearly better: the reward rises by {gains.mean():+.2f} deviations "
                        f"[{low:+.2f}, {high:+.2f}] on {len(gains)} held-out prompts, and the interval must lie above 0")
    if not mean_kl <= settings.kl_budget:
        refusals.append(f"it moved too far from the base: {mean_kl:.1f} nats a reply, and the budget is {settings.kl_budget:g}")
    if not 1 / settings.length_factor <= drift <= settings.length_factor:
        refusals.append(f"its replies changed length too much: {length['new']:.0f} tokens against {length['live']:.0f}, "
                        f"and a factor of {settings.length_factor:g} is the limit")
    if empty > settings.empty_replies:
        refusals.append(f"{empty:.0%} of its replies are empty, and {settings.empty_replies:.0%} is the limit")
    return GateReport(
        prompts=len(gains), reward_new=float(np.mean(reward_new)), reward_live=float(np.mean(reward_live)), gain=float(gains.mean()),
        gain_interval=(low, high), kl=mean_kl, length_new=length["new"], length_live=length["live"], empty=empty,
        ended_new=float(np.mean([e.ended for e in new])), ended_live=float(np.mean([e.ended for e in live])), refused_because=refusals)


def interval(gains, confidence, seed):
    """Bootstrap interval of the mean of paired gains (percentile, 5,000 resamples)."""
    if np.ptp(gains) == 0:
        return float(gains[0]), float(gains[0])
    found = bootstrap((gains,), np.mean, confidence_level=confidence, n_resamples=5000, method="percentile",
                      rng=np.random.default_rng(seed)).confidence_interval
    return float(found.low), float(found.high)
