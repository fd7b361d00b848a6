"""The owner's guidelines for people who vote, in a fold above the chat, as safe HTML."""

import gradio as gr

from playground.people import guidelines
from playground.ui import words
from playground.ui.text import as_markdown


def build(path: str) -> None:
    """Add the fold inside the current Blocks, where there is a file. Read once: a change needs a restart."""
    text = guidelines.read(path)
    if text:
        with gr.Accordion(words.label("Guidelines"), open=False, elem_id="guidelines"):
            gr.HTML(as_markdown(text), elem_id="guidelines-text", padding=False)
