"""The tab of one's own votes: what became of each, in figures and in a list that goes back as far as one likes."""

import pytest

from playground.store import Store
from playground.ui import votes
from playground.ui.quick_gradio import gradio as gr
from playground.ui.votes import Shown, VotesTab
from tests.controls import Request
from tests.stores import cast, take


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def tab(store):
    with gr.Blocks():
        return VotesTab(store)


def me(store):
    return store.annotator("x" * 43)


def test_without_votes_the_page_says_what_to_do(tab):
    seen = tab.on_tick(Shown(), Request())
    assert "You have not voted yet" in seen[tab.html] and not seen[tab.more]["visible"]


def test_a_vote_goes_its_way_from_waiting_to_a_version(tab, store):
    row = cast(store, "b", me(store))
    vote = store.current_vote(row["id"], me(store))["id"]
    shown = Shown()
    seen = tab.on_tick(shown, Request())
    assert "waits for the next round" in seen[tab.html] and "B better" in seen[tab.html]
    assert tab.on_tick(shown, Request()) == gr.skip(), "nothing has changed"
    store.request_round()
    held = take(store)
    store.record_used_votes(held["id"], [(vote, False)])
    assert "round 1 learns from it" in tab.on_tick(shown, Request())[tab.html]
    store.update_round(held["id"], "w1", phase="ppo")
    assert "in the reward model of round 1" in tab.on_tick(Shown(), Request())[tab.html]
    version = store.add_policy(held["id"], "w1", parent=0)
    store.publish(held["id"], "w1", version, "nowhere", "abc", {})
    assert "in policy v1" in tab.on_tick(Shown(), Request())[tab.html]
    assert "已进入策略 v1" in tab.on_tick(Shown(), Request(language="zh-CN"))[tab.html]
    store.roll_back(0, me(store), "too chatty")
    assert "in policy v1, which was rolled back" in tab.on_tick(Shown(), Request())[tab.html]


@pytest.mark.parametrize("heldout", [False, True])
def test_a_vote_of_a_round_that_was_stopped_is_in_no_reward_model(tab, store, heldout):
    row = cast(store, "b", me(store))
    vote = store.current_vote(row["id"], me(store))["id"]
    store.request_round()
    held = take(store)
    store.record_used_votes(held["id"], [(vote, heldout)])
    store.end_round(held["id"], "w1", "failed")
    assert "round 1 ended early, the next one learns from it" in tab.on_tick(Shown(), Request())[tab.html]
    store.exclude_vote(vote, True)
    assert "not counted" in tab.on_tick(Shown(), Request())[tab.html]


def test_others_votes_are_not_shown(tab, store):
    cast(store, "a", store.annotator("somebody else"))
    assert "You have not voted yet" in tab.on_tick(Shown(), Request())[tab.html]


def test_what_ones_own_votes_say_of_a_version_on_trial(tab, store):
    store.request_round()
    held = take(store)
    store.publish(held["id"], "w1", store.add_policy(held["id"], "w1", parent=0), "nowhere", "abc", {}, trial=True)
    cast(store, "a", store.annotator("somebody else"), versions=(0, 1))
    assert "You preferred" not in tab.on_tick(Shown(), Request())[tab.html]
    for choice in ("a", "b", "a"):
        cast(store, choice, me(store), versions=(1, 0))
    html = tab.on_tick(Shown(), Request())[tab.html]
    assert "You preferred v1 to v0 (base) in 2 of 3 pairs." in html


def test_earlier_votes_are_shown_when_asked_for(tab, store, monkeypatch):
    monkeypatch.setattr(votes, "PAGE_SIZE", 3)
    for _ in range(7):
        cast(store, "a", me(store))
    shown = Shown(limit=3)
    seen = tab.on_tick(shown, Request())
    assert seen[tab.html].count("<tr>") == 1 + 3 and seen[tab.more]["visible"]
    more = tab.on_more(shown, Request())
    assert more[tab.html].count("<tr>") == 1 + 6 and shown.limit == 6 and more[tab.more]["visible"]
    last = tab.on_more(shown, Request())
    assert last[tab.html].count("<tr>") == 1 + 7 and not last[tab.more]["visible"]
