"""The fold "Import a dataset" of the tab *Data*, for admins: a dataset of Hugging Face into the store. What is done is
`playground/data/hub_import.py`'s.
"""

from html import escape

import gradio as gr

from playground.data.hub_import import ADDRESS_CHARS, MOST_ROWS, HubImport, ImportState
from playground.store import Store
from playground.ui import words
from playground.ui.control import Control
from playground.ui.handlers import GESTURE, Updates
from playground.ui.text import one_line
from playground.ui.words import Words

SECONDS = 1.0  # between two looks while an import runs
DEFAULT_ROWS = "10000"
EXPLAINED = words.mark(
    "Pairs, demonstrations and prompts, whose columns are recognised. They train like votes from the next round on; "
    "take a source back with python -m playground.data remove. A private or gated dataset needs HF_TOKEN. "
    "A file of your own: python -m playground.data import FILE."
)


class HubImportFold:
    """Made inside the current Blocks; hidden until an admin opens the tab."""

    def __init__(self, store: Store, control: Control) -> None:
        self.control = control
        self.job = HubImport(store)
        with gr.Accordion(
            words.label("Import a dataset"), open=False, visible=False, elem_id="hub-import-fold"
        ) as self.fold:
            with gr.Row(elem_id="hub-import-row"):
                self.address = gr.Textbox(
                    label=words.label("Hugging Face dataset"),
                    placeholder="OWNER/NAME",
                    max_lines=1,
                    max_length=ADDRESS_CHARS,
                    scale=3,
                    elem_id="hub-import-address",
                )
                self.split = gr.Textbox(
                    label=words.label("Split"), placeholder="train", max_lines=1, max_length=100, min_width=100
                )
                self.rows = gr.Textbox(
                    label=words.label("Rows"), value=DEFAULT_ROWS, max_lines=1, max_length=9, min_width=100
                )
                self.begin = gr.Button(
                    words.label("Import"), size="sm", scale=0, min_width=100, elem_id="hub-import-begin"
                )
            self.html = gr.HTML(elem_id="hub-import", padding=False)
            self.poll = gr.Timer(SECONDS, active=False)

    def wire(self) -> None:
        shown = [self.html, self.poll]
        asked = [self.address, self.split, self.rows]
        gr.on([self.begin.click, self.address.submit], self.on_begin, asked, shown, **GESTURE)
        self.fold.expand(self.on_look, None, shown, **GESTURE)
        self.poll.tick(self.on_look, None, shown, **GESTURE)

    def on_begin(self, address: str | None, split: str | None, rows: str | None, request: gr.Request) -> Updates:
        """Begin an import."""
        self.control.check(request)
        translate = words.of(request)
        address, split, rows = ((text or "").strip() for text in (address, split, rows))
        if not address or len(address) > ADDRESS_CHARS:
            return self._only(translate("Write the name of a dataset, OWNER/NAME."))
        if not (rows.isascii() and rows.isdigit() and len(rows) < 10 and 0 < int(rows) <= MOST_ROWS):
            return self._only(translate("Rows: a number from 1 to {most}.", most=f"{MOST_ROWS:,}"))
        if not self.job.start(address, split[:100] or None, int(rows)):
            return self._only(translate("An import is running. Begin the next one when it has ended."), runs=True)
        return self._updates(translate)

    def on_look(self, request: gr.Request) -> Updates:
        """How far the import is; the page looks again while it runs."""
        return self._updates(words.of(request)) if self.control.is_admin(request) else gr.skip()

    def _updates(self, translate: Words) -> Updates:
        state = self.job.state
        if state is None:
            return self._only(translate(EXPLAINED))
        return self._only(state_text(state, translate), state.running)

    def _only(self, text: str, runs: bool = False) -> Updates:
        return {self.html: f'<p role="status">{escape(one_line(text))}</p>', self.poll: gr.update(active=runs)}


def state_text(state: ImportState, translate: Words) -> str:
    """An import in a sentence or two."""
    report = state.report
    if state.running and not report.read:
        return translate("{name}: asking Hugging Face…", name=state.name)
    counts = translate(
        "{name}: rows read: {read}; new: {added}; there already: {known}; left out: {bad}.",
        name=state.name,
        read=f"{report.read:,}",
        added=f"{report.added.total():,}",
        known=f"{report.known:,}",
        bad=f"{report.bad:,}",
    )
    if state.running:
        return translate("{counts} It goes on.", counts=counts)
    if state.error is None:
        return counts
    error = translate.message(state.error)
    return f"{counts} {error}" if report.read else error
