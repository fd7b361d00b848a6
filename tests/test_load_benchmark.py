"""The benchmark of many people: that its people chat and vote, that what goes wrong is counted, and that the rows say
what they met.
"""

import threading
import time
from collections import Counter

import pytest

from benchmarks import load, load_people
from benchmarks.load import Crowd
from benchmarks.load_people import VOTES, Seen
from playground.people import keys
from tests.sites import Site
from tests.tiny import tiny_folder

LINES = ["What is a river?", "Why does it rain?", "How do I sleep well?"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tiny_folder(tmp_path_factory.mktemp("model")))
    yield site
    site.stop()


@pytest.fixture
def given(site, monkeypatch):
    """Keys of three people."""
    monkeypatch.setattr(load_people, "PAUSE", 0)
    given = [keys.new_key() for _ in range(3)]
    for number, key in enumerate(given):
        site.store.add_key(f"person {number} {key}", key)
    return given


def counted(site):
    [row] = site.store.rows("select count(*) as n, count(distinct annotator) as people from vote")
    return row["n"], row["people"]


def test_everybody_chats_and_votes(site, given):
    votes, people = counted(site)
    seen = load_people.crowd(site.url, given, LINES, turns=2, tokens=6)
    assert [(one.turns, len(one.votes), one.errors) for one in seen] == [(2, 2 * len(VOTES), [])] * 3
    assert all(0 < one.tokens <= 2 * 2 * 6 and 0 < one.first_token[0] <= one.seconds for one in seen)
    assert counted(site) == (votes + 3 * 2 * len(VOTES), people + 3)


def test_what_is_refused_is_an_error(site, given):
    """Nobody has the second key."""
    seen = load_people.crowd(site.url, [given[0], keys.new_key()], LINES, turns=1, tokens=4)
    assert seen[0].errors == [] and seen[1].turns == 0
    assert [error[:25] for error in seen[1].errors] == ["Asked: 401 to a message: "]


class AfterRequests(threading.Event):
    """Is set once so many requests have been begun."""

    def __init__(self, requests):
        super().__init__()
        self.left = requests

    def is_set(self):
        self.left -= 1
        if self.left < 0:
            self.set()
        return super().is_set()


def test_one_who_floods_has_one_turn_at_a_time(site, given, monkeypatch):
    step = site.engine.step
    monkeypatch.setattr(site.engine, "step", lambda: (site.engine._running and time.sleep(0.05), step())[1])
    counts = load_people.flood(site.url, given[0], 4, AfterRequests(60))
    assert counts["200"] > 0 and counts["429"] > 0 and counts.keys() == {"200", "429"}


def values(rows):
    return {row["what"]: (row["value"], row["ok"]) for row in rows}


def person(seconds, votes, errors=()):
    return Seen([0.5], [ms / 1e3 for ms in votes], list(errors), tokens=100, turns=2, seconds=seconds)


def test_the_rows_say_what_people_met():
    """Two people, of whom one is four times as slow beside the one who floods: half of 1.5 turns a second each."""
    calm = Crowd([person(1.0, [10]), person(1.0, [20])], 2.0)
    beside = Crowd([person(2.0, [10]), person(4.0, [20], ["Asked: 500"])], 4.0)
    rows = values(load.crowd_rows(2, calm))
    assert rows["2 people: first token, median"] == (0.5, None)
    assert rows["2 people: tokens a second together"] == (100.0, None)
    assert rows["2 people: errors"] == (0, True)
    rows = values(load.flood_rows(2, calm, beside, Counter({"200": 3, "429": 7})))
    share, holds = rows["2 and one who floods: the slowest person's rate to the fair share"]
    assert share == pytest.approx(0.5 / (4 / 3)) and holds is False
    assert rows["2 and one who floods: messages of the one that were refused"][0] == "7 of 10"
    assert rows["2 and one who floods: errors"] == (1, False)


def test_slow_votes_fall_short_in_crowds_alone():
    crowd = Crowd([person(1.0, [100, 600])], 1.0)
    found = {people: values(load.vote_rows("w", people, crowd))["w: vote, 99 % within"][1] for people in (4, 16, 64)}
    assert found == {4: None, 16: False, 64: False}


def test_memory_that_stays_beyond_earlier_turns_falls_short():
    class Watched:
        server, worker = 900.0, 300.0

    assert [load.memory_rows(500.0, Watched, after, 100)[-1]["ok"] for after in (640.0, 660.0)] == [True, False]
