"""The whole page: the name, the live training strip, and the tabs. What is on a tab is its own module's."""

import gradio as gr

from playground.ui.chat import ChatTab
from playground.ui.training import Strip, TrainingTab

HEADER = """<div class="brand"><span class="dot"></span><b>Nudge</b><span class="tagline">Every pick trains the next version of this model.</span></div>"""


def build(settings, store, engine, chat):
    """The Gradio Blocks of the page; nothing of a visitor is held in them."""
    with gr.Blocks(title="Nudge", analytics_enabled=False, fill_width=True) as page:
        with gr.Row(elem_id="top", equal_height=True):
            gr.HTML(HEADER, elem_id="brand", padding=False)
            strip = Strip()
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat", elem_id="tab-chat"):
                ChatTab(store, chat).wire(page)
            with gr.Tab("Training", id="training", elem_id="tab-training"):
                TrainingTab(settings, store, engine, strip).wire(page)
    return page
