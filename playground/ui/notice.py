"""The notice: what the page says once and then takes away, for example why a gesture was refused, or that something was
kept.

Gradio's toasts go through the queue. Its stream in the browser loses the result of an event that begins just as another
one ends (measured on 6.31: one vote in eight, cast the moment both replies were complete, was recorded and never
shown). So a gesture goes through the queue only where it streams, and its notice is a part of its answer.
"""

import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import wraps
from html import escape
from typing import Any

import gradio as gr

from playground.store import StoreError
from playground.ui import refresh, words
from playground.ui.handlers import Updates
from playground.ui.text import visible

Handler = Callable[..., Any]


class Notice:
    """Created once, inside the page's Blocks. `warn` and `confirm` return the updates that show a notice."""

    def __init__(self) -> None:
        self.html = gr.HTML(elem_id="notice", padding=False)
        # each notice has its number: at a new one assets/page.js replaces the element, so that a screen reader reads
        # the notice out even where the text is the same
        self._numbers = itertools.count()

    def warn(self, text: str, title: str = "") -> Updates:
        return self._update("warning", "alert", text, title)

    def confirm(self, text: str) -> Updates:
        return self._update("kept", "status", text, "")

    def guard(self, page: gr.Blocks) -> None:
        """Make every handler of the page warn when the store cannot answer it. The rest of the page stays as it is, so
        that the gesture can be made again. What the page does by itself gives no warning: it is tried again.

        To be called once all handlers are attached.
        """
        for listener in page.fns.values():
            if listener.fn is None:  # it runs in the browser
                continue
            if any(by_itself(page, *target) for target in listener.targets):
                listener.fn = _silent(listener.fn)
            elif self.html in listener.outputs:
                listener.fn = self._warning(listener.fn)
            else:
                listener.fn = self._warning(_with_one_more_output(listener.fn, len(listener.outputs)))
                listener.outputs = [*listener.outputs, self.html]

    def _warning(self, handler: Handler) -> Handler:
        """`handler`, which has the notice among its outputs, with a warning when the store cannot answer."""

        def warning(error: StoreError, arguments: Sequence[Any]) -> Updates:
            request = next((argument for argument in arguments if isinstance(argument, gr.Request)), None)
            return self.warn(words.of(request).message(error.message))

        @wraps(handler)
        def once(*arguments: Any) -> Any:
            try:
                return handler(*arguments)
            except StoreError as error:
                return warning(error, arguments)

        @wraps(handler)
        def stream(*arguments: Any) -> Iterator[Any]:
            try:
                yield from handler(*arguments)
            except StoreError as error:
                yield warning(error, arguments)

        @wraps(handler)
        async def async_stream(*arguments: Any) -> AsyncIterator[Any]:
            try:
                async with aclosing(handler(*arguments)) as updates:
                    async for update in updates:
                        yield update
            except StoreError as error:
                yield warning(error, arguments)

        if inspect.isasyncgenfunction(handler):
            return async_stream
        return stream if inspect.isgeneratorfunction(handler) else once

    def _update(self, kind: str, role: str, text: str, title: str) -> Updates:
        heading = f"<b>{escape(title)}</b> " if title else ""
        number = next(self._numbers)
        content = heading + escape(visible(text))
        return {self.html: f'<div class="notice {kind}" role="{role}" data-number="{number}">{content}</div>'}


def by_itself(page: gr.Blocks, block: int | None, event: str) -> bool:
    """Whether an event of a component (its number) comes from the page and from no person."""
    return event == "tick" or (block is not None and refresh.is_button(page.blocks.get(block)))


def _silent(handler: Handler) -> Handler:
    """A handler of what the page does by itself, that changes nothing when the store cannot answer."""

    @wraps(handler)
    def once(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except StoreError:
            return gr.skip()

    return once


def _with_one_more_output(handler: Handler, outputs: int) -> Handler:
    """`handler`, which returns values for `outputs` outputs, with one more output that it leaves as it is."""
    streams = inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler)
    assert not streams, f"{handler.__name__} streams: give it the notice as an output"

    @wraps(handler)
    def once(*arguments: Any) -> Any:
        result = handler(*arguments)
        if outputs == 0:
            return gr.skip()
        if isinstance(result, dict):  # by component, or a skip of all
            return result
        values = (result,) if outputs == 1 else result
        return (*values, gr.skip())

    return once
