"""The chat tab: two panes, the vote, and the message box. It shows a `views.View` and hands each gesture to
`session.Chat`.

Nothing about a conversation is read back from the page: who asks is the cookie, and what is on screen is kept on the
server in `gr.State`.
"""

import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from html import escape

import gradio as gr

from playground.chat.refusals import Refused
from playground.models.prompts import BadMessage
from playground.people import visitor
from playground.store import StoreError, now
from playground.ui import words
from playground.ui.lane import ROOM, Lane
from playground.ui.notice import GESTURE, STREAM, seen
from playground.ui.panes import SIDES, Pane, shown
from playground.ui.reasons import Reasons
from playground.ui.strip import name
from playground.ui.text import original

CHOICES = {
    "a": words.mark("A better"),
    "b": words.mark("B better"),
    "tie": words.mark("Tie"),
    "both_bad": words.mark("Both bad"),
    "skip": words.mark("Skip"),
}
STARTERS = (
    words.mark("Give me three tips for a good night's sleep."),
    words.mark("Explain why the sky is blue to a child."),
    words.mark("Write a short poem about the sea."),
)
HINTS = {
    "idle": words.mark("Try one of these, or write your own."),
    "streaming": words.mark("Both are writing. Vote as soon as you know, or let them end."),
    "voting": words.mark("Which reply is better?"),
    "voted": words.mark("Thanks! You can still change your vote."),
    "shared": words.mark("A shared chat, to read."),
    "same": words.mark("Both gave the same answer."),
}
GOING_ON = (
    words.mark("Thanks! The reply that you picked goes on to its end."),
    words.mark("Thanks! One of them, drawn by lot, goes on to its end."),
)


@dataclass(frozen=True)
class Shown:
    """What a page shows, and since when its pair can be voted on. Kept on the server; `dwell_ms` runs on the monotonic
    clock.
    """

    conversation: int | None
    duel: int | None
    version: int  # that answers; a newer one is told quietly
    at: str
    clock: float
    vote: int | None = None  # the person's own on this pair
    painted: dict = field(default_factory=dict, repr=False)  # component id: what `paint` last sent there

    def behind(self, view):
        """Whether the person has gone on elsewhere, so that a gesture here was meant for something that is no more:
        another chat, pair or vote.
        """
        if self.conversation is None and not view.started:
            return False  # nothing was there, and what is there now is empty
        return (self.conversation, self.duel, self.vote) != (view.conversation, view.duel, view.vote)

    def dwell_ms(self):
        return 1e3 * (time.monotonic() - self.clock)


class ChatTab:
    """Builds the tab's components inside the current Blocks; `wire` attaches the handlers."""

    def __init__(self, store, engine, chat, notice):
        self.store, self.engine, self.chat, self.notice = store, engine, chat, notice
        self.lane = Lane(chat.settings.waiting_messages + ROOM)
        self.shown = gr.State(None)
        self.poll = gr.Timer(0.3, active=False)
        with gr.Row(elem_id="panes", equal_height=True):
            self.panes = {side: Pane(side) for side in SIDES}
        with gr.Row(elem_id="actions"):
            self.hint = gr.HTML(elem_id="hint", padding=False)
            self.starters = [gr.Button(words.label(text), size="sm", elem_classes="starter") for text in STARTERS]
            self.votes = {
                choice: gr.Button(
                    words.label(text),
                    size="sm",
                    visible="hidden",
                    elem_id=f"vote-{choice.replace('_', '-')}",
                    elem_classes="vote",
                )
                for choice, text in CHOICES.items()
            }
        self.reasons = Reasons(store, chat, notice)
        with gr.Row(elem_id="composer", equal_height=True):
            self.new = gr.Button(words.label("New chat"), elem_id="new-chat", scale=0, min_width=100)
            self.box = gr.Textbox(
                placeholder=words.label("Write a message…"),
                label=words.label("Message"),
                lines=1,
                max_lines=6,
                show_label=False,
                container=False,
                elem_id="message",
                scale=1,
            )
            self.send = gr.Button(words.label("Send"), variant="primary", elem_id="send", scale=0, min_width=100)
            self.stop = gr.Button(
                words.label("Stop"), variant="stop", elem_id="stop", scale=0, min_width=100, visible="hidden"
            )
        with gr.Row(elem_id="tools"):
            self.again = gr.Button(words.label("↻ Regenerate"), size="sm", elem_id="regenerate", visible="hidden")
            self.undo = gr.Button(words.label("↩ Undo"), size="sm", elem_id="undo", visible="hidden")
            self.earlier = gr.Button("‹", size="sm", elem_id="pair-before", visible="hidden")
            self.place = gr.HTML(elem_id="pair-place", padding=False)
            self.later = gr.Button("›", size="sm", elem_id="pair-after", visible="hidden")
            self.swap = gr.HTML(elem_id="swap", padding=False)
            self.catch_up = gr.Button(
                visible="hidden", elem_id="catch-up"
            )  # pressed by the page itself when it is looked at again

    @property
    def outputs(self):
        """Every component that `paint` updates."""
        return [
            self.shown,
            self.poll,
            self.hint,
            *(c for pane in self.panes.values() for c in (pane.chatbot, pane.badge)),
            *self.starters,
            *self.votes.values(),
            *self.reasons.outputs,
            self.new,
            self.box,
            self.send,
            self.stop,
            self.again,
            self.undo,
            self.earlier,
            self.place,
            self.later,
            self.swap,
            self.notice.html,
        ]

    def wire(self, page, moments):
        """Attach every handler; none is part of a public API, and each finds out for itself who asks. Returns the event
        of a finished turn.
        """
        outputs = self.outputs
        page.load(self.restore, None, outputs, **GESTURE)
        gr.on([self.poll.tick, self.catch_up.click], self.on_poll, [self.shown], outputs, **GESTURE)
        gr.on(moments, self.on_tick, [self.shown], [self.swap, self.reasons.fate], **GESTURE)
        sent = gr.on([self.box.submit, self.send.click], self.on_send, [self.box, self.shown], outputs, **STREAM)
        self.again.click(self.on_again, [self.shown], outputs, **STREAM)
        self.stop.click(self.on_stop, None, None, **GESTURE)
        self.undo.click(self.on_undo, [self.shown], outputs, **GESTURE)
        self.earlier.click(self.on_earlier, [self.shown], outputs, **GESTURE)
        self.later.click(self.on_later, [self.shown], outputs, **GESTURE)
        for choice, button in self.votes.items():
            button.click(self.voter(choice), [self.shown], outputs, **GESTURE)
        for button, text in zip(self.starters, STARTERS, strict=True):
            button.click(starter(text), None, [self.box], **GESTURE)
        for side, pane in self.panes.items():
            pane.chatbot.like(self.thumber(side), [self.shown], [pane.chatbot, pane.badge, self.notice.html], **GESTURE)
            pane.chatbot.edit(self.editor(side), [self.shown], outputs, **GESTURE)
        self.reasons.wire(self.shown, self.annotator)
        return sent

    # -- handlers: the turn

    def restore(self, request: gr.Request):
        """What this visitor left, or the chat that a share link leads to."""
        w, token = words.of(request), request.query_params.get("shared")
        if token and (view := self.chat.shared(token)):
            return self.paint(replace(view, phase="shared"), w)
        said = self.notice.warn(w("This link leads to no chat any more."), w("Not shared")) if token else {}
        view = self.chat.view(self.annotator(request))
        return {**self.paint(view, w), self.poll: gr.update(active=written(view)), **said}

    def on_poll(self, on_page, request: gr.Request):
        """Replies that this page did not start, or started before it was reloaded, as they grow."""
        view = self.chat.view(self.annotator(request))
        updates = self.repaint(view, words.of(request), on_page)
        for component in self.reasons.outputs:  # somebody may be typing there
            if on_page and on_page.painted.get(component._id) == updates[component]:
                del updates[component]
        return {**updates, self.poll: gr.update(active=written(view))}

    async def on_send(self, text, on_page, request: gr.Request):
        """Send a message and stream both candidates. What cannot be sent stays in the box."""
        updates = self.stream(
            lambda annotator: self.chat.send(annotator, text, address(request)), text, on_page, request
        )
        async with aclosing(self.lane.drive(updates)) as driven:
            async for update in driven:
                yield update

    async def on_again(self, on_page, request: gr.Request):
        """Two new replies to the same message."""
        updates = self.stream(
            lambda annotator: self.chat.regenerate(annotator, address(request)), None, on_page, request
        )
        async with aclosing(self.lane.drive(updates)) as driven:
            async for update in driven:
                yield update

    def stream(self, start, text, on_page, request):
        annotator, w = self.annotator(request), words.of(request)
        turn, before = start(annotator), None
        try:
            self.check_current(annotator, on_page)
            for view in turn:
                if before is None:
                    yield {**self.paint(view, w), **({} if text is None else {self.box: ""})}
                elif view.progress and replace(view, progress=before.progress) == before:
                    yield {self.hint: _hint(view, w)}  # a place in the line: the panes are much to send for it
                elif kind(view) == kind(before):
                    yield self.paint_panes(view, w)
                else:
                    yield self.painted_again(view, before, w)
                before = view
        except (BadMessage, Refused, StoreError) as error:
            kept = {} if text is None else {self.box: text}
            yield {**self.ended(annotator, w), **kept, **self.notice.warn(w.message(error.message), w("Not sent"))}
            return
        except GeneratorExit:  # the browser has gone
            self.chat.finish_in_background(annotator, turn)
            raise

    def ended(self, annotator, w):
        """The chat as it is after a turn that failed; where the store cannot tell, the page as it stands, with the
        message box free."""
        try:
            return self.paint(self.chat.view(annotator), w)
        except StoreError:
            return {self.send: gr.update(visible=seen(True)), self.stop: gr.update(visible=seen(False))}

    def on_stop(self, request: gr.Request):
        self.chat.stop(self.annotator(request))

    def voter(self, choice):
        """The handler of one vote button."""

        def on_vote(on_page, request: gr.Request):
            annotator, w = self.annotator(request), words.of(request)
            try:
                if on_page is None or on_page.duel is None:
                    raise Refused("There is no pair of replies to vote on here. Reload the page.")
                self.check_current(annotator, on_page)
                return self.repaint(
                    self.chat.vote(annotator, on_page.duel, choice, on_page.at, on_page.dwell_ms()), w, on_page
                )
            except Refused as error:
                return {
                    **self.paint(self.chat.view(annotator), w, on_page),
                    **self.notice.warn(w.message(error.message), w("Vote not recorded")),
                }

        return on_vote

    # -- handlers: what is said of a reply

    def thumber(self, side):
        def on_thumb(on_page, data: gr.LikeData, request: gr.Request):
            """A thumb on one reply, or its withdrawal."""
            annotator, w = self.annotator(request), words.of(request)
            try:
                line = self.line(annotator, on_page, side, data.index)
                self.chat.rate(annotator, line.id, {True: 1, False: -1}.get(data.liked) if data.liked != "" else None)
                return gr.skip()
            except Refused as error:
                return {
                    **self.panes[side].paint(self.chat.view(annotator), w),
                    **self.notice.warn(w.message(error.message), w("Not recorded")),
                }

        return on_thumb

    def editor(self, side):
        def on_edit(on_page, data: gr.EditData, request: gr.Request):
            """An edited reply: kept as a demonstration, and what the conversation goes on with."""
            annotator, w = self.annotator(request), words.of(request)
            try:
                line = self.line(annotator, on_page, side, data.index)
                view = self.chat.edit(annotator, line.id, original(data.value))
                said = self.notice.say(w("Kept: the next version learns from your wording too."))
            except (BadMessage, Refused) as error:
                said = self.notice.warn(w.message(error.message), w("Edit not kept"))
                view = self.chat.view(annotator)
            return {**self.paint(view, w, on_page), **said}

        return on_edit

    def line(self, annotator, on_page, side, index):
        """The reply at a place of a pane, if the page is not behind."""
        view, index = self.check_current(annotator, on_page), index[0] if isinstance(index, (list, tuple)) else index
        if on_page is None or view.phase == "streaming":
            raise Refused("This page is behind. It shows the chat anew; try again.")
        lines = shown(view, side)
        if not isinstance(index, int) or not 0 <= index < len(lines) or lines[index].id is None:
            raise Refused("Only replies can be judged or edited. To change your own message, undo the turn.")
        return lines[index]

    def check_current(self, annotator, on_page):
        """The View as it is now; Refused when the page shows another (`on_page` is None where nobody knows what it
        shows).
        """
        view = self.chat.view(annotator)
        if on_page is not None and on_page.behind(view):
            raise Refused(
                "You went on in another tab or window. Here is the chat as it is now; what you pressed was not done."
            )
        return view

    # -- handlers: the conversation

    def on_undo(self, on_page, request: gr.Request):
        annotator, w = self.annotator(request), words.of(request)
        try:
            self.check_current(annotator, on_page)
            view, text = self.chat.undo(annotator)
            return {**self.paint(view, w), self.box: text}
        except Refused as error:
            return {**self.paint(self.chat.view(annotator), w), **self.notice.warn(w.message(error.message))}

    def on_earlier(self, on_page, request: gr.Request):
        return self.turn_over(-1, on_page, request)

    def on_later(self, on_page, request: gr.Request):
        return self.turn_over(1, on_page, request)

    def turn_over(self, step, on_page, request):
        """Another pair of replies to the same message."""
        annotator, w = self.annotator(request), words.of(request)
        view = self.chat.view(annotator)
        at, said = view.pairs.index(view.duel) + step if view.duel in view.pairs else -1, {}
        try:
            self.check_current(annotator, on_page)
            if 0 <= at < len(view.pairs):
                view = self.chat.show_pair(annotator, view.pairs[at])
        except Refused as error:
            said = self.notice.warn(w.message(error.message))
        return {**self.paint(view, w), **said}

    def on_tick(self, on_page, request: gr.Request):
        """What became of the vote, and whether another version answers now."""
        if on_page is None:
            return gr.skip()
        w, version = words.of(request), self.engine.live.version
        note = (
            ""
            if version == on_page.version
            else f'<span role="status">{escape(w("now answering: {version}", version=name(version, w)))}</span>'
        )
        return {self.swap: note, **self.reasons.follow(on_page.duel, self.annotator(request), w)}

    def annotator(self, request):
        """The annotator that the request's cookie stands for."""
        try:
            return self.store.annotator(visitor.token(request.cookies))
        except visitor.NoCookie as error:
            raise gr.Error(
                words.of(request).message(error.message), title=words.of(request)("No cookie"), print_exception=False
            ) from None

    # -- a View as component updates

    def paint(self, view, w, on_page=None):
        """Every component of the tab as `view` has it. `on_page` is what the page already shows, so that its clock goes
        on.
        """
        if (
            on_page is None
            or (on_page.conversation, on_page.duel) != (view.conversation, view.duel)
            or view.phase == "streaming"
        ):
            on_page = Shown(view.conversation, view.duel, self.engine.live.version, now(), time.monotonic())
        on_page = replace(on_page, vote=view.vote)
        reading, streaming, judged = (
            view.phase == "shared",
            view.phase == "streaming",
            view.phase in ("streaming", "voting", "voted"),
        )
        writing = written(view)
        several = len(view.pairs) > 1 and not writing
        at = view.pairs.index(view.duel) if view.duel in view.pairs else 0
        updates = {
            **self.paint_panes(view, w),
            self.hint: _hint(view, w),
            self.swap: "",
            self.send: gr.update(visible=seen(not writing and not reading)),
            self.stop: gr.update(visible=seen(writing)),
            self.new: gr.update(interactive=view.started and not streaming, visible=not reading),
            self.box: gr.update(visible=not reading),
            self.again: gr.update(visible=seen(view.phase in ("voting", "voted", "same") and not writing)),
            self.undo: gr.update(visible=seen(view.started and not writing and not reading)),
            self.earlier: gr.update(visible=seen(several), interactive=at > 0),
            self.later: gr.update(visible=seen(several), interactive=at + 1 < len(view.pairs)),
            self.place: w("pair {n} of {total}", n=at + 1, total=len(view.pairs)) if several else "",
            **self.reasons.paint(view, w),
        }
        if not streaming:
            updates |= {c: update for side in self.panes.values() for c, update in side.paint(view, w).items()}
        updates |= {button: gr.update(visible=seen(not view.started)) for button in self.starters}
        for choice, button in self.votes.items():
            picked = view.choice == choice
            updates[button] = gr.update(
                visible=seen(judged and not (streaming and view.progress)),
                interactive=not picked,
                elem_classes=["vote", "picked"] if picked else ["vote"],
            )
        return {
            **updates,
            self.shown: None if reading else replace(on_page, painted={c._id: update for c, update in updates.items()}),
        }

    def repaint(self, view, w, on_page):
        """What of `paint` is not on the page yet; always what changes there without it, by the person's own hand or a
        tick.
        """
        painted, always = on_page.painted if on_page else {}, {self.shown, self.swap, *self.reasons.outputs}
        return {
            c: update
            for c, update in self.paint(view, w, on_page).items()
            if c in always or painted.get(c._id) != update
        }

    def painted_again(self, view, before, w):
        """`paint` in the middle of a stream; without the reasons where they were there before, since somebody may be
        typing there.
        """
        updates = self.paint(view, w)
        if before.phase == view.phase == "voted":
            for component in self.reasons.outputs:
                del updates[component]
        return updates

    def paint_panes(self, view, w):
        """The panes alone, for each update while replies stream; and the hint where it tells how far they are."""
        updates = {c: update for pane in self.panes.values() for c, update in pane.stream(view, w).items()}
        return updates | ({self.hint: _hint(view, w)} if view.progress is not None else {})


def written(view):
    """Whether anything of the pair on screen is still being written."""
    return view.phase == "streaming" or view.writing is not None


def kind(view):
    """What two updates of one stream have in common when only the panes differ."""
    return view.phase, view.writing, bool(view.progress)


def address(request):
    """The network address that a request came from."""
    return request.client.host if request.client else ""


def starter(text):
    """The handler of one starter: its text, in the reader's language, into the box."""

    def on_starter(request: gr.Request):
        return words.of(request)(text)

    return on_starter


def _hint(view, w):
    own = f' <a href="?">{escape(w("Start a chat of your own"))}</a>' if view.phase == "shared" else ""
    text = GOING_ON[view.choice not in SIDES] if view.writing else HINTS[view.phase]
    said = w.message(view.progress) if view.progress and not view.writing else w(text)
    return f'<span class="{view.phase}">{escape(said)}{own}</span>'
