"""What the page says once and then takes away: why a gesture was refused, or that something was kept.

Gradio's toasts come through the queue, whose stream in the browser loses the result of an event that begins just as
another one ends (measured on 6.31: a vote in eight, cast the moment both replies were complete, was recorded and never
shown). So gestures go by the queue only where they stream, and what they say is a part of their answer.
"""

import inspect
import itertools
from contextlib import aclosing
from functools import wraps
from html import escape

import gradio as gr

from playground.store import StoreError
from playground.ui import words
from playground.ui.text import visible

GESTURE = {"api_visibility": "private", "show_progress": "hidden", "queue": False}  # how every listener is attached
STREAM = {
    **GESTURE,
    "queue": True,
    "concurrency_limit": None,
}  # one that yields; who has to wait is told by `session.Chat`, so all start at once


def seen(shown):
    """`visible` of a component that comes and goes at each turn: it stays in the page, since making it anew takes
    longer than what it shows.
    """
    return True if shown else "hidden"


class Notice:
    """Made once, inside the page's Blocks; `warn` and `say` are the updates to return."""

    def __init__(self):
        self.html = gr.HTML(elem_id="notice", padding=False)
        # in each notice: at a new number assets/page.js puts a new element in its place, which is seen and read out
        # even where the words are the same
        self._number = itertools.count()

    def warn(self, text, title=""):
        return self._update("warning", "alert", text, title)

    def say(self, text):
        return self._update("kept", "status", text, "")

    def guard(self, page):
        """Every handler of the page says so when the store cannot answer it, and leaves all else on the page as it is,
        so that the gesture can be made again. One that a timer calls is silent: the next tick asks again. To be called
        once all handlers are attached."""
        for handler in page.fns.values():
            if handler.fn is None:  # the browser's own
                continue
            if any(event == "tick" for _, event in handler.targets):
                handler.fn = _silent(handler.fn)
            elif self.html in handler.outputs:
                handler.fn = self._saying(handler.fn)
            else:
                handler.fn = self._saying(_with_one_more(handler.fn, len(handler.outputs)))
                handler.outputs = [*handler.outputs, self.html]

    def _saying(self, fn):
        """`fn`, a handler that has the notice among its outputs, which warns when the store cannot answer."""

        def warning(error, arguments):
            request = next((a for a in arguments if isinstance(a, gr.Request)), None)
            return self.warn(words.of(request).message(error.message))

        @wraps(fn)
        def handle(*arguments):
            try:
                return fn(*arguments)
            except StoreError as error:
                return warning(error, arguments)

        @wraps(fn)
        def stream(*arguments):
            try:
                yield from fn(*arguments)
            except StoreError as error:
                yield warning(error, arguments)

        @wraps(fn)
        async def lane(*arguments):
            try:
                async with aclosing(fn(*arguments)) as updates:
                    async for update in updates:
                        yield update
            except StoreError as error:
                yield warning(error, arguments)

        if inspect.isasyncgenfunction(fn):
            return lane
        return stream if inspect.isgeneratorfunction(fn) else handle

    def _update(self, kind, role, text, title):
        head = f"<b>{escape(title)}</b> " if title else ""
        return {
            self.html: f'<div class="notice {kind}" role="{role}" '
            f'data-number="{next(self._number)}">{head}{escape(visible(text))}</div>'
        }


def _silent(fn):
    """A timer's handler, which changes nothing when the store cannot answer."""

    @wraps(fn)
    def handle(*arguments):
        try:
            return fn(*arguments)
        except StoreError:
            return gr.skip()

    return handle


def _with_one_more(fn, outputs):
    """`fn`, a handler that returns values for so many outputs, with one more output that it leaves as it is."""

    @wraps(fn)
    def handle(*arguments):
        found = fn(*arguments)
        if outputs == 0:
            return gr.skip()
        if isinstance(found, dict):  # by component, or a skip of all
            return found
        return (*((found,) if outputs == 1 else found), gr.skip())

    streams = inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)
    assert not streams, f"{fn.__name__} streams: give it the notice as an output"
    return handle
