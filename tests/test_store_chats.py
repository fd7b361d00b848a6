"""Conversations and pairs of replies: what is shown, undone, written again, shared and deleted."""

import time

import pytest
import sqlite_utils

from playground.store import Store, StoreError, conversations
from playground.store.migrations import migrations
from tests.stores import BASE, candidate, cast, duel, outcome, store  # noqa: F401 (fixtures)


def test_a_cookie_is_one_annotator_and_is_not_stored(store):
    assert store.annotator("secret") == store.annotator("secret") != store.annotator("other")
    assert "secret" not in str(store.rows("select * from annotator"))


def test_the_newest_conversation_that_was_not_deleted_is_current(store):
    who = store.annotator("somebody")
    first, second = store.new_conversation(who), store.new_conversation(who)
    assert store.conversation(who)["id"] == second
    with store.writing() as db:
        db.execute("update conversation set deleted = 'now' where id = ?", [second])
    assert store.conversation(who)["id"] == first


def test_history_runs_from_the_first_message_to_the_tail_without_rejected_siblings(store):
    who = store.annotator("somebody")
    conversation = store.new_conversation(who)
    cast(store, "b", who, conversation)
    cast(store, "a", who, conversation)
    assert [(m["role"], m["text"]) for m in store.history(conversation)] == [
        ("user", "Hello"),
        ("assistant", "right"),
        ("user", "Hello"),
        ("assistant", "left"),
    ]


# -- duels


def test_both_candidates_share_one_prompt(store):
    duel(store, store.annotator("somebody"))
    duel(store, store.annotator("somebody"))
    assert len(store.rows("select * from prompt")) == 1
    assert {g["prompt"] for g in store.rows("select prompt from generation")} == {1}


def test_a_duel_is_recorded_before_its_first_token(store):
    who = store.annotator("somebody")
    d = store.start_duel(store.new_conversation(who), "Hello", [1], [candidate(1), candidate(2)])
    row = store.duel(d)
    assert (row["left"]["status"], row["right"]["status"], row["user_text"], row["annotator"]) == (
        "streaming",
        "streaming",
        "Hello",
        who,
    )


def test_a_finished_duel_keeps_its_sides_apart(store):
    row = duel(store, store.annotator("somebody"))
    assert (row["left"]["text"], row["right"]["text"], row["left"]["status"], row["left"]["tokens"]) == (
        "left",
        "right",
        "complete",
        2,
    )


def test_replies_that_still_stream_after_a_restart_are_errors(store):
    who = store.annotator("somebody")
    conversation = store.new_conversation(who)
    done = cast(store, who=who, conversation=conversation)
    broken = store.start_duel(conversation, "Hello", [1], [candidate(1), candidate(2)])
    assert store.fail_streaming() == 2
    assert store.duel(broken)["left"]["status"] == "error"
    assert store.shown_duel(conversation)["id"] == done["id"]


def test_an_unknown_duel_is_none(store):
    assert store.duel(99) is None and store.shown_duel(99) is None


def test_a_pair_of_more_than_two_is_recorded_as_it_was_picked(store):
    who = store.annotator("ann")
    d = store.start_duel(store.new_conversation(who), "Hello", [1], [candidate(1), candidate(2)])
    store.finish_duel(
        d,
        [{**outcome("left", [4, 2]), "seed": 3}, {**outcome("right", [5, 2]), "seed": 4}],
        pairing="active",
        probability=0.25,
    )
    row = store.row("select * from duel where id = ?", d)
    assert (row["pairing"], row["probability"]) == ("active", 0.25)
    assert [
        store.row("select seed from generation where id = ?", row[side])["seed"]
        for side in ("left_generation", "right_generation")
    ] == [3, 4]


# -- what is shown


def again(store, row, ids=(6, 2)):
    """Another pair for the same message; its row."""
    new = store.start_duel(
        row["conversation"], row["user_text"], [1, 2, 3], [candidate(3), candidate(4)], row["user_message"]
    )
    store.finish_duel(new, [outcome("new left", list(ids)), outcome("new right", [7, 2])])
    return store.duel(new)


def tail(store, row):
    return store.row("select tail from conversation where id = ?", row["conversation"])["tail"]


def test_another_pair_answers_the_same_message_and_the_history_ends_before_it(store):
    first = cast(store)
    second = again(store, first)
    assert second["user_message"] == first["user_message"] and second["pairs"] == [first["id"], second["id"]]
    assert store.shown_duel(first["conversation"])["id"] == second["id"]
    assert tail(store, first) is None and store.history(first["conversation"]) == []


def test_the_pair_before_can_be_shown_again_with_what_was_picked(store):
    first = cast(store)
    second = again(store, first)
    store.show_duel(first["id"], first["annotator"])
    assert tail(store, first) == first["left"]["message"]
    store.show_duel(second["id"], first["annotator"])
    assert tail(store, first) is None


def test_only_a_pair_for_the_message_on_screen_can_be_shown_and_only_by_its_owner(store):
    first = cast(store)
    second = cast(store, who=first["annotator"], conversation=first["conversation"])
    other = again(store, second)
    for duel_, who in (
        (first["id"], first["annotator"]),
        (second["id"], store.annotator("other")),
        (99, first["annotator"]),
    ):
        with pytest.raises(StoreError, match="not in your chat"):
            store.show_duel(duel_, who)
    assert store.shown_duel(first["conversation"])["id"] == other["id"]


def test_undo_takes_back_turn_by_turn_and_deletes_nothing(store):
    first = cast(store)
    cast(store, "b", first["annotator"], first["conversation"])
    assert store.undo(first["conversation"]) == "Hello"
    assert (
        store.shown_duel(first["conversation"])["id"] == first["id"] and tail(store, first) == first["left"]["message"]
    )
    store.undo(first["conversation"])
    assert store.shown_duel(first["conversation"]) is None and tail(store, first) is None
    with pytest.raises(StoreError, match="nothing to undo"):
        store.undo(first["conversation"])
    assert (
        len(store.rows("select * from vote where superseded_by is null")) == 2
        and len(store.rows("select * from message")) == 6
    )


def test_a_pair_without_text_gives_way_to_the_other_answer_or_to_the_turn_before(store):
    first = cast(store)
    broken = store.start_duel(first["conversation"], "Hello", [1], [candidate(1)] * 2, first["user_message"])
    store.finish_duel(broken, [outcome("", [], "error")] * 2)
    assert (
        store.shown_duel(first["conversation"])["id"] == first["id"] and tail(store, first) == first["left"]["message"]
    )
    broken = store.start_duel(first["conversation"], "More", [1], [candidate(1)] * 2)
    store.finish_duel(broken, [outcome("", [], "error")] * 2)
    assert store.shown_duel(first["conversation"])["id"] == first["id"]
    assert store.duel(first["id"])["pairs"] == [first["id"]], "a pair without text is no answer to turn to"


def test_an_error_in_one_conversation_changes_no_other(store):
    mine, theirs = cast(store), cast(store, who=store.annotator("other"))
    broken = store.start_duel(mine["conversation"], "More", [1], [candidate(1)] * 2)
    streaming = store.start_duel(theirs["conversation"], "More", [1], [candidate(1)] * 2)
    store.finish_duel(broken, [outcome("", [], "error")] * 2)
    assert store.shown_duel(theirs["conversation"])["id"] == streaming


def test_an_edit_is_shown_in_the_history_and_only_the_owners_counts(store):
    row = cast(store)
    store.demonstrate(row["left"]["message"], row["annotator"], "Better")
    store.demonstrate(row["left"]["message"], row["annotator"], "Best")
    assert [(m["text"], m["edited"]) for m in store.history(row["conversation"])] == [("Hello", False), ("Best", True)]
    assert store.one("select count(*) as n from demonstration")["n"] == 1
    shown = store.duel(row["id"])
    assert (shown["left"]["shown"], shown["left"]["text"], shown["left"]["edited"], shown["right"]["edited"]) == (
        "Best",
        "left",
        True,
        False,
    )


# -- chats to come back to


def test_chats_are_listed_by_when_they_were_opened_and_empty_ones_not(store):
    first = cast(store)
    who = first["annotator"]
    second = duel(store, who, text="Second")
    store.new_conversation(who)
    time.sleep(0.002)  # a moment has milliseconds
    store.open_conversation(first["conversation"], who)
    assert [(c["title"], c["turns"], c["shared"]) for c in store.conversations(who)] == [
        ("Hello", 1, False),
        ("Second", 1, False),
    ]
    assert store.conversation(who)["id"] == first["conversation"]
    time.sleep(0.002)
    store.open_conversation(second["conversation"], who)
    assert store.conversation(who)["id"] == second["conversation"]
    assert store.conversations(store.annotator("other")) == []


def test_a_chat_is_called_by_the_first_message_that_it_still_has(store):
    """An undone message stayed its title, whatever was sent after it."""
    first = cast(store)
    who, conversation = first["annotator"], first["conversation"]
    duel(store, who, conversation, text="Second")
    store.undo(conversation)
    assert [chat["title"] for chat in store.conversations(who)] == ["Hello"]
    store.undo(conversation)
    assert [chat["title"] for chat in store.conversations(who)] == [""], "it can still be opened and deleted"
    duel(store, who, conversation, text="Another")
    assert [chat["title"] for chat in store.conversations(who)] == ["Another"]


def test_the_dialogue_of_a_request_is_looked_for_before_the_write_lock(store):
    """With 200 chats that took 24 ms for each request, in which nobody's vote could be recorded."""
    who, statements = store.annotator("ann"), []
    store.db.conn.set_trace_callback(statements.append)
    store.begin_with(who, [("user", "Hello"), ("assistant", "Hi")], None)
    store.db.conn.set_trace_callback(None)
    [looked] = [n for n, statement in enumerate(statements) if "c.dialogue" in statement]
    assert looked < statements.index("begin immediate")


def test_requests_that_go_on_with_a_dialogue_belong_to_its_first_chat(store):
    """`begin_with` is how other programs send their history along."""
    who = store.annotator("ann")

    def ask(*said, person=who, system=None):
        """A turn after this history; its dialogue, as training reads it."""
        row = store.begin_with(person, list(said), system)
        cast(store, who=person, conversation=row["id"])
        return store.votes_for_training(BASE)[-1]["dialogue"] - first, row["id"] - first

    first = 1 + (store.one("select coalesce(max(id), 0) as n from conversation")["n"])
    begun = [("user", "Hello"), ("assistant", " left\n")]  # what `cast` says, as a stream tells it
    assert ask() == (0, 0)
    assert ask(*begun) == (0, 1)
    assert ask(*begun, ("user", "Hello"), ("assistant", "right")) == (0, 2)
    assert ask(("user", "Hello"), ("assistant", "another")) == (3, 3), "another dialogue with the same first message"
    assert ask(("user", "Hello"), ("assistant", "another"), ("user", "x"), ("assistant", "y")) == (3, 4)
    assert ask(*begun, system="Be brief.") == (5, 5)
    assert ask(*begun, person=store.annotator("bob")) == (6, 6)
    assert [row["conversation"] - first for row in store.votes_for_training(BASE)] == list(range(7))


@pytest.mark.parametrize("gesture", ["open_conversation", "delete_conversation", "share", "unshare"])
def test_another_persons_chat_is_out_of_reach_and_so_is_a_deleted_one(store, gesture):
    row = cast(store)
    with pytest.raises(StoreError, match="not yours"):
        getattr(store, gesture)(row["conversation"], store.annotator("other"))
    store.delete_conversation(row["conversation"], row["annotator"])
    with pytest.raises(StoreError, match="deleted"):
        getattr(store, gesture)(row["conversation"], row["annotator"])


def test_a_deleted_chat_is_listed_no_more_and_teaches_nothing(store):
    row = cast(store)
    token = store.share(row["conversation"], row["annotator"])
    store.delete_conversation(row["conversation"], row["annotator"])
    assert store.conversations(row["annotator"]) == [] and store.conversation(row["annotator"]) is None
    assert store.votes_for_training(BASE) == [] and store.shared(token) is None


def test_a_share_link_is_the_same_each_time_and_ends_when_told(store):
    row = cast(store)
    token = store.share(row["conversation"], row["annotator"])
    assert store.share(row["conversation"], row["annotator"]) == token
    assert store.shared(token)["id"] == row["conversation"]
    store.unshare(row["conversation"], row["annotator"])
    assert store.shared(token) is None
    assert store.share(row["conversation"], row["annotator"]) != token


def test_a_chat_keeps_its_own_settings(store):
    who = store.annotator("somebody")
    conversation = store.new_conversation(who, "Be brief.", {"temperature": 1.2})
    assert (store.conversation(who)["system_prompt"], store.conversation(who)["sampling"]) == (
        "Be brief.",
        {"temperature": 1.2},
    )
    store.configure(conversation, None, None)
    assert (store.conversation(who)["system_prompt"], store.conversation(who)["sampling"]) == (None, None)


# -- a clock that is set back


def test_a_new_chat_is_shown_though_the_clock_was_set_back(store, monkeypatch):
    """The chat with the latest time of opening was shown: after an hour back, the old one for an hour."""
    who = store.annotator("ann")
    old = duel(store, who)["conversation"]
    monkeypatch.setattr(conversations, "now", lambda: "2001-01-01T00:00:00.000Z")
    new = store.new_conversation(who)
    assert store.conversation(who)["id"] == new
    store.open_conversation(old, who)
    assert store.conversation(who)["id"] == old
    duel(store, who, new)
    assert [row["id"] for row in store.conversations(who)] == [old, new]
    store.open_conversation(new, who)
    assert [row["id"] for row in store.conversations(who)] == [new, old]


def test_chats_of_before_keep_their_order(tmp_path):
    path = tmp_path / "nudge.db"
    old = sqlite_utils.Database(path)
    migrations.apply(old, stop_before="0004_beat")
    old["annotator"].insert({"id": 1, "token_hash": "x", "kind": "anonymous", "created": "x"})
    for conversation, opened in ((1, "2026-01-03"), (2, "2026-01-01"), (3, "2026-01-02")):
        old["conversation"].insert({"id": conversation, "annotator": 1, "created": opened, "opened": opened})
    old.close()
    store = Store(path)
    assert store.conversation(1)["id"] == 1
    assert store.rows("select id from conversation order by opened_as") == [{"id": 2}, {"id": 3}, {"id": 1}]
    assert store.new_conversation(1) == store.conversation(1)["id"] == 4
