"""The two panes of the chat: what the Chatbot of each side shows of a `views.View` (messages, thumbs, edited replies),
and the badge below it with the version that wrote the reply.
"""

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from playground.chat.views import Side, View
from playground.ui import words
from playground.ui.handlers import Updates
from playground.ui.status_bar import version_name
from playground.ui.text import as_markdown, as_typed
from playground.ui.words import Words

SIDES = ("a", "b")
PLACEHOLDERS = {
    "a": words.mark("<h3>Two replies, side by side</h3>Write a message below. One reply streams here…"),
    "b": words.mark("<h3>Your pick teaches</h3>…and one here. Pick the better one, and the model learns from it."),
}
LABELS = {"a": words.mark("Replies of side A"), "b": words.mark("Replies of side B")}
THUMBS: dict[int | None, str] = {1: "Like", -1: "Dislike"}  # Gradio's names for its two icons


class Pane:
    """One side: its Chatbot and its badge, made inside the current Blocks."""

    def __init__(self, side: str) -> None:
        self.side = side
        with gr.Column(elem_id=f"pane-{side}", elem_classes="pane", min_width=300):
            self.chatbot = gr.Chatbot(
                label=words.label(LABELS[side]),
                show_label=False,
                container=False,
                elem_id=f"chat-{side}",
                height="100%",
                placeholder=words.label(PLACEHOLDERS[side]),
                layout="bubble",
                buttons=["copy"],
                sanitize_html=True,
                allow_tags=False,
                render_markdown=False,
                latex_delimiters=[],  # `ui/text.py` makes the HTML
                group_consecutive_messages=False,
                feedback_options=tuple(THUMBS.values()),
                editable="all",
            )
            self.badge = gr.HTML(badge_html(side, None, Words()), elem_id=f"badge-{side}", padding=False)

    def stream_updates(self, view: View, translate: Words) -> Updates:
        """What changes with each token while replies stream."""
        return {
            self.chatbot: chatbot_messages(view, self.side, translate),
            self.badge: badge_html(self.side, view, translate),
        }

    def updates(self, view: View, translate: Words) -> Updates:
        """The whole pane."""
        messages = pane_messages(view, self.side)
        thumbs = [THUMBS.get(message.thumb) for message in messages if message.role == "assistant"]
        return {
            self.chatbot: gr.update(
                value=[message.for_chatbot(translate) for message in messages], feedback_value=thumbs
            ),
            self.badge: badge_html(self.side, view, translate),
        }


@dataclass(frozen=True)
class PaneMessage:
    """One message of a pane. `id` is the store's; it is None for the person's own messages and for a reply that is
    still being written. `thumb` is 1, -1 or None; `cut` the tokens after which a reply reached the limit, or None;
    `stopped` whether it was stopped before its end.
    """

    role: str
    text: str
    id: int | None = None
    thumb: int | None = None
    cut: int | None = None
    stopped: bool = False

    def for_chatbot(self, translate: Words) -> dict[str, Any]:
        """The message as HTML, as a Chatbot takes it. The HTML is a part of type "text", since Gradio removes the
        indentation of a plain string.
        """
        html = as_typed(self.text) if self.role == "user" else as_markdown(self.text)
        note = ""
        if self.cut is not None:
            note = translate("cut at {n} {n:token|tokens}", n=self.cut)
        elif self.stopped:
            note = translate("stopped before its end")
        if note:  # beside the text, so that it is neither copied nor edited
            html += f'<p class="cut">{escape(note)}</p>'
        return {"role": self.role, "content": [{"type": "text", "text": html}]}


def pane_messages(view: View, side: str) -> list[PaneMessage]:
    """The messages of a pane: the history that both panes share, then this side's candidate."""
    messages = []
    for message in view.history:
        reply_id = message.id if message.role == "assistant" else None
        messages.append(PaneMessage(message.role, message.text, reply_id, message.thumb, message.cut, message.stopped))
    candidate = _candidate(view, side)
    if view.message is not None and candidate is not None:
        messages.append(PaneMessage("user", view.message))
        text = candidate.text or "…"
        reply = PaneMessage("assistant", text, candidate.message, candidate.thumb, candidate.cut, candidate.stopped)
        messages.append(reply)
    return messages


def chatbot_messages(view: View, side: str, translate: Words) -> list[dict[str, Any]]:
    """The value of a side's Chatbot."""
    return [message.for_chatbot(translate) for message in pane_messages(view, side)]


def badge_html(side: str, view: View | None, translate: Words) -> str:
    """The line under a pane: its letter and, after the vote, which version wrote the reply and how fast."""
    css_class = ""
    facts: list[str] = []
    mark = ""
    candidate = view and _candidate(view, side)
    if view and view.phase == "streaming":
        css_class = "streaming"
        facts = [translate("complete") if candidate and candidate.complete else translate("writing…")]
    elif view and candidate and view.phase in ("voting", "voted"):
        if view.phase == "voted":
            css_class = _voted_class(view, candidate)
        facts = _facts(side, view, candidate, translate)
        if candidate.chosen:
            text, why = translate("✓ your pick"), ""
            if view.choice not in SIDES:
                text = translate("the chat goes on from this one")
                why = translate("Neither reply won your vote, so chance decided from which one the chat goes on.")
            mark = f'<b class="mark" title="{escape(why)}">{escape(text)}</b>'
    text = escape(" · ".join(facts))
    return f'<div class="badge {css_class}"><b class="letter">{side.upper()}</b><span>{text}</span>{mark}</div>'


def _facts(side: str, view: View, candidate: Side, translate: Words) -> list[str]:
    """Who wrote a reply and how fast, as far as the person may know it."""
    facts = []
    if view.phase == "voted" and candidate.version is not None:
        facts.append(version_name(candidate.version, translate))
    if view.phase == "voted" and view.writing == side:
        facts.append(translate("writing…"))
    if candidate.first_token_ms is not None:
        facts.append(translate("first token {ms} ms", ms=f"{candidate.first_token_ms:.0f}"))
    if candidate.tokens_per_second is not None:
        facts.append(translate("{rate} tok/s", rate=f"{candidate.tokens_per_second:.0f}"))
    if candidate.edited:
        facts.append(translate("edited by you"))
    return facts


def _voted_class(view: View, candidate: Side) -> str:
    """The CSS class of a side's badge after the vote. Where no side won, none looks like the winner, and the one that
    the chat goes on with was picked at random.
    """
    if view.choice in SIDES:
        return "chosen" if candidate.chosen else "passed"
    return "drawn" if candidate.chosen else ""


def _candidate(view: View, side: str) -> Side | None:
    return view.left if side == "a" else view.right
