"""The "My votes" tab: every vote of the person who looks, and what became of it: waiting, in a reward model, in a
version.
"""

from datetime import datetime
from html import escape

import gradio as gr

from playground.people import visitor
from playground.ui import words
from playground.ui.chat import CHOICES
from playground.ui.notice import GESTURE
from playground.ui.reasons import fate
from playground.ui.text import line

STRETCH = 100  # votes shown at first, and more at each press


class VotesTab:
    """Builds the tab inside the current Blocks."""

    def __init__(self, store):
        self.store = store
        self.html = gr.HTML(elem_id="my-votes", padding=False)
        self.more = gr.Button(words.label("Show earlier votes"), size="sm", elem_id="earlier-votes", visible=False)
        self.shown, self.painted = gr.State(STRETCH), gr.State(None)

    def wire(self, moments):
        outputs = [self.html, self.more, self.shown, self.painted]
        gr.on(moments, self.on_tick, [self.shown, self.painted], outputs, **GESTURE)
        self.more.click(self.on_more, [self.shown], outputs, **GESTURE)

    def on_tick(self, shown, painted, request: gr.Request):
        """The table where it has changed."""
        try:
            annotator = self.store.annotator(visitor.token(request.cookies))
        except visitor.NoCookie:
            return gr.skip()
        w, found = words.of(request), self.store.vote_totals(annotator)
        html = totals(found, w) + table(self.store.my_votes(annotator, limit=shown), w)
        if hash(html) == painted:
            return gr.skip()
        return {self.html: html, self.painted: hash(html), self.more: gr.update(visible=found["listed"] > shown)}

    def on_more(self, shown, request: gr.Request):
        return {**self.on_tick(shown + STRETCH, None, request), self.shown: shown + STRETCH}


def totals(found, w):
    """What one's votes did so far, as figures: of those that count, and no others."""
    if not found["listed"]:
        return ""
    figures = (
        (found["votes"], w("votes of yours that count")),
        (found["published"], w("in a version that was published")),
        (found["waiting"], w("waiting for the next round")),
    )
    items = "".join(f"<div><b>{n}</b><span>{escape(label)}</span></div>" for n, label in figures)
    return f'<div class="facts">{items}</div>'


def table(votes, w):
    """The votes, newest first, as a table."""
    if not votes:
        said = w("You have not voted yet. Pick the better of two replies, and follow here what your vote does.")
        return f'<p class="empty">{escape(said)}</p>'
    heads = "".join(
        f'<th scope="col">{escape(head)}</th>'
        for head in (w("When"), w("Message"), w("Vote"), w("Foreseen"), w("What became of it"))
    )
    rows = "".join(_row(vote, w) for vote in votes)
    return f'<table class="votes"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _row(vote, w):
    when = datetime.fromisoformat(vote["created"]).strftime("%Y-%m-%d %H:%M")
    text = w("a deleted chat") if vote["deleted"] else line(vote["text"])
    text = text if len(text) <= 90 else text[:89] + "…"
    foreseen = {1: w("yes"), 0: w("no")}.get(vote["hit"], "–")
    side = f' class="side-{vote["choice"]}"' if vote["choice"] in ("a", "b") else ""
    cells = (
        f"<time>{when}</time>",
        escape(text),
        f"<b{side}>{escape(w(CHOICES[vote['choice']]))}</b>",
        escape(foreseen),
        fate(vote, w),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
