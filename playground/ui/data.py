"""The tab "Data": the pairs that were judged, newest first and narrowed as one likes. An admin sees everybody's, leaves
votes out of training or takes them in again, and downloads them; everybody else sees their own. A vote of one's own is
changed or deleted in its row (`own_votes.py`).

A row's own button and those of the whole list are HTML (`data_table.py`). `assets/page.js` tells by `decision` which
one was pressed.
"""

import re
from dataclasses import dataclass, field, replace

import gradio as gr
from gradio.components import Component

from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.data import times
from playground.people.names import names_of, person_called
from playground.people.passwords import NAME_CHARS
from playground.store import Filters, Store, StoreError
from playground.ui import data_table, own_votes, unchecked, words
from playground.ui.chat_panel import CHOICES
from playground.ui.control import Control
from playground.ui.data_fields import NoTime, NoVersion, number_in, one_of, time_in, version_in
from playground.ui.data_table import Known
from playground.ui.handlers import GESTURE, Trigger, Updates
from playground.ui.hub_import import HubImportFold
from playground.ui.left_out import LeftOutFold
from playground.ui.notice import Notice
from playground.ui.own_votes import OwnVote
from playground.ui.quality import QualityFold, person_name
from playground.ui.reasons import TAGS
from playground.ui.status_bar import StatusBar
from playground.ui.words import Words

PAGE_SIZE = 20  # pairs
TEXT_CHARS = 200  # of what is searched for
DECISION = re.compile(r"(out|in) (?:all ([0-9a-f]{16})|(person )?([0-9]{1,15}))", re.ASCII)
ROUNDS_LOOKED_AT = 20  # for the newest one that has read the votes
CATCH_UP = "() => document.getElementById('catch-up')?.click()"  # the chat may show the pair of a changed vote
TRAINING = {"in": False, "out": True}  # by the field's value: whether the vote is left out


@dataclass(frozen=True)
class Shown:
    """Which page of which list somebody sees."""

    filters: Filters = field(default_factory=Filters)
    before: int | None = None  # it begins below this vote; None: with the newest
    following: int | None = None  # where the next page begins; None: it is the last one
    later: tuple[int | None, ...] = ()  # `before` of the pages that led here, the newest first


class DataTab:
    """Builds the tab inside the current Blocks."""

    def __init__(self, store: Store, chat: Chat, status_bar: StatusBar, control: Control, notice: Notice) -> None:
        self.store = store
        self.chat = chat
        self.status_bar = status_bar
        self.control = control
        self.notice = notice
        self.shown = gr.State(Shown())
        self.decision = gr.Textbox(visible=False)  # what page.js says; a gr.State takes nothing from it
        self.asked = gr.HTML(elem_id="data-asked", padding=False)
        with gr.Row(elem_id="data-filters"):
            self.version = self._number_box(words.mark("Version"), "data-version")
            self.choice = unchecked.Dropdown(
                [
                    (words.label("all"), ""),
                    *((words.label(text), choice) for choice, text in CHOICES.items() if choice != "skip"),
                ],
                label=words.label("Vote"),
                min_width=130,
            )
            self.tag = unchecked.Dropdown(
                [(words.label("all"), ""), *((words.label(tag), tag) for tag in TAGS)],
                label=words.label("Reason"),
                min_width=150,
            )
            self.training = unchecked.Dropdown(
                [
                    (words.label("all"), ""),
                    (words.label("in training"), "in"),
                    (words.label("left out of training"), "out"),
                ],
                label=words.label("Training"),
                min_width=130,
                visible=False,
            )
            self.person = gr.Textbox(
                label=words.label("Person"),
                max_lines=1,
                max_length=NAME_CHARS,
                min_width=110,
                elem_id="data-person",
                visible=False,
            )
            self.since = self._time_box(words.mark("From (UTC)"), "data-since")
            self.until = self._time_box(words.mark("To (UTC)"), "data-until")
            self.text = gr.Textbox(
                label=words.label("Text"),
                max_lines=1,
                max_length=TEXT_CHARS,
                min_width=200,
                scale=2,
                elem_id="data-text",
            )
            self.search = gr.Button(words.label("Search"), size="sm", elem_id="data-search", scale=0, min_width=100)
        self.all = gr.HTML(elem_id="data-all", padding=False)
        self.html = gr.HTML(elem_id="data", padding=False)
        with gr.Row(elem_id="data-pages"):
            self.newer = gr.Button(words.label("Later pairs"), size="sm", elem_id="later-pairs", visible=False)
            self.older = gr.Button(words.label("Earlier pairs"), size="sm", elem_id="earlier-pairs", visible=False)
        self.decide = gr.Button(visible="hidden", elem_id="data-decide")
        self.downloads = gr.HTML(elem_id="data-downloads", padding=False)
        self.left_out = LeftOutFold(store)
        self.quality = QualityFold(store, control.admins.users)
        self.hub_import = HubImportFold(store, control)

    @staticmethod
    def _number_box(label: str, elem_id: str) -> gr.Textbox:
        """A field for a number. Gradio's own shows 0 while it is empty, and then sends that."""
        return gr.Textbox(label=words.label(label), max_lines=1, max_length=12, min_width=110, elem_id=elem_id)

    @staticmethod
    def _time_box(label: str, elem_id: str) -> gr.Textbox:
        """A field for a day or a time."""
        return gr.Textbox(
            label=words.label(label),
            placeholder="2026-11-27",
            max_lines=1,
            max_length=times.MOST_CHARS,
            min_width=130,
            elem_id=elem_id,
        )

    @property
    def outputs(self) -> list[Component]:
        """Every component that a handler updates."""
        shown = [self.html, self.asked, self.all, self.newer, self.older, self.person, self.training, self.downloads]
        folds = [self.left_out.fold, self.quality.fold, self.quality.html, self.hub_import.fold]
        return [*shown, *folds, self.shown, self.notice.html]

    def wire(self, opened: Trigger) -> None:
        boxes = [self.version, self.person, self.since, self.until, self.text]
        typed = [box.submit for box in boxes]
        asked = [self.version, self.choice, self.tag, self.training, self.person, self.since, self.until, self.text]
        opened(self.on_open, [self.shown], self.outputs, **GESTURE)
        gr.on([self.search.click, *typed], self.on_search, asked, self.outputs, **GESTURE)
        self.older.click(self.on_older, [self.shown], self.outputs, **GESTURE)
        self.newer.click(self.on_newer, [self.shown], self.outputs, **GESTURE)
        decided = self.decide.click(
            self.on_decide,
            [self.decision, self.shown],
            self.outputs,
            js="(_, ...others) => [window.nudge.decision(), ...others]",
            **GESTURE,
        )
        decided.then(None, None, None, js=CATCH_UP)
        self.left_out.wire(self.control.is_admin)
        self.quality.wire(self.control.is_admin)
        self.hub_import.wire()

    # -- handlers

    def on_open(self, shown: Shown, request: gr.Request) -> Updates:
        """The newest pairs that fit what was asked last."""
        return self._page(Shown(shown.filters), request)

    def on_search(
        self,
        version: str | None,
        choice: str | None,
        tag: str | None,
        training: str | None,
        person: str | None,
        since: str | None,
        until: str | None,
        text: str | None,
        request: gr.Request,
    ) -> Updates:
        """The newest pairs that fit. Where a time or a version is none, a notice says so and the list stays as it
        is.
        """
        try:
            asked_version = version_in(version)
            begin, end = time_in(since), time_in(until, end=True)
        except (NoTime, NoVersion) as error:
            return self.notice.warn(words.of(request).message(error.message))
        filters = Filters(
            version=asked_version,
            choice=one_of(choice, CHOICES),
            tag=one_of(tag, TAGS),
            excluded=TRAINING.get(training or ""),
            person=self._person(person, request),
            since=begin,
            until=end,
            text=(text or "").strip()[:TEXT_CHARS] or None,
        )
        return self._page(Shown(filters), request)

    def on_older(self, shown: Shown, request: gr.Request) -> Updates:
        """The page after the one that is shown."""
        if shown.following is None:
            return gr.skip()
        return self._page(replace(shown, before=shown.following, later=(shown.before, *shown.later)), request)

    def on_newer(self, shown: Shown, request: gr.Request) -> Updates:
        """The page before the one that is shown."""
        if not shown.later:
            return gr.skip()
        before, *later = shown.later
        return self._page(replace(shown, before=before, later=tuple(later)), request)

    def on_decide(self, decision: str | None, shown: Shown, request: gr.Request) -> Updates:
        """Change or delete a vote of one's own: `decision` reads "vote 7 tie" or "delete 7". Admins alone leave a vote,
        all votes of a search, or a person out of training, or take them in again: "out 7", "in all KEY" (of
        `search_key`) or "out person 4".
        Where somebody said no to the question, it is empty.
        """
        if (wanted := own_votes.read(decision)) is not None:
            return self._change_own(wanted, shown, request)
        self.control.check(request)
        match = DECISION.fullmatch(decision or "")
        if match is None:
            return gr.skip()
        translate = words.of(request)
        excluded = match[1] == "out"
        if match[3]:
            return self._decide_person(int(match[4]), excluded, shown, request)
        vote = None if match[2] else int(match[4])
        if match[2] and match[2] != data_table.search_key(shown.filters):
            asked = translate("Another search was made meanwhile: look at its list, and decide once more.")
            return {**self._page(shown, request), **self.notice.warn(asked, translate("Nothing was changed"))}
        try:
            if vote is None:
                n = self.store.exclude_votes(shown.filters, excluded)
            else:
                self.store.exclude_vote(vote, excluded)
        except StoreError as error:
            # votes of a long search are changed part by part
            title = translate("Nothing was changed") if vote else translate("Not all of it was changed")
            return self.notice.warn(translate.message(error.message), title)
        self.status_bar.invalidate()
        if vote is not None:
            done = translate("Vote {n} is left out of training.", n=vote)
            if not excluded:
                done = translate("Vote {n} is in training again.", n=vote)
        else:
            done = translate("Votes left out of training: {n}.", n=f"{n:,}")
            if not excluded:
                done = translate("Votes taken in again: {n}.", n=f"{n:,}")
        return {**self._page(shown, request, opened=vote), **self.notice.confirm(done)}

    def _change_own(self, wanted: OwnVote, shown: Shown, request: gr.Request) -> Updates:
        """Change or delete a vote of the person who asks. A changed one is the newest, so the first page has it."""
        own = self.control.annotator(request)
        if own is None:
            return gr.skip()
        translate = words.of(request)
        try:
            done, vote = own_votes.carry_out(self.chat, own, wanted, translate)
        except Refused as error:
            return self.notice.warn(translate.message(error.message), translate("Nothing was changed"))
        self.status_bar.invalidate()
        if vote is not None:
            shown = Shown(shown.filters)
        return {**self._page(shown, request, opened=vote), **self.notice.confirm(done)}

    def _decide_person(self, person: int, left_out: bool, shown: Shown, request: gr.Request) -> Updates:
        """Leave a person out of training, or take them in again."""
        translate = words.of(request)
        try:
            self.store.leave_out_person(person, left_out)
        except StoreError as error:
            return self.notice.warn(translate.message(error.message), translate("Nothing was changed"))
        self.status_bar.invalidate()
        name = person_name(person, names_of(self.store, self.control.admins.users, [person]), translate)
        done = translate("{name} is left out of training, from the next round on.", name=name)
        if not left_out:
            done = translate("{name} is in training again.", name=name)
        return {**self._page(shown, request), **self.quality.updates(translate), **self.notice.confirm(done)}

    # -- what is shown

    def _person(self, text: str | None, request: gr.Request) -> int | None:
        """Whose votes an admin asks for, by name or number; None where the field is empty. Nobody else may ask."""
        text = (text or "").strip()
        if not text or not self.control.is_admin(request):
            return None
        called = person_called(self.store, self.control.admins.users, text)
        return number_in(text) if called is None else called

    def _page(self, shown: Shown, request: gr.Request, opened: int | None = None) -> Updates:
        """A page of pairs: of everybody for an admin, else of the person who asks. `opened`: the vote whose row stays
        open.
        """
        translate = words.of(request)
        is_admin = self.control.is_admin(request)
        own = self.control.annotator(request)
        if own is None:
            return gr.skip()
        if not is_admin:  # or not any more
            shown = replace(shown, filters=replace(shown.filters, person=None, excluded=None))
        filters = shown.filters if is_admin else replace(shown.filters, person=own)
        rows, following = self.store.judged_page(filters, shown.before, PAGE_SIZE)
        names: dict[int, str] = {}
        known = None
        if is_admin:
            people = {row["person"] for row in rows}
            if filters.person is not None:
                people.add(filters.person)
            names = names_of(self.store, self.control.admins.users, people)
            known = Known(names, self.store.versions_of_votes([row["vote"] for row in rows]))
        may_change = own if self.chat.may_write(own) else None
        empty = None
        if shown.filters == Filters() and shown.before is None and following is None and self._would_list(own):
            empty = translate("Vote on a pair, and it is listed here.")
        return {
            self.html: data_table.pairs_html(rows, known, translate, empty, opened, may_change),
            self.left_out.fold: gr.update(visible=is_admin),
            self.quality.fold: gr.update(visible=is_admin),
            self.hub_import.fold: gr.update(visible=is_admin),
            self.asked: data_table.asked_html(shown.filters, translate, names),
            self.all: data_table.all_html(shown.filters, translate, names) if is_admin and rows else "",
            self.newer: gr.update(visible=bool(shown.later)),
            self.older: gr.update(visible=following is not None),
            self.person: gr.update(visible=is_admin),
            self.training: gr.update(visible=is_admin),
            self.downloads: self._downloads(translate) if is_admin else "",
            self.shown: replace(shown, following=following),
        }

    def _downloads(self, translate: Words) -> str:
        """What an admin may download, and what was imported."""
        rounds = self.store.rounds(ROUNDS_LOOKED_AT)
        read = next(((row["id"], row["metrics"]["imported"]) for row in rounds if "imported" in row["metrics"]), None)
        return data_table.downloads_html(translate) + data_table.imported_html(
            self.store.imported_counts(), read, translate
        )

    def _would_list(self, annotator: int) -> bool:
        """Whether a vote of this person would be in the table: only those that training may have are."""
        person = self.store.person(annotator)
        return person is None or bool(person["allow_training"])
