"""The chat tab: two panes, the vote, and the message box. It shows a `session.View` and hands each gesture to `session.Chat`.

Nothing about a conversation is read back from the page: who asks is the cookie, and the pair on screen is kept on the server in `gr.State`.
"""

import threading
import time
from dataclasses import dataclass
from html import escape

import gradio as gr

from playground import visitor
from playground.prompts import BadMessage
from playground.session import Refused
from playground.store import now
from playground.ui.text import literal
from playground.ui.training import name

SIDES = ("a", "b")
CHOICES = {"a": "A better", "b": "B better", "tie": "Tie", "both_bad": "Both bad", "skip": "Skip"}
STARTERS = ("Give me three tips for a good night's sleep.", "Explain why the sky is blue to a child.", "Write a short poem about the sea.")
PLACEHOLDERS = {
    "a": "<h3>Two replies, side by side</h3>Write a message below. One candidate streams here…",
    "b": "<h3>Your pick teaches</h3>…and one here. Pick the better one, and the model learns from it.",
}
HINTS = {
    "idle": "Try one of these, or write your own.", "streaming": "Both are writing. You can stop them and judge what is there.",
    "voting": "Which reply is better?", "voted": "Thanks! You can still change your vote.",
}


@dataclass(frozen=True)
class Shown:
    """The pair a page shows, and since when it can be voted on. Kept on the server; `dwell_ms` runs on the monotonic clock."""

    duel: int
    at: str
    clock: float

    def dwell_ms(self):
        return 1e3 * (time.monotonic() - self.clock)


class ChatTab:
    """Builds the tab's components inside the current Blocks; `wire` attaches the handlers."""

    def __init__(self, store, chat):
        self.store, self.chat = store, chat
        self.shown = gr.State(None)
        self.poll = gr.Timer(0.7, active=False)
        with gr.Row(elem_id="panes", equal_height=True):
            self.panes = dict(zip(SIDES, map(self._pane, SIDES), strict=True))
        with gr.Row(elem_id="actions"):
            self.hint = gr.HTML(elem_id="hint", padding=False)
            self.starters = [gr.Button(text, size="sm", elem_classes="starter") for text in STARTERS]
            self.votes = {choice: gr.Button(label, size="sm", visible=False, elem_id=f"vote-{choice.replace('_', '-')}", elem_classes="vote")
                          for choice, label in CHOICES.items()}
        with gr.Row(elem_id="composer", equal_height=True):
            self.new = gr.Button("New chat", elem_id="new-chat", scale=0, min_width=100)
            self.box = gr.Textbox(placeholder="Write a message…", lines=1, max_lines=6, show_label=False, container=False, autofocus=True,
                                  elem_id="message", scale=1)
            self.send = gr.Button("Send", variant="primary", elem_id="send", scale=0, min_width=100)
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop", scale=0, min_width=100, visible=False)

    def _pane(self, side):
        with gr.Column(elem_id=f"pane-{side}", elem_classes="pane", min_width=300):
            chatbot = gr.Chatbot(show_label=False, container=False, elem_id=f"chat-{side}", height="100%", placeholder=PLACEHOLDERS[side],
                                 layout="bubble", buttons=[], sanitize_html=True, allow_tags=False, group_consecutive_messages=False, feedback_options=None)
            badge = gr.HTML(_badge(side, None, None), elem_id=f"badge-{side}", padding=False)
        return chatbot, badge

    def wire(self, page):
        """Attach every handler; none is part of a public API, and each finds out for itself who asks."""
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        outputs = [self.shown, self.poll, self.hint, *(c for pane in self.panes.values() for c in pane), *self.starters, *self.votes.values(), self.new,
                   self.box, self.send, self.stop]
        page.load(self.restore, None, outputs, **quiet)
        self.poll.tick(self.restore, None, outputs, **quiet)
        gr.on([self.box.submit, self.send.click], self.on_send, [self.box], outputs, concurrency_limit=16, **quiet)
        self.stop.click(self.on_stop, None, None, **quiet)
        self.new.click(self.on_new, [self.shown], outputs, **quiet)
        for choice, button in self.votes.items():
            button.click(self.voter(choice), [self.shown], outputs, **quiet)
        for button in self.starters:
            button.click(_same, [button], [self.box], **quiet)

    # -- handlers

    def restore(self, request: gr.Request):
        """What this visitor left, after a reload or while replies that another page started stream."""
        view = self.chat.view(self.annotator(request))
        return {**self.paint(view), self.poll: gr.Timer(active=view.phase == "streaming")}

    def on_send(self, text, request: gr.Request):
        """Send a message and stream both candidates. What cannot be sent stays in the box."""
        annotator = self.annotator(request)
        turn = self.chat.send(annotator, text)
        before = None
        try:
            for view in turn:
                if before is None:
                    yield {**self.paint(view), self.box: ""}
                else:
                    yield self.paint_panes(view) if view.phase == before.phase else self.paint(view)
                before = view
        except (BadMessage, Refused) as error:
            gr.Warning(str(error), title="Not sent", duration=8)
            yield {**self.paint(self.chat.view(annotator)), self.box: text}
            return
        except GeneratorExit:  # the browser has gone; this runs on the server's event loop, which must not wait for the model's next step
            threading.Thread(target=turn.close, name="hang up").start()
            raise
        if before.phase != "voting":
            gr.Info("Stopped before the first word. Your message is back in the box.")
            yield {self.box: text}

    def on_stop(self, request: gr.Request):
        self.chat.stop(self.annotator(request))

    def voter(self, choice):
        """The handler of one vote button."""
        def on_vote(shown, request: gr.Request):
            annotator = self.annotator(request)
            try:
                if shown is None:
                    raise Refused("There is no pair of replies to vote on here. Reload the page.")
                return self.paint(self.chat.vote(annotator, shown.duel, choice, shown.at, shown.dwell_ms()), shown)
            except Refused as error:
                gr.Warning(str(error), title="Vote not recorded")
                return self.paint(self.chat.view(annotator))
        return on_vote

    def on_new(self, shown, request: gr.Request):
        annotator = self.annotator(request)
        try:
            return {**self.paint(self.chat.new_chat(annotator)), self.box: ""}
        except Refused as error:
            gr.Warning(str(error))
            return self.paint(self.chat.view(annotator), shown)

    def annotator(self, request):
        """The annotator that the request's cookie stands for."""
        try:
            return self.store.annotator(visitor.token(request.cookies))
        except visitor.NoCookie as error:
            raise gr.Error(str(error), title="No cookie", print_exception=False) from None

    # -- a View as component updates

    def paint(self, view, shown=None):
        """Every component of the tab as `view` has it. `shown` is the pair the page already shows, so that its clock goes on."""
        if view.phase not in ("voting", "voted"):
            shown = None
        elif shown is None or shown.duel != view.duel:
            shown = Shown(view.duel, now(), time.monotonic())
        started = view.phase != "idle" or bool(view.history)
        updates = {**self.paint_panes(view), self.shown: shown, self.hint: _hint(view),
                   self.send: gr.Button(visible=view.phase != "streaming"), self.stop: gr.Button(visible=view.phase == "streaming"),
                   self.new: gr.Button(interactive=started and view.phase != "streaming")}
        updates |= {button: gr.Button(visible=not started) for button in self.starters}
        for choice, button in self.votes.items():
            picked = view.choice == choice
            updates[button] = gr.Button(visible=view.phase in ("voting", "voted"), interactive=not picked,
                                        elem_classes=["vote", "picked"] if picked else ["vote"])
        return updates

    def paint_panes(self, view):
        """The panes alone, for each update while replies stream; and the hint where it tells how far they are."""
        updates = {c: value for side, (chatbot, badge) in self.panes.items()
                   for c, value in ((chatbot, _messages(view, side)), (badge, _badge(side, view, view.left if side == "a" else view.right)))}
        return updates | ({self.hint: _hint(view)} if view.progress is not None else {})


def _hint(view):
    return f"<span>{escape(view.progress or HINTS[view.phase])}</span>"


def _same(text):
    return text


def _messages(view, side):
    """One pane's messages: the common history, then this side's candidate."""
    rows = [{"role": m["role"], "content": literal(m["content"])} for m in view.history]
    if view.message is not None:
        candidate = view.left if side == "a" else view.right
        rows += [{"role": "user", "content": literal(view.message)}, {"role": "assistant", "content": literal(candidate.text) or "…"}]
    return rows


def _badge(side, view, candidate):
    """The line under a pane: its letter and, after the vote, which version wrote the reply and how fast."""
    state, facts, mark = "", [], ""
    if view and view.phase == "streaming":
        state, facts = "streaming", ["writing…"]
    elif view and view.phase == "voted":
        state = "chosen" if candidate.chosen else "passed"
        facts = [name(candidate.version)]
        if candidate.first_token_ms is not None:
            facts.append(f"first token {candidate.first_token_ms:.0f} ms")
        if candidate.tokens_per_second is not None:
            facts.append(f"{candidate.tokens_per_second:.0f} tok/s")
        if candidate.chosen:
            mark = f'<b class="mark">{"✓ your pick" if view.choice in SIDES else "goes on from here"}</b>'
    return f'<div class="badge {state}"><b class="letter">{side.upper()}</b><span>{escape(" · ".join(facts))}</span>{mark}</div>'
