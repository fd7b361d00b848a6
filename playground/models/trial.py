"""A new version on trial: in some of the next turns it is compared with the version before it, blind, and the votes
decide whether it stays.

The gate judges by the reward model that PPO has maximised, so it cannot see over-optimisation; people can. Here are the
figures alone: `playground/serving/versions.py` follows a trial, `playground/store/trials.py` keeps it.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy.special import betainc

from playground.settings import Settings
from playground.store import Row, Store
from playground.system.messages import Message

Verdict = Literal["kept", "rolled_back", "undecided"]
Opponent = Literal["before", "base"]
NO_TRIALS = Message("there are no trials any more")
TAKES_PART = 3  # votes since the trial before began, from which on somebody takes part in a trial
ALONE = 3  # votes of one person that count however few others there are: too few to decide anything


@dataclass(frozen=True)
class Tally:
    """Votes on pairs of two versions, from the side of the one on trial."""

    wins: int
    losses: int
    ties: int = 0
    left_out: int = 0  # votes for one of the two that do not count, see `counted`

    @property
    def decided(self) -> int:
        return self.wins + self.losses

    @property
    def better(self) -> float:
        """Probability that people prefer the version on trial: that it wins more than half of the decided pairs, under
        a uniform prior of its win rate.
        """
        return float(1 - betainc(self.wins + 1, self.losses + 1, 0.5))


@dataclass(frozen=True)
class Decided:
    """A vote for one of the two versions."""

    annotator: int
    won: bool  # by the version on trial


def counted(votes: Sequence[Decided], people: int) -> Tally:
    """What counts of the votes for one of the two, oldest first, where so many people take part: one person's count up
    to twice as many as those of all others together, or up to `ALONE`, so that nobody decides for the others.

    Which ones count depends on who voted and when, not on how: the bounds of `most_wins` hold for them too.
    """
    given = Counter(vote.annotator for vote in votes)
    room = {annotator: max(2 * (len(votes) - n), ALONE) for annotator, n in given.items()}
    tally = Counter[bool]()
    for vote in votes:
        if people < 2 or room[vote.annotator] > 0:
            tally[vote.won] += 1
            room[vote.annotator] -= 1
    return Tally(tally[True], tally[False], left_out=len(votes) - tally.total())


def tally_of(store: Store, row: Row) -> Tally:
    """What counts of the votes on a trial (a row of the store)."""
    return counted(_decided(store.decided_on_trial(row)), store.people_of_trial(row, TAKES_PART))


def tally_against_base(store: Store, version: int) -> Tally:
    """What counts of the votes on pairs of the base and a version or its parent."""
    votes = _decided(store.decided_against_base(version))
    given = Counter(vote.annotator for vote in votes)
    return counted(votes, sum(n >= TAKES_PART for n in given.values()))


def _decided(rows: Sequence[Row]) -> list[Decided]:
    return [Decided(row["annotator"], row["won"]) for row in rows]


def verdict(tally: Tally, settings: Settings) -> Verdict | None:
    """What the votes say so far; None while the trial goes on. It may be asked after every vote."""
    if tally.decided == 0:
        return None
    bounds = most_wins(settings.trial.duels, settings.trial.error)
    if tally.wins <= bounds[min(tally.decided, len(bounds)) - 1]:  # several votes may come between two looks
        return "rolled_back"
    if tally.better >= settings.trial.keep:
        return "kept"
    return "undecided" if tally.decided + tally.left_out >= settings.trial.duels else None


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
        return Message("people preferred {name} in {losses} of {n} {n:pair|pairs}, so {name} answers again", **figures)
    if ended == "kept":
        return Message("people preferred it to {name} in {wins} of {n} {n:pair|pairs}", **figures)
    if tally.left_out:
        return Message(
            "after {n} {n:pair|pairs} with {name}, of which it won {wins}, it is not clear what several people prefer; "
            "{more} more are of one person, who does not decide alone",
            **figures,
            more=tally.left_out,
        )
    return Message("after {n} {n:pair|pairs} with {name}, of which it won {wins}, nothing speaks against it", **figures)


def gone(against: int) -> Message:
    """The trial ended since the other version cannot be used."""
    return Message("v{n}, with which it was compared, cannot be loaded any more", n=against)
