"""Votes, thumbs and edits: who may give them, what they replace, and what training reads."""

import sqlite3

import pytest

from playground.store import StoreError
from playground.system.messages import plain
from tests.stores import BASE, candidate, cast, duel, store, take  # noqa: F401 (fixtures)


def test_a_changed_vote_supersedes_the_earlier_one_and_keeps_both_rows(store):
    who = store.annotator("somebody")
    row = duel(store, who)
    first = store.vote(row["id"], who, "a", row["left"]["message"])
    second = store.vote(row["id"], who, "b", row["right"]["message"])
    assert [(v["id"], v["choice"], v["superseded_by"]) for v in store.rows("select * from vote order by id")] == [
        (first, "a", second),
        (second, "b", None),
    ]
    assert store.current_vote(row["id"], who)["id"] == second


def test_a_changed_vote_keeps_the_comment_but_not_the_tags(store):
    """The comment is the person's own words; the tags are reasons for the other choice."""
    who = store.annotator("somebody")
    row = duel(store, who)
    first = store.vote(row["id"], who, "a", row["left"]["message"])
    store.explain(first, who, tags=["clearer"], comment="short is good")
    store.vote(row["id"], who, "b", row["right"]["message"])
    current = store.current_vote(row["id"], who)
    assert (current["comment"], current["tags"]) == ("short is good", [])


def test_a_changed_vote_changes_what_the_conversation_goes_on_with(store):
    who = store.annotator("somebody")
    row = duel(store, who)
    store.vote(row["id"], who, "a", row["left"]["message"])
    store.vote(row["id"], who, "b", row["right"]["message"])
    assert [m["text"] for m in store.history(row["conversation"])] == ["Hello", "right"]


def test_a_vote_is_refused_once_the_conversation_went_on(store):
    """The prompt of every later turn was made with the first choice."""
    who = store.annotator("somebody")
    row = cast(store, "a", who)
    store.start_duel(row["conversation"], "And then?", [1], [candidate(1), candidate(2)])
    with pytest.raises(
        StoreError, match="The conversation has gone on since. A vote on this pair can be changed in the tab Data."
    ):
        store.vote(row["id"], who, "b", row["right"]["message"])
    assert store.current_vote(row["id"], who)["choice"] == "a"


def test_an_unknown_choice_is_refused(store):
    row = duel(store, store.annotator("somebody"))
    with pytest.raises(StoreError, match="A vote is one of a, b, tie, both_bad, skip; got 'c'."):
        store.vote(row["id"], 1, "c", None)


def test_a_vote_on_an_unknown_duel_is_refused(store):
    with pytest.raises(StoreError, match="gone on"):
        store.vote(99, store.annotator("somebody"), "a", None)


def test_one_current_vote_for_a_duel_and_annotator_is_enforced_by_the_file(store):
    row = cast(store)
    with pytest.raises(sqlite3.IntegrityError), store.writing() as db:
        db["vote"].insert({"duel": row["id"], "annotator": row["annotator"], "choice": "b", "created": "now"})


def test_votes_come_back_with_the_ids_of_prompt_and_replies(store):
    row = cast(store, "b")
    [vote] = store.votes_for_training(BASE)
    assert (vote["prompt"], vote["left_ids"], vote["right_ids"], vote["choice"]) == ([1, 2, 3], [4, 2], [5, 2], "b")
    assert (vote["conversation"], vote["duel"], vote["annotator"]) == (row["conversation"], row["id"], row["annotator"])


def test_votes_on_another_base_model_are_left_out(store):
    cast(store, base_hash="other")
    assert store.votes_for_training(BASE) == []


@pytest.mark.parametrize(
    "change",
    [
        "update annotator set allow_training = 0",
        "update annotator set banned = 1",
        "update conversation set deleted = 'now'",
    ],
)
def test_votes_that_may_not_be_used_are_left_out(store, change):
    cast(store)
    with store.writing() as db:
        db.execute(change)
    assert store.votes_for_training(BASE) == [] and store.new_votes() == 0


def test_skipped_and_superseded_votes_teach_nothing(store):
    cast(store, "skip")
    row = cast(store, "a")
    store.vote(row["id"], row["annotator"], "tie", row["left"]["message"])
    assert [v["choice"] for v in store.votes_for_training(BASE)] == ["tie"]


def test_a_changed_thumb_supersedes_the_earlier_one(store):
    row = cast(store)
    for thumb in (1, -1):
        store.rate(row["left"]["message"], row["annotator"], thumb)
    assert [r["thumb"] for r in store.ratings_for_training(BASE)] == [-1]
    assert len(store.rows("select * from rating")) == 2


def test_an_edited_reply_keeps_before_and_after(store):
    row = cast(store)
    store.demonstrate(row["left"]["message"], row["annotator"], "better")
    assert store.row("select before, after from demonstration") == {"before": "left", "after": "better"}
    [edit] = store.demonstrations(BASE)
    assert (edit["after"], edit["prompt"], edit["completion"]) == ("better", [1, 2, 3], [4, 2])


def test_a_reply_that_is_edited_again_is_new_to_the_next_round_and_known_by_its_first_time(store):
    row = cast(store)
    message, who = row["left"]["message"], row["annotator"]
    first = store.demonstrate(message, who, "better")
    with store.writing() as db:
        db.execute("update demonstration set created = '2020'")
    assert store.demonstrate(message, who, "best") == first
    [edit] = store.demonstrations(BASE)
    assert edit["after"] == "best" and edit["created"] > "2026"
    assert [(edit["demonstration"], edit["created"]) for edit in store.edits()] == [(first, "2020")]


def test_a_withdrawn_thumb_teaches_nothing_and_stays_in_the_file(store):
    row = cast(store)
    message = row["left"]["message"]
    store.rate(message, row["annotator"], 1)
    store.rate(message, row["annotator"], None)
    assert store.ratings_for_training(BASE) == [] and store.duel(row["id"])["left"]["thumb"] is None
    assert [r["thumb"] for r in store.rows("select thumb from rating")] == [1]
    store.rate(message, row["annotator"], -1)
    assert store.duel(row["id"])["left"]["thumb"] == -1


@pytest.mark.parametrize(
    "gesture", [lambda s, m, who: s.rate(m, who, 1), lambda s, m, who: s.demonstrate(m, who, "after")]
)
def test_only_replies_of_ones_own_chats_can_be_rated_or_edited(store, gesture):
    row = cast(store)
    for message, who in (
        (row["left"]["message"], store.annotator("other")),
        (row["user_message"], row["annotator"]),
        (99, row["annotator"]),
    ):
        with pytest.raises(StoreError, match="not yours"):
            gesture(store, message, who)
    assert store.rows("select 1 from rating union all select 1 from demonstration") == []


def test_reasons_stand_on_the_current_vote_of_their_voter(store):
    row = cast(store)
    vote = store.current_vote(row["id"], row["annotator"])
    assert vote["tags"] == [] and vote["comment"] is None
    store.explain(vote["id"], row["annotator"], ["clearer"], "yes")
    with pytest.raises(StoreError, match="not yours"):
        store.explain(vote["id"], store.annotator("other"), ["x"], "")
    store.vote(row["id"], row["annotator"], "b", row["right"]["message"])
    with pytest.raises(StoreError, match="replaced"):
        store.explain(vote["id"], row["annotator"], ["late"], "")
    assert store.row("select tags, comment from vote where id = ?", vote["id"]) == {
        "tags": '["clearer"]',
        "comment": "yes",
    }
    assert store.current_vote(row["id"], row["annotator"])["tags"] == [], "a new vote has reasons of its own"


def test_the_way_of_a_vote_into_a_version_is_told_step_by_step(store):
    who = store.annotator("somebody")
    rows = [cast(store, who=who) for _ in range(3)]
    votes = [store.current_vote(row["id"], who)["id"] for row in rows]
    fates = lambda: [(v["round"], v["heldout"], v["round_state"], v["version"]) for v in reversed(store.my_votes(who))]
    assert fates() == [(None, None, None, None)] * 3

    store.request_round()
    held = take(store)
    store.record_used_votes(held["id"], [(votes[0], False), (votes[1], True)])
    store.update_round(held["id"], "w1", phase="ppo")
    assert fates() == [(1, 0, "running", None), (1, 1, "running", None), (None, None, None, None)]
    version = store.add_policy(held["id"], "w1", parent=0)
    store.publish(held["id"], "w1", version, "path", "abc", {})
    assert fates() == [(1, 0, "published", 1), (1, 1, "published", None), (None, None, None, None)]

    store.request_round()
    held = take(store)
    store.record_used_votes(held["id"], [(votes[0], True), (votes[2], False)])
    assert fates() == [(2, 1, "running", 1), (1, 1, "published", None), (2, 0, "running", None)]
    assert store.vote_fate(votes[0]) == store.my_votes(who)[2]
    assert (
        store.my_votes(who, limit=1, offset=1)[0]["vote"] == votes[1] and store.my_votes(store.annotator("other")) == []
    )


def test_a_refused_round_gives_its_votes_no_version(store):
    row = cast(store)
    store.request_round()
    held = take(store)
    store.record_used_votes(held["id"], [(1, False)])
    store.refuse(held["id"], "w1", store.add_policy(held["id"], "w1", parent=0), "path", "abc", {}, plain("no"))
    assert store.my_votes(row["annotator"])[0]["version"] is None


def test_what_ones_votes_did_is_counted(store):
    who = store.annotator("somebody")
    rows = [cast(store, choice, who) for choice in ("a", "b", "tie", "skip", "a")]
    cast(store, "a", store.annotator("another"))
    ids = [store.current_vote(row["id"], who)["id"] for row in rows]
    assert store.vote_totals(who) == {"votes": 4, "published": 0, "waiting": 4, "listed": 5}
    for state in ("refused", "published"):
        store.request_round()
        row = take(store)
        store.record_used_votes(row["id"], [(ids[0], False), (ids[1], True), (ids[2], False)])
        store.end_round(row["id"], row["owner"], state)
        assert store.vote_totals(who) == {
            "votes": 4,
            "published": 2 * (state == "published"),
            "waiting": 0,
            "listed": 5,
        }, "a held-out vote taught nothing"
    assert store.vote_totals(store.annotator("nobody")) == {"votes": 0, "published": 0, "waiting": 0, "listed": 0}


def test_a_later_edit_of_a_reply_takes_the_place_of_the_earlier_one(store):
    """150 edits of one reply took 5.7 MB, and the warm start learned from every one of them."""
    row = cast(store)
    who = store.annotator("somebody")
    for text in ("one", "two", "three"):
        store.demonstrate(row["left"]["message"], who, text)
    assert [d["after"] for d in store.demonstrations(BASE)] == ["three"]
    assert len(store.rows("select * from demonstration")) == 1
