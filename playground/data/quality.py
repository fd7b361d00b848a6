"""How people vote: who agrees with whom on pairs that two have judged, how fast each votes, and who prefers a side.

The numbers are for whoever decides whether a person's votes are to be learnt from. Nothing is decided here.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from playground.data.agreement import cohens_kappa, krippendorffs_alpha, longest_run, sign_test
from playground.store import Row, Store

MOST_PEOPLE = 100  # in the table, those with most votes
MOST_COUPLES = 20  # two people who judged the same pairs, those with most of them
SIDES = ("a", "b")


@dataclass(frozen=True)
class Agreement:
    """What two people, or one and all others, said of the same pairs."""

    pairs: int
    agreed: int
    kappa: float | None  # Cohen's; None where it is not defined


@dataclass(frozen=True)
class PersonQuality:
    """One person's votes."""

    person: int
    votes: int
    left_out: bool  # of training, by an admin
    seconds: float | None  # the median time from a pair that can be voted on to the vote; None where nobody knows
    left: int  # votes for the left side
    decided: int  # votes for a side
    side_p: float  # of the sign test: how likely so uneven sides are by chance
    streak: int  # the longest run of votes for one side
    ties: int
    others: Agreement  # with everybody who judged the same pairs


@dataclass(frozen=True)
class Couple:
    """Two people who judged the same pairs."""

    first: int
    second: int
    agreement: Agreement


@dataclass(frozen=True)
class Quality:
    """Everybody's. `alpha` is Krippendorff's, of the votes that rounds learn from, on `pairs` pairs that two judged;
    None where it is not defined.
    """

    votes: int  # that were looked at, the newest
    people: list[PersonQuality] = field(default_factory=list)
    more_people: int = 0  # that have fewer votes than those
    couples: list[Couple] = field(default_factory=list)
    pairs: int = 0
    alpha: float | None = None

    @property
    def everybody(self) -> set[int]:
        """Whoever is in it."""
        listed = {person.person for person in self.people}
        return listed | {person for couple in self.couples for person in (couple.first, couple.second)}


def read(store: Store) -> Quality:
    """The quality of the newest votes."""
    twice = store.judged_twice()
    in_training = [(row["one"], row["other"]) for row in twice if row["in_training"]]
    people = _people(store, twice)
    return Quality(
        votes=sum(person.votes for person in people),
        people=people[:MOST_PEOPLE],
        more_people=max(0, len(people) - MOST_PEOPLE),
        couples=_couples(twice)[:MOST_COUPLES],
        pairs=len(in_training),
        alpha=krippendorffs_alpha(in_training),
    )


def _people(store: Store, twice: list[Row]) -> list[PersonQuality]:
    """Everybody who has voted, those with most votes first."""
    with_others: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for row in twice:
        with_others[row["first"]].append((row["one"], row["other"]))
        with_others[row["second"]].append((row["other"], row["one"]))
    votes: dict[int, list[Row]] = defaultdict(list)
    for row in store.votes_for_quality():
        votes[row["person"]].append(row)
    people = [_person(person, rows, _agreement(with_others[person])) for person, rows in votes.items()]
    return sorted(people, key=lambda person: (-person.votes, person.person))


def _person(person: int, rows: list[Row], others: Agreement) -> PersonQuality:
    choices = [row["choice"] for row in rows]
    times = [row["dwell_ms"] / 1000 for row in rows if row["dwell_ms"] is not None]
    left, decided = choices.count("a"), sum(choice in SIDES for choice in choices)
    return PersonQuality(
        person=person,
        votes=len(rows),
        left_out=bool(rows[-1]["left_out"]),
        seconds=median(times) if times else None,
        left=left,
        decided=decided,
        side_p=sign_test(left, decided),
        streak=longest_run(choices, SIDES),
        ties=choices.count("tie"),
        others=others,
    )


def _couples(twice: list[Row]) -> list[Couple]:
    """Those with most pairs first."""
    said: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
    for row in twice:
        if row["first"] < row["second"]:
            said[row["first"], row["second"]].append((row["one"], row["other"]))
        else:
            said[row["second"], row["first"]].append((row["other"], row["one"]))
    couples = [Couple(first, second, _agreement(pairs)) for (first, second), pairs in said.items()]
    return sorted(couples, key=lambda couple: (-couple.agreement.pairs, couple.first, couple.second))


def _agreement(pairs: list[tuple[str, str]]) -> Agreement:
    return Agreement(len(pairs), sum(one == other for one, other in pairs), cohens_kappa(pairs))


# -- as text


def lines(quality: Quality, names: Mapping[int, str]) -> list[str]:
    """The quality as lines for a terminal."""
    header = (
        f"{'person':<24} {'votes':>7} {'seconds':>8} {'left':>6} {'p':>6} {'streak':>7} {'ties':>6} {'twice':>7} "
        f"{'agree':>6} {'kappa':>6}"
    )
    table = [header, *(_line(person, names) for person in quality.people)]
    if quality.more_people:
        table.append(f"… and {quality.more_people:,} people with fewer votes")
    for couple in quality.couples:
        both = f"{_name(couple.first, names)} and {_name(couple.second, names)}"
        table.append(f"{both}: kappa {number(couple.agreement.kappa)} on {couple.agreement.pairs:,} pairs")
    table.append(f"Krippendorff's alpha: {number(quality.alpha)}, on {quality.pairs:,} pairs that two people judged")
    return table


def _line(person: PersonQuality, names: Mapping[int, str]) -> str:
    seconds = "-" if person.seconds is None else f"{person.seconds:.1f}"
    others = person.others
    agreed = f"{others.agreed / others.pairs:.0%}" if others.pairs else "-"
    left = f"{person.left / person.decided:.0%}" if person.decided else "-"
    out = "  left out of training" if person.left_out else ""
    return (
        f"{_name(person.person, names):<24.24} {person.votes:>7,} {seconds:>8} {left:>6} {person.side_p:>6.3f} "
        f"{person.streak:>7,} {person.ties / person.votes:>6.0%} {others.pairs:>7,} {agreed:>6} "
        f"{number(others.kappa):>6}{out}"
    )


def _name(person: int, names: Mapping[int, str]) -> str:
    return names.get(person) or f"person {person}"


def number(value: float | None) -> str:
    """A coefficient of agreement, "-" where it is not defined."""
    return "-" if value is None else f"{value:.2f}"
