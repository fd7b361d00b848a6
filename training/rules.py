"""Rewards that a person writes: functions of prompt and reply, added to what the votes teach.

Each is standardised on replies of the reference, as the reward model is, so that its weight is in the same unit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from playground.settings import SettingsError
from training import annotators
from training.annotators import Score

FLAG = "--reward.rules"


class RuleFailed(Exception):
    """A rule raised, or returned something that is not a finite number."""


@dataclass(frozen=True)
class Rule:
    """One function, its weight, and mean and deviation of its scores on the reference's replies."""

    name: str  # module:function, or a shipped annotator
    weight: float
    score: Score
    mean: float = 0.0
    deviation: float = 1.0

    def scores(self, texts: Sequence[tuple[str, str]]) -> np.ndarray:
        """Raw scores (N,) of N prompts and replies. RuleFailed."""
        return np.array([self._one(prompt, reply) for prompt, reply in texts])

    def _one(self, prompt: str, reply: str) -> float:
        try:
            score = float(self.score(prompt, reply))
        except Exception as error:  # somebody else's code may raise anything
            raise RuleFailed(f"{FLAG}: {self.name} raised {type(error).__name__}: {error}") from error
        if not np.isfinite(score):
            raise RuleFailed(f"{FLAG}: {self.name} returned {score}")
        return score

    def standardised_on(self, texts: Sequence[tuple[str, str]]) -> "Rule":
        """This rule with mean 0 and deviation 1 on these prompts and replies."""
        scores = self.scores(texts)
        # of equal scores the deviation is not 0 but a rounding error, by which nothing may be divided
        deviation = float(scores.std()) if np.ptp(scores) > 1e-9 * np.abs(scores).max() else 1.0
        return replace(self, mean=float(scores.mean()), deviation=deviation)


def read(text: str) -> list[Rule]:
    """The rules of the setting: `module:function=weight`, with commas between. SettingsError where one is not so."""
    rules = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, weight = part.partition("=")
        rules.append(Rule(name.strip(), _weight(part, weight) if equals else 1.0, annotators.find(name.strip(), FLAG)))
    return rules


def _weight(part: str, text: str) -> float:
    """The weight that a part of the setting has after its `=`. SettingsError where it is no finite number."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise SettingsError(f"{FLAG}: got {part!r}; the weight after = must be a number")
    return weight


def rewards(rules: Sequence[Rule], texts: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Weighted sum (N,) of the rules' standardised scores of N prompts and replies."""
    total = np.zeros(len(texts))
    for rule in rules:
        total += rule.weight * (rule.scores(texts) - rule.mean) / rule.deviation
    return torch.tensor(total, dtype=torch.float32)
