"""What a person may do besides sending and voting: regenerate, undo, edit, rate, explain, share, come back to a chat,
set it up.
"""

import json
import threading
import time
from types import SimpleNamespace

import pytest

from playground.chat import session, turns, writing
from playground.chat.refusals import Refused
from playground.chat.votes import COMMENT_CHARS
from playground.models import prompts
from tests.chats import chat, folder, hold, person, slow, turn  # noqa: F401 (fixtures)
from tests.waits import until


def streaming(chat, annotator, text="Hello"):
    """A turn that goes on in a thread, as in the server, caught once both replies have words that differ, where it
    stands still: (thread, the Views it gave, the Event by which it goes on).
    """
    seen, begun = [], threading.Event()
    go_on = hold(chat, annotator)

    def run():
        for view in chat.send(annotator, text):
            seen.append(view)
            if view.phase == "streaming" and len({"", view.left.text.strip(), view.right.text.strip()}) == 3:
                begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(20)
    return thread, seen, go_on


# -- voting early, and why


def test_a_vote_while_replies_stream_stops_them_and_counts(chat):
    slow(chat)
    ann = person(chat)
    thread, seen, go_on = streaming(chat, ann)
    view = chat.vote(ann, seen[-1].duel, "b")
    go_on.set()
    thread.join(20)
    assert (view.phase, view.choice) == ("voted", "b") and view.right.chosen
    assert seen[-1].phase == "voted", "the stream's last view must not hide a vote that came before it"
    duel = chat.store.duel(view.duel)
    assert duel["left"]["status"] == "stopped" and duel["left"]["tokens"] < 24
    assert turn(chat, ann, "Go on").phase == "voting"


def test_a_vote_before_the_first_words_is_refused_and_the_replies_go_on(chat):
    step, go = chat.engine.step, threading.Event()
    chat.engine.step = lambda: (go.wait(), step())[1]
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    view = next(stream)
    with pytest.raises(Refused, match="first words"):
        chat.vote(ann, view.duel, "a")
    assert not chat._turns[ann].stream.stopping.is_set()
    go.set()
    assert list(stream)[-1].phase == "voting"


def test_who_waits_long_for_room_is_told_and_who_waits_a_moment_is_not(chat, monkeypatch):
    step, go = chat.engine.step, threading.Event()
    chat.engine.step = lambda: (go.wait(), step())[1]
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    assert next(stream).progress is None
    monkeypatch.setattr(writing, "PATIENCE", 0)
    assert "waits its turn: you are next" in str(chat.view(ann).progress)
    go.set()
    assert list(stream)[-1].phase == "voting"


def test_replies_whose_page_went_away_go_on_while_another_looks_and_end_when_none_does(chat, monkeypatch):
    slow(chat)
    monkeypatch.setattr(session, "BACKGROUND_SECONDS", 1000)
    passed = [0.0]
    for module in (session, writing, turns):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))
    ann, bob = person(chat), person(chat, "bob")
    for who in (ann, bob):
        go_on = hold(chat, who)
        stream = chat.send(who, "Hello")
        next(stream)
        until(lambda who=who: all(chat._turns[who].stream.texts()))
        replies = chat._turns[who].stream
        thread = threading.Thread(target=chat.finish_in_background, args=(who, stream))
        thread.start()
        for _ in range(2):
            if who is ann:
                chat.view(who)
            passed[0] += 600
            thread.join(0.1)
        if who is bob:
            until(replies.stopping.is_set)
        go_on.set()
        thread.join(20)
    assert [row["finish_reason"] for row in chat.store.rows("select finish_reason from generation order by id")] == [
        "length",
        "length",
        "stopped",
        "stopped",
    ]
    assert chat.view(bob).phase == "voting"


def test_a_vote_of_another_person_does_not_stop_my_replies(chat):
    slow(chat)
    ann, bob = person(chat), person(chat, "bob")
    thread, seen, go_on = streaming(chat, ann)
    with pytest.raises(Refused, match="not yours"):
        chat.vote(bob, seen[-1].duel, "a")
    go_on.set()
    thread.join(30)
    assert chat.store.duel(seen[-1].duel)["left"]["finish_reason"] != "stopped"


def test_stop_before_the_first_word_gives_the_message_back(chat):
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    chat.engine.duel, start = (lambda *a: _stopped(start(*a))), chat.engine.duel
    with pytest.raises(Refused, match="before the first word"):
        list(stream)
    assert chat.view(ann).phase == "idle"


def _stopped(stream):
    stream.stop()
    return stream


def test_reasons_are_kept_on_the_vote(chat):
    ann = person(chat)
    view = turn(chat, ann, choice="a")
    chat.explain(ann, view.vote, ["clearer"], "  shorter is fine ")
    assert (chat.view(ann).tags, chat.view(ann).comment) == (("clearer",), "shorter is fine")
    chat.explain(ann, view.vote, tags=[])
    assert (chat.view(ann).tags, chat.view(ann).comment) == ((), "shorter is fine"), "each is said without the other"
    chat.explain(ann, view.vote, comment="")
    assert chat.view(ann).comment == ""
    with pytest.raises(Refused, match="at most 1,000"):
        chat.explain(ann, view.vote, [], "x" * (COMMENT_CHARS + 1))
    with pytest.raises(Refused):
        chat.explain(person(chat, "bob"), view.vote, ["clearer"], "not mine")


def test_a_thumb_is_kept_changed_and_withdrawn(chat):
    ann = person(chat)
    view = turn(chat, ann)
    for thumb in (1, -1, None):
        chat.rate(ann, view.left.message, thumb)
        assert chat.view(ann).left.thumb == thumb
    with pytest.raises(Refused, match="not yours"):
        chat.rate(person(chat, "bob"), view.left.message, 1)


# -- regenerate and undo


def test_regenerate_keeps_the_old_pair_and_its_vote(chat):
    ann = person(chat)
    old = turn(chat, ann, "Hello", "a")
    new = list(chat.regenerate(ann))[-1]
    assert new.phase == "voting" and new.message == "Hello" and new.history == []
    assert new.pairs == (old.duel, new.duel)
    back = chat.show_pair(ann, old.duel)
    assert (back.phase, back.choice, back.left.text) == ("voted", "a", old.left.text)
    assert chat.vote(ann, old.duel, "b").choice == "b"
    chat.show_pair(ann, new.duel)
    assert chat.vote(ann, new.duel, "tie").choice == "tie"
    assert [
        v["choice"] for v in chat.store.rows("select choice from vote where superseded_by is null order by id")
    ] == ["b", "tie"]


def test_the_next_message_goes_on_from_the_pair_on_screen(chat):
    ann = person(chat)
    old = turn(chat, ann, "Hello", "a")
    list(chat.regenerate(ann))
    chat.show_pair(ann, old.duel)
    following = turn(chat, ann, "Go on")
    assert [m.text for m in following.history] == ["Hello", old.left.text]


def test_regenerate_twice_while_streaming_is_refused_and_with_nothing_too(chat):
    ann = person(chat)
    with pytest.raises(Refused, match="no replies here"):
        list(chat.regenerate(ann))
    slow(chat)
    turn(chat, ann)
    stream = chat.regenerate(ann)
    next(stream)
    with pytest.raises(Refused, match="still streaming"):
        next(chat.regenerate(ann))
    stream.close()


def test_undo_gives_the_message_back_and_shows_the_turn_before(chat):
    ann = person(chat)
    first = turn(chat, ann, "Hello", "a")
    turn(chat, ann, "Go on", "b")
    view, text = chat.undo(ann)
    assert text == "Go on" and view.duel == first.duel and view.phase == "voted"
    view, text = chat.undo(ann)
    assert text == "Hello" and view.phase == "idle" and view.history == []
    with pytest.raises(Refused, match="nothing to undo"):
        chat.undo(ann)
    assert len(chat.store.rows("select * from vote")) == 2, "what was said stays"
    assert turn(chat, ann, "Anew").history == []


def test_after_undo_the_vote_before_it_can_be_changed(chat):
    ann = person(chat)
    first = turn(chat, ann, "Hello", "a")
    turn(chat, ann, "Go on")
    chat.undo(ann)
    assert chat.vote(ann, first.duel, "b").choice == "b"


# -- edits


def test_an_edited_reply_is_a_demonstration_and_the_chat_goes_on_with_it(chat):
    ann = person(chat)
    view = turn(chat, ann, "Hello", "a")
    edited = chat.edit(ann, view.left.message, "What I would rather read.")
    assert edited.left.text == "What I would rather read." and edited.left.edited and not edited.right.edited
    row = chat.store.row("select * from demonstration")
    assert (row["before"], row["after"]) == (view.left.text, "What I would rather read.")
    following = turn(chat, ann, "Go on")
    assert following.history[-1].text == "What I would rather read." and following.history[-1].edited
    duel = chat.store.duel(following.duel)
    prompt = chat.store.row(
        "select p.token_ids from generation g join prompt p on p.id = g.prompt where g.id = ?", duel["left_generation"]
    )
    assert "What I would rather read." in prompts.decode(json.loads(prompt["token_ids"]), chat.engine.tokenizer)


def test_an_edit_of_what_is_not_mine_or_of_nothing_is_refused(chat):
    view = turn(chat, person(chat))
    with pytest.raises(Refused, match="not yours"):
        chat.edit(person(chat, "bob"), view.left.message, "Mine now")
    with pytest.raises(prompts.BadMessage):
        chat.edit(person(chat), view.left.message, "  ")
    assert chat.store.rows("select * from demonstration") == []


# -- chats, links, settings


def test_an_earlier_chat_can_be_opened_and_goes_on(chat):
    ann = person(chat)
    old = turn(chat, ann, "Hello", "a")
    chat.new_chat(ann)
    turn(chat, ann, "Another")
    assert [row["title"] for row in chat.store.conversations(ann)] == ["Another", "Hello"]
    assert chat.open(ann, old.conversation).duel == old.duel
    assert [m.text for m in turn(chat, ann, "Go on").history] == ["Hello", old.left.text]
    with pytest.raises(Refused, match="not yours"):
        chat.open(person(chat, "bob"), old.conversation)


def test_a_deleted_chat_is_gone_from_the_page_and_from_training(chat):
    ann = person(chat)
    old = turn(chat, ann, "Hello", "a")
    token = chat.share(ann)
    assert chat.store.new_votes() == 1
    assert chat.delete(ann, old.conversation).phase == "idle"
    assert chat.store.conversations(ann) == [] and chat.store.new_votes() == 0 and chat.shared(token) is None


@pytest.mark.parametrize(
    "gesture",
    [lambda chat, ann, conversation: chat.delete(ann, conversation), lambda chat, ann, conversation: chat.forget(ann)],
    ids=["delete", "forget"],
)
def test_a_chat_whose_replies_still_stream_is_stopped_first_and_then_deleted(chat, gesture):
    """Deleting was refused while replies streamed, and a reply that ended afterwards was written into the
    deleted chat.
    """
    slow(chat)
    ann, seen = person(chat), []
    views = chat.send(ann, "Ottokar's secret")
    first = next(views)
    reader = threading.Thread(target=lambda: seen.extend(views))  # the page that sent it
    reader.start()
    gesture(chat, ann, first.conversation)
    reader.join(20)
    assert not reader.is_alive() and not chat.busy(ann)
    assert chat.view(ann).phase == "idle" and "Ottokar" not in str(chat.store.rows("select * from message"))
    assert all(g["token_ids"] in (None, "[]") for g in chat.store.rows("select token_ids from generation"))


def test_a_shared_chat_does_not_tell_what_its_owner_said_of_it(chat):
    """The owner's comment and thumbs travelled to every reader of a shared chat, hidden by the page alone."""
    ann = person(chat)
    view = turn(chat, ann, "Hello", "a")
    chat.explain(ann, view.vote, ["clearer"], "Ottokar's secret")
    chat.rate(ann, view.left.message, 1)
    turn(chat, ann, "And then?", "b")
    chat.explain(ann, chat.view(ann).vote, ["clearer"], "Ottokar's secret")
    read = chat.shared(chat.share(ann))
    assert [m.text for m in read.history] == ["Hello", view.left.text] and read.message == "And then?"
    assert (
        (read.choice, read.vote, read.tags, read.comment) == (None, None, (), "")
        and not read.left.chosen
        and not read.right.chosen
    )
    assert [m.thumb for m in read.history] == [None, None] and "Ottokar" not in str(read)


def test_a_shared_chat_can_be_read_by_its_link_until_it_ends(chat):
    ann = person(chat)
    with pytest.raises(Refused, match="nothing to share"):
        chat.share(ann)
    view = turn(chat, ann, "Hello", "a")
    token = chat.share(ann)
    assert chat.share(ann) == token and len(token) > 15
    assert chat.shared(token).left.text == view.left.text
    assert chat.shared("nonsense") is None
    chat.unshare(ann)
    assert chat.shared(token) is None


def test_a_chat_has_settings_of_its_own_and_the_next_chat_keeps_them(chat):
    ann = person(chat)
    chat.configure(ann, "Speak like a pirate.", {"temperature": 1.3, "top_p": 1.0, "reply_tokens": 8})
    view = turn(chat, ann, "Hello", "a")
    duel = chat.store.duel(view.duel)
    generation = chat.store.row("select * from generation where id = ?", duel["left_generation"])
    sampling = json.loads(generation["sampling"])
    assert (sampling["temperature"], sampling["max_tokens"], duel["left"]["tokens"] <= 8) == (1.3, 8, True)
    prompt = chat.store.row("select token_ids from prompt where id = ?", generation["prompt"])
    assert "pirate" in prompts.decode(json.loads(prompt["token_ids"]), chat.engine.tokenizer)
    assert chat.store.conversation(ann)["sampling"] == {"temperature": 1.3, "reply_tokens": 8}, (
        "what equals the app's own is not kept"
    )
    chat.new_chat(ann)
    assert chat.sampling(ann)[0] == "Speak like a pirate." and chat.sampling(ann)[1]["temperature"] == 1.3
    assert chat.sampling(person(chat, "bob"))[1]["temperature"] == 0.7, "nobody else has them"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", 9),
        ("reply_tokens", 25),
        ("top_k", "many"),
        ("port", 1),
        ("temperature", None),
    ],
)
def test_a_setting_out_of_its_limits_is_refused(chat, name, value):
    with pytest.raises(Refused, match=name):
        chat.configure(person(chat), "", {name: value})


def test_the_gestures_wait_for_the_replies(chat):
    slow(chat)
    ann = person(chat)
    view = turn(chat, ann, "Hello", "a")
    stream = chat.send(ann, "Go on")
    next(stream)
    for gesture in (
        lambda: chat.undo(ann),
        lambda: chat.edit(ann, view.left.message, "x"),
        lambda: chat.open(ann, view.conversation),
        lambda: chat.show_pair(ann, view.duel),
        lambda: chat.configure(ann, "", {}),
    ):
        with pytest.raises(Refused, match="still streaming"):
            gesture()
    stream.close()
