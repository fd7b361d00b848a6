"""What a person says of one reply in a pane: thumbs, and edits, which become demonstrations."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.chat.views import View
from playground.models.prompts import BadMessage
from playground.ui import words
from playground.ui.chat_panel import ChatPanel
from playground.ui.handlers import GESTURE, Updates
from playground.ui.panes import pane_messages
from playground.ui.snapshot import PageSnapshot
from playground.ui.text import original


class ReplyGestures:
    """The handlers of both panes. `annotator` gives the id of the person who sent a request; `check_current` gives the
    View as it is now, or raises Refused where the page shows another one.
    """

    def __init__(
        self,
        chat: Chat,
        panel: ChatPanel,
        annotator: Callable[[gr.Request], int],
        check_current: Callable[[int, PageSnapshot | None], View],
    ) -> None:
        self.chat = chat
        self.panel = panel
        self.notice = panel.notice
        self.annotator = annotator
        self.check_current = check_current

    def wire(self) -> None:
        snapshot = self.panel.snapshot
        for side, pane in self.panel.panes.items():
            pane_outputs = [pane.chatbot, pane.badge, self.notice.html]
            pane.chatbot.like(self.thumb_handler(side), [snapshot], pane_outputs, **GESTURE)
            pane.chatbot.edit(self.edit_handler(side), [snapshot], self.panel.outputs, **GESTURE)

    def thumb_handler(self, side: str) -> Callable[..., Updates]:
        """The handler of one pane's thumbs."""

        def on_thumb(snapshot: PageSnapshot | None, data: gr.LikeData, request: gr.Request) -> Updates:
            """A thumb on one reply, or its withdrawal."""
            annotator = self.annotator(request)
            translate = words.of(request)
            try:
                self.chat.rate(annotator, self._reply_id(annotator, snapshot, side, data.index), _thumb(data.liked))
                return gr.skip()
            except Refused as error:
                updates = self.panel.panes[side].updates(self.chat.view(annotator), translate)
                return {**updates, **self.notice.warn(translate.message(error.message), translate("Not recorded"))}

        return on_thumb

    def edit_handler(self, side: str) -> Callable[..., Updates]:
        """The handler of one pane's edited messages."""

        def on_edit(snapshot: PageSnapshot | None, data: gr.EditData, request: gr.Request) -> Updates:
            """An edited reply: it is kept as a demonstration, and the conversation goes on with it."""
            annotator = self.annotator(request)
            translate = words.of(request)
            try:
                reply = self._reply_id(annotator, snapshot, side, data.index)
                view = self.chat.edit(annotator, reply, original(data.value))
                notice = self.notice.confirm(translate("Kept: the next version learns from your wording too."))
            except (BadMessage, Refused) as error:
                notice = self.notice.warn(translate.message(error.message), translate("Edit not kept"))
                view = self.chat.view(annotator)
            return {**self.panel.updates(view, translate, snapshot), **notice}

        return on_edit

    def _reply_id(self, annotator: int, snapshot: PageSnapshot | None, side: str, index: Any) -> int:
        """The store's id of the reply at an index of a pane, as the browser sent it. Refused where the page is behind,
        or where there is no reply.
        """
        view = self.check_current(annotator, snapshot)
        if isinstance(index, (list, tuple)):
            index = index[0]
        if snapshot is None or view.phase == "streaming":
            raise Refused("This page is behind. It shows the chat anew; try again.")
        messages = pane_messages(view, side)
        reply = messages[index].id if isinstance(index, int) and 0 <= index < len(messages) else None
        if reply is None:
            raise Refused("Only replies can be judged or edited. To change your own message, undo the turn.")
        return reply


def _thumb(liked: bool | str) -> int | None:
    """1 for a thumb up, -1 for a thumb down, None where a thumb was taken back: Gradio then sends a string."""
    if isinstance(liked, str):
        return None
    return {True: 1, False: -1}.get(liked)
