"""The tab of the chat: what it says after a gesture."""

import pytest

from playground.ui.chat import ChatTab
from playground.ui.notice import Notice
from playground.ui.quick_gradio import gradio as gr
from playground.ui.words import Words
from tests.chats import chat, folder, slow, turn  # noqa: F401 (fixtures)
from tests.controls import Request
from tests.test_early_votes import Streaming


@pytest.fixture
def tab(chat):  # noqa: F811
    with gr.Blocks():
        return ChatTab(chat.store, chat.engine, chat, Notice())


def voted(tab, choice="a", language="en"):
    """What the page shows after a vote: the snapshot, and the sentence below the buttons."""
    request = Request(language=language)
    view = turn(tab.chat, tab.annotator(request), choice=choice)
    updates = tab.panel.updates(view, Words(language))
    return updates[tab.panel.snapshot], updates[tab.panel.reasons.fate]


def test_a_comment_says_that_it_was_kept(tab):
    snapshot, fate = voted(tab)
    explain = tab.panel.reasons.explain_handler("comment", tab.annotator)
    fate_html = tab.panel.reasons.fate
    assert "comment kept" not in fate
    assert "comment kept" not in explain(snapshot, " ", Request())[fate_html], "the box was left empty"
    assert "comment kept" in explain(snapshot, "short is good", Request())[fate_html]
    assert "评语已保存" in explain(snapshot, "short is good", Request(language="zh-CN"))[fate_html]
    turn(tab.chat, tab.annotator(Request()), "And now?")
    assert explain(snapshot, "short is fine", Request()) == gr.skip(), "the page shows another turn"


def test_undo_says_that_a_vote_still_trains_and_where_to_take_it_back(tab):
    me = tab.annotator(Request())
    turn(tab.chat, me, choice="skip")
    assert tab.notice.html not in tab.on_undo("", None, Request()), "no round learns from it"
    turn(tab.chat, me, choice="tie")
    list(tab.chat.regenerate(me))
    assert "still counts and trains. To take it back too: tab Data" in tab.on_undo("", None, Request())[tab.notice.html]
    turn(tab.chat, me, choice="b")
    tab.store.allow_training(me, False)
    assert tab.notice.html not in tab.on_undo("", None, Request())


def test_after_an_early_vote_the_page_looks_until_the_pick_has_ended(tab):
    """The end could come before the answer to the vote, which then stayed: "writing…" under a reply that had ended."""
    slow(tab.chat, 0.03)
    early = Streaming(tab.chat, tab.annotator(Request()))
    snapshot = tab.panel.updates(early.views[-1], Words())[tab.panel.snapshot]
    updates = tab.vote_handler("a")(snapshot, Request())
    assert updates[tab.panel.poll]["active"] and "writing…" in updates[tab.panel.panes["a"].badge]
    early.end()
    updates = tab.on_poll(updates[tab.panel.snapshot], Request())
    assert not updates[tab.panel.poll]["active"] and "writing…" not in updates[tab.panel.panes["a"].badge]
    changed = tab.vote_handler("b")(updates[tab.panel.snapshot], Request())
    assert tab.panel.poll not in changed, "both have ended"
