"""A vote before both replies have ended: the vote counts as it was cast, the pick goes on to its end, and training
compares what both had said.
"""

import json
import threading
import time

import pytest

from playground.chat.refusals import Refused
from playground.decoding.decoder import NotFinite
from playground.store import Store
from tests.chats import chat, folder, hold, person, slow, turn  # noqa: F401 (fixtures)
from tests.stores import BASE, candidate, outcome, store  # noqa: F401 (fixtures)
from tests.waits import until


class Streaming:
    """A turn that goes on in a thread, as in the server, caught once both replies have words that differ. It stands
    still there until `go_on` is set or it is told to stop.
    """

    def __init__(self, chat, annotator, text="Hello"):
        self.chat, self.annotator, self.views, begun = chat, annotator, [], threading.Event()
        self.go_on = hold(chat, annotator)

        def run():
            for view in chat.send(annotator, text):
                self.views.append(view)
                if view.phase == "streaming" and len({"", view.left.text.strip(), view.right.text.strip()}) == 3:
                    begun.set()

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert begun.wait(20)
        self.duel = self.views[-1].duel

    def vote(self, choice):
        return self.chat.vote(self.annotator, self.duel, choice)

    def end(self):
        self.go_on.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.views[-1]


@pytest.fixture
def early(chat):
    slow(chat, 0.03)
    return Streaming(chat, person(chat))


def cuts(chat, duel):
    row = chat.store.row("select left_cut, right_cut from duel where id = ?", duel)
    return row["left_cut"], row["right_cut"]


@pytest.mark.parametrize("choice", ["a", "b"])
def test_the_pick_goes_on_to_its_end_and_the_other_stops(chat, early, choice):
    """The winner was cut off in the middle of a sentence, and the fragment went into the history for good."""
    view = early.vote(choice)
    assert (view.phase, view.choice, view.writing) == ("voted", choice, choice)
    cut = cuts(chat, view.duel)
    last = early.end()
    duel = chat.store.duel(view.duel)
    picked, passed = (duel["left"], duel["right"]) if choice == "a" else (duel["right"], duel["left"])
    assert (picked["tokens"], picked["finish_reason"]) == (24, "length")
    assert passed["finish_reason"] == "stopped" and passed["tokens"] <= cut["ab".index(choice) ^ 1] + 2
    assert 0 < cut[0] < 24 and 0 < cut[1] < 24
    growing = [v for v in early.views if v.writing]
    assert growing and all(v.phase == "voted" for v in growing)
    side = "left" if choice == "a" else "right"
    assert len(getattr(growing[-1], side).text) > len(getattr(growing[0], side).text)
    assert (last.phase, last.writing) == ("voted", None) and getattr(last, side).text == picked["text"]
    following = turn(chat, early.annotator, "Go on")
    assert [m.text for m in following.history] == ["Hello", picked["text"]]


@pytest.mark.parametrize("choice", ["tie", "both_bad", "skip"])
def test_where_nobody_won_the_drawn_one_goes_on(chat, early, choice):
    view = early.vote(choice)
    assert (view.phase, view.choice, view.left.chosen) == ("voted", choice, view.writing == "a")
    early.end()
    duel = chat.store.duel(view.duel)
    assert duel["left" if view.writing == "a" else "right"]["tokens"] == 24
    assert duel["right" if view.writing == "a" else "left"]["finish_reason"] == "stopped"


def test_the_vote_is_on_disk_before_it_is_shown(chat, early):
    """And with it what both had said."""
    chat.engine.step = lambda: time.sleep(0.01) or True  # nothing more is written
    view = early.vote("a")
    duel = chat.store.duel(view.duel)
    assert chat.store.current_vote(view.duel, early.annotator)["choice"] == "a"
    assert (duel["left"]["tokens"], duel["right"]["tokens"]) == cuts(chat, view.duel) and duel["left"]["text"]
    del chat.engine.step
    early.end()


def test_training_compares_what_both_had_said_at_that_moment(chat, early):
    view = early.vote("a")
    cut = cuts(chat, view.duel)
    early.end()
    [row] = chat.store.votes_for_training(chat.engine.identity["hash"])
    assert (len(row["left_ids"]), len(row["right_ids"])) == cut
    whole = chat.store.row(
        "select token_ids from generation where id = ?", chat.store.duel(view.duel)["left_generation"]
    )
    assert row["left_ids"] == json.loads(whole["token_ids"])[: cut[0]]
    assert chat.store.my_votes(early.annotator)[0]["early"] == 1


@pytest.mark.parametrize("choice", ["b", "tie"])
def test_a_vote_changed_later_is_on_the_same_cut(chat, early, choice):
    view = early.vote("a")
    cut = cuts(chat, view.duel)
    early.end()
    changed = early.vote(choice)
    assert changed.choice == choice and cuts(chat, view.duel) == cut
    [row] = chat.store.votes_for_training(chat.engine.identity["hash"])
    assert row["choice"] == choice and (len(row["left_ids"]), len(row["right_ids"])) == cut
    assert changed.right.chosen is (choice == "b"), "a tie goes on with the reply that was written to its end"


def test_a_vote_changed_while_the_pick_is_written_ends_it_where_nobody_wants_it(chat, early):
    view = early.vote("a")
    assert early.vote("tie").writing == "a", "it is still what the chat goes on with"
    cut = cuts(chat, view.duel)
    assert early.vote("b").right.chosen
    last = early.end()
    assert (
        last.choice == "b"
        and chat.store.duel(view.duel)["left"]["finish_reason"] == "stopped"
        and cuts(chat, view.duel) == cut
    )
    assert [v["choice"] for v in chat.store.votes_for_training(chat.engine.identity["hash"])] == ["b"]


def test_stop_ends_the_pick_and_the_next_message_waits_until_then(chat, early):
    early.vote("a")
    with pytest.raises(Refused, match="still streaming"):
        next(chat.send(early.annotator, "Go on"))
    chat.stop(early.annotator)
    last = early.end()
    assert (last.phase, last.writing) == ("voted", None)
    assert (
        chat.store.duel(last.duel)["left"]["finish_reason"] == "stopped"
        and chat.store.duel(last.duel)["left"]["tokens"] < 24
    )
    assert turn(chat, early.annotator, "Go on").phase == "voting"


def test_a_reload_meanwhile_shows_the_vote_and_the_pick_as_it_grows(chat, early):
    early.vote("b")
    first = chat.view(early.annotator)
    assert (first.phase, first.choice, first.writing) == ("voted", "b", "b") and first.vote
    early.go_on.set()
    until(lambda: len(chat.view(early.annotator).right.text) > len(first.right.text))
    early.end()
    assert chat.view(early.annotator).writing is None


def test_reasons_can_be_given_meanwhile_and_stay(chat, early):
    view = early.vote("a")
    chat.explain(early.annotator, view.vote, ["clearer"], "because")
    last = early.end()
    assert (last.tags, last.comment) == (("clearer",), "because")


def test_undo_and_regenerate_after_it(chat, early):
    early.vote("a")
    for gesture in (chat.undo, lambda ann: next(chat.regenerate(ann))):
        with pytest.raises(Refused, match="still streaming"):
            gesture(early.annotator)
    early.end()
    again = list(chat.regenerate(early.annotator))[-1]
    assert again.phase == "voting" and again.pairs == (early.duel, again.duel)
    assert chat.show_pair(early.annotator, early.duel).choice == "a"
    view, text = chat.undo(early.annotator)
    assert (view.phase, text) == ("idle", "Hello") and len(
        chat.store.votes_for_training(chat.engine.identity["hash"])
    ) == 1


@pytest.mark.parametrize("gesture", ["new", "open", "delete"])
def test_another_chat_meanwhile_ends_the_pick_where_it_is_and_keeps_the_vote(chat, gesture):
    ann = person(chat)
    before = turn(chat, ann, "Before", "a")
    chat.new_chat(ann)
    slow(chat, 0.03)
    early = Streaming(chat, ann)
    view = early.vote("a")
    if gesture == "new":
        assert chat.new_chat(ann).phase == "idle"
    elif gesture == "open":
        assert chat.open(ann, before.conversation).duel == before.duel
    else:
        assert chat.delete(ann, view.conversation).duel == before.duel
    early.end()
    left = chat.store.duel(view.duel)["left"]
    assert bool(left["text"]) == (gesture != "delete"), "a deleted chat's words are gone"
    assert left["status"] == "stopped" and chat.store.current_vote(view.duel, ann)["choice"] == "a"
    assert chat.open(ann, view.conversation).left.text == left["text"] if gesture != "delete" else True


def test_what_breaks_after_the_vote_takes_neither_the_vote_nor_the_words(chat, early):
    view = early.vote("a")
    stream, step = chat._turns[early.annotator].stream, chat.engine.step

    def breaks():
        chat.engine.step = step
        chat.engine._fail(stream, NotFinite("the model gave logits that are not finite"))
        return True

    chat.engine.step = breaks
    last = early.end()
    assert (last.phase, last.choice) == ("voted", "a") and last.left.text
    assert chat.store.duel(view.duel)["left"]["status"] == "stopped"
    assert turn(chat, early.annotator, "Go on").history[-1].text == last.left.text


def test_while_both_say_the_same_there_is_nothing_to_vote_on(chat):
    slow(chat)
    ann = person(chat)
    go_on = hold(chat, ann, lambda left, right: left and right)
    seeds = iter([1, 1, 2])
    chat._rng = type("Seeds", (), {"getrandbits": lambda *_: next(seeds)})()
    stream = chat.send(ann, "Hello")
    view = next(v for v in stream if v.left.text)
    with pytest.raises(Refused, match="the same so far"):
        chat.vote(ann, view.duel, "a")
    assert chat.store.rows("select * from vote") == []
    go_on.set()
    list(stream)


def test_of_more_than_two_there_is_no_early_vote(chat):
    slow(chat, 0.03)
    chat.settings = chat.settings.with_values(chat={"candidates": 4})
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    next(stream)
    view = next(v for v in stream if v.phase == "streaming")
    until(lambda: min(chat._turns[ann].stream.tokens()) > 3)
    with pytest.raises(Refused, match="nothing to compare yet"):
        chat.vote(ann, view.duel, "a")
    stream.close()


# -- in the store


def started(store, who):
    return store.start_duel(store.new_conversation(who), "Hello", [1], [candidate(1), candidate(2)])


def said(left, right):
    return [{**outcome(text, ids, None), "total_ms": None} for text, ids in (left, right)]


def test_a_crash_after_an_early_vote_keeps_the_vote_and_what_both_had_said(tmp_path):
    """The rows of a pair that was still written became errors at the next start, the vote's among them, and the pair
    was shown no more.
    """
    store = Store(tmp_path / "nudge.db")
    who = store.annotator("ann")
    duel = started(store, who)
    lost = started(store, store.annotator("bob"))
    store.vote(duel, who, "b", store.duel(duel)["right"]["message"], early=said(("It is", [4, 5]), ("That", [6])))
    again = Store(tmp_path / "nudge.db")  # the server was killed here
    assert again.fail_streaming() == 2
    row = again.duel(duel)
    assert [(row[s]["text"], row[s]["status"], row[s]["finish_reason"]) for s in ("left", "right")] == [
        ("It is", "stopped", "stopped"),
        ("That", "stopped", "stopped"),
    ]
    assert {again.duel(lost)[s]["status"] for s in ("left", "right")} == {"error"}
    [vote] = again.votes_for_training(BASE)
    assert (vote["choice"], vote["left_ids"], vote["right_ids"]) == ("b", [4, 5], [6])
    assert [m["text"] for m in again.history(row["conversation"])] == ["Hello", "That"] and again.shown_duel(
        row["conversation"]
    )["id"] == duel


def test_a_pair_that_had_ended_when_it_was_voted_on_has_no_cut(store):
    who = store.annotator("ann")
    duel = started(store, who)
    store.vote(duel, who, "a", store.duel(duel)["left"]["message"], early=[outcome("x", [4, 2]), outcome("y", [5, 2])])
    assert store.duel(duel)["left_cut"] is None
    store.finish_duel(duel, [outcome("x", [4, 2]), outcome("y", [5, 2])])
    assert store.votes_for_training(BASE)[0]["left_ids"] == [4, 2]
