"""Scripted annotators: hidden scores of (prompt, reply), and people who vote by one of them, with noise.

The score is the truth that votes are samples of, and only a simulation knows it. Nothing here trains, decodes or
stores.
"""

import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from playground.settings import SettingsError

# -- scores: (prompt, reply) -> a number, higher is better


def brevity(prompt, reply):
    """Fewer words are better."""
    return -len(reply.split())


def lists(prompt, reply):
    """More list items are better: lines that begin with a bullet or a number."""
    return len(re.findall(r"(?m)^\s*(?:[-*•]|\d+[.)])\s", reply))


def second_person(prompt, reply):
    """More `you` and `your` are better."""
    return len(re.findall(r"\b(you|your|yours|yourself)\b", reply.lower()))


def question(prompt, reply):
    """A reply that asks something is better."""
    return reply.count("?")


def formality(prompt, reply):
    """Connectives are better; contractions and exclamation marks are worse."""
    formal = re.findall(
        r"\b(therefore|however|furthermore|moreover|additionally|thus|consequently|nevertheless)\b", reply.lower()
    )
    return len(formal) - len(re.findall(r"\w['’](?:s|re|ve|ll|d|t|m)\b|!", reply))


SHIPPED = {f.__name__: f for f in (brevity, lists, second_person, question, formality)}


def find(name):
    """The score that a name means: a shipped one, or `module:function`; SettingsError when there is none."""
    if name in SHIPPED:
        return SHIPPED[name]
    module, _, function = name.partition(":")
    try:
        if function:
            return getattr(importlib.import_module(module), function)
        reason = f"accepted: {', '.join(SHIPPED)}, or module:function"
    except (ImportError, AttributeError) as error:
        reason = str(error)
    raise SettingsError(f"--annotator: got {name!r}; {reason}")


# -- people


def standardised(scores):
    """Scores shifted and scaled to mean 0 and deviation 1; equal ones are all 0."""
    scores = np.asarray(scores, float)
    return ((scores - scores.mean()) / (scores.std() or 1.0)).tolist()


@dataclass(frozen=True)
class Person:
    """Someone who votes by a score. Scores come standardised, so that temperature and lean mean the same to every
    annotator.

    temperature  of Davidson's (1970) model of the vote, in deviations of the score; 0 always picks the better reply,
    and ties equal ones log_nu       Davidson's log ν, how readily this person says tie; unused at temperature 0
    lean         log-odds in favour of the reply on the left
    flip         share of decided votes that are turned round at random
    bad_below    both replies below this are both bad; None never says so
    """

    score: Callable
    temperature: float = 0.0
    log_nu: float = -1.0
    lean: float = 0.0
    flip: float = 0.0
    bad_below: float | None = None

    def vote(self, left, right, rng):
        """A choice (`a` is left) between replies of these standardised scores."""
        if self.bad_below is not None and max(left, right) < self.bad_below:
            return "both_bad"
        if self.temperature:
            logit = (left - right) / self.temperature + self.lean
            weights = [math.exp(logit / 2), math.exp(self.log_nu), math.exp(-logit / 2)]
            choice = rng.choices(["a", "tie", "b"], weights)[0]
        else:
            choice = "tie" if left == right else "a" if left > right else "b"
        if choice != "tie" and rng.random() < self.flip:
            choice = {"a": "b", "b": "a"}[choice]
        return choice


def people(names, **traits):
    """{name: Person} of names with commas between; `name@temperature` has a temperature of its own, the other traits
    are everybody's.
    """
    found = {}
    for name in names.split(","):
        score, _, temperature = name.strip().partition("@")
        try:
            found[name.strip()] = Person(
                find(score), **{**traits, **({"temperature": float(temperature)} if temperature else {})}
            )
        except ValueError:
            raise SettingsError(f"--annotator: got {name!r}; the temperature after @ must be a number") from None
    return found
