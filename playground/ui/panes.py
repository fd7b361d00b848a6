"""The two panes: what each side's Chatbot shows of a `views.View`, thumbs and edited replies on it, and the line below
with who wrote it.
"""

from html import escape

import gradio as gr

from playground.ui import words
from playground.ui.strip import name
from playground.ui.text import as_markdown, as_typed

SIDES = ("a", "b")
PLACEHOLDERS = {
    "a": words.mark("<h3>Two replies, side by side</h3>Write a message below. One reply streams here…"),
    "b": words.mark("<h3>Your pick teaches</h3>…and one here. Pick the better one, and the model learns from it."),
}
LABELS = {"a": words.mark("Replies of side A"), "b": words.mark("Replies of side B")}
THUMBS = {1: "Like", -1: "Dislike"}  # Gradio's names for its two icons


class Pane:
    """One side: its Chatbot and its badge, made inside the current Blocks."""

    def __init__(self, side):
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
            self.badge = gr.HTML(badge(side, None, words.Words()), elem_id=f"badge-{side}", padding=False)

    def stream(self, view, w):
        """What changes at each update while replies stream."""
        return {self.chatbot: messages(view, self.side), self.badge: badge(self.side, view, w)}

    def paint(self, view, w):
        thumbs = [THUMBS.get(m.thumb) for m in shown(view, self.side) if m.role == "assistant"]
        return {
            self.chatbot: gr.update(value=messages(view, self.side), feedback_value=thumbs),
            self.badge: badge(self.side, view, w),
        }


class Line:
    """One message as a pane has it; `id` is the store's, None where it is still being written or the person's own."""

    def __init__(self, role, text, id=None, thumb=None):
        self.role, self.text, self.id, self.thumb = role, text, id, thumb


def shown(view, side):
    """The Lines of a pane: the common history, then this side's candidate."""
    lines = [Line(m.role, m.text, m.id if m.role == "assistant" else None, m.thumb) for m in view.history]
    if view.message is not None:
        candidate = _candidate(view, side)
        lines += [
            Line("user", view.message),
            Line("assistant", candidate.text or "…", candidate.message, candidate.thumb),
        ]
    return lines


def messages(view, side):
    return [message(line) for line in shown(view, side)]


def message(line):
    """A Line for the Chatbot, as HTML. It goes as a part of type "text": Gradio takes the indentation from a plain
    string.
    """
    html = as_typed(line.text) if line.role == "user" else as_markdown(line.text)
    return {"role": line.role, "content": [{"type": "text", "text": html}]}


def badge(side, view, w):
    """The line under a pane: its letter and, after the vote, which version wrote the reply and how fast."""
    state, facts, mark = "", [], ""
    candidate = view and _candidate(view, side)
    if view and view.phase == "streaming":
        state, facts = "streaming", [w("writing…")]
    elif view and view.phase in ("voting", "voted"):
        if view.phase == "voted":
            state = _standing(view, candidate)
            facts.append(name(candidate.version, w))
            if view.writing == side:
                facts.append(w("writing…"))
        if candidate.first_token_ms is not None:
            facts.append(w("first token {ms} ms", ms=f"{candidate.first_token_ms:.0f}"))
        if candidate.tokens_per_second is not None:
            facts.append(w("{rate} tok/s", rate=f"{candidate.tokens_per_second:.0f}"))
        if candidate.edited:
            facts.append(w("edited by you"))
        if candidate.chosen:
            said = w("✓ your pick") if view.choice in SIDES else w("goes on from here, drawn by lot")
            mark = f'<b class="mark">{escape(said)}</b>'
    text = escape(" · ".join(facts))
    return f'<div class="badge {state}"><b class="letter">{side.upper()}</b><span>{text}</span>{mark}</div>'


def _standing(view, candidate):
    """The class of a side's badge after the vote. Without a winner no side looks like one; the one that goes on was
    drawn.
    """
    if view.choice in SIDES:
        return "chosen" if candidate.chosen else "passed"
    return "drawn" if candidate.chosen else ""


def _candidate(view, side):
    return view.left if side == "a" else view.right
