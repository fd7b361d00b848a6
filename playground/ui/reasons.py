"""After a vote: why (tags and a comment), and what became of it, live."""

from html import escape

import gradio as gr

from playground.chat.refusals import Refused
from playground.chat.votes import REASONS
from playground.ui import inputs, words
from playground.ui.notice import GESTURE, seen
from playground.ui.strip import name

TAGS = list(
    dict.fromkeys(tag for tags in REASONS.values() for tag in tags)
)  # all there are; a vote shows those that fit it


class Reasons:
    """The row below the vote buttons, made inside the current Blocks."""

    def __init__(self, store, chat, notice):
        self.store, self.chat, self.notice = store, chat, notice
        with gr.Row(elem_id="reasons"):
            self.better = gr.Button(words.label("✎ Write a better one"), size="sm", elem_id="better", visible="hidden")
            self.tags = inputs.CheckboxGroup(
                [(words.label(tag), tag) for tag in TAGS],
                label=words.label("Why? (optional)"),
                show_label=False,
                container=False,
                elem_id="tags",
                visible="hidden",
                min_width=100,
            )
            self.comment = gr.Textbox(
                placeholder=words.label("Add a comment"),
                label=words.label("Comment"),
                show_label=False,
                container=False,
                lines=1,
                max_lines=1,
                elem_id="comment",
                visible="hidden",
                min_width=100,
            )
            self.fate = gr.HTML(elem_id="fate", padding=False)

    @property
    def outputs(self):
        return [self.better, self.tags, self.comment, self.fate]

    def wire(self, shown, annotator):
        """`shown` is the page's state, `annotator` tells who asks."""

        def explainer(reason):
            """The handler of "tags" or "comment": each says its own and nothing of the other, whose answer may be on
            its way.
            """

            def on_explain(on_page, value, request: gr.Request):
                w = words.of(request)
                try:
                    vote = (
                        self.store.current_vote(on_page.duel, annotator(request)) if on_page and on_page.duel else None
                    )
                    if vote is None:
                        raise Refused("Vote first, then say why.")
                    self.chat.explain(annotator(request), vote["id"], **{reason: value})
                    return gr.skip()
                except Refused as error:
                    return self.notice.warn(w.message(error.message), w("Not recorded"))

            return on_explain

        self.better.click(
            None, None, None, js="() => window.nudge.better()", show_progress="hidden", api_visibility="private"
        )
        latest = {"trigger_mode": "always_last", **GESTURE}
        self.tags.input(explainer("tags"), [shown, self.tags], [self.notice.html], **latest)
        gr.on(
            [self.comment.submit, self.comment.blur],
            explainer("comment"),
            [shown, self.comment],
            [self.notice.html],
            **latest,
        )

    def paint(self, view, w):
        voted = view.phase == "voted"
        tags = REASONS.get(view.choice, ()) if voted else ()
        return {
            self.better: gr.update(visible=seen(voted and view.choice == "both_bad")),
            self.tags: gr.update(
                choices=[(w(tag), tag) for tag in tags or TAGS],
                value=[tag for tag in view.tags if tag in tags],
                visible=seen(bool(tags)),
            ),
            self.comment: gr.update(value=view.comment, visible=seen(voted and view.choice != "skip")),
            self.fate: self._fate(view.vote, w) if voted else "",
        }

    def follow(self, duel, annotator, w):
        """The line alone, on a tick."""
        vote = self.store.current_vote(duel, annotator) if duel else None
        return {self.fate: self._fate(vote["id"], w) if vote else ""}

    def _fate(self, vote, w):
        row = self.store.vote_fate(vote)
        counts = f"<b>{escape(w('Your vote counts:'))}</b> " if row["counts"] else ""
        return f'<span class="fate">{counts}{fate(row, w)}</span>'


def fate(row, w):
    """What became of a vote (a row of `Store.my_votes`), as a chip."""
    if row["choice"] == "skip":
        state, text = "skipped", w("skipped, no round learns from it")
    elif row["version"] is None and row["deleted"]:
        state, text = "skipped", w("deleted, no round learns from it")
    elif row["round"] is None and not row["allowed"]:
        state, text = "skipped", w("you said no to training on your chats")
    elif row["round"] is None and not row["counts"]:
        state, text = "skipped", w("not counted")
    elif row["version"] is not None:
        state, text = "used", w("in policy {version}", version=name(row["version"], w))
    elif row["round"] is None:
        state, text = "pending", w("waits for the next round")
    elif row["heldout"]:
        state, text = "used", w("round {n} is measured on it", n=row["round"])
    else:
        state, text = "learned", w("in the reward model of round {n}", n=row["round"])
    early = f" · {w('picked early')}" if row["early"] else ""
    return f'<i class="chip {state}">{escape(text + early)}</i>'
