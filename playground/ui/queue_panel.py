"""The prompt queue beside the chat: the button that takes the next prompt, how far the queue is, and the skip.

What the button does streams as a message does, and is handled in `chat.py`. This module shows.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from playground.chat.queueing import SKIPS, QueueView
from playground.chat.session import Chat
from playground.chat.views import View
from playground.ui import words
from playground.ui.handlers import GESTURE, Trigger, visibility
from playground.ui.words import Words

REASONS = {
    "unclear": words.mark("Skip: unclear"),
    "unsafe": words.mark("Skip: unsafe or private"),
    "language": words.mark("Skip: not my language"),
    "unable": words.mark("Skip: I cannot judge it"),
}
assert tuple(REASONS) == SKIPS


class QueuePanel:
    """A row, made inside the current Blocks of an app that has a queue."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.painted = gr.State(None)  # the QueueView that the page shows
        with gr.Row(elem_id="queue"):
            self.next = gr.Button(words.label("Next prompt"), size="sm", elem_id="next-prompt")
            self.skips = {name: self._skip_button(name, text) for name, text in REASONS.items()}
            self.progress = gr.HTML(elem_id="queue-progress", padding=False)

    @staticmethod
    def _skip_button(name: str, text: str) -> gr.Button:
        return gr.Button(
            words.label(text), size="sm", elem_id=f"skip-{name}", elem_classes="skip-prompt", visible="hidden"
        )

    def wire(
        self,
        page: gr.Blocks,
        refresh_events: Sequence[Trigger],
        annotator: Callable[[gr.Request], int],
        progress: Callable[[], Mapping[str, int] | None],
    ) -> None:
        """Attach what brings the row up to date. `progress` gives that of `Store.queue_progress`."""

        def on_tick(painted: QueueView | None, request: gr.Request) -> Any:
            counts = progress()
            if counts is None:
                return gr.skip()
            queue = self.chat.queue(annotator(request), counts)
            return gr.skip() if queue == painted else self.progress_updates(queue, words.of(request))

        outputs = [self.next, self.progress, self.painted]
        gr.on([page.load, *refresh_events], on_tick, [self.painted], outputs, **GESTURE)

    @property
    def outputs(self) -> list[Component]:
        """What `updates` updates."""
        return [*self.skips.values()]

    def updates(self, view: View) -> dict[Any, Any]:
        """The buttons that skip the prompt, while it waits for a vote."""
        waits = view.queued and view.phase in ("streaming", "voting")
        return {button: gr.update(visible=visibility(waits)) for button in self.skips.values()}

    def progress_updates(self, queue: QueueView, translate: Words) -> dict[Any, Any]:
        label = translate("Next prompt ({n} of {total})", n=f"{queue.judged:,}", total=f"{queue.total:,}")
        return {
            self.next: gr.update(value=label, interactive=queue.free),
            self.progress: progress_html(queue, translate),
            self.painted: queue,
        }


def progress_html(queue: QueueView, translate: Words) -> str:
    """How far the queue is, in a bar and in words."""
    if queue.judged >= queue.total and queue.judged_twice >= queue.twice:
        text = translate("Every prompt is judged. Thank you!")
    elif not queue.free:
        text = translate("No prompt is free for you now; others may have the rest.")
    elif queue.twice:
        text = translate("{twice} of {total} judged twice", twice=f"{queue.judged_twice:,}", total=f"{queue.twice:,}")
    else:
        text = ""
    share = queue.judged / max(1, queue.total)
    bar = f'<i class="bar" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></i>'
    return f'<div class="queue">{bar}<span>{escape(text)}</span></div>'
