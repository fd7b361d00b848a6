"""Two replies that are one text: another is drawn for the right side, else nobody is asked and the chat goes on."""

import sqlite3

import pytest
import sqlite_utils

from playground.chat.refusals import Refused
from playground.chat.writing import TRIES
from playground.store import Store
from playground.store import migrations as schema
from tests.chats import chat, folder, person, slow, turn  # noqa: F401 (fixtures)
from tests.stores import candidate, cast, outcome, store  # noqa: F401 (fixtures)


class Seeds:
    """Random numbers by script; what is drawn by lot is the first."""

    def __init__(self, *seeds):
        self.seeds, self.drawn = list(seeds), 0

    def getrandbits(self, _bits):
        self.drawn += 1
        return self.seeds.pop(0) if len(self.seeds) > 1 else self.seeds[0]

    def choice(self, options):
        return options[0]


def test_another_reply_is_drawn_for_the_right_side_and_the_page_says_so(chat):
    """Two replies that were the same to the letter had to be voted on before the next message."""
    slow(chat)
    chat._rng = Seeds(1, 1, 1, 2)
    ann = person(chat)
    views = list(chat.send(ann, "Hello"))
    rewriting = [v for v in views if v.progress and "Another one is being written" in str(v.progress)]
    assert rewriting and rewriting[-1].left.text and rewriting[0].left.text == rewriting[-1].left.text
    last = views[-1]
    assert last.phase == "voting" and last.left.text != last.right.text and chat._rng.drawn == 4
    assert [row["seed"] for row in chat.store.rows("select seed from generation order by id")] == [1, 2]
    assert chat.vote(ann, last.duel, "b").choice == "b" and chat.store.new_votes() == 1
    assert chat.engine.live.streams == 0 and chat.engine.kv_pool.used == 0


def test_while_another_is_drawn_there_is_nothing_to_vote_on(chat):
    slow(chat)
    chat._rng = Seeds(1, 1, 2)
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    view = next(v for v in stream if v.progress)
    with pytest.raises(Refused, match="nothing to compare yet"):
        chat.vote(ann, view.duel, "a")
    assert list(stream)[-1].phase == "voting"


def test_after_a_few_tries_nobody_is_asked_and_the_next_message_can_be_sent(chat):
    chat._rng = Seeds(1)
    ann = person(chat)
    view = turn(chat, ann)
    assert chat._rng.drawn == 2 + TRIES
    assert (view.phase, view.left.text) == ("same", view.right.text) and chat.view(ann) == view
    with pytest.raises(Refused, match="Both gave the same answer"):
        chat.vote(ann, view.duel, "a")
    assert chat.store.new_votes() == 0 and chat.store.rows("select * from vote") == []
    following = turn(chat, ann, "Go on")
    assert [m.text for m in following.history] == ["Hello", view.left.text]
    back, text = chat.undo(ann)
    assert (back.phase, back.duel, text) == ("same", view.duel, "Go on")


def test_same_replies_can_be_written_again_and_turned_back_to(chat):
    chat._rng = Seeds(1, 1, 1, 1, 1, 2, 3)
    ann = person(chat)
    same = turn(chat, ann)
    new = list(chat.regenerate(ann))[-1]
    assert (same.phase, new.phase) == ("same", "voting") and new.pairs == (same.duel, new.duel)
    assert chat.show_pair(ann, same.duel).phase == "same"
    assert [m.text for m in turn(chat, ann, "Go on").history] == ["Hello", same.left.text]


def test_stop_ends_the_drawing(chat):
    slow(chat, 0.05)
    chat._rng = Seeds(1, 1, 2)
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    next(v for v in stream if v.progress and v.right.text)
    chat.stop(ann)
    last = list(stream)[-1]
    assert last.phase == "voting" and chat.store.duel(last.duel)["right"]["finish_reason"] == "stopped"
    assert chat.store.duel(last.duel)["left"]["tokens"] == 24


def test_a_pair_that_was_stopped_at_the_same_words_is_not_drawn_again(chat):
    slow(chat, 0.05)
    chat._rng = Seeds(1)
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    next(v for v in stream if v.left.text and v.right.text)
    chat.stop(ann)
    assert list(stream)[-1].phase == "same" and chat._rng.drawn == 2


def test_an_older_database_learns_which_pairs_are_the_same_and_its_chats_go_on(tmp_path):
    path = tmp_path / "nudge.db"
    store = Store(path)
    who = store.annotator("ann")
    duels = []
    for left, right in (("Yes", "Yes"), ("Yes", "No")):
        duels.append(store.start_duel(store.new_conversation(who), "Hello", [1], [candidate(1), candidate(2)]))
        store.finish_duel(duels[-1], [outcome(left, [4, 2]), outcome(right, [5, 2])])
    with sqlite3.connect(path) as db:  # as it was before the migration
        for column in ("left_cut", "right_cut", "same"):
            db.execute(f"alter table duel drop column {column}")
        db.execute(
            "update conversation set tail = (select m.id from message m where m.conversation = conversation.id and "
            "m.role = 'user') where 0"
        )
        db.execute("update conversation set tail = null")
    schema.early_votes(sqlite_utils.Database(connection := sqlite3.connect(path)))
    connection.commit()
    store = Store(path)
    assert [store.duel(d)["same"] for d in duels] == [1, 0]
    assert [m["text"] for m in store.history(store.duel(duels[0])["conversation"])] == ["Hello", "Yes"]
    assert store.history(store.duel(duels[1])["conversation"]) == []


# -- a number of votes is the same number everywhere


def same_pair(store, who, choice):
    duel = store.start_duel(store.new_conversation(who), "Hello", [1], [candidate(1), candidate(2)])
    store.finish_duel(duel, [outcome("Yes", [4, 2]), outcome("Yes", [4, 2])])
    store.vote(duel, who, choice, store.duel(duel)["left"]["message"])  # by other ways than the page


def scripted(store, who):
    """Votes of every kind, five of which count; the annotator who may not be learned from has one more."""
    for choice in ("a", "b", "tie", "both_bad", "skip"):
        cast(store, choice, who)
    changed = cast(store, "a", who)
    store.vote(changed["id"], who, "b", changed["right"]["message"])
    same_pair(store, who, "a")
    deleted = cast(store, "a", who)
    store.delete_conversation(deleted["conversation"], who)
    shy = store.annotator("shy")
    cast(store, "a", shy)
    with store.writing() as db:
        db["annotator"].update(shy, {"allow_training": 0})


def test_a_mix_of_all_kinds_of_votes_is_one_number_in_all_places(store):
    """The strip said 6 new votes, My votes 8, the round's log 4 pairs and its table another number still."""
    from training import preferences

    who = store.annotator("ann")
    cast(store, "a", who, base_hash="an older base")
    scripted(store, who)
    base = store.last_base_hash()
    prefs = preferences.collect(
        store.votes_for_training(base), [], [], None, heldout_fraction=0.2, annotator_weight=64, seed=0
    )
    totals = store.vote_totals(who)
    numbers = {
        "new": store.new_votes(),
        "mine": totals["votes"],
        "waiting": totals["waiting"],
        "trained on": len(store.votes_for_training(base)),
        "the round's": len(prefs.votes),
        "to forecast": len(store.votes_to_forecast(base)),
        "chips": sum(bool(row["counts"]) for row in store.my_votes(who, limit=100)),
    }
    assert numbers == dict.fromkeys(numbers, 5)
    assert totals["listed"] == len(store.my_votes(who, limit=100)) == 9
    assert store.take_round("w", lease_seconds=30, auto_votes=6) is None
    row = store.take_round("w", lease_seconds=30, auto_votes=5)
    store.record_used_votes(row["id"], [(vote.id, vote.group in prefs.heldout) for vote in prefs.votes])
    assert store.new_votes() == store.vote_totals(who)["waiting"] == 0
    assert sum(r["round"] == row["id"] for r in store.my_votes(who, limit=100)) == 5, "both bad is used too"
    assert len(store.position_votes()) == 3, "votes for A or B, and named so"
