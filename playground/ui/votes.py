"""The tab "My votes": every vote of the person who looks, and what became of it: waiting, in a reward model, in a
version.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

import gradio as gr

from playground.people import visitor
from playground.store import Store
from playground.ui import words
from playground.ui.chat_panel import CHOICES
from playground.ui.handlers import GESTURE, Row, Trigger, Updates
from playground.ui.reasons import fate_html
from playground.ui.status_bar import version_name
from playground.ui.text import one_line
from playground.ui.words import Words

PAGE_SIZE = 100  # votes in the table at first, and more at each press
MESSAGE_CHARS = 90


@dataclass
class Shown:
    """What somebody's page shows."""

    limit: int = PAGE_SIZE  # votes in the table
    painted: int | None = None  # a hash of the HTML


class VotesTab:
    """Builds the tab inside the current Blocks."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.html = gr.HTML(elem_id="my-votes", padding=False)
        self.more = gr.Button(words.label("Show earlier votes"), size="sm", elem_id="earlier-votes", visible=False)
        self.shown = gr.State(Shown())

    def wire(self, refresh_events: Sequence[Trigger]) -> None:
        outputs = [self.html, self.more]
        gr.on(refresh_events, self.on_tick, [self.shown], outputs, **GESTURE)
        self.more.click(self.on_more, [self.shown], outputs, **GESTURE)

    def on_tick(self, shown: Shown, request: gr.Request) -> Updates:
        """The table, where it has changed."""
        try:
            annotator = self.store.annotator(visitor.token(request.cookies))
        except visitor.NoCookie:
            return gr.skip()
        translate = words.of(request)
        limit = shown.limit
        totals = self.store.vote_totals(annotator)
        votes = self.store.my_votes(annotator, limit=limit)
        html = totals_html(totals, translate) + self._trial_html(annotator, translate) + table_html(votes, translate)
        if hash(html) == shown.painted:
            return gr.skip()
        shown.painted = hash(html)
        return {self.html: html, self.more: gr.update(visible=totals["listed"] > limit)}

    def _trial_html(self, annotator: int, translate: Words) -> str:
        """What the person's own votes say of the version on trial."""
        trial = self.store.open_trial()
        own = trial and self.store.votes_on_trial(trial, annotator)
        if not trial or not own or not own["wins"] + own["losses"]:
            return ""
        text = translate(
            "You preferred {version} to {name} in {wins} of {n} {n:pair|pairs}.",
            version=version_name(trial["version"], translate),
            name=version_name(trial["against"], translate),
            wins=own["wins"],
            n=own["wins"] + own["losses"],
        )
        return f'<p class="trial">{escape(text)}</p>'

    def on_more(self, shown: Shown, request: gr.Request) -> Updates:
        """A longer table."""
        shown.limit += PAGE_SIZE
        updates = self.on_tick(shown, request)
        shown.painted = None
        return updates


def totals_html(totals: Row, translate: Words) -> str:
    """What a person's votes did so far, as figures (of `Store.vote_totals`): of those that count only."""
    if not totals["listed"]:
        return ""
    figures = (
        (totals["votes"], translate("votes of yours that count")),
        (totals["published"], translate("in a version that was published")),
        (totals["waiting"], translate("waiting for the next round")),
    )
    items = "".join(f"<div><b>{figure}</b><span>{escape(label)}</span></div>" for figure, label in figures)
    return f'<div class="facts">{items}</div>'


def table_html(votes: Sequence[Row], translate: Words) -> str:
    """The votes (rows of `Store.my_votes`), newest first, as a table."""
    if not votes:
        text = translate("You have not voted yet. Pick the better of two replies, and follow here what your vote does.")
        return f'<p class="empty">{escape(text)}</p>'
    headings = (
        translate("When (UTC)"),
        translate("Message"),
        translate("Vote"),
        translate("Reward model predicted it"),
        translate("What became of it"),
    )
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(_row_html(vote, translate) for vote in votes)
    return f'<table class="votes"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _row_html(vote: Row, translate: Words) -> str:
    created = datetime.fromisoformat(vote["created"]).strftime("%Y-%m-%d %H:%M")
    message = translate("a deleted chat") if vote["deleted"] else one_line(vote["text"])
    if len(message) > MESSAGE_CHARS:
        message = message[: MESSAGE_CHARS - 1] + "…"
    predicted = {1: translate("yes"), 0: translate("no")}.get(vote["hit"], "–")
    css_class = f' class="side-{vote["choice"]}"' if vote["choice"] in ("a", "b") else ""
    cells = (
        f"<time>{created}</time>",
        escape(message),
        f"<b{css_class}>{escape(translate(CHOICES[vote['choice']]))}</b>",
        escape(predicted),
        fate_html(vote, translate),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
