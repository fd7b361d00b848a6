"""The whole page: the name, the live training strip, the sidebar and the tabs. What is on a tab is its own module's."""

from pathlib import Path

import gradio as gr

from playground.people.admins import Admins
from playground.ui import words
from playground.ui.chat import ChatTab
from playground.ui.chats import Sidebar
from playground.ui.control import Control
from playground.ui.notice import Notice
from playground.ui.rounds import TrainingTab
from playground.ui.strip import TICK, Strip
from playground.ui.votes import VotesTab
from playground.ui.watch import WatchTab

ASSETS = Path(__file__).resolve().parents[2] / "assets"
STYLES = [ASSETS / "style.css", ASSETS / "training.css"]
HEAD = f"<script>{(ASSETS / 'page.js').read_text()}</script>"
WORDMARK = f'<h1 class="brand">{(ASSETS / "wordmark.svg").read_text()}</h1>'


def build(settings, store, engine, chat):
    """The Gradio Blocks of the page; nothing of a visitor is held in them."""
    with gr.Blocks(title="Nudge", analytics_enabled=False, fill_width=True) as page:
        notice = Notice()
        sidebar = Sidebar(settings, store, chat, notice)
        with gr.Row(elem_id="top", equal_height=True):
            gr.HTML(WORDMARK, elem_id="brand", padding=False)
            strip = Strip(settings, store, engine)
        strip.wire(page)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab(words.label("Chat"), id="chat", elem_id="tab-chat") as tab:
                chat_tab = ChatTab(store, engine, chat, notice)
                sidebar.wire(page, chat_tab, chat_tab.wire(page, looked_at(tab)))
            with gr.Tab(words.label("My votes"), id="votes", elem_id="tab-votes") as tab:
                VotesTab(store).wire(looked_at(tab))
            with gr.Tab(words.label("Training"), id="training", elem_id="tab-training") as tab:
                control = Control(settings, store, Admins(settings, store), strip, notice)
                TrainingTab(settings, store, strip, control).wire(moments := looked_at(tab))
                control.wire(page, moments)
            with gr.Tab(words.label("Watch"), id="watch", elem_id="tab-watch") as tab:
                WatchTab(store, strip).wire(looked_at(tab))
    notice.guard(page)
    return page


def looked_at(tab):
    """The events at which a tab is painted: it is opened, and every moment while it is open. A timer in a tab stands
    still while the tab is hidden.
    """
    return [tab.select, gr.Timer(TICK).tick]
