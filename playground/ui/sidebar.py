"""The sidebar: the person's earlier chats, the link to share the open one, and the settings of that chat."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from playground.chat.gestures import KNOBS
from playground.chat.refusals import Refused
from playground.chat.session import Chat
from playground.chat.views import View
from playground.models.prompts import BadMessage
from playground.settings import Settings
from playground.store import Store
from playground.ui import unchecked, words
from playground.ui.chat import ChatTab
from playground.ui.handlers import GESTURE, LATEST_GESTURE, Row, Updates
from playground.ui.notice import Notice
from playground.ui.snapshot import PageSnapshot
from playground.ui.text import one_line
from playground.ui.words import Words
from playground.ui.your_data import YourData, learned_from

KNOB_LABELS = {
    "temperature": words.mark("Temperature: higher is more varied"),
    "top_p": words.mark("Top-p: 1 is off"),
    "top_k": words.mark("Top-k: 0 is off"),
    "repetition_penalty": words.mark("Repetition penalty: 1 is off"),
    "reply_tokens": words.mark("Longest reply, in tokens"),
}
KNOB_STEPS = {"temperature": 0.05, "top_p": 0.05, "top_k": 1, "repetition_penalty": 0.05, "reply_tokens": 1}
TITLE_CHARS = 44
PAGE_SIZE = 20  # chats in the list at first, and more at each press
MAX_DRAFTS = 20  # kept for a page; what a page may keep has a bound
DRAFT_CHARS = 20_000

Drafts = dict[int | None, str]


class Sidebar:
    """Made inside the current Blocks, before the ChatTab; `wire` attaches the handlers once there is one."""

    def __init__(self, settings: Settings, store: Store, chat: Chat, notice: Notice) -> None:
        self.store = store
        self.chat = chat
        self.notice = notice
        self.limit = gr.State(PAGE_SIZE)  # chats in the list
        self.drafts: gr.State = gr.State({})  # what this page's message box held in other chats, as `exchange_draft`
        # the answer to the browser's question; not a gr.State, whose value `js` cannot change
        self.confirmed = gr.Checkbox(visible=False)
        with gr.Sidebar(open=False, elem_id="sidebar", width=300):
            self.new = gr.Button(words.label("New chat"), elem_id="sidebar-new")
            self.list = unchecked.Radio([], label=words.label("Your chats"), elem_id="chats", container=False)
            self.more = gr.Button(words.label("Show earlier chats"), size="sm", elem_id="earlier-chats", visible=False)
            self.none = gr.Markdown(words.label("Your chats are kept here."), elem_id="no-chats")
            with gr.Row(elem_id="chat-tools"):
                self.share = gr.Button(words.label("Share this chat"), size="sm", elem_id="share")
                self.delete = gr.Button(words.label("Delete this chat"), size="sm", elem_id="delete-chat")
            self.link = gr.Textbox(
                label=words.label("Anyone with this link can read this chat"),
                buttons=["copy"],
                interactive=False,
                visible=False,
                elem_id="share-link",
            )
            self.unshare = gr.Button(words.label("End the link"), size="sm", visible=False, elem_id="unshare")
            with gr.Accordion(words.label("Settings of this chat"), open=False, elem_id="chat-settings"):
                self.system = gr.Textbox(
                    label=words.label("System prompt"),
                    lines=3,
                    max_lines=8,
                    elem_id="system-prompt",
                    placeholder=words.label("How the model should behave in this chat"),
                )
                self.knobs = {name: self._knob(name, settings) for name in KNOB_LABELS}
                self.reset = gr.Button(words.label("Back to the app's settings"), size="sm", elem_id="chat-defaults")
            self.your_data = YourData(store, chat, bool(settings.backup.url))
            if settings.everybody_signs_in:
                gr.Button(words.label("Sign out"), link="sign-out", size="sm", elem_id="to-sign-out")

    @staticmethod
    def _knob(name: str, settings: Settings) -> unchecked.Slider:
        """The slider of one sampling setting."""
        low, high = KNOBS.get(name) or (1, settings.chat.reply_tokens)
        return unchecked.Slider(
            low,
            high,
            value=getattr(settings.chat, name),
            step=KNOB_STEPS[name],
            label=words.label(KNOB_LABELS[name]),
            elem_id=f"knob-{name.replace('_', '-')}",
        )

    @property
    def outputs(self) -> list[Component]:
        """Every component that `on_load` updates."""
        return [*self.list_outputs, self.system, *self.knobs.values()]

    @property
    def list_outputs(self) -> list[Component]:
        """Every component that `on_turn` updates."""
        chats = [self.list, self.more, self.none, self.share, self.delete, self.link, self.unshare]
        return [*chats, *self.your_data.outputs]

    def wire(self, page: gr.Blocks, tab: ChatTab, finished_turn: Dependency) -> None:
        """Attach the handlers. A change of chat updates the components of `tab`, too; after `finished_turn`, and
        after an undo, the list has changed.
        """
        self.tab = tab
        own = self.outputs
        both = [*tab.panel.outputs, *own]
        snapshot = tab.panel.snapshot
        moving = [snapshot, self.limit, tab.panel.message, self.drafts]
        moved = [*both, self.drafts]
        page.load(self.on_page_load, [self.limit], own, **GESTURE)
        for event in (finished_turn, tab.undone):
            event.then(self.on_turn, [self.limit], self.list_outputs, **GESTURE)
        gr.on([self.new.click, tab.panel.new.click], self.on_new, moving, moved, **GESTURE)
        self.list.input(self.on_open, [self.list, *moving], moved, **GESTURE)
        self.more.click(self.on_more, [self.limit], [self.limit, *self.list_outputs], **GESTURE)
        self.delete.click(
            self.on_delete,
            [self.confirmed, *moving],
            moved,
            js="(_, ...others) => [window.nudge.sure(), ...others]",
            **GESTURE,
        )
        self.share.click(self.on_share, [snapshot, self.limit], both, **GESTURE)
        self.link.change(  # behind a proxy only the browser knows the page's own address
            None,
            [self.link],
            [self.link],
            js="(path) => path && path.startsWith('?') ? new URL(path, location.href).href : path",
        )
        self.unshare.click(self.on_unshare, [snapshot, self.limit], both, **GESTURE)
        chat_settings: list[Component] = [self.system, *self.knobs.values()]
        gr.on(
            [self.system.blur, *(knob.input for knob in self.knobs.values())],
            self.on_configure,
            {*chat_settings, snapshot},
            [self.notice.html],
            **LATEST_GESTURE,
        )
        self.reset.click(self.on_reset, [snapshot], [*chat_settings, self.notice.html], **GESTURE)
        self.your_data.wire(tab.annotator, self.notice)

    # -- handlers

    def on_page_load(self, limit: int, request: gr.Request) -> Updates:
        """As `on_load`, without settings that the page has already: whoever is quick to write a system prompt on a slow
        machine keeps what is written.
        """
        updates = self.on_load(limit, request)
        for component in (self.system, *self.knobs.values()):
            if updates[component] == (component.value or ""):
                del updates[component]
        return updates

    def on_load(self, limit: int, request: gr.Request) -> Updates:
        """The list of chats, and the open chat's own settings."""
        return {**self.on_turn(limit, request), **self._settings_updates(self.tab.annotator(request))}

    def on_turn(self, limit: int, request: gr.Request) -> Updates:
        """The list of chats, and what is said of a person's data. A turn changes no settings, and whoever writes a
        system prompt meanwhile keeps what is written.
        """
        annotator = self.tab.annotator(request)
        translate = words.of(request)
        rows = self.store.conversations(annotator, limit=limit + 1)
        listed = rows[:limit]
        current = self.store.conversation(annotator)
        listed_ids = {row["id"] for row in listed}
        selected = current["id"] if current and current["id"] in listed_ids else None
        token = current["share_token"] if current else None
        return {
            self.list: gr.Radio(
                choices=[(_title(row, translate), row["id"]) for row in listed], value=selected, visible=bool(listed)
            ),
            self.more: gr.update(visible=len(rows) > limit),
            self.none: gr.Markdown(visible=not listed),
            self.share: gr.Button(visible=not token, interactive=selected is not None),
            self.delete: gr.Button(interactive=selected is not None),
            self.link: gr.Textbox(f"?shared={token}" if token else "", visible=bool(token)),
            self.unshare: gr.Button(visible=bool(token)),
            **self.your_data.updates(annotator, translate),
        }

    def on_more(self, limit: int, request: gr.Request) -> Updates:
        """A longer list."""
        limit += PAGE_SIZE
        return {self.limit: limit, **self.on_turn(limit, request)}

    def on_new(
        self, snapshot: PageSnapshot | None, limit: int, text: str, drafts: Drafts, request: gr.Request
    ) -> Updates:
        """A message that was refused is meant for the new chat; any other text stays with the chat that is left."""
        goes_along = bool(text) and snapshot is not None and snapshot.refused == text
        return self._change_chat(self.chat.new_chat, snapshot, limit, text, drafts, request, goes_along)

    def on_open(
        self,
        conversation: int,
        snapshot: PageSnapshot | None,
        limit: int,
        text: str,
        drafts: Drafts,
        request: gr.Request,
    ) -> Updates:
        def open_chat(annotator: int) -> View:
            return self.chat.open(annotator, conversation)

        return self._change_chat(open_chat, snapshot, limit, text, drafts, request)

    def on_delete(
        self,
        confirmed: bool,
        snapshot: PageSnapshot | None,
        limit: int,
        text: str,
        drafts: Drafts,
        request: gr.Request,
    ) -> Updates:
        """Delete the chat that the page shows, and say which versions have learned from it."""
        conversation = snapshot.conversation if snapshot else None
        if not confirmed or conversation is None:
            return gr.skip()
        translate = words.of(request)
        learned = learned_from(self.store.learned_versions(self.tab.annotator(request), conversation), translate)

        def delete(annotator: int) -> View:
            return self.chat.delete(annotator, conversation)

        updates = self._change_chat(delete, snapshot, limit, "", drafts, request)
        if self.notice.html in updates:  # refused
            return updates
        text = translate("Deleted: this chat's texts are gone.")
        return {**updates, **self.notice.confirm(f"{text} {learned}" if learned else text)}

    def on_share(self, snapshot: PageSnapshot | None, limit: int, request: gr.Request) -> Updates:
        return self._with_shown_chat(self.chat.share, words.of(request)("Not shared"), snapshot, limit, request)

    def on_unshare(self, snapshot: PageSnapshot | None, limit: int, request: gr.Request) -> Updates:
        return self._with_shown_chat(self.chat.unshare, "", snapshot, limit, request)

    def on_configure(self, values: Mapping[Component, Any], request: gr.Request) -> Updates:
        """Keep this chat's settings. A value that is not possible is refused, and nothing changes."""
        translate = words.of(request)
        annotator = self.tab.annotator(request)
        sampling = {name: values[knob] for name, knob in self.knobs.items()}
        try:
            self.tab.check_current(annotator, values[self.tab.panel.snapshot])
            self.chat.configure(annotator, values[self.system], sampling)
            return gr.skip()
        except (BadMessage, Refused) as error:
            return self.notice.warn(translate.message(error.message), translate("Setting not kept"))

    def on_reset(self, snapshot: PageSnapshot | None, request: gr.Request) -> Updates:
        """Give up this chat's own settings."""
        annotator = self.tab.annotator(request)
        notice: Updates = {}
        try:
            self.tab.check_current(annotator, snapshot)
            self.chat.configure(annotator, "", {})
        except Refused as error:
            notice = self.notice.warn(words.of(request).message(error.message))
        return {**self._settings_updates(annotator), **notice}

    # -- what they share

    def _settings_updates(self, annotator: int) -> Updates:
        """The open chat's own settings."""
        system, sampling = self.chat.sampling(annotator)
        return {self.system: system, **{knob: sampling[name] for name, knob in self.knobs.items()}}

    def _with_shown_chat(
        self,
        gesture: Callable[[int], object],
        title: str,
        snapshot: PageSnapshot | None,
        limit: int,
        request: gr.Request,
    ) -> Updates:
        """Do something with the chat that the page shows. Where another chat is open by now, show that one and warn
        with a `title`.
        """
        annotator = self.tab.annotator(request)
        updates: Updates = {}
        try:
            self.tab.check_current(annotator, snapshot)
            gesture(annotator)
        except Refused as error:
            translate = words.of(request)
            updates = {
                **self.tab.panel.changed_updates(self.chat.view(annotator), translate, snapshot),
                **self.notice.warn(translate.message(error.message), title),
            }
        return {**self.on_load(limit, request), **updates}

    def _change_chat(
        self,
        gesture: Callable[[int], View],
        snapshot: PageSnapshot | None,
        limit: int,
        text: str,
        drafts: Drafts,
        request: gr.Request,
        goes_along: bool = False,
    ) -> Updates:
        """Do something that changes which chat is open, and show the chat and the list as they are then. `text` is what
        the message box holds; whether it `goes_along`, or is kept for the chat that is left.
        """
        annotator = self.tab.annotator(request)
        translate = words.of(request)
        notice: Updates = {}
        try:
            view = gesture(annotator)
        except Refused as error:
            view = self.chat.view(annotator)
            notice = self.notice.warn(translate.message(error.message))
        changed = self.tab.panel.changed_updates(view, translate, snapshot)
        if not notice:
            left = snapshot.conversation if snapshot else None
            kept = "" if goes_along else text
            draft, changed[self.drafts] = exchange_draft(drafts, left, kept, view.conversation)
            if goes_along:
                draft = text
            if draft != text:  # else the box stays as it is: the person may be writing already
                changed[self.tab.panel.message] = gr.update(value=draft)
        return {**changed, **self.on_load(limit, request), **notice}


def exchange_draft(drafts: Drafts, left: int | None, text: str, opened: int | None) -> tuple[str, Drafts]:
    """The text for the message box of the chat that is `opened`, and the drafts then. `text` is what the box held in
    the chat that was `left`. A chat is named by its id; None is the empty page of somebody without any.
    """
    others = {chat: draft for chat, draft in drafts.items() if chat not in (left, opened)}
    if text and left != opened and len(text) <= DRAFT_CHARS:
        others[left] = text
    kept = dict(list(others.items())[-MAX_DRAFTS:])
    return (text if left == opened else drafts.get(opened, "")), kept


def _title(row: Row, translate: Words) -> str:
    """A chat's line in the list."""
    title = one_line(row["title"]) or translate("All turns undone")
    if len(title) > TITLE_CHARS:
        title = title[: TITLE_CHARS - 1].rstrip() + "…"
    return title + translate(" · shared") if row["shared"] else title
