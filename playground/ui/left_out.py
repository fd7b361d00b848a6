"""What the downloads of the tab "Data" have no row for, and how much of it: counted when an admin opens the fold."""

from collections.abc import Callable
from html import escape

import gradio as gr

from playground.store import Store
from playground.ui import words
from playground.ui.handlers import GESTURE, Row, Updates
from playground.ui.words import Words


class LeftOutFold:
    """Made inside the current Blocks; hidden until an admin opens the tab."""

    def __init__(self, store: Store) -> None:
        self.store = store
        label = words.label("What the files leave out")
        with gr.Accordion(label, open=False, visible=False, elem_id="left-out-fold") as self.fold:
            self.html = gr.HTML(elem_id="left-out", padding=False)

    def wire(self, is_admin: Callable[[gr.Request], bool]) -> None:
        """Count when an admin opens the fold."""

        def on_open(request: gr.Request) -> Updates:
            if not is_admin(request):
                return gr.skip()
            return {self.html: left_out_html(self.store.forms_of_votes(), words.of(request))}

        self.fold.expand(on_open, None, [self.html], **GESTURE)


def left_out_html(counts: Row, translate: Words) -> str:
    """A line for each file that lacks some of what is judged; `counts` is of `Store.forms_of_votes`."""
    undecided = counts["ties"] + counts["both_bad"]
    shown = {name: f"{number:,}" for name, number in {**counts, "n": undecided}.items()}
    lines = (
        translate(
            "preference.jsonl: pairs in which neither reply is better, which are in undecided.jsonl: {n}.", **shown
        ),
        translate(
            "kto.jsonl: votes for one of the two replies, which call neither good or bad: {picks}; ties: {ties}; "
            "replies that went on after an early “both bad”: {grew}.",
            **shown,
        ),
        translate("sft.jsonl: pairs in which neither reply is better: {n}.", **shown),
    )
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
