"""Scripted annotators, and the votes that people cast by them."""

import random
from collections import Counter

import pytest

from playground.settings import SettingsError
from training import annotators
from training.annotators import Person


def shorter(prompt, reply):
    """An annotator of one's own, named by module:function."""
    return -len(reply)


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("brevity", "Yes.", "Yes, it is."),
        ("lists", "Two:\n1. one\n- two", "1. one and - two"),
        ("second_person", "You can, if your friend can.", "One can; young people do."),
        ("question", "Why? When?", "Because."),
        ("formality", "It is; however, it was not.", "It's great!"),
    ],
)
def test_an_annotator_prefers_what_its_name_says(name, better, worse):
    score = annotators.find(name)
    assert score("Is it?", better) > score("Is it?", worse)


def test_a_function_of_ones_own_is_an_annotator():
    assert annotators.find("tests.test_annotators:shorter")("", "four") == -4


@pytest.mark.parametrize("name", ["nobody", "no.such:thing", "tests.test_annotators:nothing"])
def test_an_unknown_annotator_is_named(name):
    with pytest.raises(SettingsError, match=f"--annotator: got {name!r}"):
        annotators.find(name)


# -- people


def shares(left, right, n=4000, **changes):
    """How often each choice falls."""
    person, rng = Person(shorter, **changes), random.Random(0)
    counts = Counter(person.vote(left, right, rng) for _ in range(n))
    return {choice: count / n for choice, count in counts.items()}


def test_standardised_scores_keep_their_order_and_equal_ones_are_zero():
    assert annotators.standardised([1, 3, 5]) == pytest.approx([-1.2247449, 0, 1.2247449])  # deviation √(8/3)
    assert annotators.standardised([2, 2]) == [0, 0]


def test_without_noise_the_better_reply_always_wins_and_equal_ones_tie():
    assert shares(0.1, 0.0) == {"a": 1} and shares(-0.1, 0.0) == {"b": 1} and shares(0.3, 0.3) == {"tie": 1}


def test_at_a_temperature_votes_follow_davidson():
    # δ = ln 4, ν = 1: weights 2, 1, ½ of 3.5
    expected = {"a": 4 / 7, "tie": 2 / 7, "b": 1 / 7}
    assert shares(1.3862944, 0.0, temperature=1.0, log_nu=0.0) == pytest.approx(expected, abs=0.03)
    assert shares(2.7725887, 0.0, temperature=2.0, log_nu=0.0) == pytest.approx(expected, abs=0.03)


def test_a_lean_prefers_the_left_where_the_replies_are_equal():
    found = shares(0.0, 0.0, temperature=1.0, lean=1.3862944, log_nu=-100)
    assert found == pytest.approx({"a": 0.8, "b": 0.2}, abs=0.03)


def test_flips_turn_decided_votes_and_leave_ties():
    assert shares(1.0, 0.0, flip=0.25) == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.03)
    assert shares(0.0, 0.0, flip=0.25) == {"tie": 1}


def test_two_bad_replies_are_both_bad_and_one_is_not():
    assert shares(-2.0, -1.5, bad_below=-1) == {"both_bad": 1}
    assert shares(-2.0, -0.5, bad_below=-1) == {"b": 1}


def test_people_are_named_with_commas_and_a_temperature_of_their_own():
    found = annotators.people("brevity, lists@0.5", temperature=2.0, flip=0.1)
    assert {name: (p.score, p.temperature, p.flip) for name, p in found.items()} == {
        "brevity": (annotators.brevity, 2.0, 0.1),
        "lists@0.5": (annotators.lists, 0.5, 0.1),
    }


def test_a_temperature_that_is_no_number_is_named():
    with pytest.raises(SettingsError, match="'lists@warm'"):
        annotators.people("lists@warm")
