"""The seconds of a round's parts."""

import time

import pytest

from training.timing import PartSeconds


def test_a_part_that_runs_again_adds_up_and_one_that_fails_counts():
    seconds = PartSeconds()
    with seconds.part("a"):
        time.sleep(0.02)
    first = seconds["a"]
    assert first >= 0.02
    with pytest.raises(ValueError), seconds.part("a"):
        time.sleep(0.02)
        raise ValueError
    assert seconds["a"] >= first + 0.02 and list(seconds) == ["a"]


def test_a_part_is_shown_while_it_runs():
    shown = []
    seconds = PartSeconds(shown.append)
    with seconds.part("a"):
        assert shown == ["a"]
    assert shown == ["a", None]
