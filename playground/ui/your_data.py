"""The fold "Your data" of the sidebar: what is kept of a person, whether rounds may learn from it, and the button that
deletes all of it.
"""

from collections.abc import Callable, Sequence
from html import escape

import gradio as gr
from gradio.components import Component

from playground.chat.session import Chat
from playground.store import Store
from playground.ui import words
from playground.ui.handlers import LATEST_GESTURE, Updates
from playground.ui.notice import Notice
from playground.ui.status_bar import version_name
from playground.ui.words import Words

# asks the person once more; the deletion is a request of its own, since only its answer can change the cookie
FORGET = "() => { window.nudge.forget(); }"


class YourData:
    """Made inside the current Blocks, in the sidebar."""

    def __init__(self, store: Store, chat: Chat, has_backup: bool = False) -> None:
        self.has_backup = has_backup
        self.store = store
        self.chat = chat
        with gr.Accordion(words.label("Your data"), open=False, elem_id="your-data"):
            self.text = gr.HTML(elem_id="your-data-text", padding=False)
            self.no_training = gr.Checkbox(
                label=words.label("Don't train on my chats"), elem_id="no-training", container=False
            )
            self.forget = gr.Button(words.label("Delete all my data"), size="sm", variant="stop", elem_id="forget")

    @property
    def outputs(self) -> list[Component]:
        """Every component that `updates` updates."""
        return [self.text, self.no_training]

    def wire(self, annotator: Callable[[gr.Request], int], notice: Notice) -> None:
        """Attach the handlers. `annotator` gives the id of the person who sent a request."""

        def on_switch(no_training: bool, request: gr.Request) -> Updates:
            """Rounds that begin from now on do not learn from this person's chats, or learn from them again."""
            person = annotator(request)
            translate = words.of(request)
            self.chat.allow_training(person, not no_training)
            if no_training:
                text = translate("Kept: no round that begins from now on learns from your chats.")
            else:
                text = translate("Kept: the next round learns from your chats again.")
            return {**self.updates(person, translate), **notice.confirm(text)}

        self.no_training.input(on_switch, [self.no_training], [*self.outputs, notice.html], **LATEST_GESTURE)
        self.forget.click(None, None, None, js=FORGET)

    def updates(self, annotator: int, translate: Words) -> Updates:
        """The fold as it is for one person."""
        kept = translate(
            "Your chats, votes and comments are kept on this server, and your votes train the model. A chat that you "
            "delete leaves every file."
        )
        copies = ""
        if self.has_backup:
            copies = translate(
                "Copies of everything are kept elsewhere, against loss. What you delete leaves them within an hour, or "
                "as soon as this server can reach them again."
            )
        learned = learned_from(self.store.learned_versions(annotator), translate)
        html = "".join(f"<p>{escape(text)}</p>" for text in (kept, copies, learned) if text)
        person = self.store.person(annotator)
        return {self.text: html, self.no_training: person is not None and not person["allow_training"]}


def learned_from(versions: Sequence[int], translate: Words) -> str:
    """Which versions have learned from somebody's chats, and that this stays so; empty where none has."""
    if not versions:
        return ""
    names = ", ".join(version_name(version, translate) for version in versions)
    return translate("Versions that learned from them: {what}. What a version has learned stays in it.", what=names)
