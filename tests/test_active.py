"""Double Thompson sampling: who is asked about whom, and with what chance."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from playground.models import active
from playground.models.feature_trunk import FeatureTrunk
from playground.models.scorer import Head, RewardModel
from playground.settings import Settings
from tests.test_scorer import head
from tests.tiny import tiny_folder


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_second_favourite_by_hand():
    # given the first (share ½), the others' shares ¼ and ¼ go on in proportion, but for the one time in 2³⁰ that 30
    # heads like the first
    assert active.second_favourite(torch.tensor([0.5, 0.25, 0.25]), 0).tolist() == pytest.approx([0, 0.5, 0.5])
    assert active.second_favourite(torch.tensor([0.2, 0.6, 0.2]), 0).tolist() == pytest.approx([0, 0.75, 0.25])


def test_a_reply_that_every_head_likes_is_asked_about_against_any_other():
    assert active.second_favourite(torch.tensor([1.0, 0.0, 0.0]), 0).tolist() == [0, 0.5, 0.5]
    almost = active.second_favourite(torch.tensor([0.99, 0.01, 0.0]), 0).tolist()
    assert almost[2] == pytest.approx(0.99**30 / 2) and sum(almost) == pytest.approx(1)


def test_pairs_come_as_often_as_their_chances_say():
    shares, source = torch.tensor([0.5, 0.3, 0.2, 0.0]), generator()
    picked, chances = Counter(), {}
    for _ in range(4000):
        first, second, chance = active.pair(shares, source)
        assert first != second
        picked[frozenset((first, second))] += 1
        chances[frozenset((first, second))] = chance
    assert sum(chances.values()) == pytest.approx(1, abs=0.01)
    assert all(n / 4000 == pytest.approx(chances[pair], abs=0.03) for pair, n in picked.items())


def test_favourites_are_certain_where_the_votes_have_settled_it():
    # the head's weight is (1, −2) and its posterior 0.1 wide along the first: 20 apart is settled, equal is not
    settled = active.favourites(head(), torch.tensor([[40.5, 0.0], [0.5, 0.0]]), generator())
    open_ = active.favourites(head(), torch.tensor([[0.7, 0.0], [0.5, 0.1], [0.5, 30.0]]), generator())
    assert settled.tolist() == [1, 0] and open_[2] == 0 and open_.sum() == 1


def test_two_replies_are_always_the_pair():
    assert set(active.pair(torch.tensor([1.0, 0.0]), generator())[:2]) == {0, 1} and active.pair(
        torch.tensor([0.3, 0.7]), generator()
    )[2] == pytest.approx(1)


# -- by the head that the worker left


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


REPLIES = [[20, 2], [30, 31, 32, 33, 2], [40, 41, 2], [50, 51, 52, 53, 54, 55, 2]]


def picker(folder, tmp_path, **chat):
    return active.Picker(
        Settings(model=folder, data_dir=tmp_path, dtype="float32", threads=1, chat={"candidates": 4, **chat}),
        "abc" * 20,
    )


def leave_head(this, weight=1.0, **changes):
    """A head that likes long replies, and is sure of it."""
    parts = [*FeatureTrunk(this.settings).parts, 0]
    one = torch.ones(1, 1)
    only = Head("length", 1.0, torch.zeros(1), torch.ones(1), torch.tensor([weight]), one, 1e-6 * one, 0 * one)
    model = RewardModel([only], parts, [])
    this.file.parent.mkdir(parents=True, exist_ok=True)
    replace(model, **changes).save(this.file)


def test_without_a_head_the_first_two_are_the_pair(folder, tmp_path):
    assert picker(folder, tmp_path).pair([5, 6], REPLIES, 0) == (0, 1, "same_policy", 1.0)


def test_best_picks_the_best_of_each_half_and_follows_a_newer_head(folder, tmp_path):
    this = picker(folder, tmp_path, pick="best")
    leave_head(this)
    assert this.pair([5, 6], REPLIES, 0)[:2] == (1, 3)
    leave_head(this, weight=-1.0)
    assert this.pair([5, 6], REPLIES, 0)[:2] == (0, 2)


def test_thompson_asks_about_the_favourite_and_keeps_the_chance(folder, tmp_path):
    this = picker(folder, tmp_path)
    leave_head(this)
    picked = [this.pair([5, 6], REPLIES, seed) for seed in range(16)]
    assert all(3 in p[:2] and p.pairing == "active" and p.probability == pytest.approx(1 / 3) for p in picked)
    assert {p[:2].index(3) for p in picked} == {0, 1} and len(
        {sum(p[:2]) for p in picked}
    ) > 1  # on either side, against any other
    assert picked[0] == this.pair([5, 6], REPLIES, 0)


def test_a_head_of_other_settings_or_a_broken_file_costs_the_choice_alone(folder, tmp_path, caplog):
    this = picker(folder, tmp_path)
    leave_head(this, parts=[8, 1, 0])
    assert this.pair([5, 6], REPLIES, 0) == active.Pair()
    this.file.write_bytes(b"torn")
    assert this.pair([5, 6], REPLIES, 0) == active.Pair() and "could not be picked" in caplog.text


def test_replies_that_were_stopped_before_their_first_word_are_not_read(folder, tmp_path):
    this = picker(folder, tmp_path)
    leave_head(this)
    assert this.pair([5, 6], [[20, 2], [], [30, 2]], 0) == active.Pair()
