"""The fold "Your data" of the sidebar: what is kept of a person, the leave to train on it, and the way to have it all
deleted.
"""

from html import escape

import gradio as gr

from playground.ui import words
from playground.ui.notice import GESTURE
from playground.ui.strip import name

# asks once more; the deletion is a request of its own, since only its answer can change the cookie
FORGET = "() => { window.nudge.forget(); }"


class YourData:
    """Made inside the current Blocks, in the sidebar."""

    def __init__(self, store, chat):
        self.store, self.chat = store, chat
        with gr.Accordion(words.label("Your data"), open=False, elem_id="your-data"):
            self.text = gr.HTML(elem_id="your-data-text", padding=False)
            self.no_training = gr.Checkbox(
                label=words.label("Don't train on my chats"), elem_id="no-training", container=False
            )
            self.forget = gr.Button(words.label("Delete all my data"), size="sm", variant="stop", elem_id="forget")

    @property
    def outputs(self):
        return [self.text, self.no_training]

    def wire(self, annotator, notice):
        """`annotator` tells who asks."""

        def on_switch(refused, request: gr.Request):
            """Training on this person's chats: not from now on, or again."""
            who, w = annotator(request), words.of(request)
            self.chat.allow_training(who, not refused)
            said = (
                w("Kept: no round that begins from now on learns from your chats.")
                if refused
                else w("Kept: the next round learns from your chats again.")
            )
            return {**self.paint(who, w), **notice.say(said)}

        self.no_training.input(
            on_switch, [self.no_training], [*self.outputs, notice.html], trigger_mode="always_last", **GESTURE
        )
        self.forget.click(None, None, None, js=FORGET)

    def paint(self, annotator, w):
        """The fold as it is for one person."""
        kept = w(
            "Your chats, votes and comments are kept on this server, and your votes train the model. A chat that you "
            "delete leaves every file."
        )
        learned = learned_from(self.store.learned_versions(annotator), w)
        html = "".join(f"<p>{escape(text)}</p>" for text in (kept, learned) if text)
        return {self.text: html, self.no_training: not self.store.person(annotator)["allow_training"]}


def learned_from(versions, w):
    """Which versions have learned from somebody's chats, and that this stays; empty where none has."""
    if not versions:
        return ""
    listed = ", ".join(name(version, w) for version in versions)
    return w("Versions that learned from them: {what}. What a version has learned stays in it.", what=listed)
