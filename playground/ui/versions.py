"""The tab "Versions": every version with its figures, and for admins the buttons that make one live, roll the live one
back, or withdraw one.

Everybody sees the table. Each handler of a button asks whether the person is an admin. The server follows the store, so
a change is in effect for the next message.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.people.names import names_of
from playground.settings import Settings
from playground.store import Store, StoreError
from playground.ui import unchecked, words
from playground.ui.comparing import ComparePanel
from playground.ui.control import Control
from playground.ui.handlers import GESTURE, Row, Trigger, Updates
from playground.ui.loop_status import trial_of
from playground.ui.notice import Notice
from playground.ui.status_bar import StatusBar, version_name
from playground.ui.version_ratings import VersionRatings
from playground.ui.version_table import Board, board_html, deciders
from playground.ui.words import Words

PAGE_SIZE = 20  # versions in the table at first, and more at each press
FRESH_SECONDS = 1.0  # for which one read of the store serves all pages
REASON_CHARS = 300
STATUSES_IN_USE = ("live", "retired", "rolled_back")


class BoardReader:
    """Reads the Board for all pages."""

    def __init__(self, settings: Settings, store: Store, status_bar: StatusBar) -> None:
        self.settings = settings
        self.store = store
        self.status_bar = status_bar
        self._lock = threading.Lock()
        self._board: Board | None = None
        self._read_at = float("-inf")  # on the monotonic clock, in seconds
        self.ratings = VersionRatings(store)

    def read(self) -> Board:
        """The Board, at most a second old, with the ratings that are known. StoreError where the store cannot
        answer.
        """
        with self._lock:
            if self._board is None or time.monotonic() - self._read_at > FRESH_SECONDS:
                history = self.store.version_history()
                weight = self.status_bar.status().settings.preferences.annotator_weight
                live = next(row["version"] for row in history if row["status"] == "live")
                self._board = Board(
                    history=history,
                    ratings=self.ratings.current(history, weight),
                    trial=trial_of(self.store, live),
                    answering=self.status_bar.status().live_version,
                    way_back=way_back(self.store),
                )
                self._read_at = time.monotonic()
            return self._board

    def invalidate(self) -> None:
        """Read the store again at the next call: somebody has just changed it."""
        self._read_at = float("-inf")


@dataclass
class Shown:
    """What somebody's page shows."""

    limit: int = PAGE_SIZE  # versions in the table
    painted: Row = field(default_factory=dict)  # content by part


class VersionsTab:
    """Builds the tab inside the current Blocks."""

    def __init__(
        self, settings: Settings, store: Store, chat: Chat, status_bar: StatusBar, control: Control, notice: Notice
    ) -> None:
        self.store = store
        self.status_bar = status_bar
        self.control = control
        self.notice = notice
        self.reader = BoardReader(settings, store, status_bar)
        self.shown = gr.State(Shown())
        self.html = gr.HTML(elem_id="versions", padding=False)
        self.more = gr.Button(
            words.label("Show earlier versions"), size="sm", elem_id="earlier-versions", visible=False
        )
        self.compare = ComparePanel(chat, control, notice)
        with gr.Column(elem_id="version-control", visible=False) as self.panel:
            with gr.Row():
                self.version = unchecked.Dropdown([], label=words.label("Version"), elem_id="version", min_width=140)
                self.reason = gr.Textbox(
                    label=words.label("Why? Everybody can read this."),
                    max_lines=1,
                    max_length=REASON_CHARS,
                    elem_id="version-reason",
                    min_width=240,
                    scale=3,
                )
            with gr.Row(elem_id="version-buttons"):
                self.promote = gr.Button(words.label("Make it live"), size="sm", variant="primary", elem_id="promote")
                self.withdraw = gr.Button(words.label("Withdraw it"), size="sm", variant="stop", elem_id="withdraw")
                self.roll_back = gr.Button(
                    words.label("Roll the live version back"), size="sm", variant="stop", elem_id="roll-back"
                )

    @property
    def outputs(self) -> list[Component | gr.Column]:
        """Every component that a handler updates."""
        shown = [self.html, self.more, self.panel, self.version, self.reason, self.roll_back]
        return [*shown, self.compare.left, self.compare.right, self.notice.html]

    def wire(self, refresh_events: Sequence[Trigger]) -> None:
        self.compare.wire()
        gr.on(refresh_events, self.on_tick, [self.shown], self.outputs, **GESTURE)
        self.more.click(self.on_more, [self.shown], self.outputs, **GESTURE)
        for button, subject, gesture in (
            (self.promote, self.version, self.on_promote),
            (self.withdraw, self.version, self.on_withdraw),
            (self.roll_back, self.roll_back, self.on_roll_back),
        ):
            button.click(gesture, [subject, self.reason, self.shown], self.outputs, **GESTURE)

    # -- handlers

    def on_tick(self, shown: Shown, request: gr.Request) -> Updates:
        """What has changed since the page was last brought up to date."""
        return self._changes(shown, request) or gr.skip()

    def _changes(self, shown: Shown, request: gr.Request) -> Updates:
        """The updates of `on_tick`; none where nothing has changed."""
        translate = words.of(request)
        limit = shown.limit
        board = self.reader.read()
        is_admin = self.control.is_admin(request)
        names = names_of(self.store, self.control.admins.users, deciders(board.history)) if is_admin else {}
        used = [row["version"] for row in board.history if row["status"] in STATUSES_IN_USE]
        contents: dict[str, Any] = {
            "html": board_html(board, limit, translate, names),
            "more": len(board.history) > limit,
            "panel": is_admin,
            "choices": [(version_name(version, translate), version) for version in used] if is_admin else [],
            "way_back": board.way_back if is_admin else None,
            "compared": self.compare.choices(board.history, is_admin, translate),
        }
        changed = {part: content for part, content in contents.items() if shown.painted.get(part) != content}
        updates: Updates = {}
        if "html" in changed:
            updates[self.html] = contents["html"]
        if "more" in changed:
            updates[self.more] = gr.update(visible=contents["more"])
        if "panel" in changed:
            updates[self.panel] = gr.update(visible=is_admin)
        if "choices" in changed:
            updates[self.version] = gr.update(choices=contents["choices"])
        if "way_back" in changed:
            updates[self.roll_back] = gr.update(value=roll_back_label(board.way_back, translate))
        if "compared" in changed:
            updates |= self.compare.choice_updates(contents["compared"], first=not shown.painted.get("compared"))
        shown.painted = contents
        return updates

    def on_more(self, shown: Shown, request: gr.Request) -> Updates:
        """A longer table."""
        shown.limit += PAGE_SIZE
        updates = self.on_tick(shown, request)
        shown.painted = {**shown.painted, "html": None}
        return updates

    def on_promote(self, version: int | None, reason: str, shown: Shown, request: gr.Request) -> Updates:
        """Make the picked version live."""

        def promote(annotator: int, why: str, translate: Words) -> str:
            picked = _picked(version)
            self.store.promote(picked, annotator, why)
            return translate("{version} answers the next message.", version=version_name(picked, translate))

        return self._decide(promote, reason, shown, request)

    def on_withdraw(self, version: int | None, reason: str, shown: Shown, request: gr.Request) -> Updates:
        """Take the picked version out of use."""

        def withdraw(annotator: int, why: str, translate: Words) -> str:
            picked = _picked(version)
            self.store.withdraw(picked, annotator, why)
            return translate("{version} was withdrawn.", version=version_name(picked, translate))

        return self._decide(withdraw, reason, shown, request)

    def on_roll_back(self, label: str | None, reason: str, shown: Shown, request: gr.Request) -> Updates:
        """Go back from the live version to the one that answered before it, whatever is picked. Both are those that the
        button names: `label` is what it said.
        """

        def roll_back(annotator: int, why: str, translate: Words) -> str:
            versions = way_back(self.store)
            if versions is None:
                raise Refused("The base model answers; there is no version before it.")
            if label != roll_back_label(versions, translate):
                raise Refused("Another version answers by now: the button says which one it would roll back.")
            live, before = versions
            self.store.roll_back(before, annotator, why, live=live)
            return translate("{version} answers the next message.", version=version_name(before, translate))

        return self._decide(roll_back, reason, shown, request)

    def _decide(
        self,
        decision: Callable[[int, str, Words], str],
        reason: str,
        shown: Shown,
        request: gr.Request,
    ) -> Updates:
        """Carry an admin's decision out and say what it did, or why nothing was changed. `decision` takes the admin's
        id, the reason and the words.
        """
        annotator = self.control.check(request)
        translate = words.of(request)
        why = " ".join((reason or "").split())[:REASON_CHARS]
        if not why:
            return self.notice.warn(translate("Say why first: the reason is kept, and everybody can read it."))
        try:
            done = decision(annotator, why, translate)
        except (Refused, StoreError) as error:
            return self.notice.warn(translate.message(error.message), translate("Nothing was changed"))
        self.status_bar.invalidate()
        self.reader.invalidate()
        return {**self._changes(shown, request), self.reason: "", **self.notice.confirm(done)}


def way_back(store: Store) -> tuple[int, int] | None:
    """The live version and the one to which an admin rolls it back; None where there is none."""
    before = store.answered_before()
    return None if before is None else (store.live_policy()["version"], before)


def roll_back_label(versions: tuple[int, int] | None, translate: Words) -> str:
    if versions is None:
        return translate("Roll the live version back")
    live, before = (version_name(version, translate) for version in versions)
    return translate("Roll {live} back to {before}", live=live, before=before)


def _picked(version: int | None) -> int:
    """The version that was picked; Refused where the page sent none."""
    if type(version) is not int:
        raise Refused("Pick a version first.")
    return version
