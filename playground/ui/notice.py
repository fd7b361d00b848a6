"""What the page says once and then takes away: why a gesture was refused, or that something was kept.

Gradio's toasts come through the queue, whose stream in the browser loses the result of an event that begins just as another one ends (measured on 6.31:
a vote in eight, cast the moment both replies were complete, was recorded and never shown). So gestures go by the queue only where they stream, and what
they say is a part of their answer.
"""

import itertools
from html import escape

import gradio as gr

GESTURE = {"api_visibility": "private", "show_progress": "hidden", "queue": False}  # how every listener is attached
STREAM = {**GESTURE, "queue": True, "concurrency_limit": None}  # one that yields; who has to wait is told by `session.Chat`, so all start at once


def seen(shown):
    """`visible` of a component that comes and goes at each turn: it stays in the page, since making it anew takes longer than what it shows."""
    return True if shown else "hidden"


class Notice:
    """Made once, inside the page's Blocks; `warn` and `say` are the updates to return."""

    def __init__(self):
        self.html = gr.HTML(elem_id="notice", padding=False)
        self._number = itertools.count()  # in each notice, so that the same words twice are shown twice

    def warn(self, text, title=""):
        return self._update("warning", "alert", text, title)

    def say(self, text):
        return self._update("kept", "status", text, "")

    def _update(self, kind, role, text, title):
        head = f"<b>{escape(title)}</b> " if title else ""
        return {self.html: f'<div class="notice {kind}" role="{role}" data-number="{next(self._number)}">{head}{escape(text)}</div>'}
