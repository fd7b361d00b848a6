"""The whole page: the brand, the status bar, the sidebar and the tabs. What a tab shows is in its own module."""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from playground.backup import Backup
from playground.chat.session import Chat
from playground.people.admins import Admins
from playground.serving.engine import Engine
from playground.serving.gpu_slices import GPUSlices
from playground.settings import Settings
from playground.store import Store
from playground.ui import account, guidelines, refresh, words
from playground.ui.chat import ChatTab
from playground.ui.control import Control
from playground.ui.data import DataTab
from playground.ui.handlers import Trigger
from playground.ui.notice import Notice
from playground.ui.rounds import TrainingTab
from playground.ui.sidebar import Sidebar
from playground.ui.status_bar import StatusBar
from playground.ui.versions import VersionsTab
from playground.ui.votes import VotesTab
from playground.ui.watch import WatchTab

ASSETS = Path(__file__).resolve().parents[2] / "assets"
STYLES = [ASSETS / name for name in ("style.css", "training.css", "versions.css", "data.css")]
FIRST_SCRIPT = (ASSETS / "first.js").read_text()
HEAD = "".join(f"<script>{(ASSETS / name).read_text()}</script>" for name in ("requests.js", "page.js"))
WORDMARK = f'<h1 class="brand">{(ASSETS / "wordmark.svg").read_text()}</h1>'


def build(
    settings: Settings,
    store: Store,
    engine: Engine,
    chat: Chat,
    backup: Backup | None = None,
    slices: GPUSlices | None = None,
) -> tuple[gr.Blocks, StatusBar]:
    """The Gradio Blocks of the page, and its status bar, which knows what has changed. All visitors share them, so they
    hold nothing of a visitor. `slices`: what trains the rounds that an admin starts, on a ZeroGPU Space.
    """
    with gr.Blocks(title="Nudge", analytics_enabled=False, fill_width=True) as page:
        notice = Notice()
        sidebar = Sidebar(settings, store, chat, notice)
        with gr.Row(elem_id="top", equal_height=True):
            gr.HTML(WORDMARK, elem_id="brand", padding=False)
            status_bar = StatusBar(settings, store, engine, backup)
            who = account.WhoIsSignedIn() if settings.everybody_signs_in else None
        status_bar.wire(page)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab(words.label("Chat"), id="chat", elem_id="tab-chat") as tab:
                guidelines.build(settings.people.guidelines)
                chat_tab = ChatTab(store, engine, chat, notice)
                finished_turn = chat_tab.wire(page, refresh_events(tab), lambda: status_bar.status().queue)
                sidebar.wire(page, chat_tab, finished_turn)
            with gr.Tab(words.label("My votes"), id="votes", elem_id="tab-votes") as tab:
                votes_tab = VotesTab(store)
                votes_tab.wire(refresh_events(tab))
            with gr.Tab(words.label("Training"), id="training", elem_id="tab-training") as tab:
                control = Control(settings, store, Admins(settings, store), status_bar, notice, slices)
                training_tab = TrainingTab(settings, store, status_bar, control)
                events = refresh_events(tab)
                training_tab.wire(events)
                control.wire(page, events)
                if who:
                    who.wire(page, control)
                if control.admins.users:
                    account.Invitations(control, notice).wire(page)
            with gr.Tab(words.label("Versions"), id="versions", elem_id="tab-versions") as tab:
                versions_tab = VersionsTab(settings, store, chat, status_bar, control, notice)
                versions_tab.wire(refresh_events(tab))
            with gr.Tab(words.label("Data"), id="data", elem_id="tab-data") as tab:
                data_tab = DataTab(store, chat, status_bar, control, notice)
                data_tab.wire(tab.select)
            with gr.Tab(words.label("Watch"), id="watch", elem_id="tab-watch") as tab:
                watch_tab = WatchTab(store, status_bar)
                watch_tab.wire(refresh_events(tab))
    notice.guard(page)
    return page, status_bar


def refresh_events(tab: gr.Tab) -> Sequence[Trigger]:
    """The events at which a tab is brought up to date: it is opened, and something has changed while it is open. The
    button is inside the tab, where the page looks whether the tab is open.
    """
    return [tab.select, refresh.button(str(tab.id)).click]
