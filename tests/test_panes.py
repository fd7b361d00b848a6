"""What a pane shows of a chat."""

from playground.chat.views import Side, View, read_only, stored_view
from playground.store import Store
from playground.ui.panes import badge_html, chatbot_messages
from playground.ui.text import original
from playground.ui.words import Words
from tests.stores import candidate, outcome


def html_of(store, who, side="a", language="en", change=lambda view: view):
    """The HTML of each message of a pane."""
    view = change(stored_view(store, store.conversation(who), who))
    return [message["content"][0]["text"] for message in chatbot_messages(view, side, Words(language))]


def answered(store, who, conversation, left, right):
    duel = store.start_duel(conversation, "Hello", [1, 2, 3], [candidate(1), candidate(2)])
    store.finish_duel(duel, [left, right])
    return store.duel(duel)


def test_a_reply_cut_at_the_limit_says_so_and_its_text_stays_as_it_is():
    """It looked like a reply that the model had ended so."""
    store = Store()
    who = store.annotator("who")
    chat = store.new_conversation(who)
    first = answered(store, who, chat, outcome("It goes", [1] * 192, "length"), outcome("Done.", [1, 2]))
    assert "cut at 192 tokens" in html_of(store, who)[-1] and "cut at" not in html_of(store, who, "b")[-1]
    assert "在 192 个词元处截断" in html_of(store, who, language="zh-CN")[-1]
    assert "cut at 192 tokens" in html_of(store, who, change=read_only)[-1]
    store.vote(first["id"], who, "a", first["left"]["message"])
    answered(store, who, chat, outcome("Stopped", [1] * 5, "stopped"), outcome("One", [1], "length"))
    pane = html_of(store, who, "b")
    assert "cut at 192 tokens" in pane[1], "in the history too"
    assert "cut at 1 token<" in pane[3] and "cut at" not in html_of(store, who)[3]
    assert original(pane[1]) == "It goes" == store.history(chat)[1]["text"], "what is copied, edited, and read"


def test_a_stopped_reply_says_so_until_its_end_is_written():
    """After a reload one was asked to judge two fragments that looked like the model's own ends."""
    store = Store()
    who = store.annotator("who")
    chat = store.new_conversation(who)
    row = answered(store, who, chat, outcome("It g", [1] * 4, "stopped"), outcome("Done.", [1, 2]))
    assert "stopped before its end" in html_of(store, who)[-1] and "stopped" not in html_of(store, who, "b")[-1]
    assert "未写完就停止了" in html_of(store, who, language="zh-CN", change=read_only)[-1]
    store.vote(row["id"], who, "a", row["left"]["message"])
    answered(store, who, chat, outcome("One", [1]), outcome("Two", [1]))
    assert "stopped before its end" in html_of(store, who)[1], "in the history too"
    store.demonstrate(row["left"]["message"], who, "It goes.")
    assert "stopped" not in html_of(store, who)[1]


def test_a_complete_reply_is_not_called_written_while_the_other_one_is():
    view = View("streaming", left=Side("Done.", complete=True), right=Side("It g"))
    assert "complete" in badge_html("a", view, Words()) and "writing" not in badge_html("a", view, Words())
    assert "writing…" in badge_html("b", view, Words())


def test_whoever_writes_the_end_of_a_cut_reply_takes_the_mark_away():
    store = Store()
    who = store.annotator("who")
    row = answered(store, who, store.new_conversation(who), outcome("It", [1, 2], "length"), outcome("No", [1]))
    store.vote(row["id"], who, "a", row["left"]["message"])
    store.demonstrate(row["left"]["message"], who, "It goes on.")
    assert "cut at" not in html_of(store, who)[-1]
