"""How far a round may go: each starts from the version that answers people and may move on by a step, whose length
their choices have set.

A round that starts from the base every time comes to the same KL target, and so to the same version, however many votes
there are. A round that goes on without a limit over-optimises its reward model. So the KL to the base rises round by
round, fast while people prefer the new versions, slowly while they do not (`benchmarks/small_world.py` compares).

Figures alone: trials are `playground/models/trial.py`'s, the KL target in PPO is `ppo.py`'s.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scipy.special import betaincinv

from playground.models.trial import Tally
from playground.system.messages import Message

LIKED, DISLIKED = 0.8, 0.4  # probability that people prefer a version, above and below which the step changes
LONGER, SHORTER, ROLLED_BACK = 1.25, 0.7, 0.5  # what the step is multiplied by
MOST, LEAST = 4.0, 0.25  # of the first step
CLEAR = 0.75  # accuracy of the reward model from which a whole step is taken
RETREAT = 0.2  # probability that people prefer a version to the base, below which the next round starts from the base
FEWEST = 12  # fresh votes that may say that nothing is left to learn
CHANCE = 0.6  # accuracy on fresh votes below which there is nothing to learn; likewise the share of ties above it


@dataclass(frozen=True)
class EndedTrial:
    """How a version's trial ended, and the votes on it."""

    state: Literal["kept", "undecided", "rolled_back"]
    tally: Tally


def step(first: float, trials: Iterable[EndedTrial], accuracy: float) -> float:
    """By how much the KL to the base may rise in a round, in nats a reply.

    `first` is the step of a first round, `trials` are those before this round, oldest first; `accuracy` of the reward
    model on votes that it did not see: votes that contradict each other are not as loud as votes that agree.
    """
    length = 1.0
    for trial in trials:
        if trial.state == "rolled_back":
            length *= ROLLED_BACK
        elif trial.tally.better > LIKED:
            length *= LONGER
        elif trial.tally.better < DISLIKED:
            length *= SHORTER
        length = min(max(length, LEAST), MOST)
    agreement = min(max((accuracy - 0.5) / (CLEAR - 0.5), LEAST), 1.0)
    return first * length * agreement


def retreats(against_base: Tally) -> bool:
    """Whether people prefer the base to the version that answers, by votes on pairs of the two."""
    return against_base.better < RETREAT


def nothing_left(hits: float, forecasts: int, ties: int, votes: int) -> Message | None:
    """Why there is nothing left to learn, or None. All of votes on pairs whose replies are both by the version that
    answers: of `votes`, `ties` were ties or both bad, and of `forecasts`, made before the vote, `hits` were right.
    """
    if votes >= FEWEST and _least(ties, votes) > CHANCE:
        return Message(
            "Nothing left to learn from these votes: {ties} of {n} on the current version's replies are ties.",
            ties=ties,
            n=votes,
        )
    if forecasts >= FEWEST and 1 - _least(forecasts - hits, forecasts) < CHANCE:
        return Message(
            "Nothing left to learn from these votes: {hits} of {n} on the current version's replies could be forecast.",
            hits=f"{hits:g}",
            n=forecasts,
        )
    return None


def _least(hits: float, n: int, confidence: float = 0.9) -> float:
    """One-sided lower bound of a proportion (Clopper and Pearson 1934)."""
    return float(betaincinv(hits, n - hits + 1, 1 - confidence)) if hits else 0.0
