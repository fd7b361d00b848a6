"""Scripted annotators: hidden scores of (prompt, reply), and people who vote by one of them, with noise.

The score is the truth that votes are noisy samples of; only a simulation knows it. Nothing here trains, decodes or
stores.
"""

import importlib
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from playground.settings import SettingsError

# -- scores: (prompt, reply) -> a number, higher is better

Score = Callable[[str, str], float]


def brevity(prompt: str, reply: str) -> float:
    """Fewer words are better."""
    return -len(reply.split())


def lists(prompt: str, reply: str) -> float:
    """More list items are better: lines that begin with a bullet or a number."""
    return len(re.findall(r"(?m)^\s*(?:[-*•]|\d+[.)])\s", reply))


def second_person(prompt: str, reply: str) -> float:
    """More `you` and `your` are better."""
    return len(re.findall(r"\b(you|your|yours|yourself)\b", reply.lower()))


def question(prompt: str, reply: str) -> float:
    """A reply that asks something is better."""
    return reply.count("?")


def formality(prompt: str, reply: str) -> float:
    """Connectives are better; contractions and exclamation marks are worse."""
    formal = re.findall(
        r"\b(therefore|however|furthermore|moreover|additionally|thus|consequently|nevertheless)\b", reply.lower()
    )
    return len(formal) - len(re.findall(r"\w['’](?:s|re|ve|ll|d|t|m)\b|!", reply))


SHIPPED: dict[str, Score] = {
    "brevity": brevity,
    "lists": lists,
    "second_person": second_person,
    "question": question,
    "formality": formality,
}


def find(name: str, flag: str = "--annotator") -> Score:
    """The score of this name: a shipped one, or `module:function`. SettingsError, which names `flag`, where there is
    none.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    module, _, function = name.partition(":")
    try:
        if module and function:
            score = getattr(importlib.import_module(module), function)
            if callable(score):
                return score
            reason = "it cannot be called"
        else:
            reason = f"accepted: {', '.join(SHIPPED)}, or module:function"
    except AttributeError as error:
        reason = str(error)
    except Exception as error:  # somebody else's module may raise anything
        reason = f"{type(error).__name__}: {error}"
    raise SettingsError(f"{flag}: got {name!r}; {reason}")


# -- people


def standardised(scores: Sequence[float]) -> list[float]:
    """Scores shifted and scaled to mean 0 and deviation 1; where all are equal, all become 0."""
    values = np.asarray(scores, float)
    return ((values - values.mean()) / (values.std() or 1.0)).tolist()


@dataclass(frozen=True)
class Person:
    """Someone who votes by a score. Scores are standardised first, so that temperature and lean mean the same for every
    annotator.
    """

    score: Score
    # of Davidson's (1970) model of the vote, in deviations of the score; at 0 the better reply always wins, and equal
    # ones tie
    temperature: float = 0.0
    log_nu: float = -1.0  # Davidson's log ν, how readily this person says tie; unused at temperature 0
    lean: float = 0.0  # log-odds in favour of the left reply; unused at temperature 0
    flip: float = 0.0  # share of decided votes that are turned round at random
    bad_below: float | None = None  # both replies below this score are both bad; None: never both bad

    def vote(self, left: float, right: float, rng: random.Random) -> str:
        """A choice (`a` is left) between replies of these standardised scores."""
        if self.bad_below is not None and max(left, right) < self.bad_below:
            return "both_bad"
        choice = self._preference(left, right, rng)
        if choice != "tie" and rng.random() < self.flip:
            choice = "b" if choice == "a" else "a"
        return choice

    def _preference(self, left: float, right: float, rng: random.Random) -> str:
        if self.temperature:
            logit = (left - right) / self.temperature + self.lean
            weights = [math.exp(logit / 2), math.exp(self.log_nu), math.exp(-logit / 2)]
            return rng.choices(["a", "tie", "b"], weights)[0]
        if left == right:
            return "tie"
        return "a" if left > right else "b"


def people(
    names: str,
    *,
    temperature: float = 0.0,
    lean: float = 0.0,
    flip: float = 0.0,
    bad_below: float | None = None,
) -> dict[str, Person]:
    """{name: Person} of score names, separated by commas. `name@temperature` has a temperature of its own; the other
    traits are the same for all.
    """
    by_name = {}
    for name in names.split(","):
        score, _, own_temperature = name.strip().partition("@")
        try:
            by_name[name.strip()] = Person(
                find(score),
                temperature=float(own_temperature) if own_temperature else temperature,
                lean=lean,
                flip=flip,
                bad_below=bad_below,
            )
        except ValueError:
            raise SettingsError(f"--annotator: got {name!r}; the temperature after @ must be a number") from None
    return by_name
