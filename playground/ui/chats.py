"""The sidebar: one's earlier chats, the link to share this one, and what this chat sets for itself."""

import gradio as gr

from playground.chat.gestures import KNOBS
from playground.chat.refusals import Refused
from playground.models.prompts import BadMessage
from playground.ui import inputs, words
from playground.ui.notice import GESTURE
from playground.ui.text import line
from playground.ui.yours import YourData, learned_from

KNOB_LABELS = {
    "temperature": words.mark("Temperature: higher is more varied"),
    "top_p": words.mark("Top-p: 1 is off"),
    "top_k": words.mark("Top-k: 0 is off"),
    "repetition_penalty": words.mark("Repetition penalty: 1 is off"),
    "reply_tokens": words.mark("Longest reply, in tokens"),
}
STEPS = {"temperature": 0.05, "top_p": 0.05, "top_k": 1, "repetition_penalty": 0.05, "reply_tokens": 1}
TITLE_CHARS = 44
STRETCH = 20  # chats in the list at first, and more at each press


class Sidebar:
    """Made inside the current Blocks, before the tabs; `wire` attaches the handlers to a ChatTab."""

    def __init__(self, settings, store, chat, notice):
        self.store, self.chat, self.notice = store, chat, notice
        self.stretch = gr.State(STRETCH)
        self.sure = gr.Checkbox(
            visible=False
        )  # what the browser's question was answered with: a gr.State keeps what the server has, whatever `js` gives
        with gr.Sidebar(open=False, elem_id="sidebar", width=300):
            self.new = gr.Button(words.label("New chat"), elem_id="sidebar-new")
            self.list = inputs.Radio([], label=words.label("Your chats"), elem_id="chats", container=False)
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
                self.knobs = {
                    name: inputs.Slider(
                        *self._range(name, settings),
                        value=getattr(settings, name),
                        step=STEPS[name],
                        label=words.label(text),
                        elem_id=f"knob-{name.replace('_', '-')}",
                    )
                    for name, text in KNOB_LABELS.items()
                }
                self.reset = gr.Button(words.label("Back to the app's settings"), size="sm", elem_id="chat-defaults")
            self.yours = YourData(store, chat)

    @staticmethod
    def _range(name, settings):
        return KNOBS.get(name) or (1, settings.reply_tokens)

    def wire(self, page, tab, sent):
        """`tab` is the ChatTab, whose components a change of chat paints anew; `sent` the event after which the list
        has changed.
        """
        self.tab = tab
        mine = [
            self.list,
            self.more,
            self.none,
            self.share,
            self.delete,
            self.link,
            self.unshare,
            self.system,
            *self.knobs.values(),
            *self.yours.outputs,
        ]
        both = [*tab.outputs, *mine]
        page.load(self.refresh, [self.stretch], mine, **GESTURE)
        sent.then(self.refresh, [self.stretch], mine, **GESTURE)
        gr.on([self.new.click, tab.new.click], self.on_new, [tab.shown, self.stretch], both, **GESTURE)
        self.list.input(self.on_open, [self.list, tab.shown, self.stretch], both, **GESTURE)
        self.more.click(self.on_more, [self.stretch], [self.stretch, *mine], **GESTURE)
        self.delete.click(
            self.on_delete,
            [self.sure, tab.shown, self.stretch],
            both,
            js="(_, page, stretch) => [window.nudge.sure(), page, stretch]",
            **GESTURE,
        )
        # the link is the page's own address, which behind a proxy only the browser knows
        self.share.click(self.on_share, [tab.shown, self.stretch], both, **GESTURE)
        self.link.change(
            None,
            [self.link],
            [self.link],
            js="(path) => path && path.startsWith('?') ? new URL(path, location.href).href : path",
        )
        self.unshare.click(self.on_unshare, [tab.shown, self.stretch], both, **GESTURE)
        kept = [self.system, *self.knobs.values()]
        gr.on(
            [self.system.blur, *(knob.input for knob in self.knobs.values())],
            self.on_configure,
            {*kept, tab.shown},
            [self.notice.html],
            trigger_mode="always_last",
            **GESTURE,
        )
        self.reset.click(self.on_reset, [tab.shown], [*kept, self.notice.html], **GESTURE)
        self.yours.wire(tab.annotator, self.notice)

    # -- handlers

    def refresh(self, stretch, request: gr.Request):
        """The list and the open chat's own settings."""
        annotator, w = self.tab.annotator(request), words.of(request)
        rows, current = self.store.conversations(annotator, limit=stretch + 1), self.store.conversation(annotator)
        rows, more = rows[:stretch], len(rows) > stretch
        chosen = current["id"] if current and any(row["id"] == current["id"] for row in rows) else None
        token = current and current["share_token"]
        system, sampling = self.chat.sampling(annotator)
        return {
            self.list: gr.Radio(
                choices=[(_title(row, w), row["id"]) for row in rows], value=chosen, visible=bool(rows)
            ),
            self.more: gr.update(visible=more),
            self.none: gr.Markdown(visible=not rows),
            self.share: gr.Button(visible=not token, interactive=chosen is not None),
            self.delete: gr.Button(interactive=chosen is not None),
            self.link: gr.Textbox(f"?shared={token}" if token else "", visible=bool(token)),
            self.unshare: gr.Button(visible=bool(token)),
            self.system: system,
            **{knob: sampling[name] for name, knob in self.knobs.items()},
            **self.yours.paint(annotator, w),
        }

    def on_more(self, stretch, request: gr.Request):
        return {self.stretch: stretch + STRETCH, **self.refresh(stretch + STRETCH, request)}

    def on_new(self, on_page, stretch, request: gr.Request):
        return self._change(self.chat.new_chat, on_page, stretch, request)

    def on_open(self, conversation, on_page, stretch, request: gr.Request):
        return self._change(lambda annotator: self.chat.open(annotator, conversation), on_page, stretch, request)

    def on_delete(self, sure, on_page, stretch, request: gr.Request):
        if not sure or on_page is None or on_page.conversation is None:
            return gr.skip()
        annotator, w = self.tab.annotator(request), words.of(request)
        learned = learned_from(self.store.learned_versions(annotator, on_page.conversation), w)
        updates = self._change(
            lambda annotator: self.chat.delete(annotator, on_page.conversation), on_page, stretch, request
        )
        refused = self.notice.html in updates
        return (
            updates
            if refused
            else {
                **updates,
                **self.notice.say(w("Deleted: this chat's texts are gone.") + (f" {learned}" if learned else "")),
            }
        )

    def on_share(self, on_page, stretch, request: gr.Request):
        return self._on_this(self.chat.share, words.of(request)("Not shared"), on_page, stretch, request)

    def on_unshare(self, on_page, stretch, request: gr.Request):
        return self._on_this(self.chat.unshare, "", on_page, stretch, request)

    def _on_this(self, gesture, title, on_page, stretch, request):
        """Do something with the chat that the page shows; where another is open by now, show that one and say so."""
        annotator, said = self.tab.annotator(request), {}
        try:
            self.tab.check_current(annotator, on_page)
            gesture(annotator)
        except Refused as error:
            w = words.of(request)
            said = {
                **self.tab.repaint(self.chat.view(annotator), w, on_page),
                **self.notice.warn(w.message(error.message), title),
            }
        return {**self.refresh(stretch, request), **said}

    def on_configure(self, values, request: gr.Request):
        """`values` is {component: value}. What cannot be is said, and nothing changes."""
        w = words.of(request)
        try:
            self.tab.check_current(self.tab.annotator(request), values[self.tab.shown])
            self.chat.configure(
                self.tab.annotator(request),
                values[self.system],
                {name: values[knob] for name, knob in self.knobs.items()},
            )
            return gr.skip()
        except (BadMessage, Refused) as error:
            return self.notice.warn(w.message(error.message), w("Setting not kept"))

    def on_reset(self, on_page, request: gr.Request):
        annotator, said = self.tab.annotator(request), {}
        try:
            self.tab.check_current(annotator, on_page)
            self.chat.configure(annotator, "", {})
        except Refused as error:
            said = self.notice.warn(words.of(request).message(error.message))
        system, sampling = self.chat.sampling(annotator)
        return {self.system: system, **{knob: sampling[name] for name, knob in self.knobs.items()}, **said}

    def _change(self, gesture, on_page, stretch, request):
        """Do it, and paint the chat and the list as they are then."""
        annotator, w, said = self.tab.annotator(request), words.of(request), {}
        try:
            view = gesture(annotator)
        except Refused as error:
            view, said = self.chat.view(annotator), self.notice.warn(w.message(error.message))
        return {**self.tab.repaint(view, w, on_page), **self.refresh(stretch, request), **said}


def _title(row, w):
    title = line(row["title"])
    title = title if len(title) <= TITLE_CHARS else title[: TITLE_CHARS - 1].rstrip() + "…"
    return title + (w(" · shared") if row["shared"] else "")
