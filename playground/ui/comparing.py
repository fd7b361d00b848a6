"""Two versions side by side on one's own prompt, blind or open: a part of the tab "Versions".

Nothing that is written here is kept, and there is no vote. What the page shows of a blind pair is in a State on the
server, so a page does not know the versions before it asks for them.
"""

import random
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from html import escape

import gradio as gr
from gradio.components import Component

from playground.chat.comparing import Comparison
from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.models.export import may_reply
from playground.models.prompts import BadMessage
from playground.serving.guests import not_in_use
from playground.store import StoreError
from playground.ui import fixed_prompts, unchecked, words
from playground.ui.control import Control
from playground.ui.handlers import GESTURE, STREAM, Row, Updates, visibility
from playground.ui.notice import Notice
from playground.ui.status_bar import version_name
from playground.ui.text import visible
from playground.ui.words import Words
from playground.web.stream_threads import EXTRA_STREAMS, StreamThreads


@dataclass(frozen=True)
class Pair:
    """The versions whose replies a page shows, by side; `shown`: whether it says which ones they are."""

    left: int
    right: int
    shown: bool


class ComparePanel:
    """Made inside the current Blocks."""

    def __init__(self, chat: Chat, control: Control, notice: Notice) -> None:
        self.chat = chat
        self.control = control
        self.notice = notice
        self.threads = StreamThreads(EXTRA_STREAMS)
        self.pair = gr.State(None)  # the Pair that the page shows
        self.last = gr.State(None)  # its Comparison
        with gr.Accordion(words.label("Compare two versions"), open=False, elem_id="compare"):
            with gr.Row():
                self.left = self._version_input(words.label("One version"), "compare-left")
                self.right = self._version_input(words.label("Another version"), "compare-right")
                self.blind = gr.Checkbox(
                    True, label=words.label("Blind"), elem_id="compare-blind", min_width=90, scale=0
                )
            self.prompt = gr.Textbox(
                label=words.label("Message"),
                lines=1,
                max_lines=4,
                elem_id="compare-prompt",
                placeholder=words.label("Both versions answer this message"),
            )
            with gr.Row(elem_id="compare-buttons"):
                self.go = gr.Button(words.label("Compare"), variant="primary", size="sm", elem_id="compare-go")
                self.fixed = gr.Button(words.label("On held-out prompts"), size="sm", elem_id="compare-fixed")
                self.stop = gr.Button(
                    words.label("Stop"), variant="stop", size="sm", elem_id="compare-stop", visible="hidden"
                )
                self.reveal = gr.Button(
                    words.label("Which is which?"), size="sm", elem_id="compare-reveal", visible="hidden"
                )
            self.html = gr.HTML(elem_id="compared", padding=False)

    @staticmethod
    def _version_input(label: str, elem_id: str) -> gr.Dropdown:
        return unchecked.Dropdown([], label=label, elem_id=elem_id, min_width=130)

    @property
    def outputs(self) -> Sequence[Component]:
        """Every component that a handler updates."""
        return [self.pair, self.last, self.go, self.stop, self.reveal, self.html, self.notice.html]

    def wire(self) -> None:
        inputs = [self.prompt, self.left, self.right, self.blind]
        gr.on([self.go.click, self.prompt.submit], self.on_compare, inputs, self.outputs, **STREAM)
        self.fixed.click(self.on_fixed, [self.left, self.right], self.outputs, **GESTURE)
        self.stop.click(self.on_stop, None, None, **GESTURE)
        self.reveal.click(self.on_reveal, [self.pair, self.last], self.outputs, **GESTURE)

    # -- which versions there are

    def choices(self, history: Sequence[Row], is_admin: bool, translate: Words) -> list[tuple[str, int]]:
        """The versions that a person may compare: of those in use, admins all, others those that are in memory.

        `history`: rows of `Store.version_history`.
        """
        in_memory = self.chat.engine.versions.in_memory()
        versions = [row["version"] for row in history if may_reply(row)]
        return [(version_name(version, translate), version) for version in versions if is_admin or version in in_memory]

    def choice_updates(self, choices: Sequence[tuple[str, int]], first: bool) -> Updates:
        """Both inputs. The `first` time the newest version and the base are picked; later a person's picks stay."""
        if not first or len(choices) < 2:
            return {side: gr.update(choices=list(choices)) for side in (self.left, self.right)}
        return {
            self.left: gr.update(choices=list(choices), value=choices[0][1]),
            self.right: gr.update(choices=list(choices), value=choices[-1][1]),
        }

    # -- handlers

    async def on_compare(
        self, text: str, left: int | None, right: int | None, blind: bool, request: gr.Request
    ) -> AsyncIterator[Updates]:
        """Stream both replies."""
        async with aclosing(self.threads.run(self._stream(text, left, right, blind, request))) as stream:
            async for update in stream:
                yield update

    def on_stop(self, request: gr.Request) -> None:
        annotator = self.control.annotator(request)
        if annotator is not None:
            self.chat.stop(annotator)

    def on_reveal(self, pair: Pair | None, last: Comparison | None, request: gr.Request) -> Updates:
        """Say which version wrote which reply."""
        if pair is None or last is None:
            return gr.skip()
        shown = Pair(pair.left, pair.right, shown=True)
        html = comparison_html(last, shown, words.of(request))
        return {self.pair: shown, self.html: html, self.reveal: gr.update(visible=visibility(False))}

    def on_fixed(self, left: int | None, right: int | None, request: gr.Request) -> Updates:
        """What both versions said to the prompts that the gates of their rounds have in common."""
        translate = words.of(request)
        try:
            left, right = self._picked(left, right)
        except Refused as error:
            return self.notice.warn(translate.message(error.message), translate("Not compared"))
        history = self.chat.store.version_history()
        in_use = {row["version"] for row in history if may_reply(row)}
        for version in (left, right):
            if version not in in_use:
                return self.notice.warn(translate.message(not_in_use(version)), translate("Not compared"))
        html = fixed_prompts.table_html(left, right, history, self.chat.settings.rounds_dir, translate)
        hidden = gr.update(visible=visibility(False))
        return {self.pair: None, self.last: None, self.html: html, self.reveal: hidden}

    def _stream(
        self, text: str, left: int | None, right: int | None, blind: bool, request: gr.Request
    ) -> Generator[Updates, None, None]:
        translate = words.of(request)
        began = False
        last = Comparison()
        annotator = self.control.annotator(request)
        try:
            if annotator is None:
                raise Refused("Your browser keeps no cookie for this page.")
            left, right = self._picked(left, right)
            if blind and random.random() < 0.5:
                left, right = right, left
            pair = Pair(left, right, shown=not blind)
            address = request.client.host if request.client else ""
            may_load = self.control.is_admin(request)
            for last in self.chat.compare(annotator, text, left, right, address, may_load):
                began = True
                yield {
                    self.html: comparison_html(last, pair, translate),
                    self.go: gr.update(visible=visibility(False)),
                    self.stop: gr.update(visible=visibility(True)),
                    self.reveal: gr.update(visible=visibility(False)),
                }
            yield {
                **self._idle_buttons(),
                self.pair: pair,
                self.last: last,
                self.reveal: gr.update(visible=visibility(blind)),
            }
        except (BadMessage, Refused, StoreError) as error:
            if not began and annotator is not None and self.chat.is_answering(annotator, text):
                yield {self.html: gr.update()}  # it was pressed twice
                return
            warning = self.notice.warn(translate.message(error.message), translate("Not compared"))
            yield {**({**self._idle_buttons(), **self._without_progress(last)} if began else {}), **warning}

    def _picked(self, left: int | None, right: int | None) -> tuple[int, int]:
        """Both versions that a page sent; Refused where one is missing."""
        if type(left) is int and type(right) is int:
            return left, right
        if sum(may_reply(row) for row in self.chat.store.version_history()) < 2:
            raise Refused("Only the base answers so far: a version can be compared once a gate has let it through.")
        raise Refused("Pick two versions first.")

    def _without_progress(self, last: Comparison) -> Updates:
        """The panel without a sentence on what goes on, where nothing goes on any more."""
        return {self.html: ""} if last.progress else {}

    def _idle_buttons(self) -> Updates:
        return {
            self.go: gr.update(visible=visibility(True)),
            self.stop: gr.update(visible=visibility(False)),
        }


def comparison_html(comparison: Comparison, pair: Pair, translate: Words) -> str:
    """Both replies side by side, below their letters or their versions."""
    if comparison.progress:
        return f'<p class="compare-progress">{escape(translate.message(comparison.progress))}</p>'
    replies = (("a", pair.left, comparison.left), ("b", pair.right, comparison.right))
    cells = ""
    for side, version, text in replies:
        name = f"{side.upper()} · {version_name(version, translate)}" if pair.shown else side.upper()
        cells += f'<div class="compared side-{side}"><b>{escape(name)}</b><p>{escape(visible(text)) or "…"}</p></div>'
    return f'<div class="comparison">{cells}</div>'
