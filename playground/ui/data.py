"""The tab "Data": the pairs that were judged, newest first and narrowed as one likes. An admin sees everybody's, leaves
a vote out of training or takes it in again, and downloads them; everybody else sees their own.
"""

from dataclasses import replace
from html import escape

import gradio as gr
from gradio.components import Component

from playground.data.http import DOWNLOADS
from playground.store import Filters, Store, StoreError
from playground.store.checks import MOST
from playground.ui import unchecked, words
from playground.ui.chat_panel import CHOICES
from playground.ui.control import Control
from playground.ui.data_table import pairs_html
from playground.ui.handlers import GESTURE, Trigger, Updates
from playground.ui.notice import Notice
from playground.ui.reasons import TAGS
from playground.ui.status_bar import StatusBar
from playground.ui.words import Words

PAGE_SIZE = 20  # pairs
TEXT_CHARS = 200  # of what is searched for


class DataTab:
    """Builds the tab inside the current Blocks."""

    def __init__(self, store: Store, status_bar: StatusBar, control: Control, notice: Notice) -> None:
        self.store = store
        self.status_bar = status_bar
        self.control = control
        self.notice = notice
        self.filters = gr.State(Filters())  # what the page shows
        self.before = gr.State(None)  # it begins below this vote; None: with the newest
        self.following = gr.State(None)  # where the next page begins
        with gr.Row(elem_id="data-filters"):
            self.version = self._number_box(words.mark("Version"), "data-version")
            self.choice = unchecked.Dropdown(
                [("", ""), *((words.label(text), choice) for choice, text in CHOICES.items() if choice != "skip")],
                label=words.label("Vote"),
                min_width=130,
            )
            self.tag = unchecked.Dropdown(
                [("", ""), *((words.label(tag), tag) for tag in TAGS)], label=words.label("Reason"), min_width=150
            )
            self.person = self._number_box(words.mark("Person"), "data-person", visible=False)
            self.text = gr.Textbox(
                label=words.label("Text"),
                max_lines=1,
                max_length=TEXT_CHARS,
                min_width=200,
                scale=2,
                elem_id="data-text",
            )
            self.search = gr.Button(words.label("Search"), size="sm", elem_id="data-search", scale=0, min_width=100)
        self.html = gr.HTML(elem_id="data", padding=False)
        self.older = gr.Button(words.label("Show earlier pairs"), size="sm", elem_id="earlier-pairs", visible=False)
        with gr.Column(elem_id="data-control", visible=False) as self.panel:
            with gr.Row():
                self.vote = unchecked.Dropdown([], label=words.label("Vote number"), elem_id="data-vote", min_width=140)
                self.exclude = gr.Button(
                    words.label("Leave it out of training"), size="sm", variant="stop", elem_id="data-exclude"
                )
                self.include = gr.Button(words.label("Take it in again"), size="sm", elem_id="data-include")
            self.downloads = gr.HTML(elem_id="data-downloads", padding=False)

    @staticmethod
    def _number_box(label: str, elem_id: str, visible: bool = True) -> gr.Textbox:
        """A field for a number. Gradio's own shows 0 while it is empty, and then sends that."""
        return gr.Textbox(
            label=words.label(label), max_lines=1, max_length=12, min_width=110, elem_id=elem_id, visible=visible
        )

    @property
    def outputs(self) -> list[Component | gr.Column]:
        """Every component that a handler updates."""
        shown = [self.html, self.older, self.person, self.vote, self.downloads, self.panel]
        return [*shown, self.filters, self.before, self.following, self.notice.html]

    def wire(self, opened: Trigger) -> None:
        asked = [self.version, self.choice, self.tag, self.person, self.text]
        gr.on([opened, self.search.click, self.text.submit], self.on_search, asked, self.outputs, **GESTURE)
        self.older.click(self.on_older, [self.filters, self.following], self.outputs, **GESTURE)
        picked = [self.vote, self.filters, self.before]
        self.exclude.click(self.on_exclude, picked, self.outputs, **GESTURE)
        self.include.click(self.on_include, picked, self.outputs, **GESTURE)

    # -- handlers

    def on_search(
        self,
        version: str | None,
        choice: str | None,
        tag: str | None,
        person: str | None,
        text: str | None,
        request: gr.Request,
    ) -> Updates:
        """The newest pairs that fit."""
        filters = Filters(
            version=_number(version),
            choice=choice or None,
            tag=tag or None,
            person=_number(person),
            text=(text or "").strip()[:TEXT_CHARS] or None,
        )
        return self._page(filters, None, request)

    def on_older(self, filters: Filters, following: int | None, request: gr.Request) -> Updates:
        """The page after the one that is shown."""
        return self._page(filters, following, request)

    def on_exclude(self, vote: int | None, filters: Filters, before: int | None, request: gr.Request) -> Updates:
        """Leave the picked vote out of training."""
        return self._decide(vote, True, filters, before, request)

    def on_include(self, vote: int | None, filters: Filters, before: int | None, request: gr.Request) -> Updates:
        """Take the picked vote in again."""
        return self._decide(vote, False, filters, before, request)

    def _decide(
        self, vote: int | None, excluded: bool, filters: Filters, before: int | None, request: gr.Request
    ) -> Updates:
        self.control.check(request)
        translate = words.of(request)
        if type(vote) is not int:
            return self.notice.warn(translate("Pick a vote first."))
        try:
            self.store.exclude_vote(vote, excluded)
        except StoreError as error:
            return self.notice.warn(translate.message(error.message), translate("Nothing was changed"))
        self.status_bar.invalidate()
        done = translate("Vote {n} is left out of training.", n=vote)
        if not excluded:
            done = translate("Vote {n} is in training again.", n=vote)
        return {**self._page(filters, before, request), **self.notice.confirm(done)}

    # -- what is shown

    def _page(self, filters: Filters, before: int | None, request: gr.Request) -> Updates:
        """A page of pairs: of everybody for an admin, else of the person who asks."""
        translate = words.of(request)
        is_admin = self.control.is_admin(request)
        own = self.control.annotator(request)
        if own is None:
            return gr.skip()
        rows, following = self.store.judged_page(
            filters if is_admin else replace(filters, person=own), before, PAGE_SIZE
        )
        votes = [row["vote"] for row in rows] if is_admin else []
        empty = None
        if filters == Filters() and before is None and following is None and self._would_list(own):
            empty = translate("Vote on a pair, and it is listed here.")
        return {
            self.html: pairs_html(rows, is_admin, translate, empty),
            self.older: gr.update(visible=following is not None),
            self.person: gr.update(visible=is_admin),
            self.vote: gr.update(choices=votes, value=None),
            self.downloads: downloads_html(translate) if is_admin else "",
            self.panel: gr.update(visible=is_admin),
            self.filters: filters,
            self.before: before,
            self.following: following,
        }

    def _would_list(self, annotator: int) -> bool:
        """Whether a vote of this person would be in the table: only those that training may have are."""
        person = self.store.person(annotator)
        return person is None or bool(person["allow_training"])


def downloads_html(translate: Words) -> str:
    """Links to the files that an admin may download, and what they hold."""
    links = " ".join(f'<a href="export/{name}.jsonl" download>{name}.jsonl</a>' for name in DOWNLOADS)
    held = translate(
        "The files hold everybody's, whatever the search above shows; votes left out of training are not in."
    )
    return f"<p>{escape(translate('Download:'))} {links}</p><p>{escape(held)}</p>"


def _number(text: str | None) -> int | None:
    """The number in a field, such as "3" or "v3"; None where it is empty. What is no number fits nothing, as no row has
    the largest number.
    """
    text = (text or "").strip().lower().removeprefix("v")
    if not text:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else MOST
