"""The prompt queue in the store and in the chat: who gets which prompt, and what a second person is shown."""

import asyncio
import json
import sqlite3
import threading

import pytest

from playground.chat.queueing import QueueView
from playground.chat.refusals import Refused
from playground.data import queueing
from playground.data.__main__ import main
from playground.settings import Settings, SettingsError
from playground.store import Filters, ImportedRow, QueuedPrompt, Store
from playground.store.queue_tasks import MOST_SKIPS
from playground.system.languages import Words
from playground.ui.chat import ChatTab
from playground.ui.notice import Notice
from playground.ui.queue_panel import progress_html
from playground.ui.quick_gradio import gradio as gr
from tests import test_control
from tests.chats import chat, folder, person, slow, turn  # noqa: F401 (fixtures)
from tests.stores import candidate, cast, duel, outcome

HALF_AN_HOUR = 1800.0


def said(text):
    return [{"role": "user", "content": text}]


def listed(*texts, twice=(), store=None):
    """A store whose queue holds these prompts; `twice`: those for two people."""
    store = store or Store()
    store.list_prompts(QueuedPrompt(text, said(text), text in twice) for text in texts)
    return store


def take(store, name, clock=0.0):
    """What this person gets: the prompt's text and whether it is a second judgement; None for nothing."""
    task = store.take_prompt(store.annotator(name), clock, HALF_AN_HOUR)
    return task and (task["messages"][-1]["content"], task["repeats"] is not None)


def has_prompt(store, name, clock=0.0):
    return store.has_prompt_for(store.annotator(name), clock, HALF_AN_HOUR)


def judge(store, name, choice="a", versions=(0, 0)):
    """Send the prompt that this person has, and vote; the duel's row."""
    who = store.annotator(name)
    task = store.queue_task(who)
    row = duel(store, who, text=task["messages"][-1]["content"], versions=versions, task=task["id"])
    store.vote(row["id"], who, choice, row["left"]["message"])
    return row


def show_again(store, name):
    """The pair that this person is shown again, after it was recorded."""
    who = store.annotator(name)
    task = store.queue_task(who)
    first = store.duel(task["repeats"])
    replies = [(first[side]["text"], store.reply_tokens(first[side]["id"])) for side in ("left", "right")]
    assert store.show_again(task, replies)
    return store.shown_duel(store.conversation(who)["id"])


# -- who gets which prompt


def test_each_person_gets_another_prompt_in_the_order_of_the_file():
    store = listed("one", "two")
    assert [take(store, name) for name in ("ann", "bob", "cy")] == [("one", False), ("two", False), None]
    assert take(store, "ann") == ("one", False), "a person keeps what was not judged"
    assert not has_prompt(store, "cy") and has_prompt(store, "ann")


def test_a_judged_prompt_is_nobodys_any_more_and_is_counted():
    store = listed("one", "two")
    take(store, "ann")
    judge(store, "ann")
    assert take(store, "bob") == ("two", False)
    assert store.queue_progress() == {"total": 2, "twice": 0, "judged": 1, "judged_twice": 0, "aside": 0}


def test_a_prompt_that_was_taken_and_left_comes_back_after_a_time():
    store = listed("one")
    take(store, "ann", 0)
    assert take(store, "bob", HALF_AN_HOUR - 1) is None and not has_prompt(store, "bob", HALF_AN_HOUR - 1)
    assert has_prompt(store, "bob", HALF_AN_HOUR + 1), "the button is on again"
    assert take(store, "bob", HALF_AN_HOUR + 1) == ("one", False)
    assert take(store, "ann", HALF_AN_HOUR + 2) is None, "it is bob's now"
    judge(store, "bob")
    assert store.queue_progress()["judged"] == 1


def test_a_vote_that_comes_after_the_prompt_was_given_away_counts_and_leaves_it_there():
    store = listed("one")
    who = store.annotator("ann")
    take(store, "ann", 0)
    row = duel(store, who, text="one", task=store.queue_task(who)["id"])
    take(store, "bob", HALF_AN_HOUR + 1)
    store.vote(row["id"], who, "a", row["left"]["message"])
    assert store.queue_task(store.annotator("bob")) is not None
    judge(store, "bob")
    assert store.queue_progress()["judged"] == 1 and take(store, "cy") is None


def test_a_skipped_prompt_goes_to_others_until_too_many_have_skipped_it():
    store = listed("one")
    names = [f"person {n}" for n in range(MOST_SKIPS)]
    for name in names:
        assert take(store, name) == ("one", False)
        store.skip_prompt(store.annotator(name), "unclear")
        assert take(store, name) is None, "nobody gets it twice"
    assert take(store, "one more") is None and store.queue_progress()["aside"] == 1
    assert store.skipped_prompts(5) == [{"place": 1, "state": "aside", "reasons": ["unclear"] * MOST_SKIPS}]
    assert store.reopen_prompts() == 1 and take(store, names[0]) == ("one", False)


def test_a_skip_vote_on_the_pair_skips_the_prompt():
    store = listed("one")
    take(store, "ann")
    judge(store, "ann", "skip")
    assert take(store, "ann") is None and take(store, "bob") == ("one", False)


def test_a_vote_that_is_changed_to_skip_skips_the_prompt_unless_another_vote_on_its_message_is_left():
    store = listed("one", "two")
    ann = store.annotator("ann")
    take(store, "ann")
    first = judge(store, "ann")
    other = store.start_duel(
        first["conversation"], "one", [1, 2, 3], [candidate(3), candidate(4)], first["user_message"]
    )
    store.finish_duel(other, [outcome("third", [6]), outcome("fourth", [7])])
    store.vote(other, ann, "b", store.duel(other)["right"]["message"])
    store.vote(other, ann, "skip", store.duel(other)["right"]["message"])
    assert store.queue_progress()["judged"] == 1, "the vote on the first pair is left"
    store.show_duel(first["id"], ann)
    store.vote(first["id"], ann, "skip", first["left"]["message"])
    assert store.queue_progress()["judged"] == 0 and store.skipped_prompts(5)[0]["reasons"] == ["skip"]
    assert take(store, "bob") == ("one", False) and take(store, "ann") == ("two", False)


def test_a_vote_elsewhere_finishes_nothing():
    store = listed("one")
    take(store, "ann")
    cast(store, who=store.annotator("ann"))
    assert take(store, "ann") == ("one", False) and store.queue_progress()["judged"] == 0


def test_another_file_keeps_what_became_of_its_prompts_and_offers_no_others():
    store = listed("one", "two")
    take(store, "ann")
    judge(store, "ann")
    listed("three", "one", store=store)
    assert store.queue_progress()["total"] == 2 and store.queue_progress()["judged"] == 1
    assert take(store, "bob") == ("three", False) and take(store, "cy") is None


def test_the_queue_survives_a_restart(tmp_path):
    store = listed("one", "two", store=Store(tmp_path / "nudge.db"))
    take(store, "ann")
    store.close()
    again = listed("one", "two", store=Store(tmp_path / "nudge.db"))
    assert take(again, "bob") == ("two", False) and take(again, "ann") == ("one", False)


# -- a pair that is judged twice


def test_a_second_person_is_shown_the_same_replies_with_sides_swapped():
    store = listed("one", "two", twice=("one",))
    take(store, "ann")
    first = judge(store, "ann", "a", versions=(0, 0))
    assert take(store, "ann") == ("two", False), "not one's own pair again"
    assert take(store, "bob") == ("one", True)
    second = show_again(store, "bob")
    assert (second["left"]["text"], second["right"]["text"]) == ("right", "left")
    assert second["user_text"] == "one" and second["repeats"] == first["id"] and second["annotator"] == 2
    assert take(store, "cy") is None, "one second person is enough"
    bob = store.annotator("bob")
    assert store.is_task(second["user_message"], bob)
    store.vote(second["id"], bob, "b", second["right"]["message"])
    progress = store.queue_progress()
    assert (progress["judged"], progress["judged_twice"]) == (1, 1) and take(store, "cy") is None


def test_what_one_person_judged_and_others_skipped_is_not_judged_twice():
    store = listed("one", twice=("one",))
    take(store, "ann")
    judge(store, "ann")
    for n in range(MOST_SKIPS):
        assert take(store, f"person {n}") == ("one", True)
        store.skip_prompt(store.annotator(f"person {n}"), "unclear")
    progress = store.queue_progress()
    assert (progress["judged"], progress["judged_twice"]) == (1, 0) and take(store, "cy") is None


def test_two_votes_on_different_pairs_are_not_one_pair_judged_twice():
    store = listed("one", twice=("one",))
    ann = store.annotator("ann")
    take(store, "ann", 0)
    late = duel(store, ann, text="one", task=store.queue_task(ann)["id"])
    take(store, "bob", HALF_AN_HOUR + 1)
    judge(store, "bob")
    store.vote(late["id"], ann, "a", late["left"]["message"])
    assert store.queue_progress()["judged_twice"] == 0
    assert take(store, "cy") == ("one", True)
    second = show_again(store, "cy")
    store.vote(second["id"], store.annotator("cy"), "a", second["left"]["message"])
    assert store.queue_progress()["judged_twice"] == 1


def test_the_second_judgement_is_of_the_pair_that_was_shown_again():
    store = listed("one", twice=("one",))
    take(store, "ann")
    judge(store, "ann")
    bob = store.annotator("bob")
    take(store, "bob")
    shown = show_again(store, "bob")
    other = store.start_duel(
        shown["conversation"], "one", [1, 2, 3], [candidate(3), candidate(4)], shown["user_message"]
    )
    store.finish_duel(other, [outcome("third", [6]), outcome("fourth", [7])])
    store.vote(other, bob, "a", store.duel(other)["left"]["message"])
    assert store.queue_progress()["judged_twice"] == 0 and take(store, "bob") == ("one", True)
    store.show_duel(shown["id"], bob)
    store.vote(shown["id"], bob, "a", shown["left"]["message"])
    assert store.queue_progress()["judged_twice"] == 1


def test_a_pair_that_was_written_after_an_edit_of_the_chat_is_shown_to_nobody_else():
    store = listed("one", twice=("one",))
    ann = store.annotator("ann")
    take(store, "ann")
    row = duel(store, ann, text="one", task=store.queue_task(ann)["id"])
    edited = store.start_duel(row["conversation"], "one", [1, 2, 9], [candidate(3), candidate(4)], row["user_message"])
    store.finish_duel(edited, [outcome("third", [6]), outcome("fourth", [7])])
    store.vote(edited, ann, "a", store.duel(edited)["left"]["message"])
    assert take(store, "bob") == ("one", False), "new replies"


def test_whoever_deletes_a_pair_that_was_shown_again_has_skipped_it():
    """Else each deletion would copy it once more."""
    store = listed("one", twice=("one",))
    take(store, "ann")
    judge(store, "ann")
    take(store, "bob")
    shown = show_again(store, "bob")
    store.delete_conversation(shown["conversation"], shown["annotator"])
    assert take(store, "bob") is None and take(store, "cy") == ("one", True)


def test_both_votes_on_a_pair_are_of_one_dialogue_for_training():
    """Else a round would learn from the one and be measured on the other."""
    store = listed("one", twice=("one",))
    take(store, "ann")
    judge(store, "ann", "a")
    take(store, "bob")
    second = show_again(store, "bob")
    store.vote(second["id"], store.annotator("bob"), "b", second["right"]["message"])
    one, two = store.votes_for_training("base hash")
    assert one["dialogue"] == two["dialogue"] and one["conversation"] != two["conversation"]
    assert (one["left_ids"], one["right_ids"]) == (two["right_ids"], two["left_ids"])
    assert store.votes_on_own_pairs(0)["votes"] == 1, "a pair decides about a version once"


def test_where_the_first_chat_is_deleted_the_prompt_begins_anew():
    store = listed("one", twice=("one",))
    take(store, "ann")
    first = judge(store, "ann")
    store.delete_conversation(first["conversation"], first["annotator"])
    assert store.queue_progress()["judged"] == 0 and take(store, "bob") == ("one", False)


def test_a_person_who_deletes_and_takes_a_prompt_again_and_again_has_one_turn_with_it():
    store = listed("one")
    for _ in range(3):
        assert take(store, "ann") == ("one", False)
        row = judge(store, "ann")
        store.delete_conversation(row["conversation"], row["annotator"])
    assert store.one("select count(*) as n from queue_task")["n"] == 1


def test_what_a_second_person_was_shown_stays_theirs():
    store = listed("one", twice=("one",))
    take(store, "ann")
    first = judge(store, "ann")
    take(store, "bob")
    second = show_again(store, "bob")
    store.forget(first["annotator"])
    assert store.duel(second["id"])["left"]["text"] == "right"
    assert take(store, "bob") == ("one", True), "and bob goes on with it"


# -- beside the chat


@pytest.fixture
def queued(chat, tmp_path):
    """A chat with a queue of three prompts, of which the first is for two people."""
    chat.settings = chat.settings.with_values(queue={"prompts": "queue.txt"})
    chat.store.list_prompts(
        [
            QueuedPrompt("1", [{"role": "system", "content": "Be brief."}, *said("First prompt")], True),
            QueuedPrompt("2", said("Second prompt"), False),
            QueuedPrompt("3", said("x" * 90_000), False),
        ]
    )
    return chat


def last(views):
    return list(views)[-1]


def test_the_next_prompt_is_sent_as_a_message_is(queued):
    ann = person(queued)
    queued.configure(ann, "Speak like a pirate.", {"temperature": 1.5})
    views = list(queued.next_prompt(ann))
    assert [view.phase for view in views][-1] == "voting" and views[0].queued and views[-1].queued
    assert views[-1].message == "First prompt"
    conversation = queued.store.conversation(ann)
    assert (conversation["system_prompt"], conversation["sampling"]) == ("Be brief.", None), "the queue's own"
    with pytest.raises(Refused, match="Pick a reply first"):
        list(queued.next_prompt(ann))
    view = queued.vote(ann, views[-1].duel, "a")
    assert view.phase == "voted" and not view.queued
    assert last(queued.next_prompt(ann)).message == "Second prompt"


def test_a_second_person_gets_the_pair_at_once_and_votes_on_it(queued):
    ann, bob = person(queued, "ann"), person(queued, "bob")
    first = last(queued.next_prompt(ann))
    queued.vote(ann, first.duel, "a")
    [second] = list(queued.next_prompt(bob))
    assert (second.phase, second.left.text, second.right.text) == ("voting", first.right.text, first.left.text)
    assert second.left.version is None and second.message == "First prompt"
    assert queued.vote(bob, second.duel, "b").right.chosen
    assert queued.store.queue_progress()["judged_twice"] == 1
    assert turn(queued, bob, "And then?").history[-1].text == second.right.text, "the chat goes on"


def test_after_an_early_vote_the_second_person_is_shown_what_the_first_had_seen(queued):
    slow(queued)
    ann, bob = person(queued, "ann"), person(queued, "bob")
    views = queued.next_prompt(ann)
    view = next(
        view for view in views if view.left.text.strip() and view.right.text.strip() not in ("", view.left.text)
    )
    queued.vote(ann, view.duel, "a")
    whole = last(views)
    duel = queued.store.duel(view.duel)
    early = queued.store.one("select left_cut, right_cut from duel where id = ?", view.duel)
    second = last(queued.next_prompt(bob))
    shown = queued.store.duel(second.duel)
    assert (shown["right"]["tokens"], shown["left"]["tokens"]) == (early["left_cut"], early["right_cut"])
    assert whole.left.text.startswith(second.right.text) and len(second.right.text) < len(whole.left.text)
    assert shown["right"]["finish_reason"] == "stopped" and duel["left"]["text"] == whole.left.text


def test_a_reload_and_another_chat_lead_back_to_the_prompt(queued):
    ann = person(queued)
    first = last(queued.next_prompt(ann))
    assert queued.view(ann) == first
    queued.new_chat(ann)
    assert [view.duel for view in queued.next_prompt(ann)] == [first.duel]


def test_a_prompt_can_be_undone_once_it_is_judged(queued):
    ann = person(queued)
    first = last(queued.next_prompt(ann))
    with pytest.raises(Refused, match="Vote on this pair of the queue first"):
        queued.undo(ann)
    assert queued.view(ann) == first
    queued.vote(ann, first.duel, "a")
    assert queued.undo(ann)[1] == "First prompt"


def test_a_pair_that_is_shown_again_is_neither_undone_nor_written_again(queued):
    ann, bob = person(queued, "ann"), person(queued, "bob")
    queued.vote(ann, last(queued.next_prompt(ann)).duel, "a")
    second = last(queued.next_prompt(bob))
    for gesture in (lambda: queued.undo(bob), lambda: last(queued.regenerate(bob))):
        with pytest.raises(Refused, match="Vote on this pair of the queue first"):
            gesture()
    assert queued.view(bob) == second
    queued.vote(bob, second.duel, "a")
    assert len(last(queued.regenerate(bob)).pairs) == 2


def test_a_second_person_gets_the_queues_system_prompt_and_nothing_that_the_first_one_wrote(queued):
    ann, bob = person(queued, "ann"), person(queued, "bob")
    queued.vote(ann, last(queued.next_prompt(ann)).duel, "a")
    with pytest.raises(Refused, match="keeps the queue's own settings"):
        queued.configure(ann, "Say that bob is a pirate.", {})
    queued.store.configure(queued.store.conversation(ann)["id"], "Say that bob is a pirate.", None)
    list(queued.next_prompt(bob))
    assert queued.store.conversation(bob)["system_prompt"] == "Be brief."
    queued.new_chat(ann)
    queued.configure(ann, "Speak like a pirate.", {})


def test_a_prompt_is_sent_and_its_task_begun_in_one_transaction(queued):
    ann = person(queued)
    with queued.store.writing() as db:
        db.execute(
            """create trigger fails before update of message on queue_task when new.message is not null
               begin select raise(abort, 'no room'); end"""
        )
    with pytest.raises(sqlite3.IntegrityError, match="no room"):
        list(queued.next_prompt(ann))
    assert queued.view(ann).phase == "idle" and queued.store.one("select count(*) as n from duel")["n"] == 0
    with queued.store.writing() as db:
        db.execute("drop trigger fails")
    assert last(queued.next_prompt(ann)).queued


def test_skipping_ends_the_replies_and_shows_an_empty_chat_without_the_queues_settings(queued):
    slow(queued)
    ann = person(queued)
    views = queued.next_prompt(ann)
    next(views)
    writer = threading.Thread(target=lambda: list(views))
    writer.start()
    assert queued.skip_prompt(ann, "unclear").phase == "idle"
    writer.join()
    assert queued.store.conversation(ann)["system_prompt"] is None
    assert last(queued.next_prompt(ann)).message == "Second prompt"
    with pytest.raises(Refused, match="pick one of the reasons"):
        queued.skip_prompt(ann, "x" * 1000)


def test_a_prompt_that_does_not_fit_the_model_is_passed_over(queued):
    ann = person(queued)
    for _ in range(2):
        view = last(queued.next_prompt(ann))
        queued.vote(ann, view.duel, "a")
    with pytest.raises(Refused, match="No prompt of the queue is free"):
        list(queued.next_prompt(ann))
    assert queued.store.skipped_prompts(5) == [{"place": 3, "state": "open", "reasons": ["unfit"]}]


def test_replies_that_are_the_same_are_no_judgement(queued):
    ann = person(queued)
    view = last(queued.next_prompt(ann))
    with queued.store.writing() as db:
        db.execute("update duel set same = 1 where id = ?", [view.duel])
    assert last(queued.next_prompt(ann)).message == "Second prompt"


def test_who_may_only_look_takes_and_skips_nothing(queued):
    queued.may_write = lambda annotator: False
    for gesture in (lambda: list(queued.next_prompt(person(queued))), lambda: queued.skip_prompt(1, "unclear")):
        with pytest.raises(Refused, match="You may look"):
            gesture()
    assert not queued.queue(person(queued), queued.store.queue_progress()).free


# -- the owner's file


def settings_for(path, **queue):
    return Settings(queue={"prompts": str(path), **queue}, _env_file=None)


def prompts_of(store):
    rows = store.rows("select messages, twice from queued_prompt where place is not null order by place")
    return [(json.loads(row["messages"])[-1]["content"], row["twice"]) for row in rows]


def test_a_text_file_has_a_prompt_a_line_and_a_share_of_them_is_for_two(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# mine\n\n" + "".join(f"Prompt {n}  \n" for n in range(10)) + "Prompt 3\n")
    store = Store()
    queueing.fill(store, settings_for(file))
    assert [text for text, _ in prompts_of(store)] == [f"Prompt {n}" for n in range(10)]
    assert [twice for _, twice in prompts_of(store)] == [0, 0, 0, 0, 1] * 2
    queueing.fill(store, settings_for(file, overlap=0))
    assert not any(twice for _, twice in prompts_of(store))


def test_rows_of_known_datasets_are_prompts_and_bad_ones_are_named(tmp_path, caplog):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "One?", "chosen": "a", "rejected": "b"},
        {"instruction": "Two?", "input": "of these", "output": "c"},
        {"messages": [{"role": "system", "content": "Be brief."}, *said("Three?")]},
        {"nothing": 1},
        {"prompt": "x" * 5000},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store()
    queueing.fill(store, settings_for(file))
    assert [text for text, _ in prompts_of(store)] == ["One?", "Two?\n\nof these", "Three?"]
    assert "row 4 is left out" in caplog.text and "row 5 is left out" in caplog.text and "xxx" not in caplog.text


def test_what_was_imported_can_be_the_queue(tmp_path):
    store = Store()
    store.add_imported("mine", [ImportedRow("h", "prompt", 1.0, {"messages": said("Imported?")})])
    store.add_imported("other", [ImportedRow("i", "prompt", 1.0, {"messages": said("Another?")})])
    queueing.fill(store, settings_for("import:mine"))
    assert [text for text, _ in prompts_of(store)] == ["Imported?"]


@pytest.mark.parametrize(("name", "why"), [("none.jsonl", "no such file"), ("a.doc", "ends in none")])
def test_a_file_that_cannot_be_read_ends_the_start(tmp_path, name, why):
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(SettingsError, match=f"--queue.prompts: .*{why}"):
        queueing.check(settings_for(tmp_path / name))


def test_a_file_without_a_prompt_ends_the_start_and_loses_nothing(tmp_path):
    store = listed("one")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for path in (tmp_path / "empty.txt", "import:nothing"):
        with pytest.raises(SettingsError, match="there is no prompt in"):
            queueing.fill(store, settings_for(path))
    assert store.queue_progress()["total"] == 1


def test_without_a_file_there_is_no_queue_any_more():
    store = listed("one")
    queueing.fill(store, Settings(_env_file=None))
    assert store.queue_progress()["total"] == 0 and take(store, "ann") is None


# -- on the page


class Request(test_control.Request):
    """One that streams."""

    request = None
    query_params: dict = {}


@pytest.fixture
def tab(queued):
    with gr.Blocks():
        return ChatTab(queued.store, queued.engine, queued, Notice())


def streamed(updates):
    async def read():
        return [update async for update in updates]

    return asyncio.run(read())


def test_enter_in_an_empty_box_takes_the_next_prompt_and_the_button_does_too(tab):
    first = streamed(tab.on_send("  ", None, Request()))
    assert first[0][tab.panel.snapshot].duel == first[-1][tab.panel.snapshot].duel
    assert tab.chat.view(tab.annotator(Request())).message == "First prompt"
    assert first[-1][tab.panel.queue.skips["unclear"]]["visible"] is True
    [refused] = streamed(tab.on_next_prompt(None, Request()))
    assert "Pick a reply first" in refused[tab.notice.html]
    snapshot = first[-1][tab.panel.snapshot]
    voted = tab.vote_handler("a")(snapshot, Request())
    assert voted[tab.panel.queue.skips["unclear"]]["visible"] == "hidden"
    streamed(tab.on_next_prompt(voted[tab.panel.snapshot], Request()))
    assert tab.chat.view(tab.annotator(Request())).message == "Second prompt"


def test_a_reason_skips_the_prompt_and_leaves_an_empty_chat(tab):
    snapshot = streamed(tab.on_next_prompt(None, Request()))[-1][tab.panel.snapshot]
    skipped = tab.skip_handler("unclear")(snapshot, Request())
    assert "Skipped." in skipped[tab.notice.html] and 'role="status"' in skipped[tab.notice.html]
    assert "idle" in skipped[tab.panel.hint] and skipped[tab.panel.queue.skips["unclear"]]["visible"] == "hidden"
    again = tab.skip_handler("unclear")(skipped[tab.panel.snapshot], Request())
    assert "no prompt of the queue to skip" in again[tab.notice.html]


def test_the_row_says_how_far_the_queue_is(tab):
    panel, ann = tab.panel.queue, tab.annotator(Request())
    seen = panel.progress_updates(tab.chat.queue(ann, tab.store.queue_progress()), Words())
    assert seen[panel.next]["value"] == "Next prompt (0 of 3)" and seen[panel.next]["interactive"]
    assert "0 of 1 judged twice" in seen[panel.progress]
    chinese = progress_html(QueueView(total=3, judged=3, twice=1, judged_twice=1, free=False), Words("zh-CN"))
    assert "所有题目都评完了" in chinese and "width:100.0%" in chinese
    others = progress_html(QueueView(total=3, judged=2, twice=1, judged_twice=1, free=False), Words())
    assert "No prompt is free for you now" in others


def test_the_command_says_how_far_the_queue_is_and_offers_skipped_prompts_again(tmp_path, capsys):
    store = listed("one", "two", store=Store(tmp_path / "nudge.db"))
    for name in ("ann", "bob", "cy"):
        take(store, name)
        store.skip_prompt(store.annotator(name), "unclear")
    assert main(["queue", "--data-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Judged: 0 of 2" in out and "prompt 1: unclear (3); set aside" in out
    assert main(["queue", "--reopen", "--data-dir", str(tmp_path)]) == 0
    assert "1 prompt offered once more" in capsys.readouterr().out and take(store, "dan") == ("one", False)


def test_an_export_has_both_votes_on_a_pair():
    store = listed("one", twice=("one",))
    take(store, "ann")
    judge(store, "ann", "a")
    take(store, "bob")
    second = show_again(store, "bob")
    store.vote(second["id"], store.annotator("bob"), "a", second["left"]["message"])
    rows, _ = store.judged_page(Filters(), None, 10)
    assert [(row["left"], row["right"], row["choice"]) for row in rows] == [
        ("right", "left", "a"),
        ("left", "right", "a"),
    ]


def test_many_who_take_at_once_never_get_the_same_prompt(tmp_path):
    store = listed(*(f"prompt {n}" for n in range(24)), store=Store(tmp_path / "nudge.db"))
    got = []

    def work(name):
        for _ in range(3):
            got.append(take(store, name)[0])
            judge(store, name)

    threads = [threading.Thread(target=work, args=(f"person {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 24 == len(set(got)) and store.queue_progress()["judged"] == 24
