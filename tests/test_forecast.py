"""Forecasts: made by a head that has not seen the vote, kept once, and never in the way of anything."""

import itertools
import shutil

import pytest
import torch

from playground.models import active, loading, scorer
from playground.store import Store
from tests.test_loop import liking, settings_for
from training import simulate
from training.annotators import Person
from training.forecast import Forecaster


def pleasant(prompt, reply):
    return liking(reply)


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """(settings, a function that gives a fresh store with 24 votes on the tiny model's replies)."""
    folder = tmp_path_factory.mktemp("forecast")
    settings = simulate.SimulateSettings.like(settings_for(folder), votes=24)
    trunk, tokenizer = loading.load_trunk(settings), loading.load_tokenizer(settings)

    store = Store(folder / "votes.db")
    simulate.make_duels(store, settings, trunk, tokenizer, {"someone": Person(pleasant)}, log=lambda text: None)
    store.db.execute("pragma wal_checkpoint(truncate)")
    names = map("{}.db".format, itertools.count())
    return settings, lambda: Store(shutil.copy(folder / "votes.db", folder / next(names)))


def rows(store):
    return store.rows("select * from forecast order by vote")


def vote_again(store, duel, choice):
    """The same person changes the vote on a duel; returns the new vote's id."""
    person = store.row("select annotator from vote where duel = ?", duel)["annotator"]
    store.vote(duel, person, choice, store.duel(duel)["left"]["message"])
    return store.row("select max(id) as id from vote")["id"]


def test_a_store_without_votes_has_nothing_to_forecast(voted):
    assert not Forecaster(Store(), voted[0]).step()


def test_votes_that_were_there_before_have_no_forecast_and_the_next_one_has(voted):
    settings, fill = voted
    store = fill()
    forecaster = Forecaster(store, settings)
    assert forecaster.step() and not forecaster.step()
    assert (
        len(rows(store)) == 24 and all(r["probability"] is None for r in rows(store)) and store.forecasts(20) == (0, 0)
    )
    vote = vote_again(store, store.row("select min(id) as id from duel")["id"], "a")
    assert forecaster.step() and not forecaster.step()
    [row] = [r for r in rows(store) if r["vote"] == vote]
    assert 0 < row["probability"] < 1 and row["hit"] in (0, 1) and store.forecasts(20) == (row["hit"], 1)


def test_a_forecast_does_not_know_the_vote(voted):
    """Probabilities of a, b and tie of one duel, each forecast in a world where that was the vote, are one
    distribution.
    """
    settings, fill = voted
    chance, hits = [], []
    for choice in ("a", "b", "tie"):
        store = fill()
        forecaster = Forecaster(store, settings)
        forecaster.step()
        vote = vote_again(store, store.row("select max(id) as id from duel")["id"], choice)
        forecaster.step()
        row = next(r for r in rows(store) if r["vote"] == vote)
        chance.append(row["probability"])
        hits.append(row["hit"])
    assert sum(chance) == pytest.approx(1, abs=1e-4) and hits[2] is None and hits[0] + hits[1] == 1
    assert (chance[0] > chance[1]) == (hits[0] == 1)


def test_a_reply_is_read_once_even_after_a_restart(voted):
    settings, fill = voted
    store = fill()
    first = Forecaster(store, settings)
    replies = [([3, 4], [5, 6]), ([3, 4], [7])]
    before = first.features(replies)
    second, read = Forecaster(store, settings), []
    second.trunk.features = lambda missing: read.append(missing)
    assert (second.features(replies) == before).all() and not read


def test_what_cannot_be_forecast_is_logged_once_and_given_up(voted, caplog):
    settings, fill = voted
    forecaster = Forecaster(fill(), settings)
    forecaster.forecast = lambda base_hash, waiting: 1 / 0
    assert forecaster.step() and not forecaster.step()
    assert [record.message for record in caplog.records] == ["24 votes could not be forecast"]


def test_both_bad_is_not_forecast_and_not_asked_again(voted):
    settings, fill = voted
    store = fill()
    forecaster = Forecaster(store, settings)
    forecaster.step()
    vote = vote_again(store, store.row("select max(id) as id from duel")["id"], "both_bad")
    assert forecaster.step() and not forecaster.step()
    assert next(r for r in rows(store) if r["vote"] == vote)["probability"] is None


def test_the_head_that_all_votes_give_is_left_for_the_chat_where_it_picks_pairs(voted, tmp_path):
    settings, fill = voted
    store = fill()
    for candidates in (2, 3):
        own = settings.with_values(chat={"candidates": candidates}, data_dir=tmp_path)
        Forecaster(store, own).step()
        file = active.head_file(own, store.last_base_hash())
        assert not file.exists() if candidates == 2 else not list(file.parent.glob("*.partial"))
        vote_again(store, store.row("select min(id) as id from duel")["id"], "a" if candidates == 2 else "b")
    assert Forecaster(store, own).step() and file.exists()
    before = scorer.RewardModel.load(file)
    vote_again(store, store.row("select max(id) as id from duel")["id"], "a")
    assert Forecaster(store, own).step() and not torch.equal(
        scorer.RewardModel.load(file).heads[0].weight, before.heads[0].weight
    )
