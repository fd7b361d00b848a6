"""A new version on trial: in some of the next turns it is compared with the version before it, blind, and the votes
decide whether it stays.

The gate judges by the reward model that PPO has maximised, so it cannot see over-optimisation; people can. Here are the
figures alone: `playground/serving/versions.py` follows a trial, `playground/store/trials.py` keeps it.
"""

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy.special import betainc

from playground.settings import Settings
from playground.system.messages import Message

Verdict = Literal["kept", "rolled_back", "undecided"]
Opponent = Literal["before", "base"]
NO_TRIALS = Message("there are no trials any more")


@dataclass(frozen=True)
class Tally:
    """Votes on pairs of two versions, from the side of the one on trial."""

    wins: int
    losses: int
    ties: int = 0

    @property
    def decided(self) -> int:
        return self.wins + self.losses

    @property
    def better(self) -> float:
        """Probability that people prefer the version on trial: that it wins more than half of the decided pairs, under
        a uniform prior of its win rate.
        """
        return float(1 - betainc(self.wins + 1, self.losses + 1, 0.5))


def verdict(tally: Tally, settings: Settings) -> Verdict | None:
    """What the votes say so far; None while the trial goes on. It may be asked after every vote."""
    if tally.decided == 0:
        return None
    bounds = most_wins(settings.trial.duels, settings.trial.error)
    if tally.wins <= bounds[min(tally.decided, len(bounds)) - 1]:  # several votes may come between two looks
        return "rolled_back"
    if tally.better >= settings.trial.keep:
        return "kept"
    return "undecided" if tally.decided >= settings.trial.duels else None


@cache
def most_wins(duels: int, error: float) -> tuple[int, ...]:
    """For 1, 2, …, `duels` decided pairs: the most wins with which a version is rolled back; -1: not yet with any.

    A sign test with a look after every pair. A version as good as the other one is rolled back with probability
    `error` at most over all looks, of which a part is spent at each (Lan and DeMets 1983, linear spending). A version
    that wins one pair in five is rolled back within 25 pairs with probability .93 for an error of .06.
    """
    going_on = np.zeros(duels + 1)  # probability of each number of wins, and no roll-back yet, for two equal versions
    going_on[0] = 1
    spent = 0.0
    bounds = []
    for pairs in range(1, duels + 1):
        going_on = 0.5 * going_on + 0.5 * np.concatenate([[0], going_on[:-1]])
        bound = -1
        while bound < pairs and spent + going_on[bound + 1] <= error * pairs / duels:
            bound += 1
            spent += going_on[bound]
            going_on[bound] = 0
        bounds.append(bound)
    return tuple(bounds)


def opponent(rng: random.Random, settings: Settings, against_base: bool) -> tuple[Opponent | None, float]:
    """With whom the version on trial is compared in the next turn, and with what probability that is drawn; None: with
    nobody, both replies are its own.

    `against_base`: whether the version before it is the base itself, which then has both shares.
    """
    before = settings.trial.before_share
    either = min(1.0, before + settings.trial.base_share)
    if against_base:
        before = either
    drawn = rng.random()
    if drawn < before:
        return "before", before
    return ("base", either - before) if drawn < either else (None, 1 - either)


def reason(ended: Verdict, tally: Tally, against: int) -> Message:
    """How a trial ended, in one sentence."""
    figures: dict[str, str | int] = {
        "name": "v0 (base)" if against == 0 else f"v{against}",
        "wins": tally.wins,
        "losses": tally.losses,
        "n": tally.decided,
    }
    if ended == "rolled_back":
        return Message("people preferred {name} in {losses} of {n} pairs, so {name} answers again", **figures)
    if ended == "kept":
        return Message("people preferred it to {name} in {wins} of {n} pairs", **figures)
    return Message("after {n} pairs with {name}, of which it won {wins}, nothing speaks against it", **figures)


def gone(against: int) -> Message:
    """The trial ended since the other version cannot be used."""
    return Message("v{n}, with which it was compared, cannot be loaded any more", n=against)
