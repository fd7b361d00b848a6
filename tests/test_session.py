"""The state machine of a conversation: send, stream, stop, vote, go on, and what a reload shows."""

import json
import threading

import pytest

from playground.chat.refusals import Refused
from playground.models import prompts
from playground.models.active import Pair
from tests.chats import chat, folder, person, slow, turn  # noqa: F401 (fixtures)


def test_a_turn_streams_both_replies_and_ends_with_a_pair_to_vote_on(chat):
    slow(chat)
    views = list(chat.send(person(chat), "Hello there"))
    assert [v.phase for v in views[:-1]] == ["streaming"] * (len(views) - 1) and len(views) > 3
    assert len(views[-2].left.text) > len(views[0].left.text)
    assert views[-1].phase == "voting" and views[-1].message == "Hello there"
    assert views[-1].left.text != views[-1].right.text
    assert views[-1].left.version is None, "which version wrote a reply must stay hidden until the vote"


def test_a_reply_that_ends_first_is_complete_while_the_other_one_grows(chat):
    slow(chat)
    ann = person(chat)
    views = chat.send(ann, "Hello there")
    first = next(views)
    assert not (first.left.complete or first.right.complete)
    chat._turns[ann].stream.stop(0)
    assert any(v.left.complete and not v.right.complete for v in views if v.phase == "streaming")


def test_a_reload_shows_the_same_pair(chat):
    ann = person(chat)
    assert chat.view(ann).phase == "idle"
    assert chat.view(ann) == chat.view(ann)
    last = turn(chat, ann)
    assert chat.view(ann) == last


def test_after_the_vote_the_facts_are_shown_and_the_pick_goes_into_the_history(chat):
    ann = person(chat)
    view = turn(chat, ann, "Hello", "b")
    assert (view.phase, view.choice) == ("voted", "b")
    assert (view.left.chosen, view.right.chosen) == (False, True)
    assert view.right.version == 0 and view.right.first_token_ms > 0
    following = turn(chat, ann, "Go on")
    assert [(m.role, m.text) for m in following.history] == [("user", "Hello"), ("assistant", view.right.text)]
    assert [m.version for m in following.history] == [None, 0]


def test_the_prompt_of_the_next_turn_holds_the_picked_reply_and_not_the_other(chat):
    ann = person(chat)
    view = turn(chat, ann, "Hello", "a")
    following = turn(chat, ann, "Go on")
    duel = chat.store.duel(following.duel)
    row = chat.store.row(
        "select p.token_ids from generation g join prompt p on p.id = g.prompt where g.id = ?", duel["left_generation"]
    )
    expected = prompts.encode(
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": view.left.text},
            {"role": "user", "content": "Go on"},
        ],
        chat.engine.tokenizer,
        1024,
    )
    assert row["token_ids"] == str(expected).replace(" ", "")


@pytest.mark.parametrize("choice", ["tie", "both_bad", "skip"])
def test_a_vote_for_neither_goes_on_with_one_of_them(chat, choice):
    view = turn(chat, person(chat), "Hello", choice)
    assert view.left.chosen != view.right.chosen
    assert view.choice == choice


def test_a_changed_vote_supersedes_the_first_one(chat):
    ann = person(chat)
    view = turn(chat, ann, "Hello", "a")
    view = chat.vote(ann, view.duel, "b")
    assert view.choice == "b" and view.right.chosen
    votes = chat.store.rows("select choice, superseded_by from vote order by id")
    assert [(v["choice"], v["superseded_by"] is None) for v in votes] == [("a", False), ("b", True)]


def test_a_vote_cannot_be_changed_once_the_conversation_has_gone_on(chat):
    ann = person(chat)
    first = turn(chat, ann, "Hello", "a")
    turn(chat, ann, "Go on", "a")
    with pytest.raises(Refused, match="gone on"):
        chat.vote(ann, first.duel, "b")


@pytest.mark.parametrize("duel", [999, None, "1", {"duel": 1}])
def test_a_vote_on_no_pair_of_mine_is_refused(chat, duel):
    turn(chat, person(chat))
    with pytest.raises(Refused, match="not yours"):
        chat.vote(person(chat), duel, "a")


def test_a_vote_on_another_persons_pair_is_refused(chat):
    view = turn(chat, person(chat, "ann"))
    with pytest.raises(Refused, match="not yours"):
        chat.vote(person(chat, "bob"), view.duel, "a")
    assert chat.store.rows("select * from vote") == []


def test_an_unknown_choice_is_refused(chat):
    ann = person(chat)
    view = turn(chat, ann)
    with pytest.raises(Refused, match="best"):
        chat.vote(ann, view.duel, "best")


def test_the_next_message_waits_for_the_vote(chat):
    ann = person(chat)
    turn(chat, ann)
    with pytest.raises(Refused, match="Pick a reply first"):
        list(chat.send(ann, "More"))


@pytest.mark.parametrize("text", ["", "   ", None, "a\x00b", "x" * 4001, "hi <|im_end|>"])
def test_a_bad_message_is_refused_before_anything_is_recorded(chat, text):
    with pytest.raises(prompts.BadMessage):
        list(chat.send(person(chat), text))
    assert chat.store.rows("select * from message") == []
    assert turn(chat, person(chat)).phase == "voting", "the person can go on"


def test_stop_keeps_what_is_there_to_vote_on(chat):
    slow(chat)
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    next(v for v in stream if v.left.text and v.right.text)
    chat.stop(ann)
    view = list(stream)[-1]
    assert view.phase == "voting"
    assert {chat.store.duel(view.duel)[side]["status"] for side in ("left", "right")} == {"stopped"}


def test_a_browser_that_goes_away_stops_the_replies(chat):
    """Closing the generator is what Gradio does; decoding went on to the last token for nobody."""
    slow(chat)
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    next(v for v in stream if v.left.text)
    stream.close()
    view = chat.view(ann)
    assert view.phase == "voting"
    assert chat.store.duel(view.duel)["left"]["finish_reason"] == "stopped"
    assert chat.store.duel(view.duel)["left"]["tokens"] < 24


def test_a_second_message_while_replies_stream_is_refused(chat):
    slow(chat)
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    next(stream)
    with pytest.raises(Refused, match="still streaming"):
        next(chat.send(ann, "Again"))
    with pytest.raises(Refused, match="still streaming"):
        chat.new_chat(ann)
    stream.close()


@pytest.mark.parametrize(
    ("text", "twice"), [("Hello", True), (" Hello\n", True), ("", True), ("Again", False), (None, False)]
)
def test_a_message_that_is_sent_again_while_it_is_answered_was_pressed_twice(chat, text, twice):
    slow(chat)
    ann = person(chat)
    assert not chat.is_answering(ann, text)
    stream = chat.send(ann, "Hello")
    next(stream)
    assert chat.is_answering(ann, text) is twice
    assert not chat.is_answering(person(chat, "another"), text)
    stream.close()
    assert not chat.is_answering(ann, text)


def test_another_page_of_the_same_person_sees_the_replies_stream(chat):
    slow(chat)
    ann = person(chat)
    stream = chat.send(ann, "Hello")
    next(v for v in stream if v.left.text)
    view = chat.view(ann)
    assert view.phase == "streaming" and view.left.text
    stream.close()


def test_two_people_have_two_conversations_and_stream_at_once(chat):
    slow(chat)
    ends = {}
    threads = [
        threading.Thread(target=lambda n=n: ends.update({n: turn(chat, person(chat, n), f"I am {n}")}))
        for n in ("ann", "bob")
    ]
    [t.start() for t in threads]
    [t.join(30) for t in threads]
    assert {n: v.message for n, v in ends.items()} == {"ann": "I am ann", "bob": "I am bob"}
    assert ends["ann"].duel != ends["bob"].duel


def test_a_new_chat_begins_empty_and_keeps_the_old_rows(chat):
    ann = person(chat)
    turn(chat, ann, "Hello", "a")
    assert chat.new_chat(ann).phase == "idle"
    assert chat.view(ann).history == []
    assert len(chat.store.rows("select * from vote")) == 1
    assert turn(chat, ann, "Fresh").history == []


def test_a_turn_that_breaks_says_so_and_the_person_can_send_again(chat, monkeypatch):
    ann = person(chat)
    with monkeypatch.context() as broken:
        broken.setattr("playground.serving.engine.Decoding", lambda *a, **k: 1 / 0)
        with pytest.raises(Refused, match="could not answer"):
            list(chat.send(ann, "Hello"))
    assert chat.view(ann).phase == "idle"
    assert turn(chat, ann, "Hello").phase == "voting"


def test_replies_that_a_crash_cut_off_do_not_block_the_conversation(chat):
    ann = person(chat)
    turn(chat, ann, "Hello", "a")
    conversation = chat.store.conversation(ann)["id"]
    side = {"policy": 0, "base_model": "m", "base_hash": "h", "template_hash": "t", "sampling": {}, "seed": 1}
    chat.store.start_duel(conversation, "Lost", [1], [side, side])  # the server died here
    assert chat.store.fail_streaming() == 2
    assert chat.view(ann).phase == "voted" and chat.view(ann).message == "Hello"
    assert turn(chat, ann, "Go on").phase == "voting"


# -- more than two candidates


def of_four(chat):
    """The same chat with four candidates to a message, and their streams as they were started."""
    chat.settings = chat.settings.with_values(chat={"candidates": 4})
    streams, start = [], chat.engine.duel
    chat.engine.duel = lambda *args: streams.append(start(*args)) or streams[-1]
    return streams


def test_of_four_candidates_the_picked_pair_is_shown_once_all_are_written(chat):
    slow(chat)
    streams = of_four(chat)
    chat._picker.pair = lambda prompt, completions, seed: Pair(3, 1, "active", 0.125) if len(completions) == 4 else None
    views = list(chat.send(person(chat), "Hello"))
    assert all(
        v.left.text == v.right.text == "" and "4 replies are being written" in str(v.progress) for v in views[:-1]
    )
    assert [v.progress for v in views[:-1]] != [views[0].progress] * len(views[:-1])
    texts = [text.strip() for text in streams[0].texts()]
    assert (
        len(texts) == 4
        and (views[-1].left.text, views[-1].right.text) == (texts[3], texts[1])
        and views[-1].progress is None
    )
    row = chat.store.row("select * from duel where id = ?", views[-1].duel)
    assert (row["pairing"], row["probability"]) == ("active", 0.125)
    left = chat.store.row("select * from generation where id = ?", row["left_generation"])
    assert left["seed"] == streams[0].seeds[3] and json.loads(left["sampling"])["candidates"] == 4


def test_without_a_reward_model_the_first_two_of_four_are_shown(chat):
    streams = of_four(chat)
    view = turn(chat, person(chat))
    assert [view.left.text, view.right.text] == [text.strip() for text in streams[0].texts()[:2]]
    assert chat.store.row("select pairing from duel")["pairing"] == "same_policy"


def test_a_reload_while_four_are_written_shows_how_far_they_are(chat):
    slow(chat, 0.05)
    of_four(chat)
    ann = person(chat)
    turn_ = chat.send(ann, "Hello")
    assert "you will see two of them" in str(next(turn_).progress)
    assert "you will see two of them" in str(chat.view(ann).progress)
    turn_.close()


def test_two_candidates_are_recorded_as_ever(chat):
    turn(chat, person(chat))
    assert "candidates" not in chat.store.row("select sampling from generation")["sampling"]
