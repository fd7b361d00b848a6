"""The components of the chat tab, and how a `views.View` becomes their updates.

What a person does with the components is handled in `chat.py` and `reply_gestures.py`.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from html import escape

import gradio as gr
from gradio.components import Component

from playground.chat.session import Chat
from playground.chat.views import View
from playground.serving.engine import Engine
from playground.store import Store, now
from playground.ui import words
from playground.ui.handlers import Updates, visibility
from playground.ui.notice import Notice
from playground.ui.panes import SIDES, Pane
from playground.ui.queue_panel import QueuePanel
from playground.ui.reasons import Reasons
from playground.ui.snapshot import PageSnapshot
from playground.ui.status_bar import version_name
from playground.ui.words import Words

CHOICES = {
    "a": words.mark("A better"),
    "b": words.mark("B better"),
    "tie": words.mark("Tie"),
    "both_bad": words.mark("Both bad"),
    "skip": words.mark("Skip"),
}
STARTERS = (
    words.mark("Give me three tips for a good night's sleep."),
    words.mark("Explain why the sky is blue to a child."),
    words.mark("Write a short poem about the sea."),
)
HINTS = {
    "idle": words.mark("Try one of these, or write your own."),
    "streaming": words.mark("Vote as soon as you know, or let both replies end."),
    "voting": words.mark("Which reply is better?"),
    "voted": words.mark("Thanks! You can still change your vote."),
    "shared": words.mark("A shared chat, to read."),
    "same": words.mark("Both gave the same answer."),
}
PICK_GOES_ON = words.mark("Thanks! The reply that you picked goes on to its end.")
ONE_GOES_ON = words.mark("Thanks! One reply, by chance, is written to its end; the chat goes on from it.")
POLL_SECONDS = 0.3  # between two updates of replies that this page does not stream itself


class ChatPanel:
    """The tab's components, made inside the current Blocks."""

    def __init__(self, store: Store, engine: Engine, chat: Chat, notice: Notice) -> None:
        self.engine = engine
        self.notice = notice
        self.snapshot = gr.State(None)  # PageSnapshot, or None where nobody knows what the page shows
        self.poll = gr.Timer(POLL_SECONDS, active=False)
        with gr.Row(elem_id="panes", equal_height=True):
            self.panes = {side: Pane(side) for side in SIDES}
        with gr.Row(elem_id="actions"):
            with gr.Column(elem_id="hints", min_width=0):
                self.hint = gr.HTML(elem_id="hint", padding=False)
                fate = gr.HTML(elem_id="fate", padding=False)
            self.starters = [gr.Button(words.label(text), size="sm", elem_classes="starter") for text in STARTERS]
            self.votes = {choice: self._vote_button(choice, text) for choice, text in CHOICES.items()}
        self.reasons = Reasons(store, chat, notice, fate)
        self.queue = QueuePanel(chat) if chat.has_queue else None
        with gr.Row(elem_id="composer", equal_height=True):
            self.new = gr.Button(words.label("New chat"), elem_id="new-chat", scale=0, min_width=100)
            self.message = gr.Textbox(
                placeholder=words.label("Write a message…"),
                label=words.label("Message"),
                lines=1,
                max_lines=6,
                show_label=False,
                container=False,
                elem_id="message",
                scale=1,
            )
            self.send = gr.Button(words.label("Send"), variant="primary", elem_id="send", scale=0, min_width=100)
            self.stop = gr.Button(
                words.label("Stop"), variant="stop", elem_id="stop", scale=0, min_width=100, visible="hidden"
            )
        with gr.Row(elem_id="tools"):
            self.regenerate = gr.Button(words.label("↻ Regenerate"), size="sm", elem_id="regenerate", visible="hidden")
            self.undo = gr.Button(words.label("↩ Undo"), size="sm", elem_id="undo", visible="hidden")
            self.earlier_pair = gr.Button("‹", size="sm", elem_id="pair-before", visible="hidden")
            self.pair_place = gr.HTML(elem_id="pair-place", padding=False)
            self.later_pair = gr.Button("›", size="sm", elem_id="pair-after", visible="hidden")
            self.swap_note = gr.HTML(elem_id="swap", padding=False)
            # the page itself presses this button when somebody looks at it again
            self.catch_up = gr.Button(visible="hidden", elem_id="catch-up")
            # and this one when Gradio has closed its stream of results too early: see assets/requests.js
            self.reopen_stream = gr.Button(visible="hidden", elem_id="reopen-stream")

    @staticmethod
    def _vote_button(choice: str, text: str) -> gr.Button:
        return gr.Button(
            words.label(text),
            size="sm",
            visible="hidden",
            elem_id=f"vote-{choice.replace('_', '-')}",
            elem_classes="vote",
        )

    @property
    def outputs(self) -> Sequence[Component]:
        """Every component that `updates` updates, and the notice."""
        return [
            self.snapshot,
            self.poll,
            self.hint,
            *(component for pane in self.panes.values() for component in (pane.chatbot, pane.badge)),
            *self.starters,
            *self.votes.values(),
            *self.reasons.outputs,
            self.new,
            self.message,
            self.send,
            self.stop,
            self.regenerate,
            self.undo,
            self.earlier_pair,
            self.pair_place,
            self.later_pair,
            self.swap_note,
            self.notice.html,
            *(self.queue.outputs if self.queue else ()),
        ]

    # -- a View as updates

    def updates(self, view: View, translate: Words, snapshot: PageSnapshot | None = None) -> Updates:
        """Every component as `view` has it. `snapshot` is what the page showed before: where it is the same pair, the
        time since it was shown goes on.
        """
        streaming = view.phase == "streaming"
        read_only = view.phase == "shared"
        writing = is_writing(view)
        updates: Updates = {
            **self.pane_updates(view, translate),
            self.hint: hint_html(view, translate),
            self.swap_note: "",
            self.send: gr.update(visible=visibility(not writing and not read_only)),
            self.stop: gr.update(visible=visibility(writing)),
            self.new: gr.update(interactive=view.started and not streaming, visible=not read_only),
            self.message: gr.update(visible=not read_only),
            self.regenerate: gr.update(visible=visibility(view.phase in ("voting", "voted", "same") and not writing)),
            self.undo: gr.update(visible=visibility(view.started and not writing and not read_only)),
            **self._pair_updates(view, translate),
            **self.reasons.updates(view, translate),
        }
        if not streaming:
            for pane in self.panes.values():
                updates |= pane.updates(view, translate)
        for button in self.starters:
            updates[button] = gr.update(visible=visibility(not view.started))
        updates |= self._vote_updates(view)
        if self.queue:
            updates |= self.queue.updates(view)
        updates[self.snapshot] = None if read_only else self._new_snapshot(view, snapshot, updates)
        return updates

    def changed_updates(self, view: View, translate: Words, snapshot: PageSnapshot | None) -> Updates:
        """Those of `updates` that the page does not have yet; and always those of components that also change without
        `updates`, by the person's own hand or by a tick.
        """
        painted = snapshot.painted if snapshot else {}
        always = {self.snapshot, self.swap_note, *self.reasons.outputs}
        return {
            component: update
            for component, update in self.updates(view, translate, snapshot).items()
            if component in always or painted.get(component._id) != update
        }

    def updates_while_streaming(self, view: View, previous: View, translate: Words) -> Updates:
        """`updates` in the middle of a stream. The reasons are left out where they were there before, since the person
        may be typing in them.
        """
        updates = self.updates(view, translate)
        if previous.phase == view.phase == "voted":
            for component in self.reasons.outputs:
                del updates[component]
        return updates

    def pane_updates(self, view: View, translate: Words) -> Updates:
        """The panes alone, for each token of a stream; and the hint where it says why there is nothing to see yet."""
        updates: Updates = {}
        for pane in self.panes.values():
            updates |= pane.stream_updates(view, translate)
        if view.progress is not None:
            updates[self.hint] = hint_html(view, translate)
        return updates

    def swap_update(self, snapshot: PageSnapshot, translate: Words) -> Updates:
        """A note where another version answers by now."""
        version = self.engine.live.version
        if version == snapshot.live_version:
            return {self.swap_note: ""}
        text = translate("now answering: {version}", version=version_name(version, translate))
        return {self.swap_note: f'<span role="status">{escape(text)}</span>'}

    def _pair_updates(self, view: View, translate: Words) -> Updates:
        """The buttons that turn over to another pair of replies to the same message."""
        several = len(view.pairs) > 1 and not is_writing(view)
        index = view.pairs.index(view.duel) if view.duel in view.pairs else 0
        place = translate("pair {n} of {total}", n=index + 1, total=len(view.pairs)) if several else ""
        return {
            self.earlier_pair: gr.update(visible=visibility(several), interactive=index > 0),
            self.later_pair: gr.update(visible=visibility(several), interactive=index + 1 < len(view.pairs)),
            self.pair_place: place,
        }

    def _vote_updates(self, view: View) -> Updates:
        can_vote = view.phase in ("voting", "voted")
        if view.phase == "streaming":
            can_vote = not view.progress
        updates: Updates = {}
        for choice, button in self.votes.items():
            picked = view.choice == choice
            updates[button] = gr.update(
                visible=visibility(can_vote),
                interactive=not picked,
                elem_classes=["vote", "picked"] if picked else ["vote"],
            )
        return updates

    def _new_snapshot(self, view: View, snapshot: PageSnapshot | None, updates: Updates) -> PageSnapshot:
        pair = (view.conversation, view.duel)
        if snapshot is None or view.phase == "streaming" or (snapshot.conversation, snapshot.duel) != pair:
            snapshot = PageSnapshot(view.conversation, view.duel, self.engine.live.version, now(), time.monotonic())
        painted = {component._id: update for component, update in updates.items()}
        return replace(snapshot, vote=view.vote, painted=painted)


def is_writing(view: View) -> bool:
    """Whether a reply of the pair on screen is still being written."""
    return view.phase == "streaming" or view.writing is not None


def hint_html(view: View, translate: Words) -> str:
    """The line above the vote buttons: what the person can do now."""
    if view.writing:
        text = translate(PICK_GOES_ON) if view.choice in SIDES else translate(ONE_GOES_ON)
    elif view.progress:
        text = translate.message(view.progress)
    else:
        text = translate(HINTS[view.phase])
    link = ""
    if view.phase == "shared":
        link = f' <a href="?">{escape(translate("Start a chat of your own"))}</a>'
    return f'<span class="{view.phase}">{escape(text)}{link}</span>'
